"""Objectives: settings that compose, and what they prefer on episodes made by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grape.cli.main import run_command
from grape.config.score import OBJECTIVES, PRESETS, guided_cost_settings
from grape.errors import ConfigError
from grape.trajectory import Trajectory
from tests.rewards.test_score_command import NUM_STEPS, episode, write_run


@pytest.mark.parametrize("preset", PRESETS)
def test_task_completion_is_the_preset_itself(preset: str) -> None:
    assert guided_cost_settings(preset, "task_completion") == PRESETS[preset]


def test_the_numbers_of_safety_and_efficiency() -> None:
    changes = {
        "safety": {"tau_collision": (0.0,), "beta_collision": 0.1, "lambda_self": 0.1},
        "efficiency": {"tau_path": (0.0,), "beta_path": 1.0, "beta_sub_goal": 0.5, "lambda_self": 0.1},
    }
    for objective, expected in changes.items():
        settings = guided_cost_settings("default", objective)
        assert settings == dataclasses.replace(PRESETS["default"], **expected)  # type: ignore[arg-type]
    assert guided_cost_settings("release", "safety").beta_collision == pytest.approx(0.05)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown objective 'safty'.*'safety'"):
        guided_cost_settings("default", "safty")
    with pytest.raises(ConfigError, match="unknown preset 'papr'.*'paper'"):
        guided_cost_settings("papr", "safety")


def likely(trajectory: Trajectory, **facts: np.ndarray) -> Trajectory:
    return dataclasses.replace(trajectory, facts=trajectory.facts | facts)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of one state: a likely success that leans on the plate, a likely one that swings, a plain one, a clean failure.

    At most four steps of contact in each stage, and 0.4 m of way in a stage that otherwise has none: both are free
    under task completion.
    """
    rows = np.arange(NUM_STEPS + 1)
    base = episode(0, 4)
    leaning = base.facts["robot_contact"].copy()
    leaning[1:, 1] = True
    swinging = base.facts["ee_position"].copy()
    swinging[(rows == 1) | (rows == 3), 1] += 0.1
    return write_run(
        tmp_path / "run",
        [
            likely(episode(0, 4, logp=-0.10), robot_contact=leaning),
            likely(episode(1, 4, logp=-0.11), ee_position=swinging),
            episode(2, 4, logp=-0.12),
            episode(3, 1, logp=-0.20),
        ],
    )


def ranking(run: Path, *flags: str) -> tuple[list[int], dict[str, Any]]:
    """Rollout indices from best to worst, and the settings that the scores file records."""
    out = run / "scores.json"
    assert run_command("score", [str(run), "--out", str(out), *flags]) == 0
    scores = json.loads(out.read_text())
    by_score = sorted(scores["episodes"].items(), key=lambda item: -item[1]["score"])
    return [int(name[-3:]) for name, _ in by_score], scores["settings"]


def test_each_objective_prefers_what_it_is_about(run: Path) -> None:
    leaning, swinging, plain, failure = range(4)
    assert ranking(run)[0] == [leaning, swinging, plain, failure]
    safe, settings = ranking(run, "--objective", "safety")
    assert settings["objective"] == "safety" and settings["tau_collision"] == [0.0]
    # safe ones first, among them the likelier; still, the unsafe success beats the clean failure
    assert safe == [swinging, plain, leaning, failure]
    assert ranking(run, "--objective", "efficiency")[0] == [leaning, plain, swinging, failure]


def test_the_threshold_alone_does_not_turn_this_ranking(run: Path) -> None:
    assert ranking(run, "--tau_collision", "0")[0] == ranking(run)[0]
    assert ranking(run, "--tau_path", "0")[0] == ranking(run)[0]


def test_flags_win_over_the_objective_and_the_objective_over_the_preset(run: Path) -> None:
    _, settings = ranking(run, "--preset", "release", "--objective", "efficiency", "--beta_path", "7")
    expected = guided_cost_settings("release", "efficiency")
    assert settings == json.loads(
        json.dumps(
            {"reward": "guided_cost", "preset": "release", "objective": "efficiency", "constraints_dir": None}
            | dataclasses.asdict(dataclasses.replace(expected, beta_path=7.0))
        )
    )
    assert (settings["tau_path"], settings["tau_collision"]) == ([0.0], [20.0, 0.0, 0.0])
    undone = ["--lambda_self", "1", "--beta_collision", "0.02", "--tau_collision", "5"]
    assert ranking(run, "--objective", "safety", *undone)[0] == ranking(run)[0]


def test_each_objective_has_its_own_file(run: Path) -> None:
    for objective in OBJECTIVES:
        assert run_command("score", [str(run), "--objective", objective]) == 0
    names = ["default-efficiency", "default-safety", "default"]
    assert sorted(path.stem for path in (run / "scores").iterdir()) == sorted(names)


def test_task_completion_changes_no_score(run: Path) -> None:
    assert run_command("score", [str(run), "--out", str(run / "named.json"), "--objective", "task_completion"]) == 0
    assert run_command("score", [str(run), "--out", str(run / "plain.json")]) == 0
    assert (run / "named.json").read_bytes() == (run / "plain.json").read_bytes()


def test_a_misspelt_objective_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("score", [str(run), "--objective", "efficency"]) == 1
    assert "Did you mean 'efficiency'" in capsys.readouterr().err
