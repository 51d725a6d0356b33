"""Scripted demonstrators for LIBERO's pick-and-place tasks, from privileged state and ``env.step`` actions alone.

The rules are those of ``grape.envs.pick_and_place``; here is where LIBERO's objects are held and put.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from grape.envs.pick_and_place import Grasp, Place, Scene, next_motion, pick_and_place_goal, quantise
from grape.envs.protocol import TaskSpec
from grape.trajectory import ACTION_DIM

_GAIN_PER_M = 22.0
"""Deflection per metre of position error; full deflection from 4.5 cm on."""

FLAT = Grasp(offset_m=(0.0, 0.0, 0.001), depth_tolerance_m=0.006, press_m=0.005, held_opening_m=0.046)
"""Boxes that lie on their largest side."""
TALL = Grasp(offset_m=(0.0, 0.0, 0.05), approach_m=0.10)
"""Bottles and cartons that would touch the palm if they were held by the middle."""

GRASPS: dict[str, Grasp] = {
    "akita_black_bowl": Grasp(offset_m=(0.0, 0.052, 0.035)),
    "cream_cheese": FLAT,
    "butter": FLAT,
    "chocolate_pudding": FLAT,
    "salad_dressing": TALL,
    "ketchup": TALL,
    "milk": TALL,
    "orange_juice": TALL,
}
"""By object category; categories that are missing take ``DEFAULT_GRASP``."""

DEFAULT_GRASP = Grasp(offset_m=(0.0, 0.0, 0.01))

PLACES: dict[str, Place] = {
    "plate": Place(offset_m=(0.0, 0.0, 0.005)),
    "akita_black_bowl": Place(offset_m=(0.0, 0.0, 0.06), drop_m=0.03),
    "basket": Place(offset_m=(0.0, 0.0, 0.12), clearance_m=0.08, tolerance_m=0.03),
    "flat_stove": Place(offset_m=(0.0, 0.0, 0.03), clearance_m=0.08),
    "wooden_cabinet": Place(offset_m=(0.0, 0.0, 0.02), clearance_m=0.06, tolerance_m=0.03),
}


def category(name: str) -> str:
    """``"akita_black_bowl_1"`` and ``"flat_stove_1_cook_region"`` to their object's category."""
    stem = name.split("_region")[0]
    parts = stem.split("_")
    for index, part in enumerate(parts):
        if part.isdigit():
            return "_".join(parts[:index])
    return stem


class PickAndPlaceExpert:
    """Grasps one object and brings it to a target.

    Args:
        task: A task whose first goal predicate is ``on`` or ``in`` with two arguments.
        careless_m: See ``Grasp``; 0 for a careful one.

    Raises:
        ConfigError: The goal is not a pick-and-place goal.
    """

    def __init__(self, task: TaskSpec, *, careless_m: float = 0.0) -> None:
        self.object_name, self.target_name = pick_and_place_goal(task)
        self._object = task.keypoint_names.index(self.object_name)
        self._target = task.keypoint_names.index(self.target_name)
        self.grasp = replace(GRASPS.get(category(self.object_name), DEFAULT_GRASP), careless_m=careless_m)
        self.place = PLACES.get(category(self.target_name), Place(offset_m=(0.0, 0.0, 0.03)))

    def act(self, facts: dict[str, np.ndarray]) -> np.ndarray:
        """Return the action (7,) float32 in the simulator's convention (gripper −1 open, +1 close)."""
        item = facts["keypoints"][self._object]
        scene = Scene(
            hand=facts["ee_position"],
            item=item,
            grip=item + self.grasp.offset_m,
            goal=facts["keypoints"][self._target] + self.place.offset_m,
            opening_m=float(facts["gripper_opening"]),
            grasped=bool(facts["grasped"][self._object]),
            touched=bool(facts["finger_contact"][self._object]),
        )
        error, close, _ = next_motion(scene, self.grasp, self.place)
        action = np.zeros(ACTION_DIM, np.float32)
        action[:3] = quantise(error * _GAIN_PER_M)
        action[6] = 1.0 if close else -1.0
        return action
