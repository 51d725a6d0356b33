"""Initial states of SIMPLER's published evaluation of the Google Robot (visual matching), numbered from 0.

``simpler_env.make`` draws the robot's colours, its place and the objects' by a seed; the published scripts go through
all of them, colours outermost. Here they are numbered in the scripts' order, so that each is had once, by name.
Source: ``scripts/*_visual_matching.sh`` of SimplerEnv at commits 982db4b and e4545d2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

PLAIN, TABLE_1, TABLE_2, CABINET = (
    "",
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
"""Colours of the robot: versions of its URDF."""
TABLE_COLOURS = (PLAIN, TABLE_1, TABLE_2, CABINET)
DRAWER_COLOURS = (CABINET, TABLE_1, TABLE_2, PLAIN)

CAN_X_M, CAN_Y_M = np.linspace(-0.35, -0.12, 5), np.linspace(-0.02, 0.42, 5)
CAN_ORIENTATIONS = {"horizontal": "lr_switch", "standing": "upright", "vertical": "laid_vertically"}
"""Name in the task to the environment's name, in the scripts' order."""
APPLE_X_M, APPLE_Y_M = np.linspace(-0.08, -0.02, 3), np.linspace(-0.02, 0.08, 3)
NUM_MOVE_NEAR = 60
DRAWERS = ("top", "middle", "bottom")
DRAWER_VIEWS: dict[str, tuple[float, float, float]] = {
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
"""Background picture to the robot's x and y (m) and yaw (rad) in it."""


@dataclass(frozen=True)
class Published:
    """A task's published states: ``sizes`` of the nested loops, outermost first, and a request for each position."""

    sizes: tuple[int, ...]
    request: Callable[..., dict[str, Any]]

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """What ``foreign.py``'s request ``reset`` needs; the seed is the index."""
        position = (int(one) for one in np.unravel_index(index, self.sizes))
        return {"seed": index, **self.request(*position)}


def reset_request(
    *,
    robot: tuple[float, float, float],
    colours: str,
    objects: dict[str, Any],
    attributes: dict[str, Any] | None = None,
    overlay: str | None = None,
) -> dict[str, Any]:
    """A reset that leaves nothing of these to the environment's random numbers.

    Args:
        robot: x and y (m) and yaw (rad) of the base, relative to facing the table.
        colours: Version of the robot's URDF.
        objects: The environment's ``obj_init_options``.
        attributes: What else is set on the environment first.
        overlay: Background picture; ``None`` for the one it has.
    """
    x, y, yaw = robot
    turned = [-math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2)]  # wxyz: by yaw, after half a turn
    return {
        "options": {
            "reconfigure": True,
            "robot_init_options": {"init_xy": [x, y], "init_rot_quat": turned},
            "obj_init_options": objects,
        },
        "attributes": {"prepackaged_config": False, **(attributes or {})},
        "urdf_version": colours,
        "overlay": overlay,
    }


def _can(orientations: tuple[str, ...]) -> Published:
    def request(colours: int, orientation: int, x: int, y: int) -> dict[str, Any]:
        where = {"init_xy": [CAN_X_M[x], CAN_Y_M[y]], "orientation": CAN_ORIENTATIONS[orientations[orientation]]}
        return reset_request(robot=(0.35, 0.20, 0.0), colours=TABLE_COLOURS[colours], objects=where)

    return Published((len(TABLE_COLOURS), len(orientations), len(CAN_X_M), len(CAN_Y_M)), request)


def _move_near(colours: int, episode: int) -> dict[str, Any]:
    return reset_request(robot=(0.35, 0.21, -0.09), colours=TABLE_COLOURS[colours], objects={"episode_id": episode})


def _drawer(drawers: tuple[str, ...]) -> Published:
    def request(colours: int, drawer: int, view: int) -> dict[str, Any]:
        name = list(DRAWER_VIEWS)[view]
        return reset_request(
            robot=DRAWER_VIEWS[name],
            colours=DRAWER_COLOURS[colours],
            objects={},
            attributes={"drawer_ids": [drawers[drawer]]},
            overlay=f"open_drawer_{name}.png",
        )

    return Published((len(DRAWER_COLOURS), len(drawers), len(DRAWER_VIEWS)), request)


def _apple(colours: int, view: int, x: int, y: int) -> dict[str, Any]:
    name = ("a0", "b0", "c0")[view]
    return reset_request(
        robot=DRAWER_VIEWS[name],
        colours=DRAWER_COLOURS[colours],
        objects={"init_xy": [APPLE_X_M[x], APPLE_Y_M[y]]},
        overlay=f"open_drawer_{name}.png",
    )


PUBLISHED: dict[str, Published] = {
    "google_robot_pick_coke_can": _can(tuple(CAN_ORIENTATIONS)),
    **{f"google_robot_pick_{name}_coke_can": _can((name,)) for name in CAN_ORIENTATIONS},
    **{
        f"google_robot_move_near{version}": Published((len(TABLE_COLOURS), NUM_MOVE_NEAR), _move_near)
        for version in ("", "_v0", "_v1")
    },
    **{f"google_robot_{verb}_drawer": _drawer(DRAWERS) for verb in ("open", "close")},
    **{f"google_robot_{verb}_{which}_drawer": _drawer((which,)) for verb in ("open", "close") for which in DRAWERS},
    "google_robot_place_apple_in_closed_top_drawer": Published(
        (len(DRAWER_COLOURS), 3, len(APPLE_X_M), len(APPLE_Y_M)), _apple
    ),
}
"""By name for ``simpler_env.make``; the other tasks are in no published script."""
