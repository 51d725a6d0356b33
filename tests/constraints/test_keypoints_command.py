"""``grape constraints keypoints`` from files: a picture that is painted here, with a real policy's tower."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grape.cli.constraints_keypoints import main


@pytest.fixture
def scene(tmp_path: Path) -> list[str]:
    """A red and a blue block on grey ground, seen from 2 m above; 100 pixels are 1 m there: the flags."""
    image = np.full((96, 128, 3), 120, np.uint8)
    labels = np.zeros((96, 128), np.uint8)
    for label, columns, colour in ((1, slice(20, 44), (200, 30, 30)), (2, slice(80, 104), (30, 30, 200))):
        image[40:64, columns], labels[40:64, columns] = colour, label
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "masks.png")
    (tmp_path / "names.json").write_text('{"1": "red_block", "2": "blue_block"}')
    np.save(tmp_path / "depth.npy", np.full((96, 128), 2.0))
    intrinsics = np.array([[200.0, 0, 64], [0, 200, 48], [0, 0, 1]])
    pose = np.diag([1.0, -1, -1, 1])
    pose[2, 3] = 2.0
    camera = {"intrinsics": intrinsics.tolist(), "camera_to_world": pose.tolist()}
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    files = {"image": "image.png", "masks": "masks.png", "mask_names": "names.json", "depth": "depth.npy"}
    flags = [(f"--{name}", str(tmp_path / file)) for name, file in (files | {"camera": "camera.json"}).items()]
    return [word for flag in flags for word in flag]


def test_centroids(scene: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*scene, "--source", "centroids", "--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    [red, blue] = written["keypoints"]
    # The red block's middle is pixel (32, 52): 32 left of the principal point and 4 below it, 100 pixels to the metre.
    assert (red["number"], red["name"], red["mask"]) == (1, "red_block", "red_block")
    np.testing.assert_allclose(red["pixel"], [32.0, 52.0], atol=1e-9)
    np.testing.assert_allclose(red["position_m"], [-0.32, -0.04, 0.0], atol=1e-9)
    np.testing.assert_allclose(blue["position_m"], [0.28, -0.04, 0.0], atol=1e-9)
    assert red["true_distance_m"] is None
    shown = capsys.readouterr().out
    assert "2 keypoints" in shown and "true position" not in shown


def test_features_of_a_policy(scene: list[str], tmp_path: Path, repository: Path) -> None:
    flags = ["--pretrained_checkpoint", str(repository / "experiments/demo/nano-libero"), "--device", "cpu"]
    flags += ["--candidates_per_mask", "3", "--min_distance_m", "0.05"]
    for out in ("one", "two"):
        assert main([*scene, *flags, "--out", str(tmp_path / out)]) == 0
    one, two = ((tmp_path / out / "keypoints.json").read_bytes() for out in ("one", "two"))
    assert one == two
    keypoints = json.loads(one)["keypoints"]
    assert {keypoint["mask"] for keypoint in keypoints} == {"red_block", "blue_block"}
    assert len(keypoints) > 2, "blocks of 24 cm have parts"
    for keypoint in keypoints:
        x, y, z = keypoint["position_m"]
        left = -0.44 if keypoint["mask"] == "red_block" else 0.16
        assert left <= x <= left + 0.24 and -0.16 <= y <= 0.08 and abs(z) < 1e-9
    # Each keypoint is marked in the picture, which is otherwise the picture: ground in the corner stays grey.
    drawn = np.asarray(Image.open(tmp_path / "one" / "keypoints.png"))
    factor = drawn.shape[0] // 96
    assert drawn.shape == (96 * factor, 128 * factor, 3)
    assert (drawn[-1, 0] == 120).all()
    blocks = {"red_block": (200, 30, 30), "blue_block": (30, 30, 200)}
    for keypoint in keypoints:
        column, row = (int(value * factor) for value in keypoint["pixel"])
        assert tuple(drawn[row, column]) != blocks[keypoint["mask"]]
