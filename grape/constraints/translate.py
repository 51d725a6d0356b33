"""From syntax nodes to closures over numpy, under an allow-list: the compiler behind ``expression.py``.

Axis legend: R rows of facts.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

import numpy as np

from grape.constraints.facts import FactTable
from grape.constraints.functions import FUNCTIONS, LOOKUPS, NAMES, SPECIAL_FORMS, WORDS, Array, Kind
from grape.errors import ConstraintError, did_you_mean, shorten

MAX_DEPTH = 24
MAX_CONSTANT = 1e6
MAX_EXPONENT = 4
MAX_GOALS = 64

Run = Callable[[FactTable, Array], Array]
"""(facts, rows that matter) -> values; only the rows that matter have to be finite."""
_BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARE = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}


class Compiler:
    """Translates one syntax tree, and remembers the keypoints and goals that it names.

    Each node becomes one closure that computes all rows at once and runs at most once per evaluation.
    """

    def __init__(self) -> None:
        self.keypoints: set[str] = set()
        self.goals: set[int] = set()

    def translate(self, node: ast.expr, depth: int) -> tuple[Kind, Run]:
        if depth > MAX_DEPTH:
            raise ConstraintError(f"nested deeper than {MAX_DEPTH} levels")
        handlers: dict[type[ast.expr], Callable[..., tuple[Kind, Run]]] = {
            ast.Constant: self._constant,
            ast.Name: self._name,
            ast.UnaryOp: self._unary,
            ast.BinOp: self._binary,
            ast.BoolOp: self._boolean,
            ast.Compare: self._compare,
            ast.Call: self._call,
        }
        handler = handlers.get(type(node))
        if handler is None:
            raise ConstraintError(f"{type(node).__name__} (column {node.col_offset + 1}) is not part of the language")
        kind, run = handler(node, depth + 1)
        return kind, _finite(run, ast.unparse(node))

    def _constant(self, node: ast.Constant, depth: int) -> tuple[Kind, Run]:
        value = node.value
        if isinstance(value, bool):
            return "condition", lambda table, rows: np.full(table.num_rows, value)
        if not isinstance(value, (int, float)):
            raise ConstraintError(f"constant {shorten(repr(value))}: a number is wanted here")
        if not abs(value) <= MAX_CONSTANT:  # not printed: Python refuses to print a long one
            raise ConstraintError(f"the number at column {node.col_offset + 1} is beyond {MAX_CONSTANT:g}")
        number = float(value)
        return "scalar", lambda table, rows: np.full(table.num_rows, number)

    def _name(self, node: ast.Name, depth: int) -> tuple[Kind, Run]:
        if node.id in NAMES:
            kind, read = NAMES[node.id]
            return kind, lambda table, rows: read(table)
        if node.id in WORDS:
            raise ConstraintError(f"{node.id!r} is a function; call it")
        name = self._keypoint(node.id)
        return "vector", lambda table, rows: table.column("keypoints", name)

    def _keypoint(self, name: str) -> str:
        if name.startswith("_") or "__" in name:
            raise ConstraintError(f"{shorten(name)!r} is not a keypoint name: no leading or double underscores")
        self.keypoints.add(name)
        return name

    def _unary(self, node: ast.UnaryOp, depth: int) -> tuple[Kind, Run]:
        kind, run = self.translate(node.operand, depth)
        if isinstance(node.op, ast.Not):
            condition = _expect("condition", kind, run, "not")
            return "condition", lambda table, rows: ~condition(table, rows)
        if not isinstance(node.op, (ast.USub, ast.UAdd)):
            raise ConstraintError(f"operator {type(node.op).__name__} is not part of the language")
        sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
        value = run if kind == "vector" else _expect("scalar", kind, run, "-")
        return "vector" if kind == "vector" else "scalar", lambda table, rows: sign * value(table, rows)

    def _binary(self, node: ast.BinOp, depth: int) -> tuple[Kind, Run]:
        if isinstance(node.op, ast.Pow):
            return self._power(node, depth)
        apply = _BINARY.get(type(node.op))  # type: ignore[call-overload]
        if apply is None:
            raise ConstraintError(f"operator {type(node.op).__name__} is not part of the language")
        kinds, runs = zip(*(self.translate(side, depth) for side in (node.left, node.right)), strict=True)
        num_vectors = kinds.count("vector")
        additive = isinstance(node.op, (ast.Add, ast.Sub))
        if num_vectors == 2 and not additive or num_vectors == 1 and additive:
            raise ConstraintError(
                f"{ast.unparse(node)!r} mixes {kinds[0]} and {kinds[1]}; use dot, norm or vector(...)"
            )
        if isinstance(node.op, ast.Div) and kinds[1] == "vector":
            raise ConstraintError(f"{ast.unparse(node)!r} divides by a vector")
        sides = [
            run if kind == "vector" else _expect("scalar", kind, run, "+-*/")
            for kind, run in zip(kinds, runs, strict=True)
        ]
        widen = num_vectors == 1
        widths = [widen and kind != "vector" for kind in kinds]

        def run(table: FactTable, rows: Array) -> Array:
            values = [side(table, rows) for side in sides]
            return apply(*(value[:, None] if wide else value for value, wide in zip(values, widths, strict=True)))

        return "vector" if num_vectors else "scalar", run

    def _power(self, node: ast.BinOp, depth: int) -> tuple[Kind, Run]:
        exponent = node.right
        ok = isinstance(exponent, ast.Constant) and type(exponent.value) in (int, float)
        if not ok or not 0 <= exponent.value <= MAX_EXPONENT:  # type: ignore[attr-defined, operator]
            raise ConstraintError(f"an exponent must be a literal number from 0 to {MAX_EXPONENT}")
        power = float(exponent.value)  # type: ignore[attr-defined, arg-type]
        base = _expect("scalar", *self.translate(node.left, depth), "**")
        return "scalar", lambda table, rows: base(table, rows) ** power

    def _boolean(self, node: ast.BoolOp, depth: int) -> tuple[Kind, Run]:
        word = "and" if isinstance(node.op, ast.And) else "or"
        parts = [_expect("condition", *self.translate(value, depth), word) for value in node.values]
        conjunction = word == "and"

        def run(table: FactTable, rows: Array) -> Array:
            result = np.full(table.num_rows, conjunction)
            for part in parts:  # later parts matter only where the earlier ones have not decided
                undecided = rows & (result if conjunction else ~result)
                value = part(table, undecided)
                result = result & value if conjunction else result | value
            return result

        return "condition", run

    def _compare(self, node: ast.Compare, depth: int) -> tuple[Kind, Run]:
        applies = []
        for comparison in node.ops:
            if type(comparison) not in _COMPARE:
                raise ConstraintError(
                    f"comparison {type(comparison).__name__} is not part of the language; use <, <=, >, >="
                )
            applies.append(_COMPARE[type(comparison)])  # type: ignore[index]
        sides = [
            _expect("scalar", *self.translate(side, depth), "a comparison") for side in (node.left, *node.comparators)
        ]

        def run(table: FactTable, rows: Array) -> Array:
            values = [side(table, rows) for side in sides]
            held = [apply(values[i], values[i + 1]) for i, apply in enumerate(applies)]
            return np.logical_and.reduce(held)

        return "condition", run

    def _call(self, node: ast.Call, depth: int) -> tuple[Kind, Run]:
        if not isinstance(node.func, ast.Name):
            raise ConstraintError("only the listed functions can be called, by their names")
        name = node.func.id
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise ConstraintError(f"{name}() takes plain positional arguments")
        if name in SPECIAL_FORMS:
            return self._where(node, depth) if name == "where" else self._in_time(name, node, depth)
        if name in LOOKUPS:
            return self._lookup(name, node)
        if name in FUNCTIONS:
            return self._function(name, node, depth)
        raise ConstraintError(f"unknown function {shorten(name)!r}.{did_you_mean(shorten(name), WORDS)}")

    def _function(self, name: str, node: ast.Call, depth: int) -> tuple[Kind, Run]:
        function = FUNCTIONS[name]
        wanted = function.arguments * max(2, len(node.args)) if function.variadic else function.arguments
        if len(node.args) != len(wanted):
            raise ConstraintError(
                f"{name}() takes {len(wanted)} arguments{' or more' * function.variadic}, got {len(node.args)}"
            )
        arguments = [
            _expect(kind, *self.translate(argument, depth), f"{name}()")
            for kind, argument in zip(wanted, node.args, strict=True)
        ]
        return function.result, lambda table, rows: function.compute(*(run(table, rows) for run in arguments))

    def _lookup(self, name: str, node: ast.Call) -> tuple[Kind, Run]:
        lookup = LOOKUPS[name]
        if len(node.args) != 1 and not lookup.variadic:
            raise ConstraintError(f"{name}() takes 1 argument, got {len(node.args)}")
        read_literal = self._goal if lookup.argument == "goal" else self._keypoint_argument
        literals = [read_literal(name, argument) for argument in node.args]
        return lookup.result, lambda table, rows: lookup.read(table, *literals)

    def _keypoint_argument(self, function: str, argument: ast.expr) -> str:
        name = argument.id if isinstance(argument, ast.Name) else None
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            name = argument.value
        if name is None:
            raise ConstraintError(f'{function}() takes the name of a keypoint, e.g. {function}("plate_1")')
        return self._keypoint(name)

    def _goal(self, function: str, argument: ast.expr) -> int:
        index = argument.value if isinstance(argument, ast.Constant) else None
        if type(index) is not int or not 0 <= index < MAX_GOALS:
            raise ConstraintError(f"{function}() takes the literal number of a goal predicate, from 0")
        self.goals.add(index)
        return index

    def _where(self, node: ast.Call, depth: int) -> tuple[Kind, Run]:
        if len(node.args) != 3:
            raise ConstraintError(f"where() takes 3 arguments (condition, a, b), got {len(node.args)}")
        condition = _expect("condition", *self.translate(node.args[0], depth), "where()")
        (kind_a, run_a), (kind_b, run_b) = (self.translate(argument, depth) for argument in node.args[1:])
        kind: Kind = kind_a if kind_a == kind_b else "scalar"
        chosen, otherwise = _expect(kind, kind_a, run_a, "where()"), _expect(kind, kind_b, run_b, "where()")

        def run(table: FactTable, rows: Array) -> Array:
            holds = condition(table, rows)
            a, b = chosen(table, rows & holds), otherwise(table, rows & ~holds)
            return np.where(holds[:, None] if kind == "vector" else holds, a, b)

        return kind, run

    def _in_time(self, name: str, node: ast.Call, depth: int) -> tuple[Kind, Run]:
        if len(node.args) != 1:
            raise ConstraintError(f"{name}() takes 1 argument, got {len(node.args)}")
        kind, inner = self.translate(node.args[0], depth)

        def run(table: FactTable, rows: Array) -> Array:
            source = np.arange(table.num_rows) - 1 if name == "previous" else np.zeros(table.num_rows, int)
            source = np.maximum(source, 0)  # the first row is its own predecessor
            matters = np.zeros(table.num_rows, bool)
            matters[source[rows]] = True
            return inner(table, matters)[source]

        return kind, run


def _expect(wanted: Kind, kind: Kind, run: Run, where: str) -> Run:
    if kind == wanted:
        return run
    if wanted == "scalar" and kind == "condition":
        return lambda table, rows: run(table, rows).astype(np.float64)
    raise ConstraintError(f"{where} wants a {wanted}, got a {kind}")


def _finite(run: Run, source: str) -> Run:
    def checked(table: FactTable, rows: Array) -> Array:
        values = run(table, rows)
        if values.dtype != bool:
            finite = np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(axis=1)
            bad = np.flatnonzero(rows & ~finite)
            if bad.size:
                value = values[bad[0]]
                raise ConstraintError(f"{shorten(source)} is {value} at row {bad[0]}; every value must be finite")
        return values

    return checked
