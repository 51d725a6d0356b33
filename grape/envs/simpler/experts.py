"""Scripted demonstrators for SIMPLER's WidowX tasks, from privileged state and ``env.step`` actions alone.

The rules are those of ``grape.envs.pick_and_place``; here is where these objects are held and put, and how the fingers
are turned across them. Positions and angles: world frame, z up, m and rad.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from grape.envs.pick_and_place import Grasp, Place, Scene, next_motion, pick_and_place_goal, quantise
from grape.envs.protocol import TaskSpec
from grape.envs.rotations import matrix_from_quaternion

FULL_DEFLECTION_M = 0.03
"""Largest motion per action (1/5 s) on each axis."""
FULL_TURN_RAD = 0.3

LOWEST_GRIP_M = 0.8849
"""Height at which a cube of 3 cm is held. Lower, for a smaller one, the fingertips stick to the table and stay open."""

CLOSED_OPENING_M = 0.034
"""The fingers are 30 mm apart when they have closed on nothing, which the careless take for a grasp."""

_GAIN = 0.4
"""Part of an error that one action removes. The arm follows its target with a lag of about one action, so that more
than this would overshoot."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How an object is held and where it goes."""

    grasp: Grasp
    """Its offset is along the object's own x axis (the long one), the world's horizontal across it, and upwards."""
    place: Place
    symmetry_rad: float = np.pi
    """Turn about the vertical after which the object is held in the same way."""
    least_yaw_rad: float = np.radians(-67.5)
    """The fingers turn to the yaw in [this, this + symmetry), relative to the pose in which an episode begins; a fixed
    range, so that which way they turn follows from the object alone."""


SHAPES: dict[str, Shape] = {
    "carrot": Shape(
        grasp=Grasp(offset_m=(0.0, 0.0, 0.0), tolerance_m=0.006, depth_tolerance_m=0.007),
        place=Place(offset_m=(0.0, 0.0, 0.022), clearance_m=0.07, tolerance_m=0.012, retreat_m=0.12),
    ),
    "green_cube": Shape(
        grasp=Grasp(offset_m=(0.0, 0.0, 0.0), tolerance_m=0.005, depth_tolerance_m=0.006),
        place=Place(offset_m=(0.0, 0.0, 0.03), clearance_m=0.06, tolerance_m=0.007, drop_m=0.006, retreat_m=0.12),
        symmetry_rad=np.pi / 2,
        least_yaw_rad=-np.pi / 4,
    ),
    "spoon": Shape(
        grasp=Grasp(offset_m=(0.01, 0.0, 0.008), tolerance_m=0.006, depth_tolerance_m=0.006),
        place=Place(offset_m=(0.0, 0.0, 0.015), clearance_m=0.06, tolerance_m=0.012, retreat_m=0.12),
    ),
    "eggplant": Shape(
        grasp=Grasp(offset_m=(0.0, 0.0, 0.0), tolerance_m=0.006, depth_tolerance_m=0.008),
        place=Place(offset_m=(0.0, 0.0, 0.03), clearance_m=0.08, tolerance_m=0.02, drop_m=0.03, retreat_m=0.12),
    ),
}
SHAPES["yellow_cube"] = SHAPES["green_cube"]
"""By the name of what is moved."""


class BridgeExpert:
    """Grasps a task's object across its long axis and brings it to its place.

    Args:
        task: One of the suite ``simpler_bridge``.
        careless_m: See ``Grasp``; 0 for a careful one.
    """

    def __init__(self, task: TaskSpec, *, careless_m: float = 0.0) -> None:
        self.object_name, self.target_name = pick_and_place_goal(task)
        self._object = task.keypoint_names.index(self.object_name)
        self._target = task.keypoint_names.index(self.target_name)
        shape = SHAPES[self.object_name]
        if careless_m > 0.0:
            shape = replace(shape, grasp=replace(shape.grasp, careless_m=careless_m, held_opening_m=CLOSED_OPENING_M))
        self.shape = shape

    def act(self, facts: dict[str, np.ndarray]) -> np.ndarray:
        """Return the action (7,) float32 in the simulator's convention (gripper +1 open, −1 close)."""
        shape, item = self.shape, facts["keypoints"][self._object]
        along = _horizontal(facts["keypoint_quaternions"][self._object], axis=0)
        across = np.array([-along[1], along[0], 0.0])
        grip = item + np.stack([along, across, [0.0, 0.0, 1.0]]).T @ shape.grasp.offset_m
        grip[2] = max(grip[2], LOWEST_GRIP_M)
        scene = Scene(
            hand=facts["ee_position"],
            item=item,
            grip=grip,
            goal=facts["keypoints"][self._target] + shape.place.offset_m,
            opening_m=float(facts["gripper_opening"]),
            grasped=bool(facts["grasped"][self._object]),
            touched=bool(facts["finger_contact"][self._object]),
            turn_rad=self._turn_rad(along, facts["ee_quaternion"]),
        )
        error_m, close, turn = next_motion(scene, shape.grasp, shape.place)
        x, y, z = quantise(error_m * _GAIN / FULL_DEFLECTION_M) * FULL_DEFLECTION_M
        [yaw] = quantise(np.array([turn * scene.turn_rad]) * _GAIN / FULL_TURN_RAD) * FULL_TURN_RAD
        # The controller's axes are those of the robot's base, which looks in the direction of the world's -x.
        return np.array([-x, -y, z, 0.0, 0.0, yaw, -1.0 if close else 1.0], np.float32)

    def _turn_rad(self, along: np.ndarray, hand_quaternion: np.ndarray) -> float:
        """From the hand's yaw to the one in which it holds the object; both are 0 at the start, along the world's x."""
        least = self.shape.least_yaw_rad
        wanted = least + (np.arctan2(along[1], along[0]) - least) % self.shape.symmetry_rad
        opening = _horizontal(hand_quaternion, axis=1)  # the direction in which the fingers open, -y at the start
        lowest = least + self.shape.symmetry_rad / 2 - np.pi
        hand = lowest + (np.arctan2(opening[0], -opening[1]) - lowest) % (2 * np.pi)
        return float(wanted - hand)


def _horizontal(quaternion: np.ndarray, *, axis: int) -> np.ndarray:
    """(3,) unit vector: a body's axis, seen from above."""
    direction = matrix_from_quaternion(quaternion)[:, axis] * [1.0, 1.0, 0.0]
    return direction / max(float(np.linalg.norm(direction)), 1e-6)
