"""Pictures, masks, depth and cameras of a real robot, as files that are written here by Pillow, numpy and json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grape.config.constraints_keypoints import KeypointsConfig
from grape.constraints.keypoint_sources import CentroidKeypoints
from grape.constraints.masked_picture import MaskedPicture
from grape.constraints.picture_files import load_masked_picture
from grape.errors import ConfigError, RecordError
from grape.scene import load_camera

LABELS = np.zeros((6, 8), np.uint8)
LABELS[1:4, 1:4], LABELS[2:5, 5:8] = 1, 4
CAMERA: dict[str, Any] = {
    "intrinsics": [[10, 0, 4], [0, 10, 3], [0, 0, 1]],
    "camera_to_world": [[1, 0, 0, 0.5], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(LABELS).save(tmp_path / "masks.png")
    (tmp_path / "names.json").write_text('{"1": "mug", "4": "plate", "9": "out_of_view"}')
    np.save(tmp_path / "depth.npy", np.full((6, 8), 1.25, np.float32))
    (tmp_path / "camera.json").write_text(json.dumps(CAMERA))
    kinds = {"image": "image.png", "masks": "masks.png", "mask_names": "names.json", "depth": "depth.npy"}
    return {name: tmp_path / file for name, file in (kinds | {"camera": "camera.json"}).items()}


def load(files: dict[str, Path]) -> MaskedPicture:
    return load_masked_picture(**files)


def positions(files: dict[str, Path]) -> dict[str, tuple[float, ...] | None]:
    return {keypoint.name: keypoint.position_m for keypoint in CentroidKeypoints().keypoints(load(files))}


def test_positions_from_files(files: dict[str, Path]) -> None:
    found = positions(files)
    # The mug's middle is pixel (2.5, 2.5): 1.5 and 0.5 from the principal point, at 1.25 m over 10 pixels.
    np.testing.assert_allclose(found["mug"], (0.5 - 0.1875, 0.0625, 2 - 1.25), atol=1e-9)
    np.testing.assert_allclose(found["plate"], (0.5 + 0.3125, -0.0625, 2 - 1.25), atol=1e-9)


def test_depth_in_millimetres(files: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 8), 1250, np.uint16)).save(tmp_path / "depth.png")
    assert positions(files | {"depth": tmp_path / "depth.png"}) == positions(files)


@pytest.mark.parametrize("kind", ["palette", "sixteen bits"])
def test_other_ways_to_write_labels(files: dict[str, Path], kind: str) -> None:
    image = Image.fromarray(LABELS if kind == "palette" else LABELS.astype(np.uint16))
    if kind == "palette":
        image.putpalette([*range(255, 255 - 15, -1)])
        assert image.mode == "P"
    image.save(files["masks"])
    np.testing.assert_array_equal(load(files).labels, LABELS)


def test_masks_without_names_are_numbered(files: dict[str, Path]) -> None:
    del files["mask_names"]
    assert set(positions(files)) == {"mask_1", "mask_4"}


def test_without_depth_there_are_pixels_alone(files: dict[str, Path]) -> None:
    del files["depth"], files["camera"]
    assert positions(files) == {"mug": None, "plate": None}


def png(values: np.ndarray) -> Any:
    return lambda path: Image.fromarray(values).save(path, format="PNG")


def text(content: str) -> Any:
    return lambda path: path.write_text(content)


def camera(**changes: Any) -> Any:
    return text(json.dumps(CAMERA | changes))


STRETCHED = [[2, 0, 0, 0.5], [0, -1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]]
MIRRORED = [[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, -1, 2], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("image", text("no picture"), "cannot be read as a picture"),
        ("image", png(np.zeros((6, 7, 3), np.uint8)), "label image is 8 x 6 pixels, the picture 7 x 6"),
        ("masks", png(np.zeros((6, 8, 3), np.uint8)), "mode RGB; wanted a PNG with one integer per pixel"),
        ("masks", lambda path: Image.fromarray(LABELS).save(path, format="JPEG"), "is JPEG"),
        ("masks", png(np.zeros((6, 8), np.uint8)), "every pixel is 0"),
        ("masks", png(LABELS * 2), r"labels without a name: \[2, 8\]"),
        ("mask_names", text('{"1": "mug"}'), r"labels without a name: \[4\]"),
        ("mask_names", text('{"1": "mug", "4": "mug"}'), "different names"),
        ("mask_names", text('["mug", "plate"]'), "wanted label to name"),
        ("mask_names", text('{"mug": 1, "plate": 4}'), "wanted label to name"),
        ("mask_names", text(json.dumps({"9" * 5000: "mug"})), "wanted label to name"),
        ("mask_names", text("{"), "damaged"),
        (
            "mask_names",
            text('{"1": "my mug", "4": "plate"}'),
            "could not refer to this mask: point 'my mug'",
        ),
        ("depth", lambda path: np.save(path, np.full((6, 8), 1250.0)), "divide them by 1000"),
        ("depth", lambda path: np.save(path, np.ones((6, 9))), "the depth is 9 x 6 pixels"),
        ("depth", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "damaged"),
        ("depth", text("no array"), "damaged"),
        ("depth", lambda path: np.savez(path.open("wb"), a=np.ones((6, 8))), "an archive of arrays"),
        ("mask_names", text("[" * 100_000), "damaged"),
        ("mask_names", text('{"1": "mug", "1": "plate"}'), "twice"),
        ("mask_names", text('{"1": "up", "4": "plate"}'), "a word of the language"),
        ("camera", text("{"), "is not a camera"),
        ("camera", text("[]"), "wanted an object"),
        ("camera", text('{"intrinsics": [[1]]}'), "is not a camera"),
        ("camera", camera(camera_to_world=[[1, 0], [0]]), "is not a camera"),
        ("camera", camera(intrinsics=[[10, 0], [0, 10]]), r"intrinsics are \(3, 3\)"),
        ("camera", camera(camera_to_world=STRETCHED), "not a rigid transform"),
        ("camera", camera(camera_to_world=MIRRORED), "not a rigid transform"),
        ("camera", camera(camera_to_world=np.transpose(CAMERA["camera_to_world"]).tolist()), "transposed"),
        ("camera", camera(intrinsics=np.transpose(CAMERA["intrinsics"]).tolist()), "transposed"),
    ],
)
def test_files_that_are_refused(files: dict[str, Path], name: str, write: Any, message: str) -> None:
    write(files[name])
    with pytest.raises(RecordError, match=message):
        load(files)


@pytest.mark.parametrize("name", ["image", "masks", "mask_names", "depth", "camera"])
def test_files_that_are_missing(files: dict[str, Path], name: str) -> None:
    files[name].unlink()
    with pytest.raises(RecordError, match=f"{files[name].name}.*( does not exist|No such file)"):
        load(files)


def test_depth_of_eight_bits_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "depth.png")
    with pytest.raises(RecordError, match="wanted a 16-bit PNG with millimetres"):
        load(files | {"depth": tmp_path / "depth.png"})


def test_camera_from_a_file(files: dict[str, Path]) -> None:
    pixels, depth = load_camera(files["camera"]).project(np.array([[0.6, 0.2, 1.0]]))
    # 0.1 m to the right of the axis and 0.2 m above it, seen from 1 m: 1 pixel right, 2 up.
    np.testing.assert_allclose(pixels, [[5.0, 1.0]])
    np.testing.assert_allclose(depth, [1.0])


FILES = {"out": Path("o"), "source": "centroids", "image": Path("i"), "masks": Path("m")}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": None}, "either"),
        ({"suite": "libero_goal", "task_id": 0}, "either"),
        ({"masks": None}, "--image needs --masks"),
        ({"task_id": 3}, "--task_id does not belong to --image"),
        ({"image": None, "suite": "libero_goal"}, "--suite needs --task_id"),
        ({"image": None, "suite": "libero_goal", "task_id": 0}, "--masks does not belong to --suite"),
        ({"depth": Path("d")}, "go together"),
        ({"source": "simulator"}, "needs --suite"),
        ({"source": "features"}, "needs --pretrained_checkpoint"),
        ({"pretrained_checkpoint": "p"}, "no other"),
        ({"image": Path("o/keypoints.png")}, "keypoints.png would be replaced"),
    ],
)
def test_settings_that_do_not_go_together(wrong: dict[str, Any], message: str) -> None:
    KeypointsConfig(**FILES)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        KeypointsConfig(**{**FILES, **wrong})  # type: ignore[arg-type]
