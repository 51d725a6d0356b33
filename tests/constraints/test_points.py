"""Part keypoints: where a point of an object is, with rotations derived by hand, and how a file declares it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grape.constraints import (
    FactTable,
    Point,
    Stage,
    TaskConstraints,
    compile_cost,
    evaluate_stages,
    load_constraints,
    offset_in_frame,
)
from grape.constraints.points import in_world
from grape.errors import ConstraintError

HALF = np.sqrt(0.5)
NAMES = ("mug_1", "plate_1")
OFFSET_M = (0.05, 0.0, 0.02)
HANDLE = Point(of="mug_1", offset_m=OFFSET_M)

TURNS = [
    ([0, 0, 0, 1], [1, 2, 3]),
    ([0, 0, HALF, HALF], [-2, 1, 3]),  # a quarter turn about z: x becomes y, y becomes -x
    ([HALF, 0, 0, HALF], [1, -3, 2]),  # about x: y becomes z, z becomes -y
    ([0, HALF, 0, HALF], [3, 2, -1]),  # about y: z becomes x, x becomes -z
    ([1, 0, 0, 0], [1, -2, -3]),  # half a turn about x
    ([0.5, 0.5, 0.5, 0.5], [3, 1, 2]),  # a third about the diagonal: x becomes y, y becomes z, z becomes x
    ([0, 0, -2 * HALF, -2 * HALF], [-2, 1, 3]),  # as the second: sign and length do not matter
]


@pytest.mark.parametrize(("quaternion", "turned"), TURNS)
def test_a_point_turns_and_moves_with_its_object_and_back(quaternion: list[float], turned: list[float]) -> None:
    at = np.array([10.0, 20.0, 30.0])
    where = in_world(np.array([1.0, 2.0, 3.0]), at, np.array(quaternion))
    np.testing.assert_allclose(where, at + turned, atol=1e-12)
    np.testing.assert_allclose(offset_in_frame(where, at, np.array(quaternion)), [1, 2, 3], atol=1e-12)


@pytest.fixture
def table() -> FactTable:
    """A mug that stands, then is moved by 1 m along x and turned by a quarter about z, then lies on its side."""
    return FactTable(mug_facts(), NAMES, {"handle": HANDLE, "shelf": Point(of=None, offset_m=(0.0, 0.0, 1.0))})


def mug_facts() -> dict[str, np.ndarray]:
    keypoints = np.zeros((3, 2, 3))
    keypoints[1:, 0, 0] = 1.0
    quaternions = np.tile([0.0, 0.0, 0.0, 1.0], (3, 2, 1))
    quaternions[1, 0] = [0, 0, HALF, HALF]
    quaternions[2, 0] = [0, HALF, 0, HALF]
    return {
        "ee_position": np.zeros((3, 3)),
        "keypoints": keypoints,
        "keypoint_quaternions": quaternions,
        "grasped": np.zeros((3, 2), bool),
        "robot_contact": np.zeros((3, 2), bool),
    }


WHERE = np.array([[0.05, 0, 0.02], [1, 0.05, 0.02], [1.02, 0, -0.05]])


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x(handle)", WHERE[:, 0]),
        ('height(keypoint("handle"))', WHERE[:, 2]),
        ("distance(ee, handle)", np.linalg.norm(WHERE, axis=1)),
        ("x(start(handle))", [0.05, 0.05, 0.05]),
        ("y(handle - previous(handle))", [0, 0.05, -0.05]),
        ("height(shelf - plate_1)", [1, 1, 1]),
    ],
)
def test_expressions_use_a_point_as_a_position(table: FactTable, source: str, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(compile_cost(source).evaluate(table), wanted, atol=1e-12)


def test_stages_follow_a_point() -> None:
    stage = Stage(name="turn", done_when="y(handle) > 0.04", path="norm(handle - previous(handle))")
    constraints = TaskConstraints(
        instruction="turn the mug", stages=(stage,), keypoint_names=NAMES, points={"handle": HANDLE}
    )
    trace = evaluate_stages(constraints, mug_facts())
    assert trace.stage.tolist() == [0, 1, 1]  # done in the second row
    assert trace.costs["path"][0] == pytest.approx(np.linalg.norm(WHERE[1] - WHERE[0]))


def test_orientations_that_were_not_recorded_are_an_error_but_for_a_point_at_the_origin() -> None:
    facts = mug_facts()
    del facts["keypoint_quaternions"]
    table = FactTable(facts, NAMES, {"handle": HANDLE, "middle": Point(of="mug_1", offset_m=(0, 0, 0))})
    np.testing.assert_array_equal(table.column("keypoints", "middle"), facts["keypoints"][:, 0])
    with pytest.raises(ConstraintError, match="'handle' turns with 'mug_1'.*no 'keypoint_quaternions'"):
        table.column("keypoints", "handle")


def test_a_point_is_neither_grasped_nor_touched(table: FactTable) -> None:
    for source in ("grasped(handle)", "other_contact(mug_1, handle)", "joint(handle)"):
        with pytest.raises(ConstraintError, match="the point 'handle'; ask about its object, 'mug_1'"):
            compile_cost(f"where({source} > 0, 1, 0)").evaluate(table)
    with pytest.raises(ConstraintError, match="'shelf'; which is no object"):
        table.column("grasped", "shelf")


def file_data(**changed: Any) -> dict[str, Any]:
    stages = [{"name": "reach", "done_when": "distance(ee, handle) <= 0.02", "sub_goal": "distance(ee, handle)"}]
    points = {"handle": {"of": "mug_1", "offset_m": [0.05, 0, 0.02]}, "shelf": {"of": None, "offset_m": [0, 0, 1]}}
    return {"instruction": "reach", "stages": stages, "keypoint_names": list(NAMES), "points": points} | changed


def test_a_file_declares_points(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(file_data()))
    loaded = load_constraints(path)
    assert loaded.points == {"handle": HANDLE, "shelf": Point(of="world", offset_m=(0, 0, 1))}
    path.write_text(json.dumps(dataclasses.asdict(loaded)["points"]))
    assert TaskConstraints.from_dict(file_data(points=json.loads(path.read_text()))) == loaded


MUG = {"of": "mug_1", "offset_m": [0, 0, 0]}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "'points' must map names to points"),
        ({"handle": None}, "'handle'.*must be a mapping"),
        ({"handle": {"of": "mug_1"}}, "'handle'.*lacks the field 'offset_m'"),
        ({"handle": {"offset_m": [0, 0, 0]}}, "'handle'.*lacks the field 'of'"),
        ({"handle": MUG | {"offset": 1}}, "unknown field 'offset'. Did you mean 'offset_m'"),
        ({"handle": MUG | {"of": "mgu_1"}}, "'handle' is fixed to an unknown keypoint 'mgu_1'. Did you mean 'mug_1'"),
        ({"handle": MUG | {"of": 1}}, "'of' is the name of a keypoint"),
        ({"handle": MUG | {"offset_m": [50, 0, 20]}}, "three numbers in metres"),
        ({"handle": MUG | {"offset_m": [0, 0, float("nan")]}}, "three numbers in metres"),
        ({"handle": MUG | {"offset_m": [0, 0, 10**400]}}, "three numbers in metres"),
        ({"handle": MUG | {"offset_m": [0, 0]}}, "three numbers in metres"),
        ({"handle": MUG | {"offset_m": [True, 0, 0]}}, "three numbers in metres"),
        ({"handle": MUG | {"offset_m": "000"}}, "three numbers in metres"),
        ({"handle": MUG, "lip": {"of": "handle", "offset_m": [0, 0, 0]}}, "'lip' is fixed to 'handle', another point"),
        ({"mug_1": MUG | {"of": None}}, "there is a keypoint of that name"),
        ({"handle": MUG, "ee": MUG}, "'ee': that is a word of the language"),
        ({"handle": MUG, "distance": MUG}, "that is a word of the language"),
        ({"handle": MUG, "in": MUG}, "that is a word of the language"),
        ({"__class__": MUG}, "a name is a letter"),
        ({"the handle": MUG}, "a name is a letter"),
        ({"hàndle": MUG}, "a name is a letter"),
        ({"h" * 65: MUG}, "a name is a letter"),
        ({f"p{i}": MUG for i in range(65)}, "65 points, at most 64"),
        ({}, "unknown keypoint 'handle'"),
    ],
)
def test_a_wrong_declaration_is_told_what_is_wrong(points: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        TaskConstraints.from_dict(file_data(points=points))


@pytest.mark.parametrize("source", ["grasped(handle)", 'goal(0) or robot_contact("handle")', "joint(handle) > 0"])
def test_a_file_that_asks_facts_of_a_point_is_refused_before_any_episode(source: str) -> None:
    stages = [{"name": "hold", "done_when": source}]
    with pytest.raises(ConstraintError, match="stage 'hold'.*about a point.*ask about its object, 'mug_1'"):
        TaskConstraints.from_dict(file_data(stages=stages))


def test_points_are_checked_against_an_episode_s_keypoints() -> None:
    constraints = TaskConstraints.from_dict(file_data(keypoint_names=[]))
    constraints.check_keypoints(NAMES)
    with pytest.raises(ConstraintError, match="'handle' is fixed to an unknown keypoint 'mug_1'"):
        constraints.check_keypoints(("cup_1", "plate_1"))
    with pytest.raises(ConstraintError, match="'handle': there is a keypoint of that name"):
        constraints.check_keypoints((*NAMES, "handle"))


def test_renamed_objects_keep_their_points() -> None:
    stages = [{"name": "put", "done_when": "distance(handle, plate_1) <= 0.1 and grasped(mug_1)"}]
    constraints = TaskConstraints.from_dict(file_data(stages=stages))
    renamed = constraints.about("swapped", ("plate_1", "mug_1"))
    assert renamed.points["handle"] == Point(of="plate_1", offset_m=OFFSET_M)
    assert renamed.points["shelf"] == constraints.points["shelf"]
    assert renamed.stages[0].done_when == "distance(handle, mug_1) <= 0.1 and grasped(plate_1)"
    with pytest.raises(ConstraintError, match="point 'handle'"):
        constraints.about("cups", ("handle", "plate_1"))
