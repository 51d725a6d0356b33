"""The constraint language: what it computes, by hand, and what it may cost. What it refuses is in test_hostile.py."""

from __future__ import annotations

import ast
import math
import tracemalloc

import numpy as np
import pytest

from grape.constraints import FactTable, compile_condition, compile_cost, translate
from grape.constraints.expression import MAX_NODES
from grape.errors import ConstraintError
from tests.constraints.corpus import three_rows

TABLE = three_rows()
EE = TABLE.fact("ee_position")


@pytest.fixture(scope="module")
def table() -> FactTable:
    return TABLE


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # distances by hand: (0.3, 0.4, -0.5), (0, 0.4, -0.4), (0, 0, 0.1)
        ("distance(ee, bowl_1)", [math.sqrt(0.5), math.sqrt(0.32), 0.1]),
        ('horizontal_distance(ee, keypoint("bowl_1"))', [0.5, 0.4, 0.0]),
        ("height(ee) - height(bowl_1)", [0.5, 0.4, -0.1]),
        ("height(bowl_1) - start(height(bowl_1))", [0.0, 0.0, 0.1]),
        ("norm(ee - previous(ee))", [0.0, math.sqrt(0.1), math.sqrt(0.32)]),
        ("dot(ee, vector(1, 2, 4))", [2.0, 1.9, 1.1]),
        ("norm(cross(vector(1, 0, 0), vector(0, 2, 0)))", [2.0, 2.0, 2.0]),
        ("x(plate_1) + y(plate_1) * 2", [1.8, 1.8, 1.8]),
        # the hand turned by 180 degrees about x points down, unturned up, by 90 degrees about y along x
        ("angle(ee_axis, up)", [math.pi, 0.0, math.pi / 2]),
        (
            "where(grasped(bowl_1), 0, 0.05 + distance(ee, bowl_1))",
            [0.05 + math.sqrt(0.5), 0.05 + math.sqrt(0.32), 0.0],
        ),
        ("max(arm_contact, other_contact(bowl_1))", [0.0, 1.0, 0.0]),
        ('1 - other_contact("bowl_1", "plate_1")', [1.0, 1.0, 1.0]),
        ("max(0, 0.05 - gripper_opening)", [0.0, 0.01, 0.05]),
        ("min(3, 1, 2) + clip(ee_force, 1, 10)", [2.0, 11.0, 4.0]),
        ("abs(joint(plate_1)) ** 2", [0.0, 0.01, 0.04]),
        ("sqrt(4) + sin(pi / 2) + cos(0) + atan2(0, 1)", [4.0, 4.0, 4.0]),
        ("norm(-2 * (ee / 2) + ee)", [0.0, 0.0, 0.0]),
        # the division happens only where the gripper is open: elsewhere it would be 1 / 0
        ("where(gripper_opening > 0, 0.04 / gripper_opening, 7)", [0.5, 1.0, 7.0]),
    ],
)
def test_costs_by_hand(table: FactTable, source: str, expected: list[float]) -> None:
    np.testing.assert_allclose(compile_cost(source).evaluate(table), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("grasped(bowl_1)", [False, False, True]),
        ("goal(0) and finger_contact(bowl_1)", [False, False, True]),
        ("not arm_contact", [True, False, True]),
        ("0.03 <= gripper_opening < 0.08", [False, True, False]),
        ("gripper_opening > 0 and 1 / gripper_opening < 20", [True, False, False]),
        ("gripper_opening <= 0 or 1 / gripper_opening < 20", [True, False, True]),
        ("True", [True, True, True]),
    ],
)
def test_conditions_by_hand(table: FactTable, source: str, expected: list[bool]) -> None:
    np.testing.assert_array_equal(compile_condition(source).evaluate(table), expected)


def test_keypoints_are_known_without_evaluating() -> None:
    expression = compile_condition('goal(2) or distance(ee, bowl_1) < 0.1 and grasped("plate_1")')
    assert expression.keypoints == {"bowl_1", "plate_1"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 / gripper_opening", "is inf at row 2"),
        ("sqrt(-ee_force - 1)", "is nan at row 0"),
        ("joint(bowl_1)", "is nan at row 0"),
        ("max(0, 0 / gripper_opening)", "0 / gripper_opening is nan at row 2"),
        ("((1000000 ** 4) ** 4) ** 4", "is inf at row 0"),
        ("distance(ee, bowl_2)", "Did you mean 'bowl_1'"),
        ("where(goal(1), 0, 1)", "goal(1) does not exist"),
    ],
)
def test_evaluation_errors_name_the_expression(table: FactTable, source: str, message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        compile_cost(source).evaluate(table)
    assert message in str(caught.value)
    assert source[:100] in str(caught.value)


def test_a_fact_that_was_not_recorded_is_named() -> None:
    table = FactTable({"ee_position": EE}, [])
    with pytest.raises(ConstraintError, match="no fact 'ee_force'"):
        compile_cost("ee_force").evaluate(table)


@pytest.mark.parametrize(
    ("facts", "names", "message"),
    [
        ({}, [], "no facts"),
        ({"ee_position": EE, "ee_force": np.zeros(2)}, [], "same number of rows"),
        ({"ee_position": np.zeros((0, 3))}, [], "at least one"),
        ({"grasped": np.zeros((3, 2), bool)}, ["bowl_1"], "2 columns for 1 keypoint names"),
        ({"grasped": np.zeros(3, bool)}, ["bowl_1"], "None columns for 1"),
    ],
)
def test_facts_that_do_not_fit_are_refused(facts: dict[str, np.ndarray], names: list[str], message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        FactTable(facts, names)


@pytest.mark.parametrize(
    "source", ["grasped(bowl_1)", "ee", "ee > 1", "not 1", "ee + 1", "ee * ee", "1 / ee", "-arm_contact and 1"]
)
def test_a_value_of_the_wrong_kind_is_no_cost(source: str) -> None:
    with pytest.raises(ConstraintError):
        compile_cost(source)


def test_a_number_is_no_condition() -> None:
    with pytest.raises(ConstraintError, match="write a comparison"):
        compile_condition("distance(ee, bowl_1)")


@pytest.mark.parametrize("source", [None, 1, b"1", ["1"], {"a": 1}])
def test_what_is_not_text_is_refused(source: object) -> None:
    with pytest.raises(ConstraintError, match="an expression is text"):
        compile_cost(source)  # type: ignore[arg-type]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one entry, the number of rows, each time that a node is computed."""
    rows: list[int] = []
    plain = translate._finite

    def finite(run: translate.Run, source: str) -> translate.Run:
        checked = plain(run, source)

        def count(table: FactTable, wanted: np.ndarray) -> np.ndarray:
            rows.append(table.num_rows)
            return checked(table, wanted)

        return count

    monkeypatch.setattr(translate, "_finite", finite)
    return rows


@pytest.mark.parametrize(
    "source",
    [
        "max(" + ", ".join(["norm(ee)"] * 74) + ")",
        "norm(" + " + ".join(["ee"] * 24) + ")",
        "start(previous(" * 11 + "ee_force" + "))" * 11,
        "where(ee_force > 0, " * 23 + "1" + ", 2)" * 23,
        "norm(max(ee_force, 1, 2) * cross(ee, ee)) + " * 12 + "dot(ee, ee)",
        "max(" + ", ".join(["norm(cross(ee, ee))"] * 49) + ")",
    ],
)
def test_time_and_memory_are_bounded_by_nodes_times_rows(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    rows = counted(monkeypatch)
    num_rows = 10_000
    table = FactTable({"ee_position": np.ones((num_rows, 3)), "ee_force": np.ones(num_rows)}, [])
    compile_cost.__globals__["_compile_text"].cache_clear()
    expression = compile_cost(source)
    tracemalloc.start()
    values = expression.evaluate(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    num_nodes = sum(isinstance(node, ast.expr) for node in ast.walk(ast.parse(source, mode="eval")))
    assert values.shape == (num_rows,) and num_nodes > 20
    assert set(rows) == {num_rows} and len(rows) <= num_nodes <= MAX_NODES
    assert peak <= num_nodes * num_rows * 24 + 10 * num_rows * 24  # and what numpy needs inside one operation


def test_text_itself_is_parsed_in_bounded_memory() -> None:
    worst = ["(" * 2000, "-" * 1999 + "1", "not " * 499 + "1", "[" * 2000, "f(" * 999, "1+" * 999 + "1", "9" * 2000]
    tracemalloc.start()
    for source in worst:
        with pytest.raises(ConstraintError):
            compile_cost(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
