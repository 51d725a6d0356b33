"""The recorded facts of one episode, checked once and handed to expressions by name.

Axis legend: R rows (T + 1: one before each action and one after the last), K keypoints, G goal predicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from grape.errors import ConstraintError, did_you_mean

_COLUMNS = ("keypoints", "keypoint_quaternions", "grasped", "robot_contact", "finger_contact", "joint_positions")
_CONDITIONS = ("grasped", "robot_contact", "finger_contact", "arm_contact", "goal_satisfied")


class FactTable:
    """Read access to one episode's facts; every shape is verified, every wrong name gets a suggestion.

    Args:
        facts: As in ``grape.trajectory.Trajectory``: each array has R rows. Only what an expression refers to
            has to be there.
        keypoint_names: Names of the K columns, in their order.

    Raises:
        ConstraintError: Rows or columns do not fit together.
    """

    def __init__(self, facts: Mapping[str, np.ndarray], keypoint_names: Sequence[str]) -> None:
        if not facts:
            raise ConstraintError("there are no facts; score episodes that were recorded with privileged facts")
        self._facts = {name: np.asarray(values) for name, values in facts.items()}
        self.keypoint_names = tuple(keypoint_names)
        rows = {name: len(values) for name, values in self._facts.items()}
        self.num_rows = next(iter(rows.values()))
        if len(set(rows.values())) != 1 or self.num_rows == 0:
            raise ConstraintError(f"facts must all have the same number of rows, and at least one; got {rows}")
        for name in self._facts.keys() & set(_COLUMNS):
            got = self._facts[name].shape[1] if self._facts[name].ndim > 1 else None
            if got != len(self.keypoint_names):
                raise ConstraintError(f"fact {name!r} has {got} columns for {len(self.keypoint_names)} keypoint names")

    def column(self, fact: str, keypoint: str) -> np.ndarray:
        """One keypoint's values of one fact, (R,) or (R, 3)."""
        if keypoint not in self.keypoint_names:
            raise ConstraintError(f"unknown keypoint {keypoint!r}.{did_you_mean(keypoint, self.keypoint_names)}")
        return self.fact(fact, self.keypoint_names.index(keypoint))

    def others(self, fact: str, excluded: Sequence[str]) -> np.ndarray:
        """Whether the condition ``fact`` holds for any keypoint but ``excluded``, (R,) bool."""
        for name in excluded:
            self.column(fact, name)
        keep = [index for index, name in enumerate(self.keypoint_names) if name not in excluded]
        return np.asarray(self.fact(fact)[:, keep].any(axis=1))

    def goal(self, index: int) -> np.ndarray:
        """Whether goal predicate ``index`` holds, (R,) bool."""
        goals = self.fact("goal_satisfied")
        if not 0 <= index < goals.shape[1]:
            raise ConstraintError(
                f"goal({index}) does not exist: the task has {goals.shape[1]} goal predicates, from 0"
            )
        return goals[:, index]

    def fact(self, name: str, column: int | None = None) -> np.ndarray:
        """A copy of one fact, or of one of its columns; conditions as bool, numbers as float64."""
        if name not in self._facts:
            raise ConstraintError(f"the episode has no fact {name!r}.{did_you_mean(name, self._facts)}")
        values = self._facts[name] if column is None else self._facts[name][:, column]
        return values.astype(bool if name in _CONDITIONS else np.float64)

    def approach_axis(self) -> np.ndarray:
        """Unit vector along which the gripper points, world frame, (R, 3): its own z axis."""
        x, y, z, w = self.fact("ee_quaternion").T
        return np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
