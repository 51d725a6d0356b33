"""What goes into pairing and what comes out of it."""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grape.config.pair import PairingSettings
from grape.trajectory import EpisodeInfo


@dataclass(frozen=True, kw_only=True)
class ScoredEpisode:
    """One stored episode together with what ``grape score`` said about it."""

    info: EpisodeInfo
    """The episode's header."""
    score: float | None
    """Guided cost R, larger is better; ``None`` where the episode was not scored."""
    terms: dict[str, Any] = field(default_factory=dict)
    """Everything that the scores file holds for this episode (``r_self``, ``r_ext``, ``i_success``, …)."""
    path: Path | None = None
    """File of the episode."""

    @property
    def label(self) -> str:
        """Name for messages: the file where known, else the episode's id."""
        return str(self.path) if self.path is not None else self.info.episode_id

    @property
    def success(self) -> bool:
        return self.info.status == "success"


@dataclass(frozen=True, kw_only=True)
class PlannedPair:
    """One pair that is to be written."""

    pair_id: str
    """Unique in its data set; starts with the position, six digits."""
    chosen: ScoredEpisode
    rejected: ScoredEpisode
    num_steps: int | None = None
    """At most this many steps are written of either side, from the first on; ``None`` for all."""

    @property
    def margin(self) -> float:
        """Score of chosen minus score of rejected; always above 0."""
        assert self.chosen.score is not None and self.rejected.score is not None
        return self.chosen.score - self.rejected.score


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """An episode in no pair, and why."""

    episode: ScoredEpisode
    reason: str
    """Short, countable reason."""
    detail: str = ""
    """What is particular to this episode."""


@dataclass(frozen=True, kw_only=True)
class PairingReport:
    """Outcome of ``pair_episodes``: every episode is in a pair or left over with a reason."""

    pairs: tuple[PlannedPair, ...]
    leftovers: tuple[Leftover, ...]
    settings: PairingSettings
    num_episodes: int
    num_states: int

    def text(self) -> str:
        """The report as lines for a terminal."""
        lines = [
            f"{len(self.pairs)} pairs from {self.num_episodes} episodes of {self.num_states} initial states "
            f"({self.settings.strategy}, margin >= {self.settings.min_margin:g})"
        ]
        per_task = collections.Counter((pair.chosen.info.suite, pair.chosen.info.task_id) for pair in self.pairs)
        lines += [f"  {suite} task {task_id}: {count} pairs" for (suite, task_id), count in sorted(per_task.items())]
        if self.pairs:
            margins = sorted(pair.margin for pair in self.pairs)
            over_failure = sum(pair.chosen.success and not pair.rejected.success for pair in self.pairs)
            lines.append(
                f"  margin: smallest {margins[0]:.4g}, median {margins[len(margins) // 2]:.4g}, largest "
                f"{margins[-1]:.4g}; success over failure in {over_failure} of {len(self.pairs)}"
            )
            cuts = [pair.num_steps for pair in self.pairs if pair.num_steps is not None]
            if cuts:
                lines.append(f"  cut where they part: after {statistics.median(cuts):g} steps in the median")
        lines.append(f"{len(self.leftovers)} episodes left over")
        lines += [
            f"  {count}: {reason}"
            for reason, count in collections.Counter(item.reason for item in self.leftovers).most_common()
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, one entry for each pair and each episode left over."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "num_episodes": self.num_episodes,
            "num_states": self.num_states,
            "pairs": [
                {
                    "pair_id": pair.pair_id,
                    "chosen": pair.chosen.info.episode_id,
                    "rejected": pair.rejected.info.episode_id,
                    "chosen_score": pair.chosen.score,
                    "rejected_score": pair.rejected.score,
                    "margin": pair.margin,
                    "num_steps": pair.num_steps,
                }
                for pair in self.pairs
            ],
            "leftovers": [
                {
                    "episode": item.episode.info.episode_id,
                    "score": item.episode.score if math.isfinite(item.episode.score or 0.0) else None,
                    "reason": item.reason,
                    "detail": item.detail,
                }
                for item in self.leftovers
            ],
        }
