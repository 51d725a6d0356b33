"""Patch features of a policy's first vision tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from grape.models import OpenVLAPolicy, load_policy
from grape.models.features import patch_features


@pytest.fixture(scope="module", params=["nano-libero", "nano-simpler"])
def nano(request: pytest.FixtureRequest, repository: Path) -> OpenVLAPolicy:
    return load_policy(repository / "experiments" / "demo" / request.param, device="cpu")


def test_they_are_what_the_policy_sees(nano: OpenVLAPolicy) -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    features = patch_features(nano, image, image_resize="area")  # a picture of the policy's size stays as it is
    assert (features.shape, features.dtype) == ((8, 8, 128), np.float32)
    with torch.inference_mode():
        both = nano.network.vision_backbone(nano.forward_inputs([image], ["open it"]).pixel_values)
    # Both towers' features are joined on channels, the first tower's come first.
    np.testing.assert_array_equal(features.reshape(64, 128), both[0, :, :128].numpy())


@pytest.mark.parametrize("size", [(112, 112), (480, 640)])
def test_patches_lie_row_by_row(nano: OpenVLAPolicy, size: tuple[int, int]) -> None:
    height, width = size
    grey = np.full((*size, 3), 128, np.uint8)
    marked = grey.copy()
    marked[height // 8 : height // 4, -width // 8 :] = (250, 20, 20)  # the second patch from above on the right
    change = np.linalg.norm(patch_features(nano, marked) - patch_features(nano, grey), axis=2)
    assert np.unravel_index(change.argmax(), change.shape) == (1, 7)


def test_objects_differ(nano: OpenVLAPolicy) -> None:
    image = np.full((256, 256, 3), 120, np.uint8)
    image[64:128, 32:96], image[64:128, 160:224] = (200, 30, 30), (30, 30, 200)
    features = patch_features(nano, image)
    red, blue = features[2:4, 1:3].reshape(4, -1), features[2:4, 5:7].reshape(4, -1)
    between = np.linalg.norm(red[:, None] - blue[None], axis=2).min()
    spread = max(np.linalg.norm(part[:, None] - part[None], axis=2).max() for part in (red, blue))
    assert between > spread
