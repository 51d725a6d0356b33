"""Centimetres and degrees are told from the text; what is plausible in metres and radians is let through.

What is refused is in the hostile corpus under "wrong units".
"""

from __future__ import annotations

import math

import pytest

from grape.constraints import Stage, compile_condition, compile_cost, shipped_constraints
from grape.constraints.units import Quantity
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
from grape.errors import ConstraintError


@pytest.mark.parametrize(
    "source",
    [
        "distance(ee, bowl_1) <= 0.05", "distance(ee, bowl_1) < 1.9", "height(bowl_1) > 1.2", "gripper_opening < 0.04",
        "100 * distance(ee, bowl_1) <= 5", "distance(ee, bowl_1) * 1000 < 50", "distance(ee, bowl_1) / 0.05 < 30",
        "angle(ee_axis, up) > pi - 0.3", "angle(ee_axis, up) * 180 / pi < 90", "angle(ee_axis, up) < 90 * pi / 180",
        "180 / pi * angle(ee_axis, up) - 90 > 0", "ee_force > 30", "ee_force / 10 < 5", "joint(plate_1) < -0.14",
        "joint(plate_1) > 3", "distance(ee, bowl_1) / distance(ee, plate_1) < 5", "dot(ee_axis, up) < -0.9",
        "distance(ee, bowl_1) + distance(bowl_1, plate_1) < 3", "0 * distance(ee, bowl_1) < 1", "goal(0) and 1 < 5",
        "distance(ee, bowl_1) ** 2 < 4", "5 * (1 + dot(ee_axis, up)) + distance(ee, bowl_1) < 1",
        "sin(angle(ee_axis, up)) < 0.5", "where(goal(0), 10, distance(ee, bowl_1)) <= 9", "cos(2 * pi) > 0",
        "norm(cross(ee - bowl_1, up)) < 5", "max(distance(ee, bowl_1), 30) <= 40",
        "distance(bowl_1, plate_1 + vector(0, 0, 0.1)) < 0.05", "distance(ee, plate_1 + 0.1 * up) < 0.05",
        "ee_force * distance(ee, bowl_1) < 10", "2 * angle(ee_axis, up) < 6", "dot(ee - bowl_1, up) > 0.2",
    ],
)  # fmt: skip
def test_plausible_values_are_let_through(source: str) -> None:
    compile_condition(source)


@pytest.mark.parametrize(
    ("source", "quantity"),
    [
        ("distance(ee, bowl_1)", Quantity("metres", 2.0)),
        ("100 * height(ee)", Quantity("metres", 200.0)),
        ("gripper_opening / 2", Quantity("metres", 0.15)),
        ("0.05 + distance(ee, bowl_1)", Quantity("metres", 2.0)),
        ("where(goal(0), 0, 0.05 + distance(ee, bowl_1))", Quantity("metres", 2.0)),
        ("angle(up, ee_axis) + angle(up, ee)", Quantity("radians", 6.4)),
        ("distance(ee, bowl_1) + angle(up, ee_axis)", Quantity()),
        ("90 * pi / 180", Quantity(constant=math.pi / 2)),
        ("where(goal(0), 0, 1)", Quantity()),
        ("ee_force", Quantity()),
    ],
)
def test_units_are_inferred(source: str, quantity: Quantity) -> None:
    got = compile_cost(source).quantity
    assert got.unit == quantity.unit
    assert got.limit == pytest.approx(quantity.limit) and got.constant == pytest.approx(quantity.constant)


@pytest.mark.parametrize(
    ("cost", "source", "threshold", "fits"),
    [
        ("path", "norm(ee - previous(ee))", 0.8, True),
        ("path", "norm(ee - previous(ee))", 40, False),
        ("path", "100 * norm(ee - previous(ee))", 40, True),
        ("path", "1", 40, True),
        ("sub_goal", "distance(ee, bowl_1)", 0.05, True),
        ("sub_goal", "distance(ee, bowl_1)", 5, False),
        ("collision", "where(arm_contact, 1, 0)", 40, True),
        ("collision", "max(0, 0.1 - distance(ee, bowl_1))", 40, True),
    ],
)
def test_a_threshold_has_the_unit_of_its_cost(cost: str, source: str, threshold: float, fits: bool) -> None:
    fields = {"name": "a", "done_when": "goal(0)", cost: source, "thresholds": {cost: threshold}}
    if fits:
        Stage(**fields)
        return
    with pytest.raises(ConstraintError, match=f"stage 'a': threshold {threshold} of {cost}: .* metres and radians"):
        Stage(**fields)


def test_shipped_stages_pass() -> None:
    # those derived for LIBERO are compiled, and so checked, in test_bddl.py
    for task_id in range(len(BRIDGE_TASKS)):
        assert shipped_constraints(SUITE, task_id)
