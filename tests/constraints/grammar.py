"""Random sentences of the constraint language, and what plain Python says that they are worth.

The reference is Python's own ``eval`` on the numbers of one row, in a namespace of plain functions: it shares nothing
with the translator but the text. ``and`` and ``or`` are lazy in both; ``where`` is rewritten as a conditional
expression, and ``start`` and ``previous`` read another row.
"""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Callable
from typing import Any

from grape.constraints import FactTable

SCALARS = ("gripper_opening", "ee_force", "pi", "0", "1", "2", "0.05", "0.5", "1.25", "10", "joint(plate_1)")
VECTORS = ("ee", "bowl_1", "plate_1", 'keypoint("bowl_1")', "ee_axis", "up")
FLAGS = (
    "arm_contact", "grasped(bowl_1)", "robot_contact(plate_1)", "finger_contact('bowl_1')", "goal(0)", "True",
    "other_contact(bowl_1)", "other_contact(plate_1, bowl_1)",
)  # fmt: skip


def sentence(kind: str, choose: Callable[[Any], Any], depth: int) -> str:
    """A well-formed text of a kind (``scalar``, ``vector`` or ``condition``).

    Args:
        kind: What it is worth.
        choose: Picks one of a sequence.
        depth: How deep it may be nested.
    """

    def s() -> str:
        return sentence("scalar", choose, depth - 1)

    def v() -> str:
        return sentence("vector", choose, depth - 1)

    def c() -> str:
        return sentence("condition", choose, depth - 1)

    if depth <= 0:
        return choose({"scalar": SCALARS, "vector": VECTORS, "condition": FLAGS}[kind])
    if kind == "vector":
        forms = (
            lambda: f"({v()} {choose('+-')} {v()})", lambda: f"({s()} * {v()})",
            lambda: f"({v()} / {s()})",
            lambda: f"(-{v()})", lambda: f"vector({s()}, {s()}, {s()})", lambda: f"cross({v()}, {v()})",
            lambda: f"where({c()}, {v()}, {v()})", lambda: f"{choose(('start', 'previous'))}({v()})",
            lambda: choose(VECTORS),
        )  # fmt: skip
    elif kind == "condition":
        forms = (
            lambda: f"({s()} {choose(('<', '<=', '>', '>='))} {s()})", lambda: f"({c()} and {c()})",
            lambda: f"(not {c()})",
            lambda: f"({c()} or {c()} or {c()})", lambda: f"({s()} < {s()} <= {s()})",
            lambda: f"{choose(('start', 'previous'))}({c()})", lambda: choose(FLAGS),
        )  # fmt: skip
    else:
        forms = (
            lambda: f"({s()} {choose('+-*/')} {s()})", lambda: f"abs({s()})", lambda: f"sqrt({s()})",
            lambda: f"sin({s()})", lambda: f"cos({s()})", lambda: f"atan2({s()}, {s()})",
            lambda: f"clip({s()}, {s()}, {s()})", lambda: f"{choose(('min', 'max'))}({s()}, {s()}, {c()})",
            lambda: f"({s()}) ** {choose('01234')}", lambda: f"(-{s()})",
            lambda: f"{choose(('x', 'y', 'height'))}({v()})",
            lambda: f"norm({v()})", lambda: f"dot({v()}, {v()})", lambda: f"distance({v()}, {v()})",
            lambda: f"horizontal_distance({v()}, {v()})", lambda: f"angle({v()}, {v()})",
            lambda: f"where({c()}, {s()}, {s()})", lambda: f"{choose(('start', 'previous'))}({s()})",
            lambda: f"({c()} + {s()})", lambda: choose(SCALARS),
        )  # fmt: skip
    return choose(forms)()


def random_sentence(kind: str, generator: random.Random, depth: int = 4) -> str:
    """``sentence`` with a generator of random numbers."""
    return sentence(kind, generator.choice, generator.randint(0, depth))


class Vector(tuple):
    """Three numbers with the vector arithmetic of the language."""

    def __add__(self, other: Any) -> Vector:
        return Vector(a + b for a, b in zip(self, other, strict=True))

    def __sub__(self, other: Any) -> Vector:
        return Vector(a - b for a, b in zip(self, other, strict=True))

    def __mul__(self, factor: Any) -> Vector:
        return Vector(a * factor for a in self)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Vector:
        return Vector(a / factor for a in self)

    def __neg__(self) -> Vector:
        return Vector(-a for a in self)


def _cross(a: Vector, b: Vector) -> Vector:
    return Vector((a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]))


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _norm(a: Vector) -> float:
    return math.sqrt(_dot(a, a))


def _atan2(a: float, b: float) -> float:
    if a == 0 and b <= 0:
        raise DoubtfulError  # the sign of a zero decides between -pi, 0 and pi
    return math.atan2(a, b)


class DoubtfulError(Exception):
    """Rounding alone decides what a text is worth."""


class _Rewrite(ast.NodeTransformer):
    """From the language to Python: lazy ``where``, eager chains of comparisons, rows of ``start`` and ``previous``."""

    def visit_Call(self, node: ast.Call) -> ast.expr:  # noqa: N802
        if isinstance(node.func, ast.Name) and node.func.id == "goal":
            return node
        self.generic_visit(node)
        assert isinstance(node.func, ast.Name)
        if node.func.id == "where":
            return ast.IfExp(test=node.args[0], body=node.args[1], orelse=node.args[2])
        if node.func.id in ("start", "previous"):
            return ast.Call(func=node.func, args=[ast.Constant(ast.unparse(node.args[0]))], keywords=[])
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:  # noqa: N802
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        pairs: list[ast.expr] = [
            ast.Compare(left=sides[i], ops=[node.ops[i]], comparators=[sides[i + 1]]) for i in range(len(node.ops))
        ]
        return ast.Call(func=ast.Name("both"), args=pairs, keywords=[])

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:  # noqa: N802
        return ast.Constant(float(node.value)) if type(node.value) is int else node  # Python's integers have no -0


def reference(source: str, table: FactTable, row: int) -> Any:
    """What plain Python says that a text is worth in one row.

    Raises:
        ArithmeticError, ValueError: It is worth nothing, e.g. for a division by zero.
        DoubtfulError: Rounding decides.
    """
    tree = _Rewrite().visit(ast.parse(source, mode="eval"))
    return _evaluate(ast.unparse(tree), table, row)


def _evaluate(text: str, table: FactTable, row: int) -> Any:
    def column(fact: str) -> Callable[[str], Any]:
        return lambda name: table.column(fact, name)[row].item()

    def name_of(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *names: function(*(name if isinstance(name, str) else name.name for name in names))

    def keypoint(name: str) -> Any:
        point = _Keypoint(table.column("keypoints", name)[row].tolist())
        point.name = name
        return point

    x, y, z, w = table.fact("ee_quaternion")[row].tolist()
    touched = column("robot_contact")
    names: dict[str, Any] = {
        "__builtins__": {}, "abs": abs, "sqrt": math.sqrt, "sin": math.sin, "cos": math.cos, "atan2": _atan2,
        "min": lambda *v: float(min(v)), "max": lambda *v: float(max(v)), "both": lambda *held: all(held),
        "clip": lambda v, low, high: min(max(v, low), high), "pi": math.pi,
        "vector": lambda *parts: Vector(parts), "x": lambda v: v[0], "y": lambda v: v[1], "height": lambda v: v[2],
        "norm": _norm, "dot": _dot, "cross": _cross, "distance": lambda a, b: _norm(a - b),
        "horizontal_distance": lambda a, b: _norm(Vector((*(a - b)[:2], 0.0))),
        "angle": lambda a, b: _atan2(_norm(_cross(a, b)), _dot(a, b)),
        "ee": Vector(table.fact("ee_position")[row].tolist()), "up": Vector((0.0, 0.0, 1.0)),
        "ee_axis": Vector((2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))),
        "gripper_opening": table.fact("gripper_opening")[row].item(), "ee_force": table.fact("ee_force")[row].item(),
        "arm_contact": table.fact("arm_contact")[row].item(), "keypoint": name_of(keypoint),
        "grasped": name_of(column("grasped")), "robot_contact": name_of(touched),
        "joint": name_of(column("joint_positions")),
        "finger_contact": name_of(column("finger_contact")), "goal": lambda i: table.goal(i)[row].item(),
        "other_contact": name_of(lambda *but: any(touched(name) for name in table.keypoint_names if name not in but)),
        "start": lambda inner: _evaluate(inner, table, 0),
        "previous": lambda inner: _evaluate(inner, table, max(0, row - 1)),
    }  # fmt: skip
    return eval(text, names | {name: keypoint(name) for name in table.keypoint_names})


class _Keypoint(Vector):
    name: str
