"""What the report shows of a run beyond its numbers: scores, one pair, one state's videos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape.demo.pipeline import Layout
from grape.demo.result import first_changed_state
from grape.rollouts.store import RolloutStore
from grape.rollouts.video import video_path
from grape.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class ScoredRollout:
    """One rollout's score and terms."""

    success: bool
    terms: dict[str, float]
    """``score``, and its weighted terms ``r_self``, ``r_ext`` and ``i_success``."""


@dataclass(frozen=True, kw_only=True)
class ExamplePair:
    """Chosen and rejected trajectory of one pair."""

    chosen: Trajectory
    rejected: Trajectory
    chosen_score: float
    rejected_score: float
    num_steps: int | None
    """Training saw at most this many steps of either side; ``None`` for all."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """An arm's episode on one state."""

    arm: str
    suite: str
    task_id: int
    state: str
    status: str
    path: Path


def scored_rollouts(layout: Layout) -> list[ScoredRollout]:
    """All scored rollouts of the run, crashed ones left out."""
    rollouts = []
    for iteration in range(layout.plan.iterations):
        for suite in layout.plan.tasks:
            episodes = json.loads(layout.scores(iteration, suite).read_text())["episodes"]
            for info in RolloutStore(layout.rollouts(iteration, suite)).infos():
                if info.status != "crashed" and info.episode_id in episodes:
                    entry = episodes[info.episode_id]
                    terms = {"score": entry["score"], **entry["weighted"]}
                    rollouts.append(ScoredRollout(success=info.status == "success", terms=terms))
    return rollouts


def example_pair(layout: Layout) -> ExamplePair | None:
    """The pair of median margin in the first iteration: neither the best example nor the worst."""
    report = json.loads((layout.pairs(0) / "pairing.json").read_text())
    pairs = sorted(report["pairs"], key=lambda pair: pair["margin"])
    if not pairs:
        return None
    pair = pairs[len(pairs) // 2]
    stores = [RolloutStore(layout.rollouts(0, suite)) for suite in layout.plan.tasks]
    store = next((store for store in stores if store.has(pair["chosen"])), stores[0])
    return ExamplePair(
        chosen=store.load(pair["chosen"]),
        rejected=store.load(pair["rejected"]),
        chosen_score=pair["chosen_score"],
        rejected_score=pair["rejected_score"],
        num_steps=pair.get("num_steps"),
    )


def example_videos(layout: Layout, result: Mapping[str, Any]) -> list[Video]:
    """Every arm's video of the same state."""
    found = first_changed_state(result)
    if found is None:
        return []
    suite, task_id, state = found
    videos = []
    for arm in result["arms"]:
        store = RolloutStore(layout.evaluation(arm, suite))
        info = next(info for info in store.infos() if (info.task_id, info.init_state_id) == (task_id, state))
        path = video_path(store.run_dir / "videos", info)
        if path.is_file():
            videos.append(Video(arm=arm, suite=suite, task_id=task_id, state=state, status=info.status, path=path))
    return videos
