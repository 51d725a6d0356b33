"""The constraint language: expressions that can do nothing but compute a number from recorded facts.

Source text is parsed with Python's own ``ast`` and translated, node by node under an allow-list, into closures
over numpy; no Python code is ever compiled or evaluated. What is not listed here is refused: attributes,
subscripts, imports, lambdas, comprehensions, f-strings, keywords, any call but those in ``functions.py``.

Evaluation is bounded by the text alone: each node is computed once per row and holds at most three numbers for it,
so that R rows take at most ``MAX_NODES * R`` steps and about ``MAX_NODES * R * 24`` bytes.

Units are metres and radians, world frame; see ``units.py``. A cost is satisfied when it is <= 0.
Axis legend: R rows of facts.
"""

from __future__ import annotations

import ast
import functools
import warnings
from dataclasses import dataclass, field

import numpy as np

from grape.constraints.facts import FactTable
from grape.constraints.functions import Array, Kind
from grape.constraints.translate import Compiler, Run
from grape.constraints.units import Quantity, infer
from grape.errors import ConstraintError, shorten

MAX_CHARACTERS = 2000
MAX_NODES = 300


@dataclass(frozen=True)
class Expression:
    """A checked expression. Build one with ``compile_cost`` or ``compile_condition``."""

    source: str
    kind: Kind
    keypoints: frozenset[str]
    """Keypoints that it refers to."""
    goals: frozenset[int]
    """Goal predicates that it refers to."""
    quantity: Quantity
    """Its unit and largest plausible value, where they can be told from the text."""
    _run: Run = field(repr=False, compare=False)

    def evaluate(self, table: FactTable) -> Array:
        """Values for all rows at once, (R,): float64 for a cost, bool for a condition.

        Raises:
            ConstraintError: An unknown keypoint or goal, a fact that was not recorded, or a value that is not finite.
        """
        try:
            with np.errstate(all="ignore"):
                return self._run(table, np.ones(table.num_rows, bool))
        except ConstraintError as error:
            raise ConstraintError(f"in constraint {shorten(self.source)}: {error}") from error


def compile_cost(source: str) -> Expression:
    """Compile a number that is satisfied when <= 0.

    Raises:
        ConstraintError: The text is not a scalar expression of the language; the message says where and why.
    """
    expression = _compile(source)
    if expression.kind != "scalar":
        raise ConstraintError(
            f"in constraint {shorten(source)}: a cost is a number that is satisfied when <= 0, this is a "
            f"{expression.kind}; write e.g. where(condition, 0, 1) or norm(vector)"
        )
    return expression


def compile_condition(source: str) -> Expression:
    """Compile a condition, true or false at each row.

    Raises:
        ConstraintError: The text is not a condition of the language; the message says where and why.
    """
    expression = _compile(source)
    if expression.kind != "condition":
        raise ConstraintError(
            f"in constraint {shorten(source)}: a condition is wanted, this is a {expression.kind}; "
            "write a comparison such as distance(a, b) <= 0.05"
        )
    return expression


def conjuncts(source: str) -> frozenset[str]:
    """The parts of a valid condition that ``and`` joins, each in one notation, for comparing conditions.

    Raises:
        ConstraintError: The text is not an expression.
    """
    tree = _parse(source)
    parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
    return frozenset(ast.unparse(part).replace("'", "") for part in parts)  # grasped('a') is grasped(a)


def _compile(source: str) -> Expression:
    if not isinstance(source, str):
        raise ConstraintError(f"an expression is text, got {type(source).__name__}")
    return _compile_text(source)


@functools.lru_cache(maxsize=1024)
def _compile_text(source: str) -> Expression:
    try:
        tree = _parse(source)
        compiler = Compiler()
        kind, run = compiler.translate(tree, depth=0)
        quantity = infer(tree)
    except ConstraintError as error:
        raise ConstraintError(f"in constraint {shorten(source)}: {error}") from error
    return Expression(source, kind, frozenset(compiler.keypoints), frozenset(compiler.goals), quantity, run)


def _parse(source: str) -> ast.expr:
    if len(source) > MAX_CHARACTERS:
        raise ConstraintError(f"{len(source)} characters, at most {MAX_CHARACTERS} are allowed")
    # ast folds look-alike letters into ASCII (NFKC), so what is read would not be what is run
    strange = next((c for c in source if c != "\n" and not (c.isascii() and c.isprintable())), None)
    if strange is not None:
        raise ConstraintError(f"only printable ASCII characters are allowed, got {strange!a}")
    if "\\" in source or "#" in source:  # what is read would not be what is meant
        raise ConstraintError("neither backslashes nor comments are allowed")
    if not source.strip():
        raise ConstraintError("an expression is wanted here, the text is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.strip(), mode="eval").body
    except SyntaxError as error:
        raise ConstraintError(f"not an expression: {error.msg} (column {error.offset})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConstraintError(f"cannot be parsed ({type(error).__name__})") from error
    num_nodes = sum(isinstance(node, ast.expr) for node in ast.walk(tree))
    if num_nodes > MAX_NODES:
        raise ConstraintError(f"{num_nodes} syntax nodes, at most {MAX_NODES} are allowed")
    return tree
