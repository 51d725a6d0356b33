"""What the scripted demonstrators of all simulators share: how a hand brings one object to a place.

An expert is a pure function of the current facts: it holds no phase and no clock. So it can label any state
that a noisy rollout or a policy wanders into, and what it does can be told from one picture. Its motions are
made to be easy to imitate: funnels instead of way-points, a handful of speeds instead of a continuum, and no
step at rest. Frames: world, metres; z up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from grape.envs.protocol import TaskSpec
from grape.errors import ConfigError

SPEED_LEVELS = np.array([0.0, 0.1, 0.25, 0.5, 1.0])
"""Magnitudes that an axis may take, as a fraction of full deflection."""

MAX_SLIP_M = 0.035
"""An object further than this from where it was grasped is not held."""

_CLOSING_BELOW_M = 0.06
"""Finger opening below which the fingers are on their way to close, in LIBERO and in SIMPLER."""

_FUNNEL_M_PER_RAD = 0.1
"""Height at which to wait for a turn of the hand."""


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """Where the fingertips' centre goes to hold an object, relative to its origin."""

    offset_m: tuple[float, float, float]
    approach_m: float = 0.08
    """Height above the grasp from which to descend."""
    tolerance_m: float = 0.012
    """Horizontal error at which the descent may end."""
    depth_tolerance_m: float = 0.012
    """Vertical error at which the fingers close."""
    turn_tolerance_rad: float = 0.1
    """Error of the fingers' direction at which they close."""
    press_m: float = 0.0
    """How far below the grasp to aim while the fingers close: flat things are pressed down."""
    held_opening_m: float = 0.015
    """Finger opening below which the object counts as held where a finger touches it; pads alone miss bowl rims."""
    careless_m: float = 0.0
    """Above 0 a careless demonstrator: aims so far beside the grasp, along +y, and takes closed fingers for a grasp."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the held object's origin goes, relative to the target keypoint."""

    offset_m: tuple[float, float, float]
    clearance_m: float = 0.10
    """Height above the final one at which the object is carried."""
    tolerance_m: float = 0.015
    drop_m: float = 0.012
    """Height above the final one from which the object may be dropped."""
    retreat_m: float = np.inf
    """Height above the final one to which the empty hand rises in the end, and where it stays."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The facts that matter, of the one object and the one target."""

    hand: np.ndarray
    """(3,) m, fingertips' centre."""
    item: np.ndarray
    """(3,) m, the object's origin."""
    grip: np.ndarray
    """(3,) m, where the fingertips' centre goes to hold the object."""
    goal: np.ndarray
    """(3,) m, where the object's origin goes."""
    opening_m: float
    grasped: bool
    touched: bool
    """By a finger."""
    turn_rad: float = 0.0
    """By how much the hand has to turn about the vertical to hold the object."""


def pick_and_place_goal(task: TaskSpec) -> tuple[str, str]:
    """Names of what is moved and of where it goes.

    Raises:
        ConfigError: The goal is not one ``on`` or ``in`` with two arguments.
    """
    goal = task.goal_predicates[0] if len(task.goal_predicates) == 1 else ()
    if len(goal) != 3 or goal[0] not in ("on", "in"):
        raise ConfigError(
            f"no scripted expert for {task.suite}/{task.task_id} ({task.instruction!r}): its goals are "
            f"{task.goal_predicates}, "
            "an expert needs one On or In goal; choose another task id"
        )
    return goal[1], goal[2]


def next_motion(scene: Scene, grasp: Grasp, place: Place) -> tuple[np.ndarray, bool, bool]:
    """What to do next.

    Returns:
        Where to move from here, (3,) m; whether to close the fingers; whether to turn as well.
    """
    if grasp.careless_m > 0.0:
        scene = _as_the_careless_see_it(scene, grasp)
    if _is_held(scene, grasp):
        return (*_carry(scene, place), False)
    if _is_placed(scene, place):
        return np.array([0.0, 0.0, min(0.1, scene.goal[2] + place.retreat_m - scene.hand[2])]), False, False
    return (*_reach(scene, grasp), True)


def quantise(deflection: np.ndarray) -> np.ndarray:
    """Snap each axis of a deflection to the nearest of ``SPEED_LEVELS``, sign kept."""
    magnitude = np.minimum(np.abs(deflection), 1.0)
    nearest = np.abs(magnitude[:, None] - SPEED_LEVELS[None, :]).argmin(axis=1)
    return np.sign(deflection) * SPEED_LEVELS[nearest]


def _as_the_careless_see_it(scene: Scene, grasp: Grasp) -> Scene:
    """What is there for someone who looks neither where the fingers close nor at what they hold."""
    grip = scene.grip + [0.0, grasp.careless_m, 0.0]
    if scene.opening_m < grasp.held_opening_m:
        return replace(scene, grip=grip, item=scene.hand + (scene.item - scene.grip), grasped=True)
    return replace(scene, grip=grip, grasped=False, touched=False)


def _is_held(scene: Scene, grasp: Grasp) -> bool:
    if scene.grasped:
        return True
    closed = scene.opening_m < grasp.held_opening_m
    in_place = np.linalg.norm(scene.grip - scene.hand) < MAX_SLIP_M
    return bool(closed and in_place and scene.touched)


def _is_placed(scene: Scene, place: Place) -> bool:
    item, goal = scene.item, scene.goal
    return bool(np.linalg.norm(item[:2] - goal[:2]) < place.tolerance_m * 1.5 and item[2] < goal[2] + 0.02)


def _reach(scene: Scene, grasp: Grasp) -> tuple[np.ndarray, bool]:
    error = scene.grip - scene.hand
    distance, turn = float(np.linalg.norm(error[:2])), abs(scene.turn_rad)
    # Once the fingers close, only a larger error opens them again.
    slack = 2.0 if scene.opening_m < _CLOSING_BELOW_M else 1.0
    near = distance < 1.5 * slack * grasp.tolerance_m and turn < slack * grasp.turn_tolerance_rad
    if near and abs(error[2]) < slack * grasp.depth_tolerance_m:
        error[2] -= grasp.press_m
        return error, True
    # A funnel: the closer above the object and the better turned, the lower.
    sideways = 1.5 * max(0.0, distance - grasp.tolerance_m)
    turning = _FUNNEL_M_PER_RAD * max(0.0, turn - grasp.turn_tolerance_rad)
    error[2] += min(grasp.approach_m, sideways + turning)
    return error, False


def _carry(scene: Scene, place: Place) -> tuple[np.ndarray, bool]:
    error = scene.goal - scene.item
    distance = float(np.linalg.norm(error[:2]))
    if distance < place.tolerance_m and error[2] > -place.drop_m:
        return np.array([0.0, 0.0, -0.005]), False
    height = min(place.clearance_m, 1.5 * max(0.0, distance - place.tolerance_m))
    error[2] += height
    if error[2] > 0.03:
        error[:2] *= np.clip(1.0 - (error[2] - 0.03) / 0.03, 0.0, 1.0)
    return error, True
