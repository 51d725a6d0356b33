"""Stage constraints derived from a LIBERO task's goal predicates: no model and no hand-work.

Every predicate becomes a subtask. ``On`` and ``In`` are grasp, lift, carry, place; ``Open``, ``Close``, ``TurnOn``
and ``TurnOff`` are reach, operate; ``Up`` is grasp, lift. Whether a goal holds is always the simulator's own
verdict (``goal(i)``); distances only say how far away it is. Units: m and steps at LIBERO's 20 Hz.
"""

from __future__ import annotations

from collections.abc import Sequence

from grape.constraints.stages import Stage, TaskConstraints
from grape.errors import ConstraintError, did_you_mean

LIFT_HEIGHT_M = 0.03
"""An object is lifted when it is this much higher than at the start."""
AT_TARGET_RADIUS_M = 0.08
"""Horizontal distance to the target's keypoint at which carrying ends."""
LEFT_TARGET_RADIUS_M = 0.12
"""A released object this far away was dropped beside the target; wider than the above so that stages do not flicker."""
UNMET_M = 0.05
"""What an unmet sub-goal costs at distance 0."""
TRAVEL_M = 0.15
"""Way of a drawer or door that counts as all the way."""

_PLACING = ("on", "in")
_OPERATING = ("open", "close", "turnon", "turnoff")
_ORDER = {"open": 0, "close": 2}  # a drawer is opened before, and closed after, everything else
_SURFACES = ("table", "floor")  # too large for their keypoint to say where a region on them is
_PATH = "norm(ee - previous(ee))"


def derive_constraints(
    goal_predicates: Sequence[Sequence[str]],
    keypoint_names: Sequence[str],
    instruction: str,
) -> TaskConstraints:
    """Stages for any conjunction of LIBERO goal predicates.

    Args:
        goal_predicates: E.g. ``(("on", "akita_black_bowl_1", "plate_1"),)``; order as in ``goal_satisfied``.
        keypoint_names: Columns of the facts. A missing region falls back to the object that it is a part of.
        instruction: The task in words; kept for messages.

    Raises:
        ConstraintError: No goal, or an object to be moved has no keypoint.
    """
    names = tuple(keypoint_names)
    if not goal_predicates:
        raise ConstraintError(f"{instruction!r} has no goal predicates; stages cannot be derived")
    order = sorted(range(len(goal_predicates)), key=lambda i: _ORDER.get(goal_predicates[i][0].lower(), 1))
    stages: list[Stage] = []
    for index in order:
        stages += _stages(index, tuple(goal_predicates[index]), names)
    return TaskConstraints(instruction=instruction, stages=tuple(stages), keypoint_names=names, source="bddl")


def _stages(index: int, predicate: tuple[str, ...], names: tuple[str, ...]) -> list[Stage]:
    verb, arguments = predicate[0].lower(), predicate[1:]
    label = " ".join((verb, *arguments))
    if verb in _PLACING and len(arguments) == 2:
        return _place(index, label, arguments[0], arguments[1], names)
    if verb == "up" and len(arguments) == 1:
        return _lift(index, label, arguments[0], names)
    if verb in _OPERATING and len(arguments) == 1:
        return _operate(index, label, verb, arguments[0], names)
    # a predicate of an extended benchmark: no geometry is known, but the goal's own verdict still scores
    return [Stage(name=label, subtask=label, done_when=f"goal({index})", sub_goal=_unmet(f"goal({index})", "0.15"))]


def _place(index: int, label: str, item: str, target_name: str, names: tuple[str, ...]) -> list[Stage]:
    grasp, held = _grasp(label, item, names)
    goal, moved = f"goal({index})", f'keypoint("{item}")'
    target = _locate(target_name, names)
    lifted = _lifted(moved)
    missing = f"where({held}, 0, 1)"
    if target is None:
        lift_done, lift_gap = f"{held} and {lifted}", _lift_gap(moved)
        final = Stage(
            name=f"place: {label}", done_when=goal, requires=held, sub_goal=_unmet(goal, "0.15"),
            grasp=missing, collision=_collision(held, item), subtask=label, path=_PATH,
        )  # fmt: skip
        middle: list[Stage] = []
    else:
        away = f'horizontal_distance({moved}, keypoint("{target}"))'
        lift_done, lift_gap = f"{held} and ({lifted} or {away} <= {AT_TARGET_RADIUS_M})", _lift_gap(moved)
        around = _collision(held, item, *_parts_of(target_name, names))
        middle = [
            Stage(
                name=f"carry: {label}", done_when=f"{held} and {away} <= {AT_TARGET_RADIUS_M}", requires=held,
                sub_goal=_unmet(f"{away} <= {AT_TARGET_RADIUS_M}", away), grasp=missing,
                collision=_collision(held, item), subtask=label, path=_PATH,
            )
        ]  # fmt: skip
        final = Stage(
            name=f"place: {label}", done_when=goal, requires=f"{held} or {away} <= {LEFT_TARGET_RADIUS_M}",
            sub_goal=_unmet(goal, f'distance({moved}, keypoint("{target}"))'), collision=around, subtask=label,
            path=_PATH,
        )  # fmt: skip
    lift = Stage(
        name=f"lift: {label}", done_when=lift_done, requires=held, sub_goal=_unmet(lift_done, lift_gap),
        grasp=missing, collision=_collision(held, item), subtask=label, path=_PATH,
    )  # fmt: skip
    return [grasp, lift, *middle, final]


def _lift(index: int, label: str, item: str, names: tuple[str, ...]) -> list[Stage]:
    grasp, held = _grasp(label, item, names)
    goal, moved = f"goal({index})", f'keypoint("{item}")'
    lift = Stage(
        name=f"lift: {label}", subtask=label, done_when=goal, requires=held, sub_goal=_unmet(goal, _lift_gap(moved)),
        grasp=f"where({held}, 0, 1)", collision=_collision(held, item), path=_PATH,
    )  # fmt: skip
    return [grasp, lift]


def _operate(index: int, label: str, verb: str, part: str, names: tuple[str, ...]) -> list[Stage]:
    goal, found = f"goal({index})", _locate(part, names)
    if found is None:
        return [Stage(name=label, subtask=label, done_when=goal, sub_goal=_unmet(goal, str(TRAVEL_M)), path=_PATH)]
    touchable = _parts_of(part, names)
    touched = " or ".join(f'robot_contact("{name}")' for name in touchable)
    place = f'keypoint("{found}")'
    collision = f"where({_other_contact(touchable)}, 1, 0)"  # the hand may push a drawer: arm contact is no collision
    reach = Stage(
        name=f"reach: {label}", subtask=label, done_when=touched, begins_when=touched,
        sub_goal=_unmet(touched, f"distance(ee, {place})"), collision=collision, path=_PATH,
    )  # fmt: skip
    left = f"max(0, {TRAVEL_M} - distance({place}, start({place})))"
    operate = Stage(
        name=f"{verb}: {label}", subtask=label, done_when=goal, sub_goal=_unmet(goal, left),
        collision=collision, path=_PATH,
    )  # fmt: skip
    return [reach, operate]


def _grasp(label: str, item: str, names: tuple[str, ...]) -> tuple[Stage, str]:
    if item not in names:
        raise ConstraintError(f"{label!r}: {item!r} has no keypoint.{did_you_mean(item, names)}")
    # a bowl held by its rim may touch one finger's pad alone, which the simulator does not call grasped
    moved = f'keypoint("{item}")'
    held = f'(grasped("{item}") or finger_contact("{item}") and {_lifted(moved)})'
    stage = Stage(
        name=f"grasp: {label}", subtask=label, done_when=held, begins_when=held,
        sub_goal=_unmet(held, f"distance(ee, {moved})"), grasp=f"where({held}, 0, 1)",
        collision=_collision(held, item), path=_PATH,
    )  # fmt: skip
    return stage, held


def _lifted(moved: str) -> str:
    return f"height({moved}) - start(height({moved})) >= {LIFT_HEIGHT_M}"


def _lift_gap(moved: str) -> str:
    return f"max(0, {LIFT_HEIGHT_M} - height({moved}) + start(height({moved})))"


def _unmet(condition: str, distance: str) -> str:
    return f"where({condition}, 0, {UNMET_M} + {distance})"


def _collision(held: str, item: str, *allowed: str) -> str:
    # ``arm_contact`` includes the palm resting on the held object, which is no collision
    return f"max({_other_contact((item, *allowed))}, where({held}, 0, arm_contact))"


def _other_contact(allowed: Sequence[str]) -> str:
    return f"other_contact({', '.join(repr(name) for name in allowed)})"


def _locate(name: str, names: tuple[str, ...]) -> str | None:
    """The keypoint ``name``, or the longest-named object that it is a part of; ``None`` for a region of a table."""
    owners = [
        known
        for known in _parts_of(name, names)
        if known == name or not known.rstrip("_0123456789").endswith(_SURFACES)
    ]
    return max(owners, key=len, default=None)


def _parts_of(name: str, names: tuple[str, ...]) -> list[str]:
    return [known for known in names if name == known or name.startswith(f"{known}_")]
