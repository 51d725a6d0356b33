"""One look at a scene: picture, depth, which object each pixel shows, and the camera that saw them.

Axis legend: H height, W width, N points, K keypoints. Pixels are (column, row) from the upper left corner, the centre
of the first pixel at (0.5, 0.5). Camera axes are OpenCV's: x right, y down, z forward; the first focal length is
negative where the picture is a mirror image, as LIBERO's are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grape.errors import RecordError

LARGEST_NUMBER, SMALLEST_FOCAL_LENGTH = 1e6, 1e-3
"""Of a camera, in pixels or metres: beyond them a position is no number that can be used."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera."""

    intrinsics: np.ndarray
    """(3, 3) pixels: focal lengths and principal point."""
    camera_to_world: np.ndarray
    """(4, 4) rigid transform, m."""

    def __post_init__(self) -> None:
        for name, shape in (("intrinsics", (3, 3)), ("camera_to_world", (4, 4))):
            values = np.asarray(getattr(self, name), np.float64)
            if values.shape != shape:
                raise RecordError(f"a camera's {name} are {shape} finite numbers, got shape {values.shape}")
            if not (np.abs(values) <= LARGEST_NUMBER).all():  # false for nan, too
                raise RecordError(
                    f"a camera's {name} are finite numbers up to {LARGEST_NUMBER:g}, got {values.tolist()}"
                )
            object.__setattr__(self, name, values)
        for name in ("intrinsics", "camera_to_world"):
            if not np.allclose(row := getattr(self, name)[-1], np.eye(len(row))[-1]):
                raise RecordError(f"the last row of a camera's {name} is 0, …, 0, 1; got {row}: transposed?")
        if not (np.abs(np.diag(self.intrinsics)) >= SMALLEST_FOCAL_LENGTH).all():
            raise RecordError(f"focal lengths are pixels and not 0, got intrinsics {self.intrinsics.tolist()}")
        if not np.isclose(self.intrinsics[1, 0], 0):
            raise RecordError(f"intrinsics are 0 below their diagonal, got {self.intrinsics.tolist()}: transposed?")
        rotation = self.camera_to_world[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or np.linalg.det(rotation) < 0:
            raise RecordError("camera_to_world is not a rigid transform: its upper left 3 by 3 part is no rotation")

    def project(self, points_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points appear: (N, 2) pixels and (N,) depth in m; a depth <= 0 is behind the camera."""
        rotation, origin = self.camera_to_world[:3, :3], self.camera_to_world[:3, 3]
        in_camera = (np.asarray(points_m, np.float64) - origin) @ rotation
        depth = in_camera[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            homogeneous = (in_camera / depth[:, None]) @ self.intrinsics.T
        return homogeneous[:, :2], depth

    def lift(self, pixels: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
        """Points (N, 3) m, world frame, that are seen at ``pixels`` (N, 2) in depth ``depth_m`` (N,)."""
        homogeneous = np.concatenate([np.asarray(pixels, np.float64), np.ones((len(pixels), 1))], axis=1)
        in_camera = homogeneous @ np.linalg.inv(self.intrinsics).T * np.asarray(depth_m)[:, None]
        return in_camera @ self.camera_to_world[:3, :3].T + self.camera_to_world[:3, 3]


_CAMERA_FIELDS = ("intrinsics", "camera_to_world")


def load_camera(path: Path) -> Camera:
    """Read ``{"intrinsics": [[…], …], "camera_to_world": [[…], …]}`` (JSON): 3 by 3 pixels, 4 by 4 metres.

    Raises:
        RecordError: The file cannot be read, or is no camera; the message names it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or set(data) != set(_CAMERA_FIELDS):
            raise RecordError(f"wanted an object with the fields {', '.join(_CAMERA_FIELDS)} and no others")
        return Camera(**{name: np.array(values, dtype=np.float64) for name, values in data.items()})
    except (OSError, ValueError, TypeError, OverflowError, RecursionError, RecordError) as error:
        raise RecordError(f"{path} is not a camera: {error}") from error


@dataclass(frozen=True, kw_only=True)
class SceneView:
    """What a camera saw at one moment, with what a simulator knows about it."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB, upright."""
    depth_m: np.ndarray
    """(H, W) float32, along the camera's z axis; 0 or not finite where unknown."""
    segmentation: np.ndarray
    """(H, W) int32: k + 1 where ``keypoint_names[k]`` is seen, 0 elsewhere."""
    camera: Camera
    keypoint_names: tuple[str, ...]
    keypoints_m: np.ndarray
    """(K, 3) m, world frame: the true positions."""

    def __post_init__(self) -> None:
        height, width = self.image.shape[:2]
        wanted = {
            "image": (height, width, 3),
            "depth_m": (height, width),
            "segmentation": (height, width),
            "keypoints_m": (len(self.keypoint_names), 3),
        }
        for name, shape in wanted.items():
            if (got := getattr(self, name).shape) != shape:
                raise RecordError(f"a view's {name} has shape {got}, wanted {shape}")
