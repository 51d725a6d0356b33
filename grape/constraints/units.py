"""Wrong units, told from the text alone: a length compared with 5, an angle compared with 90.

Each part of an expression has a unit and a limit, the largest value that it can have in a scene on a table, as far
as these follow from the text. A written-out number that is compared with, or added to, something that it reaches the
limit of is refused: no robot is 5 m away, no angle is 90 rad. Scaling is followed (``100 * distance(a, b) <= 5`` is
fine); products, quotients and powers of two measured values are left alone, and so is what ``where`` weighs.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, replace

from grape.constraints.functions import LOOKUPS
from grape.errors import ConstraintError, shorten

MAX_LENGTH_M = 2.0
"""Beyond the reach of a robot on a table, also counted from the world's origin."""
MAX_OPENING_M = 0.3
"""Wider than a gripper opens."""
MAX_ANGLE_RAD = 3.2
"""An angle between two vectors is at most π."""
MAX_JOINT = 6.4
"""A joint turns by at most 2π rad, or slides by less."""
MAX_PATH_M = 10.0
"""More than a gripper travels in one stage."""


@dataclass(frozen=True)
class Quantity:
    """What is known about a value without any facts."""

    unit: str = ""
    """``"metres"``, ``"radians"`` or ``"radians or metres"``; empty for a plain number, or when it cannot be told."""
    limit: float = math.inf
    """The absolute value stays below this."""
    constant: float | None = None
    """The value, where it is written out; of a vector, its largest component."""


PLAIN = Quantity()
LENGTH = Quantity("metres", MAX_LENGTH_M)
ANGLE = Quantity("radians", MAX_ANGLE_RAD)
_NAMES = {
    "gripper_opening": Quantity("metres", MAX_OPENING_M),
    "pi": Quantity(constant=math.pi),
    "up": Quantity(constant=1.0),
    "ee_axis": Quantity(constant=1.0),
    "ee_force": PLAIN,
    "arm_contact": PLAIN,
}
_LOOKUPS = {"keypoint": LENGTH, "joint": Quantity("radians or metres", MAX_JOINT)}
_SAME = ("abs", "start", "previous")
_EITHER = ("min", "max", "clip", "where")
_OF_VECTOR = ("x", "y", "height", "norm")


def infer(node: ast.expr) -> Quantity:
    """Unit and limit of an expression that ``translate.py`` accepted.

    Raises:
        ConstraintError: A written-out number can only be in centimetres, millimetres or degrees.
    """
    if isinstance(node, ast.Constant):
        return PLAIN if isinstance(node.value, bool) else Quantity(constant=float(node.value))  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return _NAMES.get(node.id, LENGTH)  # any other name is a keypoint
    if isinstance(node, ast.UnaryOp):
        return _unary(node)
    if isinstance(node, ast.BinOp):
        return _binary(node)
    if isinstance(node, ast.Compare):
        sides = [infer(side) for side in (node.left, *node.comparators)]
        for left, right in zip(sides, sides[1:], strict=False):
            _check_together(node, left, right)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            infer(value)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(node, node.func.id)
    return PLAIN


def check_threshold(cost: str, threshold: float, quantity: Quantity) -> None:
    """Raise ``ConstraintError`` for a tolerated length that can only be in centimetres or millimetres.

    Args:
        cost: ``"path"``, whose sum over a stage is bounded by ``MAX_PATH_M``, or ``"sub_goal"``; others are counts.
        threshold: The tolerated amount.
        quantity: Of the cost's expression.
    """
    limit = {"path": quantity.limit * MAX_PATH_M / MAX_LENGTH_M, "sub_goal": quantity.limit}.get(cost, math.inf)
    if quantity.unit and threshold >= limit:
        raise ConstraintError(f"threshold {threshold:g} of {cost}: {_advice(quantity.unit, limit)}")


def _unary(node: ast.UnaryOp) -> Quantity:
    value = infer(node.operand)
    if isinstance(node.op, ast.Not):
        return PLAIN
    if isinstance(node.op, ast.USub) and value.constant is not None:
        return Quantity(constant=-value.constant)
    return value


def _binary(node: ast.BinOp) -> Quantity:
    left, right = infer(node.left), infer(node.right)
    if left.constant is not None and right.constant is not None:
        return Quantity(constant=_folded(node.op, left.constant, right.constant))
    if isinstance(node.op, (ast.Add, ast.Sub)):
        _check_together(node, left, right)
        if left.constant is not None or right.constant is not None:
            return left if right.constant is not None else right
        if left.unit != right.unit:
            return PLAIN
        # a difference of two positions, or of two lengths, is no longer than they are
        limit = left.limit + right.limit if isinstance(node.op, ast.Add) else max(left.limit, right.limit)
        return Quantity(left.unit, limit)
    if isinstance(node.op, ast.Mult) and left.constant:
        return replace(right, limit=right.limit * abs(left.constant))
    if isinstance(node.op, ast.Mult) and right.constant:
        return replace(left, limit=left.limit * abs(right.constant))
    if isinstance(node.op, ast.Div) and right.constant:
        return replace(left, limit=left.limit / abs(right.constant))
    return PLAIN


def _folded(operation: ast.operator, left: float, right: float) -> float | None:
    try:
        if isinstance(operation, ast.Add):
            value = left + right
        elif isinstance(operation, ast.Sub):
            value = left - right
        elif isinstance(operation, ast.Mult):
            value = left * right
        elif isinstance(operation, ast.Div):
            value = left / right
        else:
            value = math.pow(left, right)
    except (ArithmeticError, ValueError):
        return None  # evaluation will say so, with the row
    return value if math.isfinite(value) else None


def _call(node: ast.Call, name: str) -> Quantity:
    if name in LOOKUPS:
        return _LOOKUPS.get(name, PLAIN)
    arguments = [infer(argument) for argument in node.args]
    if name in _SAME:
        return arguments[0]
    if name in _EITHER:
        return _either(arguments[1:] if name == "where" else arguments)
    if name in _OF_VECTOR:
        return replace(arguments[0], constant=None)
    if name == "vector":
        return _vector(node, arguments)
    if name in ("distance", "horizontal_distance"):
        _check_together(node, *arguments)
        return _either(arguments)
    if name == "dot":
        first, second = arguments
        along = {first.constant: second, second.constant: first}.get(1.0, PLAIN)  # a direction has length 1
        return along if along.unit else PLAIN
    if name in ("sin", "cos") and abs(arguments[0].constant or 0) > 2 * math.pi:
        raise ConstraintError(f"{_shown(node)}: {_advice('radians', 2 * math.pi)}")
    return ANGLE if name in ("angle", "atan2") else PLAIN


def _vector(node: ast.Call, components: list[Quantity]) -> Quantity:
    constants = [abs(one.constant) for one in components if one.constant is not None]
    if len(constants) == len(components):
        return Quantity(constant=max(constants))
    for one in components:
        _check_together(node, one, Quantity(constant=max(constants, default=0.0)))
    return _either(components)


def _either(values: list[Quantity]) -> Quantity:
    """Of a value that is one of these: what they share."""
    measured = [value for value in values if value.constant is None]
    limit = max((value.limit for value in measured), default=math.inf)
    shared = len({value.unit for value in measured}) == 1
    if not shared or any(abs(value.constant) >= limit for value in values if value.constant is not None):
        return PLAIN
    return Quantity(measured[0].unit, limit)


def _check_together(node: ast.expr, left: Quantity, right: Quantity) -> None:
    for value, other in ((left, right), (right, left)):
        if value.constant is None or other.constant is not None or not other.unit:
            continue
        if abs(value.constant) >= other.limit:
            raise ConstraintError(
                f"{_shown(node)} puts {abs(value.constant):g} beside {other.unit}: {_advice(other.unit, other.limit)}"
            )


def _advice(unit: str, limit: float) -> str:
    example = "0.05 for 5 cm" if "metres" in unit else ""
    turn = "pi / 2 for 90 degrees" if "radians" in unit else ""
    wanted = " and ".join(text for text in (turn, example) if text)
    return f"a value of {limit:.3g} or more is not plausible here; units are metres and radians, write {wanted}"


def _shown(node: ast.expr) -> str:
    return repr(shorten(ast.unparse(node)))
