"""Every function, name and operator of the constraint language, in visible tables.

The language has three kinds of value: ``scalar`` (metres, radians, newtons or counts), ``vector`` (three metres,
world frame) and ``condition`` (true or false). A condition counts as 1 or 0 where a scalar is wanted.
Axis legend: R rows; scalars and conditions are (R,), vectors (R, 3).
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from grape.constraints.facts import FactTable
from grape.constraints.points import check_point_name
from grape.errors import ConstraintError

Kind = Literal["scalar", "vector", "condition"]
Array = np.ndarray


@dataclass(frozen=True)
class Function:
    """A pure function of evaluated arguments."""

    arguments: tuple[Kind, ...]
    result: Kind
    compute: Callable[..., Array]
    variadic: bool = False
    """The last argument may be repeated (at least two arguments in all)."""


@dataclass(frozen=True)
class Lookup:
    """A function whose arguments are literal keypoint names (or one literal goal index)."""

    result: Kind
    read: Callable[..., Array]
    """Called with the fact table and the literals."""
    argument: Literal["keypoint", "goal"] = "keypoint"
    variadic: bool = False


def _norm(vector: Array) -> Array:
    return np.linalg.norm(vector, axis=-1)


def _angle(first: Array, second: Array) -> Array:
    # atan2 of cross and dot is exact near 0 and pi, where arccos loses half of its digits
    return np.arctan2(_norm(np.cross(first, second)), np.sum(first * second, axis=-1))


FUNCTIONS: dict[str, Function] = {
    "abs": Function(("scalar",), "scalar", np.abs),
    "sqrt": Function(("scalar",), "scalar", np.sqrt),
    "sin": Function(("scalar",), "scalar", np.sin),
    "cos": Function(("scalar",), "scalar", np.cos),
    "atan2": Function(("scalar", "scalar"), "scalar", np.arctan2),
    "clip": Function(
        ("scalar", "scalar", "scalar"), "scalar", lambda x, low, high: np.minimum(np.maximum(x, low), high)
    ),
    "min": Function(("scalar",), "scalar", lambda *values: reduce(np.minimum, values), variadic=True),
    "max": Function(("scalar",), "scalar", lambda *values: reduce(np.maximum, values), variadic=True),
    "vector": Function(("scalar", "scalar", "scalar"), "vector", lambda *values: np.stack(values, axis=-1)),
    "x": Function(("vector",), "scalar", lambda vector: vector[..., 0]),
    "y": Function(("vector",), "scalar", lambda vector: vector[..., 1]),
    "height": Function(("vector",), "scalar", lambda vector: vector[..., 2]),
    "norm": Function(("vector",), "scalar", _norm),
    "dot": Function(("vector", "vector"), "scalar", lambda a, b: np.sum(a * b, axis=-1)),
    "cross": Function(("vector", "vector"), "vector", np.cross),
    "distance": Function(("vector", "vector"), "scalar", lambda a, b: _norm(a - b)),
    "horizontal_distance": Function(("vector", "vector"), "scalar", lambda a, b: _norm((a - b)[..., :2])),
    "angle": Function(("vector", "vector"), "scalar", _angle),
}
"""Functions of values: distances and heights in metres, angles in radians."""

LOOKUPS: dict[str, Lookup] = {
    "keypoint": Lookup("vector", lambda table, name: table.column("keypoints", name)),
    "grasped": Lookup("condition", lambda table, name: table.column("grasped", name)),
    "robot_contact": Lookup("condition", lambda table, name: table.column("robot_contact", name)),
    "finger_contact": Lookup("condition", lambda table, name: table.column("finger_contact", name)),
    "other_contact": Lookup("condition", lambda table, *names: table.others("robot_contact", names), variadic=True),
    "joint": Lookup("scalar", lambda table, name: table.column("joint_positions", name)),
    "goal": Lookup("condition", lambda table, index: table.goal(index), argument="goal"),
}
"""Facts about a named keypoint. ``other_contact(a, b, …)``: the robot touches anything but those."""

SPECIAL_FORMS = ("where", "start", "previous")
"""``where(condition, a, b)``; ``start(x)``: x in the episode's first row; ``previous(x)``: x one row earlier."""

NAMES: dict[str, tuple[Kind, Callable[[FactTable], Array]]] = {
    "ee": ("vector", lambda table: table.fact("ee_position")),
    "ee_axis": ("vector", FactTable.approach_axis),
    "gripper_opening": ("scalar", lambda table: table.fact("gripper_opening")),
    "ee_force": ("scalar", lambda table: table.fact("ee_force")),
    "arm_contact": ("condition", lambda table: table.fact("arm_contact")),
    "up": ("vector", lambda table: np.tile([0.0, 0.0, 1.0], (table.num_rows, 1))),
    "pi": ("scalar", lambda table: np.full(table.num_rows, math.pi)),
}
"""Names with a fixed meaning; any other bare name is a keypoint."""

WORDS = frozenset(FUNCTIONS) | frozenset(LOOKUPS) | frozenset(SPECIAL_FORMS)


def check_free_name(name: str) -> None:
    """Raise ``ConstraintError`` unless expressions can refer to something new by this name, and mean nothing else."""
    check_point_name(name)
    if name in WORDS or name in NAMES or keyword.iskeyword(name):
        raise ConstraintError(f"point {name!r}: that is a word of the language; choose another name")
