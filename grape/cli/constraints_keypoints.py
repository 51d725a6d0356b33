"""``grape constraints keypoints``: find keypoints in a picture, number them on it, and list them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from grape.cli.arguments import parse_config
from grape.config.constraints_keypoints import KeypointsConfig
from grape.constraints.drawing import draw_keypoints
from grape.constraints.keypoint_sources import (
    KEYPOINT_SOURCES,
    FeatureKeypoints,
    Keypoint,
    KeypointSource,
    true_distance_m,
)
from grape.constraints.masked_picture import MaskedPicture
from grape.constraints.picture_files import load_masked_picture
from grape.envs import spawn
from grape.envs.protocol import InitStateId
from grape.envs.view import take_view
from grape.files import write_bytes_atomic
from grape.trajectory import encode_png

CM_PER_M = 100.0


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, look, find, write, report."""
    config = parse_config(KeypointsConfig, "constraints keypoints", argv)
    picture = read_picture(config)
    keypoints = make_source(config).keypoints(picture)
    distances_m = [true_distance_m(keypoint, picture) for keypoint in keypoints]
    write_bytes_atomic(config.out / "keypoints.json", encode_keypoints(config, keypoints, distances_m))
    write_bytes_atomic(config.out / "keypoints.png", draw(picture.image, keypoints))
    print(f"{len(keypoints)} keypoints: {config.out / 'keypoints.png'}, {config.out / 'keypoints.json'}")
    for number, (keypoint, distance_m) in enumerate(zip(keypoints, distances_m, strict=True), start=1):
        print(describe(number, keypoint, None if config.source == "simulator" else distance_m))
    seen = {mask.name for mask in picture.masks()}
    if hidden := [name for name in picture.true_positions_m if name not in seen]:
        print(f"not seen: {', '.join(hidden)}")
    known_cm = [distance_m * CM_PER_M for distance_m in distances_m if distance_m is not None]
    if known_cm and config.source != "simulator":
        print(
            f"distance to the true position of the keypoint's object: median {np.median(known_cm):.1f} cm, "
            f"90th percentile {np.quantile(known_cm, 0.9):.1f} cm (n = {len(known_cm)})"
        )
    return 0


def read_picture(config: KeypointsConfig) -> MaskedPicture:
    """Take the simulator's view, in a process of its own, or read the files."""
    if config.suite is not None:
        init_state = InitStateId.parse(config.init_state)
        return MaskedPicture.from_view(spawn.call(take_view, config.suite, config.task_id, init_state))
    assert config.image is not None and config.masks is not None  # the config has checked it
    return load_masked_picture(
        config.image, config.masks, mask_names=config.mask_names, depth=config.depth, camera=config.camera
    )


def make_source(config: KeypointsConfig) -> KeypointSource:
    """The source that was asked for; loads the policy for features."""
    if config.source != "features":
        return KEYPOINT_SOURCES[config.source]()
    from grape.models import load_policy
    from grape.models.features import patch_features

    assert config.pretrained_checkpoint is not None  # the config has checked it
    policy = load_policy(config.pretrained_checkpoint, device=config.device)
    return FeatureKeypoints(
        functools.partial(patch_features, policy, image_resize=config.image_resize),
        candidates_per_mask=config.candidates_per_mask,
        min_distance_m=config.min_distance_m,
    )


def encode_keypoints(
    config: KeypointsConfig, keypoints: Sequence[Keypoint], distances_m: Sequence[float | None]
) -> bytes:
    """The JSON file: the settings that were used, and each keypoint under its number on the picture."""
    settings: dict[str, Any] = dataclasses.asdict(config) | {"out": None}
    rows = [
        {"number": number, **dataclasses.asdict(keypoint), "true_distance_m": distance_m}
        for number, (keypoint, distance_m) in enumerate(zip(keypoints, distances_m, strict=True), start=1)
    ]
    for row in rows:
        row["pixel"] = [value if np.isfinite(value) else None for value in row["pixel"]]
    content = {"settings": {name: value for name, value in settings.items() if value is not None}, "keypoints": rows}
    return (json.dumps(content, indent=1, default=str, allow_nan=False) + "\n").encode()


def draw(image: np.ndarray, keypoints: Sequence[Keypoint]) -> bytes:
    """PNG of the picture with numbered keypoints."""
    pixels = np.array([keypoint.pixel for keypoint in keypoints])
    return encode_png(draw_keypoints(image, pixels, [keypoint.name for keypoint in keypoints]))


def describe(number: int, keypoint: Keypoint, distance_m: float | None) -> str:
    """One line about a keypoint."""
    column, row = keypoint.pixel
    line = f"{number:4d}  {keypoint.name:<40} pixel {column:6.1f} {row:6.1f}"
    if keypoint.position_m is not None:
        line += "   at " + " ".join(f"{value:7.3f}" for value in keypoint.position_m) + " m"
    if distance_m is not None:
        line += f"   {distance_m * CM_PER_M:5.1f} cm from {keypoint.mask}"
    return line
