"""Evaluation and comparison from the command line, in the real simulator with a real, tiny policy."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from grape.cli.arguments import complete_switches, resume_command
from grape.cli.compare import compare_results, describe
from grape.cli.evaluate import build_result, format_table, log_to_wandb
from grape.cli.main import EXIT_ERROR, EXIT_USAGE, main
from grape.config.collect import CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.config.pair import PairConfig
from grape.errors import ConfigError, RecordError
from grape.rollouts.progress import RolloutProgress
from grape.rollouts.video import write_video
from grape.trainer.metrics import read_metrics
from grape.trajectory import EpisodeInfo
from tests.rollouts.rollout_records import make_trajectory


def episode(index: int, status: str, task_id: int = 0, rollout: int = 0) -> EpisodeInfo:
    return EpisodeInfo(
        simulator="libero", suite="libero_spatial", task_id=task_id, task_name="t", instruction=f"do {task_id}",
        init_state_id=f"official/{index}", init_state_hash=f"hash-{task_id}-{index}", rollout_index=rollout,
        policy="p", checkpoint_hash="c" * 64, status=status, num_steps=5, wall_time_s=2.0,  # type: ignore[arg-type]
        simulator_settings={"mujoco_gl": "egl"}, error="it died" if status == "crashed" else None,
    )  # fmt: skip


def result(statuses: str, **settings: Any) -> dict[str, Any]:
    """An evaluation of states official/0, 1, … of task 0: + success, - failure, ! crashed."""
    names = {"+": "success", "-": "failure", "!": "crashed"}
    run = {
        "settings": {"suite": "libero_spatial", "init_split": "official", "temperature": 0.0, **settings},
        "details": {},
        "versions": {"mujoco": "3.3.2"},
    }
    return build_result(run, [episode(i, names[s]) for i, s in enumerate(statuses)], wall_time_s=9.0)


def test_evaluating_with_the_published_command(
    libero: None, tiny_policy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = ["--model_family", "openvla", "--pretrained_checkpoint", str(tiny_policy_dir)]
    published += ["--task_suite_name", "libero_spatial", "--center_crop", "True"]
    published += ["--local_log_dir", str(tmp_path), "--run_id_note", "a_note", "--num_trials_per_task", "2"]
    own = ["--task_ids", "0", "--max_steps", "3", "--render_profile", "fast", "--camera_size", "64"]
    own += ["--videos", "all", "--num_workers", "1", "--device", "cpu"]
    assert main(["eval", *published, *own]) == 0
    shown, said = capsys.readouterr()
    assert "the official states are for testing only" in said
    [run_dir] = tmp_path.glob("EVAL-libero_spatial-openvla-*--a_note")
    # 0 of 2 at 95 %: the upper bound is z² / (2 + z²) = 3.8415 / 5.8415 = 65.8 %.
    assert "0/2" in shown and "[0.0, 65.8]" in shown
    got = json.loads((run_dir / "results.json").read_text())
    assert [state["id"] for state in got["tasks"][0]["states"]] == ["official/0", "official/1"]
    assert [state["outcomes"] for state in got["tasks"][0]["states"]] == [[False], [False]]
    assert got["total"]["trials"] == 2 and got["total"]["successes"] == 0
    assert got["settings"]["center_crop"] is True and got["settings"]["temperature"] == 0
    assert got["versions"]["mujoco"] and got["simulator_settings"]["render_profile"] == "fast"
    assert got["wall_time_s"] > 0 and len(got["checkpoint_hash"]) == 64
    videos = sorted((run_dir / "videos").iterdir())
    assert [video.name for video in videos] == [
        f"libero_spatial--00--official-{index}--r000--failure.mp4" for index in range(2)
    ]
    assert len([*imageio.get_reader(videos[0], "ffmpeg").iter_data()]) == 3
    assert not [*(run_dir / "episodes").glob("*.npz")], "an evaluation keeps outcomes, not pictures"

    before = (run_dir / "episodes").stat().st_mtime_ns
    assert main(["eval", *published, *own, "--run_dir", str(run_dir)]) == EXIT_ERROR
    assert main(["eval", *published, *own, "--run_dir", str(run_dir), "--resume"]) == 0
    assert (run_dir / "episodes").stat().st_mtime_ns == before, "resuming a finished evaluation runs nothing"

    capsys.readouterr()
    out = tmp_path / "comparison.json"
    assert main(["compare", str(run_dir), str(run_dir / "results.json"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "note: both are the same checkpoint" in shown and "p = 1" in shown
    assert json.loads(out.read_text())["observed"]["num_states"] == 2


def test_the_table_says_what_was_counted() -> None:
    text = format_table(result("++-!"))
    # 2 of 3: Wilson's interval solves (2/3 - b)² = z² b (1 - b) / 3, b = 0.2077 and 0.9385.
    assert "2/3" in text and "66.7 %" in text and "[20.8, 93.9]" in text
    assert "task 0, official/0 on: + + - !" in text


def test_the_result_counts_crashes_apart() -> None:
    got = result("+!")
    assert (got["total"]["trials"], got["total"]["rate"], got["total"]["num_crashed"]) == (1, 1.0, 1)
    assert got["crashed_episodes"] == {"libero_spatial--00--official-1--r000": "it died"}
    assert (got["wall_time_s"], got["episode_time_s"]) == (9.0, 4.0)
    json.dumps(got, allow_nan=False)


def test_compare_in_words() -> None:
    before, after = result("-----+!"), result("+++++-+")
    text = describe(compare_results(before, after), before, after)
    # 5 better, 1 worse of 6: McNemar 2 (1 + 6) / 64 = 0.21875, printed with two digits.
    assert "16.7 % -> 83.3 % on 6 states" in text and "+66.7 points" in text
    assert "5 states better, 1 worse" in text and "p = 0.22" in text
    assert "dropped, as the simulator crashed: task 0 official/6" in text
    # Worst case: the dropped state had succeeded before, so it ties: difference (5 - 1) / 7.
    assert "on 7 states: difference +57.1 points" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 1.0}, "differ in temperature: 0.0 before, 1.0 after"),
        ({"render_profile": "fast"}, "differ in render_profile: None before, 'fast' after"),
        ({"max_steps": 10}, "differ in max_steps"),
    ],
)
def test_compare_refuses_other_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_results(result("+"), result("+", **change))


def test_compare_refuses_other_simulators_and_states() -> None:
    other = result("+")
    other["versions"] = {"mujoco": "3.4.0"}
    with pytest.raises(ConfigError, match=r"differ in mujoco: '3\.3\.2' before, '3\.4\.0' after"):
        compare_results(result("+"), other)
    with pytest.raises(ConfigError, match="only after: task 0 official/1"):
        compare_results(result("+"), result("+-"))


def test_seeds_matter_only_when_sampling() -> None:
    compare_results(result("+", seed=0), result("+", seed=1))
    with pytest.raises(ConfigError, match="differ in seed: 0 before, 1 after"):
        compare_results(result("+", seed=0, temperature=1.0), result("+", seed=1, temperature=1.0))


def test_compare_mentions_what_belongs_to_a_policy() -> None:
    before, after = result("+", center_crop=True), result("+", center_crop=False)
    assert "note: center_crop differs" in describe(compare_results(before, after), before, after)


def test_compare_mentions_other_libraries_and_simulator_settings() -> None:
    before, after = result("+"), result("+")
    for one, torch, mujoco in ((before, "2.8.0", "3.3.2"), (after, "2.9.0", "3.4.0")):
        one["versions"] = {"mujoco": "3.3.2", "torch": torch}
        one["simulator_settings"] = {"versions": {"mujoco": mujoco}, "assets": torch, "max_steps": int(torch[2])}
    text = describe(compare_results(before, after), before, after)
    assert "note: version of torch differs: '2.8.0' before, '2.9.0' after" in text
    assert "note: the simulator's version of mujoco differs: '3.3.2' before, '3.4.0' after" in text
    assert text.count("differs:") == 2, "assets and limits belong to a task, and are compared there"


@pytest.mark.parametrize(
    "states",
    [
        *([{"id": "official/0", "hash": "h", "outcomes": [value]}] for value in ("yes", 2, -1, 0.37, math.nan)),
        [{"id": "official/0", "hash": "h", "outcomes": []}],
        [{"id": "official/0", "hash": "h"}],
        [{"id": "official/0", "hash": "h", "outcomes": [True]}] * 2,
        ["official/0"],
        None,
    ],
)
def test_compare_refuses_damaged_states(states: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    damaged = result("+")
    damaged["tasks"][0]["states"] = states
    path.write_text(json.dumps(damaged))
    assert main(["compare", str(path), str(path)]) == EXIT_ERROR
    assert f"{path} is damaged" in capsys.readouterr().err


def test_compare_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(result("+-")))
    assert main(["compare", str(path), str(path), "--out", str(tmp_path)]) == EXIT_ERROR
    assert f"{tmp_path} could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 7}', '{"format_version": 1, "tasks": []}'])
def test_compare_refuses_other_files(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    assert main(["compare", str(path), str(path)]) == EXIT_ERROR
    assert "results.json" in capsys.readouterr().err


def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = EvaluateConfig(pretrained_checkpoint="p", run_dir=tmp_path, use_wandb=True)
    log_to_wandb(config, result("++-!"))
    assert [*tmp_path.glob("wandb/offline-run-*/*.wandb")]
    rate = pytest.approx(2 / 3)
    assert read_metrics(tmp_path) == [
        {"step": 1, "success_rate/0": rate, "success_rate/total": rate, "num_episodes": 4.0}
    ]


def test_no_wandb_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # what import finds where it is not installed
    arguments = ["--pretrained_checkpoint", str(tmp_path / "nothing"), "--run_dir", str(tmp_path / "run")]
    assert main(["eval", *arguments, "--use_wandb"]) == EXIT_ERROR
    assert "grape-vla[wandb]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_flags_are_refused() -> None:
    assert main(["eval", "--pretrained_checkpoint", "p", "--num_trails_per_task", "2"]) == EXIT_USAGE


def test_switches_stand_alone_or_with_a_value() -> None:
    assert complete_switches(EvaluateConfig, ["--resume"]) == ["--resume", "True"]
    arguments = ["--resume", "--seed", "3", "--center_crop", "False", "--use-wandb", "--run_dir", "r"]
    assert complete_switches(EvaluateConfig, arguments) == [
        *("--resume", "True", "--seed", "3", "--center_crop", "False", "--use-wandb", "True", "--run_dir", "r")
    ]
    assert complete_switches(PairConfig, ["--prefer_failure_over_success"])[-1] == "True"  # a field of a config in it
    assert complete_switches(CollectConfig, ["--allow_official_states"]) == ["--allow_official_states", "True"]


def test_the_resume_command_can_be_pasted() -> None:
    assert resume_command("collect", ["--run_dir", "a b"]) == "grape collect --run_dir 'a b' --resume"
    assert resume_command("collect", ["--resume", "--seed", "1"]) == "grape collect --resume --seed 1"
    assert resume_command("eval", ["--seed", "1"], "--run_dir", "r") == "grape eval --seed 1 --run_dir r --resume"


def test_progress_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stream = io.StringIO()
    done = [make_trajectory(0, num_steps=10).info]
    progress = RolloutProgress(num_episodes=4, done=done, max_steps=50, stream=stream)
    assert "? actions/s, left ?" in progress.describe()
    progress.acted(2)  # starts the clock
    now = 110.0
    progress.acted(20)
    progress.finished(make_trajectory(1, num_steps=20, status="failure"))
    # 20 actions in 10 s; 2 episodes of 15 actions on average are left: 30 / 2 = 15 s.
    assert progress.describe() == "success 50 %, 2.0 actions/s, left 00:15"
    progress.finished(make_trajectory(2, num_steps=0, status="crashed"))
    assert progress.describe() == "success 50 %, 2.0 actions/s, left 00:07, crashed 1"
    progress.close()
    assert "3/4" in stream.getvalue()


def test_a_video_shows_every_picture_in_order(tmp_path: Path) -> None:
    levels = [0, 80, 160, 240]
    images = np.stack([np.full((35, 29, 3), level, np.uint8) for level in levels])  # odd sides, as H.264 dislikes
    write_video(tmp_path / "videos" / "a.mp4", images)
    frames = [*imageio.get_reader(tmp_path / "videos" / "a.mp4", "ffmpeg").iter_data()]
    assert [frame.shape for frame in frames] == [(34, 28, 3)] * 4
    # H.264 is lossy, and narrows the range of levels by a few: 10 still tells the pictures apart.
    assert [float(frame.mean()) for frame in frames] == pytest.approx(levels, abs=10)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["a.mp4"]


def test_a_video_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_video(tmp_path / "a.mp4", np.zeros((2, 32, 32, 3), np.uint8))
    finally:
        os.umask(before)
    assert (tmp_path / "a.mp4").stat().st_mode & 0o777 == 0o640


def test_a_video_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no pictures"):
        write_video(tmp_path / "a.mp4", np.zeros((0, 8, 8, 3), np.uint8))
