"""LIBERO takes the picture, the repository's own loopback server answers: the way that docs/constraints.md shows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grape.cli.main import main
from grape.constraints import load_constraints
from grape.envs.suites import suite_task

QUESTION = ["constraints", "propose", "--suite", "libero_goal", "--task_id", "6", "--model", "written-by-hand"]


@pytest.fixture
def base_url(repository: Path) -> Iterator[str]:
    script = repository / "experiments" / "constraints" / "serve_answers.py"
    process = subprocess.Popen([sys.executable, script, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()


def test_a_picture_from_the_simulator_and_again_offline(
    base_url: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("libero", reason='LIBERO is not tested: pip install "grape-vla[libero]"')
    pytest.importorskip("openai", reason='proposing is not tested: pip install "grape-vla[vlm]"')
    assert main([*QUESTION, "--base_url", base_url]) == 0
    shown = capsys.readouterr().out
    assert "--rollouts RUN --task libero_goal/6\n" in shown and "then: grape score RUN" in shown
    path = Path("runs/constraints/libero_goal_6.json")
    constraints, task = load_constraints(path), suite_task("libero_goal", 6)
    assert constraints.keypoint_names == task.keypoint_names and constraints.instruction == task.instruction
    written = json.loads((repository / "experiments/constraints/answers/libero_goal_6.json").read_text())
    assert written["written_by"] == "hand; no model"
    assert [stage.name for stage in constraints.stages] == [stage["name"] for stage in written["answer"]["stages"]]
    provenance = json.loads(path.with_suffix(".proposal.json").read_text())
    assert provenance["scene"]["goals"] == ["goal(0): on cream_cheese_1 akita_black_bowl_1"]
    assert all(one["position_m"] for one in provenance["scene"]["keypoints"])
    assert sum(one["pixel"] is not None for one in provenance["scene"]["keypoints"]) >= 3
    assert main([*QUESTION, "--offline", "--overwrite"]) == 0  # the same picture, rendered again
    again = json.loads(path.with_suffix(".proposal.json").read_text())
    assert (
        again["picture_pixels_sha256"] == provenance["picture_pixels_sha256"] and load_constraints(path) == constraints
    )


def test_a_task_without_an_answer(base_url: str, shell, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--task", "juggle", "--image", "scene.png", "--keypoint_names", "ball", "--model", "written-by-hand"]
    assert main(["constraints", "propose", *flags, "--base_url", base_url]) == 1
    assert "put the cream cheese in the bowl" in capsys.readouterr().err
