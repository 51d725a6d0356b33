"""Which stage an episode is in at each step, and what each stage cost: pure functions of recorded facts.

Axis legend: R rows of facts (T + 1), T steps, S stages. Step t leads from row t to row t + 1 and belongs to the
stage of row t; its costs are read from row t + 1, where its consequences show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from grape.constraints.facts import FactTable
from grape.constraints.stages import COSTS, Stage, TaskConstraints
from grape.errors import ConstraintError


@dataclass(frozen=True, kw_only=True)
class StageTrace:
    """What the stages of one episode were and cost."""

    stage_names: tuple[str, ...]
    stage: np.ndarray
    """(R,) index of the current stage at each row; S once every stage is done."""
    reached: np.ndarray
    """(S,) whether the stage was ever entered, or skipped because its subtask was achieved without it."""
    completed: np.ndarray
    """(S,) whether the stage was ever done; it stays true when a later failure leads back to it."""
    num_steps: np.ndarray
    """(S,) steps spent in the stage."""
    costs: dict[str, np.ndarray]
    """For each of ``COSTS``, (S,): sums over the stage's steps; for ``sub_goal`` the smallest residual."""


def evaluate_stages(
    constraints: TaskConstraints,
    facts: Mapping[str, np.ndarray],
    keypoint_names: Sequence[str] | None = None,
) -> StageTrace:
    """Follow one episode through its stages.

    Args:
        constraints: The task's stages.
        facts: Arrays with R rows, as in ``grape.trajectory.Trajectory``.
        keypoint_names: Names of the columns of ``facts``; by default those of ``constraints``.

    Returns:
        The stage at each row and the costs of each stage.

    Raises:
        ConstraintError: An expression refers to something that was not recorded, or is not finite.
    """
    names = constraints.keypoint_names if keypoint_names is None else keypoint_names
    table = FactTable(facts, names, constraints.points)
    stages = constraints.stages
    try:
        stage, completed, reached = _track(constraints, table)
        rows_of_cost = {name: _positive_part(stages, name, table) for name in COSTS}
    except ConstraintError as error:
        raise ConstraintError(f"{constraints.instruction!r}: {error}") from error

    of_step = np.arange(len(stages))[:, None] == stage[None, :-1]  # a step belongs to the stage of the row before it
    costs = {name: (values[:, 1:] * of_step).sum(axis=1) for name, values in rows_of_cost.items()}
    costs["sub_goal"] = _smallest_residual(rows_of_cost["sub_goal"], stage)
    return StageTrace(
        stage_names=tuple(spec.name for spec in stages),
        stage=stage,
        reached=reached,
        completed=completed,
        num_steps=of_step.sum(axis=1),
        costs=costs,
    )


def _positive_part(stages: Sequence[Stage], name: str, table: FactTable) -> np.ndarray:
    values = np.zeros((len(stages), table.num_rows))
    for index, spec in enumerate(stages):
        expression = spec.cost(name)
        if expression is not None:
            values[index] = np.maximum(expression.evaluate(table), 0.0)
    return values


def _smallest_residual(values: np.ndarray, stage: np.ndarray) -> np.ndarray:
    smallest = np.zeros(len(values))
    for index in range(len(values)):
        inside = stage == index
        inside[1:] |= stage[:-1] == index  # the row that ended the stage counts too
        if inside.any():
            smallest[index] = values[index, inside].min()
    return smallest


class _Subtask:
    """Progress within one run of stages, from ``first`` to ``end`` (exclusive); ``position == end`` is complete."""

    def __init__(self, first: int, end: int, patience_steps: int) -> None:
        self.first, self.end, self.position = first, end, first
        self.patience_steps, self.lapse = patience_steps, 0

    @property
    def complete(self) -> bool:
        return self.position == self.end

    def notice_goal(self, done: np.ndarray) -> None:
        """The last stage's condition settles the subtask, however it came about; losing it reopens the subtask."""
        if done[self.end - 1]:
            self.position, self.lapse = self.end, 0
        elif self.complete and self._has_lapsed():
            self.position = self.end - 1

    def work(self, done: np.ndarray, required: np.ndarray) -> None:
        """Advance over done stages; fall back when what the stage requires has been missing for long enough."""
        start = self.position
        while not self.complete and done[self.position]:
            self.position += 1
        if self.complete or self.position != start or required[self.position]:
            self.lapse = 0
        elif self._has_lapsed():
            while self.position > self.first and not required[self.position]:
                self.position -= 1

    def _has_lapsed(self) -> bool:
        self.lapse += 1
        if self.lapse < self.patience_steps:
            return False
        self.lapse = 0
        return True


def _track(constraints: TaskConstraints, table: FactTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    stages = constraints.stages
    done = _conditions(stages, "done_when", table, default=False)
    required = _conditions(stages, "requires", table, default=True)
    begins = _conditions(stages, "begins_when", table, default=False)
    subtasks = _subtasks(constraints)

    num_stages = len(stages)
    stage = np.full(table.num_rows, num_stages)
    completed, reached = np.zeros(num_stages, bool), np.zeros(num_stages, bool)
    active = subtasks[0]
    for row in range(table.num_rows):
        for subtask in subtasks:
            subtask.notice_goal(done[:, row])
        active = _active(active, subtasks, begins[:, row])
        if not active.complete:
            active.work(done[:, row], required[:, row])
            if active.complete:
                completed[active.first : active.end] = True
                active = _active(active, subtasks, begins[:, row])
        if not active.complete:
            stage[row] = active.position
            reached[active.first : active.position + 1] = True
        for subtask in subtasks:
            completed[subtask.first : subtask.position] = True
    return stage, completed, reached | completed


def _active(active: _Subtask, subtasks: Sequence[_Subtask], begins: np.ndarray) -> _Subtask:
    unfinished = [subtask for subtask in subtasks if not subtask.complete]
    begun = [subtask for subtask in unfinished if begins[subtask.first]]
    if active in begun or (active in unfinished and not begun):
        return active
    return (begun or unfinished or [active])[0]


def _conditions(stages: Sequence[Stage], name: str, table: FactTable, *, default: bool) -> np.ndarray:
    values = np.full((len(stages), table.num_rows), default)
    for index, spec in enumerate(stages):
        expression = spec.condition(name)
        if expression is not None:
            values[index] = expression.evaluate(table)
    return values


def _subtasks(constraints: TaskConstraints) -> list[_Subtask]:
    labels = [spec.subtask for spec in constraints.stages]
    starts = [index for index, label in enumerate(labels) if index == 0 or label != labels[index - 1]]
    ends = [*starts[1:], len(labels)]
    return [_Subtask(first, end, constraints.patience_steps) for first, end in zip(starts, ends, strict=True)]
