"""``grape constraints check`` on hand-made episodes: what it counts, and what it cannot be asked. Real episodes are in
tests/envs/test_constraints_check.py."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grape.cli.check_strip import frames
from grape.cli.constraints_check import check_rollouts, main
from grape.config.constraints_check import ConstraintsCheckConfig
from grape.config.score import GuidedCostConfig
from grape.constraints import load_constraints
from grape.errors import ConfigError, ConstraintError, RecordError
from grape.scene import Camera, SceneView
from tests.rewards.test_score_command import episode, write_run

HELD = {"name": "hold", "done_when": "grasped(bowl_1)", "sub_goal": "where(grasped(bowl_1), 0, 0.1)"}
CONSTRAINTS = {"instruction": "put it on the plate", "stages": [HELD], "source": "written by hand"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """From each of two states: one that never grasps, one that drops before the plate, one success; and a crash."""
    episodes = [episode(i, progress, state=s) for s in range(2) for i, progress in enumerate((0, 2, 4))]
    return write_run(tmp_path / "run", [*episodes, episode(7, 4, status="crashed")])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "constraints.json"
    path.write_text(json.dumps(CONSTRAINTS))
    return path


def report_of(**settings) -> dict:
    [report] = check_rollouts(ConstraintsCheckConfig(num_resamples=200, **settings))["tasks"].values()
    return report


def test_counts_and_ranking_by_hand(run: Path, file: Path) -> None:
    found = report_of(file=file, rollouts=(run,))
    assert (found["num_episodes"], found["num_successes"], found["num_failures"]) == (6, 2, 4)
    [stage] = found["stages"]
    assert (stage["num_successes_own"], stage["num_failures_own"], stage["num_failures_end_here"]) == (2, 2, 2)
    assert stage["median_step"] == 4
    # grasping is all that is asked: each success (2) beats those that never grasp (2) and ties with the others (2)
    assert found["ranking"]["auc"] == {"value": 0.75, "low": 0.75, "high": 0.75}  # both states are alike
    assert found["ranking"]["auc_of_shortness"]["value"] == 0.5  # all are equally long
    assert found["ranking"]["auc_minus_shortness"]["value"] == 0.25
    # failures have completed 0 or 2 of the derived stages, in the same order as R_ext
    assert found["ranking"]["tau"]["value"] == 1.0
    [cost] = found["costs"]
    assert (cost["num_fired"], cost["num_over_threshold"], cost["largest"]) == (6, 2, 0.1)
    assert cost["auc"]["value"] == 0.75 and not found["reads_goal"]


def test_the_first_steps_alone_see_no_more(run: Path, tmp_path: Path) -> None:
    short = episode(3, 4, state=0)
    cut = {name: values[:4] for name, values in short.facts.items()}  # it succeeds before anything was grasped
    steps = {name: getattr(short, name)[:3] for name in (
        "images", "action_tokens", "token_logps", "sampler_logps", "policy_actions", "actions", "states")}  # fmt: skip
    info = dataclasses.replace(short.info, num_steps=3, rollout_index=9)
    found = report_of(
        rollouts=(run, write_run(tmp_path / "b", [dataclasses.replace(short, info=info, facts=cut, **steps)]))
    )
    assert found["prefix_steps"] == 3
    assert found["ranking"]["auc_prefix"]["value"] == 0.5 < found["ranking"]["auc"]["value"]


def test_the_verdict_is_taken_away(run: Path) -> None:
    derived = report_of(rollouts=(run,))
    assert derived["reads_goal"] and derived["ranking"]["auc"]["value"] == 1.0
    constraints = {"instruction": "put it on the plate", "stages": [{"name": "all", "done_when": "goal(0)",
        "sub_goal": "where(goal(0), 0, 0.1)"}]}  # fmt: skip
    path = run.parent / "verdict.json"
    path.write_text(json.dumps(constraints))
    alone = report_of(file=path, rollouts=(run,))["ranking"]
    assert (alone["auc"]["value"], alone["auc_blind"]["value"]) == (1.0, 0.5)


def test_only_successes_leave_the_ranking_undefined(tmp_path: Path, file: Path, capsys) -> None:
    won = write_run(tmp_path / "won", [episode(i, 4) for i in range(2)])
    assert main([str(file), "--rollouts", str(won)]) == 0
    said = capsys.readouterr().out
    assert "AUC is not defined: there are no failures" in said and "whole episode                     -" in said
    lost = write_run(tmp_path / "lost", [episode(i, 2) for i in range(2)])
    assert main([str(file), "--rollouts", str(lost)]) == 1
    assert "NOT USABLE: none of the 2 episodes is a success" in capsys.readouterr().out


def test_a_file_is_about_one_task(run: Path, tmp_path: Path, file: Path) -> None:
    mixed = write_run(tmp_path / "mixed", [episode(i, 4 * i, task=task) for task in (0, 1) for i in (0, 1)])
    with pytest.raises(ConfigError, match=r"libero_spatial/0, libero_spatial/1; a file .* name it with --task"):
        check_rollouts(ConstraintsCheckConfig(file=file, rollouts=(mixed,)))
    assert report_of(file=file, rollouts=(mixed,), task="libero_spatial/1")["num_episodes"] == 2
    assert set(check_rollouts(ConstraintsCheckConfig(rollouts=(mixed,)))["tasks"]) == {
        "libero_spatial/0",
        "libero_spatial/1",
    }
    with pytest.raises(ConfigError, match="no finished episode of task 'libero_spatial/7'"):
        check_rollouts(ConstraintsCheckConfig(file=file, rollouts=(run,), task="libero_spatial/7"))
    with pytest.raises(ConfigError, match="a strip shows one"):
        check_rollouts(ConstraintsCheckConfig(rollouts=(mixed,), strip=Path("a.png")))


def test_what_cannot_be_checked_is_told(run: Path, tmp_path: Path, file: Path) -> None:
    crashed = write_run(tmp_path / "crashed", [episode(0, 4, status="crashed")])
    with pytest.raises(RecordError, match="no finished episode"):
        check_rollouts(ConstraintsCheckConfig(file=file, rollouts=(crashed,)))
    with pytest.raises(RecordError, match=r"no run\.json"):
        check_rollouts(ConstraintsCheckConfig(file=file, rollouts=(tmp_path,)))
    with pytest.raises(ConstraintError, match="cannot be read"):
        check_rollouts(ConstraintsCheckConfig(file=tmp_path / "none.json", rollouts=(run,)))
    for settings, message in (
        ({"rollouts": ()}, "no rollouts were named"),
        ({"preset": "relase"}, "Did you mean 'release'"),
        ({"num_resamples": 1}, "between 100 and"),
        ({"strip": Path("strip.gif")}, r"neither \.webp nor \.png"),
        ({"file": file, "out": file}, "would replace the constraints"),
    ):
        with pytest.raises(ConfigError, match=message):
            ConstraintsCheckConfig(**{"rollouts": (run,), **settings})


def test_a_strip_where_the_scene_cannot_be_looked_at(tmp_path: Path, capsys) -> None:
    one, other = (
        dataclasses.replace(made, info=dataclasses.replace(made.info, suite="nobodys_kitchen"))
        for made in (episode(0, 4), episode(1, 2))
    )
    run, path = write_run(tmp_path / "run", [one, other]), tmp_path / "strip.png"
    assert main(["--rollouts", str(run), "--strip", str(path)]) == 0
    said = capsys.readouterr().out
    assert "no keypoints drawn: unknown suite 'nobodys_kitchen'" in said
    assert f"success {one.info.episode_id} and failure {other.info.episode_id}" in said
    assert path.read_bytes().startswith(b"\x89PNG")


def test_points_are_known_to_the_check_and_to_the_strip(run: Path, tmp_path: Path) -> None:
    lifted = {"name": "lift", "done_when": "height(rim) - start(height(rim)) > 0.05"}
    rim = {"of": "bowl_1", "offset_m": [0, 0, 0]}
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"instruction": "lift", "stages": [lifted], "points": {"rim": rim}}))
    assert report_of(file=path, rollouts=(run,))["errors"] == []
    trajectory, shape = episode(0, 4), (8, 8)
    view = SceneView(
        image=np.zeros((*shape, 3), np.uint8), depth_m=np.ones(shape, np.float32),
        segmentation=np.zeros(shape, np.int32), keypoint_names=(), keypoints_m=np.zeros((0, 3)),
        camera=Camera(intrinsics=np.array([[1, 0, 4], [0, 1, 4], [0, 0, 1]]), camera_to_world=np.eye(4)),
    )  # fmt: skip
    constraints = load_constraints(path)
    marked, plain = (frames(trajectory, constraints, GuidedCostConfig(), view, names) for names in (["rim"], []))
    assert any((one != other).any() for one, other in zip(marked, plain, strict=True))


def test_equal_seeds_give_equal_reports(run: Path, file: Path) -> None:
    assert report_of(file=file, rollouts=(run,), seed=3) == report_of(file=file, rollouts=(run,), seed=3)


def test_checking_needs_neither_torch_nor_a_simulator(run: Path, file: Path) -> None:
    code = (
        "import sys; from grape.cli.constraints_check import main\n"
        f"assert main([{str(file)!r}, '--rollouts', {str(run)!r}]) == 0\n"
        "assert not {'torch', 'tensorflow', 'libero', 'robosuite', 'mujoco'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
