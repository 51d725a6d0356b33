"""A camera's geometry, derived by hand, and its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grape.errors import RecordError
from grape.scene import Camera, SceneView, load_camera

INTRINSICS = [[100.0, 0.0, 32.0], [0.0, 100.0, 24.0], [0.0, 0.0, 1.0]]
# 2 m above the world's origin, looking down: right is the world's x, down in the picture its -y
DOWN = [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 2.0], [0.0, 0.0, 0.0, 1.0]]
POINTS_M = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.1, 1.0], [0.0, 0.0, 3.0]])
DEPTH_M = [2.0, 2.0, 1.0, -1.0]
PIXELS = [[32, 24], [42, 24], [32, 14]]  # 100 · 0.2 / 2 = 10 to the right, 100 · 0.1 / 1 = 10 up


def camera(**changed: Any) -> Camera:
    return Camera(**{"intrinsics": np.array(INTRINSICS), "camera_to_world": np.array(DOWN)} | changed)


def test_points_appear_where_geometry_says() -> None:
    pixels, depth_m = camera().project(POINTS_M)
    np.testing.assert_allclose(depth_m, DEPTH_M)
    np.testing.assert_allclose(pixels[:3], PIXELS)


def test_a_negative_focal_length_mirrors() -> None:
    mirrored = camera(intrinsics=np.array(INTRINSICS) * [[-1, 1, 1], [1, 1, 1], [1, 1, 1]])
    pixels, _ = mirrored.project(POINTS_M[:3])
    np.testing.assert_allclose(pixels, [[32, 24], [22, 24], [32, 14]])
    np.testing.assert_allclose(mirrored.lift(pixels, np.array(DEPTH_M[:3])), POINTS_M[:3], atol=1e-12)


def test_pixels_with_depth_are_lifted_to_the_points() -> None:
    np.testing.assert_allclose(camera().lift(np.array(PIXELS), np.array(DEPTH_M[:3])), POINTS_M[:3], atol=1e-12)


def test_a_camera_s_file_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "camera.json").write_text(json.dumps({"intrinsics": INTRINSICS, "camera_to_world": DOWN}))
    loaded = load_camera(tmp_path / "camera.json")
    np.testing.assert_array_equal(loaded.intrinsics, INTRINSICS)
    np.testing.assert_array_equal(loaded.camera_to_world, DOWN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "camera.json is not a camera"),
        ("[]", "fields intrinsics, camera_to_world"),
        (json.dumps({"intrinsics": INTRINSICS}), "fields intrinsics, camera_to_world"),
        (json.dumps({"intrinsics": DOWN, "camera_to_world": DOWN}), r"\(3, 3\) finite numbers"),
        (json.dumps({"intrinsics": [[1, 2], [3]], "camera_to_world": DOWN}), "is not a camera"),
        (json.dumps({"intrinsics": INTRINSICS, "camera_to_world": "here"}), "is not a camera"),
        (json.dumps({"intrinsics": INTRINSICS, "camera_to_world": np.full((4, 4), np.nan).tolist()}), "finite"),
        (json.dumps({"intrinsics": [[10**400, 0, 0], [0, 1, 0], [0, 0, 1]], "camera_to_world": DOWN}), "too large"),
        (json.dumps({"intrinsics": [[1e308, 0, 0], [0, 1, 0], [0, 0, 1]], "camera_to_world": DOWN}), "up to 1e"),
        (json.dumps({"intrinsics": [[1e-308, 0, 0], [0, 1, 0], [0, 0, 1]], "camera_to_world": DOWN}), "focal lengths"),
        (json.dumps({"intrinsics": [[5, 5, 0], [5, 5, 0], [0, 0, 1]], "camera_to_world": DOWN}), "transposed"),
        (json.dumps({"intrinsics": INTRINSICS, "camera_to_world": np.diag([1, 1, -1, 1]).tolist()}), "no rotation"),
        (json.dumps({"intrinsics": INTRINSICS, "camera_to_world": np.transpose(DOWN).tolist()}), "transposed"),
        (json.dumps({"intrinsics": np.diag([0, 9, 1]).tolist(), "camera_to_world": DOWN}), "focal lengths"),
    ],
)
def test_a_wrong_file_is_named_with_its_fault(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "camera.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=message):
        load_camera(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nowhere.json is not a camera"):
        load_camera(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("name", "shape"), [("image", (6, 8)), ("depth_m", (8, 6)), ("segmentation", (6, 8, 1)), ("keypoints_m", (2, 3))]
)
def test_a_view_s_arrays_fit_together(name: str, shape: tuple[int, ...]) -> None:
    fields: dict[str, Any] = {
        "image": np.zeros((6, 8, 3), np.uint8),
        "depth_m": np.ones((6, 8), np.float32),
        "segmentation": np.zeros((6, 8), np.int32),
        "keypoints_m": np.zeros((1, 3)),
    }
    rest: dict[str, Any] = {"camera": camera(), "keypoint_names": ("bowl_1",)}
    SceneView(**fields, **rest)
    with pytest.raises(RecordError, match=f"{name} has shape"):
        SceneView(**fields | {name: np.zeros(shape)}, **rest)
