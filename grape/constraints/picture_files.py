"""A real robot's picture with masks from any segmenter, depth and camera, read from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from grape.constraints.functions import check_free_name
from grape.constraints.masked_picture import MaskedPicture
from grape.constraints.reading import parse_json
from grape.errors import ConstraintError, RecordError
from grape.scene import load_camera

INTEGER_MODES = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's names for one integer per pixel; "P": palette indices
DEEP_MODES = ("I", "I;16", "I;16B")
MM_PER_M = 1000.0


def load_masked_picture(
    image: Path, masks: Path, *, mask_names: Path | None = None, depth: Path | None = None, camera: Path | None = None
) -> MaskedPicture:
    """Read what belongs to one picture.

    Args:
        image: Picture in any format that Pillow reads.
        masks: PNG with one integer per pixel, 0 where there is no object.
        mask_names: JSON object, label to name: ``{"1": "mug"}``. ``None``: they are called ``mask_1`` and so on.
        depth: ``.npy`` with metres, or 16-bit PNG with millimetres; along the camera's z axis, 0 where unknown.
        camera: See ``grape.scene.load_camera``.

    Raises:
        RecordError: A file is missing or damaged, or they do not belong together.
    """
    pixels = read_picture(image)
    labels = _read_labels(masks)
    seen = [int(label) for label in np.unique(labels) if label]
    return MaskedPicture(
        image=pixels,
        labels=labels,
        mask_names={label: f"mask_{label}" for label in seen} if mask_names is None else _read_names(mask_names),
        depth_m=None if depth is None else _read_depth(depth),
        camera=None if camera is None else load_camera(camera),
    )


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 from any format that Pillow reads.

    Raises:
        RecordError: There is no such picture.
    """
    with _open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _read_labels(path: Path) -> np.ndarray:
    with _open(path) as picture:
        if picture.format != "PNG" or picture.mode not in INTEGER_MODES:
            raise RecordError(
                f"{path} is {picture.format} of mode {picture.mode}; wanted a PNG with one integer per pixel "
                "(a lossy format or colours would change the labels)"
            )
        return np.asarray(picture).astype(np.int32)


def _read_names(path: Path) -> dict[int, str]:
    wanted = 'wanted label to name, such as {"1": "mug"}'
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; {wanted}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is damaged ({error}); {wanted}") from error
    if not isinstance(content, dict) or not all(
        key.isdecimal() and len(key) < 10 and isinstance(content[key], str) for key in content
    ):
        raise RecordError(f"{path} holds something else; {wanted}")
    try:
        for name in content.values():
            check_free_name(name)
    except ConstraintError as error:
        raise RecordError(f"{path}: constraints could not refer to this mask: {error}") from error
    return {int(label): name for label, name in content.items()}


def _read_depth(path: Path) -> np.ndarray:
    """In m."""
    if path.suffix == ".npy":
        try:
            depth_m = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise RecordError(f"{path} does not exist; wanted depth in m") from None
        except (OSError, ValueError, EOFError) as error:
            raise RecordError(f"{path} is damaged ({error}); wanted depth in m, written by numpy.save") from error
        if not isinstance(depth_m, np.ndarray):
            raise RecordError(f"{path} is an archive of arrays; wanted one array of depth in m, written by numpy.save")
        return depth_m
    with _open(path) as picture:
        if picture.format != "PNG" or picture.mode not in DEEP_MODES:
            raise RecordError(
                f"{path} is {picture.format} of mode {picture.mode}; wanted a 16-bit PNG with millimetres, or a .npy "
                "file with metres"
            )
        return np.asarray(picture).astype(np.float64) / MM_PER_M


def _open(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist") from None
    # Pillow's errors for damaged files, and for small files of huge pictures
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecordError(f"{path} cannot be read as a picture: {error}") from error
    return picture
