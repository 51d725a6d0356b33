"""The recorded facts of one episode, checked once and handed to expressions by name.

Axis legend: R rows (T + 1: one before each action and one after the last), K keypoints, G goal predicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from grape.constraints.points import Point, in_world
from grape.errors import ConstraintError, did_you_mean

_COLUMNS = ("keypoints", "keypoint_quaternions", "grasped", "robot_contact", "finger_contact", "joint_positions")
_CONDITIONS = ("grasped", "robot_contact", "finger_contact", "arm_contact", "goal_satisfied")


class FactTable:
    """Read access to one episode's facts; every shape is verified, every wrong name gets a suggestion.

    Args:
        facts: As in ``grape.trajectory.Trajectory``: each array has R rows. Only what an expression refers to
            has to be there.
        keypoint_names: Names of the K columns, in their order.
        points: Declared points by name; they have a position as keypoints have, and no other fact.

    Raises:
        ConstraintError: Rows or columns do not fit together.
    """

    def __init__(
        self,
        facts: Mapping[str, np.ndarray],
        keypoint_names: Sequence[str],
        points: Mapping[str, Point] | None = None,
    ) -> None:
        if not facts:
            raise ConstraintError("there are no facts; score episodes that were recorded with privileged facts")
        self._facts = {name: np.asarray(values) for name, values in facts.items()}
        self.keypoint_names = tuple(keypoint_names)
        self.points = dict(points or {})
        rows = {name: len(values) for name, values in self._facts.items()}
        self.num_rows = next(iter(rows.values()))
        if len(set(rows.values())) != 1 or self.num_rows == 0:
            raise ConstraintError(f"facts must all have the same number of rows, and at least one; got {rows}")
        for name in self._facts.keys() & set(_COLUMNS):
            got = self._facts[name].shape[1] if self._facts[name].ndim > 1 else None
            if got != len(self.keypoint_names):
                raise ConstraintError(f"fact {name!r} has {got} columns for {len(self.keypoint_names)} keypoint names")

    def column(self, fact: str, keypoint: str) -> np.ndarray:
        """One keypoint's values of one fact, (R,) or (R, 3), or a point's positions."""
        if keypoint in self.points:
            return self._followed(fact, keypoint)
        values = self.fact(fact)
        if keypoint not in self.keypoint_names:
            known = (*self.keypoint_names, *self.points)
            raise ConstraintError(f"unknown keypoint {keypoint!r}.{did_you_mean(keypoint, known)}")
        return values[:, self.keypoint_names.index(keypoint)]

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

    def fact(self, name: str) -> np.ndarray:
        """One whole fact; conditions as bool, numbers as float64."""
        if name not in self._facts:
            raise ConstraintError(f"the episode has no fact {name!r}.{did_you_mean(name, self._facts)}")
        return self._facts[name].astype(bool if name in _CONDITIONS else np.float64)

    def _followed(self, fact: str, name: str) -> np.ndarray:
        """Where a point is, (R, 3)."""
        point = self.points[name]
        if fact != "keypoints":
            of = "which is no object" if point.of is None else f"ask about its object, {point.of!r}"
            raise ConstraintError(f"{fact!r} is not known of the point {name!r}; {of}")
        if point.of is None:
            return np.tile(np.array(point.offset_m), (self.num_rows, 1))
        if not any(point.offset_m):  # the object itself, also where orientations were not recorded
            return self.column("keypoints", point.of)
        if "keypoint_quaternions" not in self._facts:
            raise ConstraintError(
                f"the point {name!r} turns with {point.of!r}, and the episode has no 'keypoint_quaternions': older "
                "LIBERO episodes lack them, collect it anew"
            )
        orientation = self.column("keypoint_quaternions", point.of)
        return in_world(np.array(point.offset_m), self.column("keypoints", point.of), orientation)

    def approach_axis(self) -> np.ndarray:
        """Unit vector along which the gripper points, world frame, (R, 3): its own z axis."""
        x, y, z, w = self.fact("ee_quaternion").T
        return np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
