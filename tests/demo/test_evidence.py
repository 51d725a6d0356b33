"""What the report shows is found by what episodes say of themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from grape.demo.evidence import example_pair, example_videos
from grape.demo.pipeline import Layout
from grape.demo.plan import parse_plan
from grape.rollouts.store import RunWriter
from grape.rollouts.video import video_path
from grape.trajectory import EpisodeInfo, Status
from tests.demo.test_plan import changed
from tests.rollouts.rollout_records import make_trajectory


def store_run(folder: Path, *statuses: Status) -> list[EpisodeInfo]:
    """A run of the suite that its folder is named after: one episode, and its video, for each state."""
    made = [make_trajectory(index, status=status) for index, status in enumerate(statuses)]
    made = [dataclasses.replace(one, info=dataclasses.replace(one.info, suite=folder.name)) for one in made]
    (folder / "videos").mkdir(parents=True)
    with RunWriter(folder, settings={}) as writer:
        for one in made:
            writer.save(one)
            video_path(folder / "videos", one.info).touch()
    return [one.info for one in made]


def test_a_pair_is_found_in_the_suite_that_holds_it(tmp_path: Path) -> None:
    layout = Layout(run_dir=tmp_path, plan=parse_plan(changed(), "here"))
    *_, (rejected, chosen) = (store_run(layout.rollouts(0, suite), "failure", "success") for suite in layout.plan.tasks)
    pair = {"chosen": chosen.episode_id, "rejected": rejected.episode_id, "margin": 1.0}
    layout.pairs(0).mkdir(parents=True)
    report = {"pairs": [pair | {"chosen_score": 2.0, "rejected_score": 1.0}]}
    (layout.pairs(0) / "pairing.json").write_text(json.dumps(report))
    shown = example_pair(layout)
    assert shown is not None
    assert (shown.chosen.info, shown.rejected.info) == (chosen, rejected)


def test_videos_are_those_of_the_state_and_say_what_the_episodes_say(tmp_path: Path) -> None:
    layout = Layout(run_dir=tmp_path, plan=parse_plan(changed(), "here"))
    store_run(layout.evaluation("before", "libero_spatial"), "success", "failure")
    store_run(layout.evaluation("after", "libero_spatial"), "success", "success")
    row = {"suite": "libero_spatial", "task_id": 2, "init_states": ["rollout/0", "rollout/1"]}
    result = {"arms": ["before", "after"], "tasks": [row | {"before": [True, False], "after": [True, True]}]}
    videos = example_videos(layout, result)
    assert [(video.arm, video.status) for video in videos] == [("before", "failure"), ("after", "success")]
    assert all("rollout-1" in video.path.name and video.path.is_file() for video in videos)
