"""Stages as data: what a file says, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from grape.constraints import Stage, TaskConstraints, derive_constraints, load_constraints
from grape.errors import ConstraintError

NAMES = ("bowl_1", "plate_1")


@pytest.fixture
def constraints() -> TaskConstraints:
    return derive_constraints([("on", "bowl_1", "plate_1")], NAMES, "put the bowl on the plate")


def as_data(constraints: TaskConstraints) -> dict[str, Any]:
    """What a file would hold, without fields that are unset."""
    data = json.loads(json.dumps(dataclasses.asdict(constraints)))
    data["stages"] = [{name: value for name, value in stage.items() if value} for stage in data["stages"]]
    return data


@pytest.mark.parametrize(("suffix", "write"), [("json", json.dumps), ("yaml", yaml.safe_dump)])
def test_a_file_says_what_the_stages_are(tmp_path: Path, constraints: TaskConstraints, suffix: str, write: Any) -> None:
    path = tmp_path / f"task.{suffix}"
    path.write_text(write(as_data(constraints)))
    assert load_constraints(path) == constraints


def test_a_file_s_thresholds_and_patience_are_taken(tmp_path: Path) -> None:
    stage = {"name": "wait", "done_when": "goal(0)", "thresholds": {"path": 0.3}}
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"instruction": "wait", "stages": [stage], "patience_steps": 5}))
    loaded = load_constraints(path)
    assert loaded.stages[0].thresholds == {"path": 0.3}
    assert loaded.patience_steps == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stagse": []}, "unknown field 'stagse'. Did you mean 'stages'"),
        ({"stages": None}, "must be a list"),
        ({"stages": []}, "0 stages"),
        ({"stages": ["grasp"]}, "stage 0 must be a mapping"),
        ({"stages": [{"name": "a"}]}, "lacks the field 'done_when'"),
        ({"stages": [{"name": "a", "done_when": "goal(0)", "cost": "1"}]}, "unknown field 'cost'"),
        ({"stages": [{"name": "a", "done_when": "__import__('os')"}]}, "stage 'a'.*unknown function"),
        ({"stages": [{"name": "a", "done_when": "1"}]}, "a condition is wanted"),
        ({"stages": [{"name": "a", "done_when": True}]}, "'done_when' must be text"),
        ({"stages": [{"name": "a", "done_when": "goal(0)", "path": "grasped(bowl_1)"}]}, "a cost is a number"),
        (
            {"stages": [{"name": "a", "done_when": "grasped(boul_1)"}]},
            "unknown keypoint 'boul_1'. Did you mean 'bowl_1'",
        ),
        ({"stages": [{"name": "a", "done_when": "goal(0)"}] * 2}, "stage names repeat"),
        ({"stages": [{"name": f"{i}", "done_when": "goal(0)"} for i in range(65)]}, "65 stages"),
        ({"stages": [{"name": "a", "done_when": "goal(0)", "thresholds": {"pth": 1}}]}, "Did you mean 'path'"),
        ({"stages": [{"name": "a", "done_when": "goal(0)", "thresholds": {"path": -1}}]}, "numbers >= 0"),
        ({"stages": [{"name": "a", "done_when": "goal(0)", "thresholds": {"path": 1e308}}]}, "<= 1e6"),
        ({"stages": [{"name": "a", "done_when": "goal(0)", "thresholds": {"path": float("nan")}}]}, "must be finite"),
        ({"patience_steps": 0}, "at least 1"),
        ({"patience_steps": "3"}, "whole number"),
        ({"keypoint_names": "bowl_1"}, "list of names"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(
    tmp_path: Path, constraints: TaskConstraints, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(as_data(constraints) | change))
    with pytest.raises(ConstraintError, match=message) as caught:
        load_constraints(path)
    assert str(path) in str(caught.value)


def test_stages_of_one_subtask_must_be_neighbours() -> None:
    stages = tuple(Stage(name=f"{i}", subtask=label, done_when="goal(0)") for i, label in enumerate("aba"))
    with pytest.raises(ConstraintError, match="must be neighbours"):
        TaskConstraints(instruction="mixed", stages=stages)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5_000, b'{"instruction": "x"}'])
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"task.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConstraintError, match="task"):
        load_constraints(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConstraintError, match="nowhere.json: cannot be read"):
        load_constraints(tmp_path / "nowhere.json")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConstraintError, match="is not yaml"):
        load_constraints(path)


def test_the_example_in_the_documentation_is_valid(repository: Path, tmp_path: Path) -> None:
    text = (repository / "docs" / "guided_cost.md").read_text(encoding="utf-8")
    path = tmp_path / "task.json"
    path.write_text(text.split("```json\n")[1].split("```")[0])
    constraints = load_constraints(path)
    constraints.check_keypoints(NAMES)
    assert [stage.name for stage in constraints.stages] == ["grasp", "place"]
