"""What each expression of a task's stages does along recorded episodes: when it holds, how large it gets, where it
fails. Pure functions of facts, for ``grape constraints check``.

Axis legend: R rows of facts (T + 1), S stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grape.constraints.facts import FactTable
from grape.constraints.stages import CONDITIONS, COSTS, Stage, TaskConstraints
from grape.constraints.tracking import StageTrace
from grape.errors import ConstraintError

ExpressionKey = tuple[int, str]
"""Number of the stage and name of the cost or condition."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One episode, seen by every expression."""

    first_done: np.ndarray
    """(S,) first row in which the stage's own ``done_when`` holds; -1 where it never does."""
    cost_range: dict[ExpressionKey, tuple[float, float]]
    """Smallest and largest value over the stage's steps; missing where the stage was never current."""
    holds: dict[ExpressionKey, tuple[bool, bool]]
    """Whether a condition ever and always holds: ``done_when`` and ``begins_when`` over all rows, ``requires`` while
    its stage is current (missing where it never was)."""


def evaluation_errors(
    constraints: TaskConstraints, facts: Mapping[str, np.ndarray], keypoint_names: Sequence[str]
) -> dict[ExpressionKey, str]:
    """Every expression that cannot be evaluated on this episode, with a message that names it and the row."""
    table = FactTable(facts, keypoint_names, constraints.points)
    errors = {}
    for index, stage in enumerate(constraints.stages):
        for name in (*COSTS, *CONDITIONS):
            expression = stage.cost(name) if name in COSTS else stage.condition(name)
            try:
                if expression is not None:
                    expression.evaluate(table)
            except ConstraintError as error:
                errors[index, name] = str(error)
    return errors


def observe(
    constraints: TaskConstraints, trace: StageTrace, facts: Mapping[str, np.ndarray], keypoint_names: Sequence[str]
) -> Observation:
    """Look at one episode through every expression.

    Args:
        constraints: The task's stages.
        trace: Of the same episode, from ``evaluate_stages``.
        facts: Arrays with R rows, as in ``grape.trajectory.Trajectory``.
        keypoint_names: Columns of the facts.

    Raises:
        ConstraintError: An expression cannot be evaluated, see ``evaluation_errors``.
    """
    table = FactTable(facts, keypoint_names, constraints.points)
    first_done = np.full(len(constraints.stages), -1)
    cost_range: dict[ExpressionKey, tuple[float, float]] = {}
    holds: dict[ExpressionKey, tuple[bool, bool]] = {}
    for index, stage in enumerate(constraints.stages):
        of_step = trace.stage[:-1] == index
        for name, values in _costs(stage, table).items():
            if of_step.any():
                own = values[1:][of_step]  # a step's cost is read where it led to
                cost_range[index, name] = (float(own.min()), float(own.max()))
        for name in CONDITIONS:
            expression = stage.condition(name)
            if expression is None:
                continue
            rows = expression.evaluate(table)
            if name == "done_when" and rows.any():
                first_done[index] = int(rows.argmax())
            if name == "requires":
                rows = rows[trace.stage == index]
            if len(rows):
                holds[index, name] = (bool(rows.any()), bool(rows.all()))
    return Observation(first_done=first_done, cost_range=cost_range, holds=holds)


def _costs(stage: Stage, table: FactTable) -> dict[str, np.ndarray]:
    expressions = {name: stage.cost(name) for name in COSTS}
    return {name: one.evaluate(table) for name, one in expressions.items() if one is not None}


def in_stated_order(constraints: TaskConstraints, first_done: np.ndarray) -> bool:
    """Whether the stages of every subtask were first done in the order in which they are stated.

    Args:
        constraints: The task's stages.
        first_done: (S,) as in ``Observation``; stages that were never done are left out.
    """
    for label in {stage.subtask for stage in constraints.stages}:
        rows = [row for row, stage in zip(first_done, constraints.stages, strict=True) if stage.subtask == label]
        known = [row for row in rows if row >= 0]
        if known != sorted(known):
            return False
    return True
