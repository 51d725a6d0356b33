"""Points that constraints declare beside the recorded keypoints: parts of objects, and places in the world.

Axis legend: R rows of facts. Quaternions are xyzw.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from grape.errors import ConstraintError

MAX_POINTS = 64
MAX_OFFSET_M = 10.0
"""Nothing on a table is further away: a larger number was meant in another unit."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point that stays where it is in an object's own frame, however the object moves and turns."""

    of: str | None
    """The keypoint in whose frame it is fixed; ``None``, or ``"world"``: fixed in the world."""
    offset_m: tuple[float, float, float]
    """Where in that frame, m."""

    def __post_init__(self) -> None:
        if self.of is not None and not isinstance(self.of, str):
            raise ConstraintError(f"'of' is the name of a keypoint, or null for the world; got {self.of!r}")
        offset = self.offset_m
        if not isinstance(offset, (list, tuple)) or len(offset) != 3 or not all(_is_length_m(x) for x in offset):
            raise ConstraintError(f"'offset_m' is three numbers in metres, at most {MAX_OFFSET_M:g}; got {offset!r}")
        object.__setattr__(self, "of", None if self.of == "world" else self.of)
        object.__setattr__(self, "offset_m", tuple(float(x) for x in offset))


def in_world(offset_m: np.ndarray, object_position_m: np.ndarray, object_quaternion: np.ndarray) -> np.ndarray:
    """Where a point of an object is: positions (…, 3) m, world frame, for object poses (…, 3) m and (…, 4)."""
    return object_position_m + _rotated(np.broadcast_to(offset_m, np.shape(object_position_m)), object_quaternion)


def offset_in_frame(position_m: np.ndarray, object_position_m: np.ndarray, object_quaternion: np.ndarray) -> np.ndarray:
    """The reverse of ``in_world``, and what a ``Point`` declares: offsets (…, 3) m in the object's own frame."""
    back = np.asarray(object_quaternion, np.float64) * [-1, -1, -1, 1]
    return _rotated(np.asarray(position_m, np.float64) - object_position_m, back)


def check_point_name(name: str) -> None:
    """Raise ``ConstraintError`` unless ``name`` can stand in an expression as a keypoint's can."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or "__" in name:
        raise ConstraintError(
            f"point {str(name)[:80]!r}: a name is a letter, then at most 63 letters, digits and single underscores"
        )


def _rotated(vectors: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    quaternion = np.asarray(quaternion, np.float64)
    quaternion = quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True)
    axis, w = quaternion[..., :3], quaternion[..., 3:]
    turn = 2 * np.cross(axis, vectors)
    return vectors + w * turn + np.cross(axis, turn)


def _is_length_m(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_OFFSET_M  # type: ignore[arg-type]
