"""Keypoint sources on scenes whose answers are derived by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape.config.constraints_keypoints import KeypointsConfig
from grape.constraints.keypoint_sources import (
    KEYPOINT_SOURCES,
    MAX_PIXELS,
    CentroidKeypoints,
    FeatureKeypoints,
    SimulatorKeypoints,
    cluster_representatives,
    sample_grid,
    true_distance_m,
)
from grape.constraints.masked_picture import MaskedPicture
from grape.errors import ConfigError, RecordError
from grape.scene import Camera, SceneView

# At (1, 2, 3), looking down: the picture's right is the world's x, its bottom the world's -y. 10 pixels are 1 m in 1 m.
POSE = np.array([[1.0, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]])
CAMERA = Camera(intrinsics=np.array([[10, 0, 5], [0, 10, 1.5], [0, 0, 1]]), camera_to_world=POSE)


def strip(depth_m: float | None = 2.0) -> MaskedPicture:
    """One object that fills a picture of 3 rows and 10 columns."""
    return MaskedPicture(
        image=np.zeros((3, 10, 3), np.uint8),
        labels=np.ones((3, 10), np.int32),
        mask_names={1: "strip"},
        depth_m=None if depth_m is None else np.full((3, 10), depth_m, np.float32),
        camera=None if depth_m is None else CAMERA,
    )


def two_colours(image: np.ndarray) -> np.ndarray:
    """One feature vector in the three columns on the left, another one to their right; one patch per pixel."""
    features = np.zeros((*image.shape[:2], 4))
    features[:, :3, 0] = features[:, 3:, 1] = 1.0
    return features


def alike(image: np.ndarray) -> np.ndarray:
    return np.ones((1, 1, 4))


def test_clusters_follow_the_features() -> None:
    # Columns 0 to 2 and 3 to 9: their middles are at 1.5 and 6.5 (centres of pixels), the larger one first.
    [large, small] = FeatureKeypoints(two_colours, candidates_per_mask=2).keypoints(strip(None))
    assert (large.name, large.mask, large.pixel, large.position_m) == ("strip_part1", "strip", (6.5, 1.5), None)
    assert (small.name, small.pixel) == ("strip_part2", (1.5, 1.5))


def test_without_features_clusters_are_halves() -> None:
    found = FeatureKeypoints(alike, candidates_per_mask=2).keypoints(strip(None))
    assert sorted(keypoint.pixel for keypoint in found) == [(2.5, 1.5), (7.5, 1.5)]


def test_keypoints_are_lifted_with_the_depth() -> None:
    # Pixel 6.5 is 1.5 right of the principal point: 1.5 / 10 * 2 m = 0.3 m along x, and 2 m below the camera.
    [large, small] = FeatureKeypoints(two_colours, candidates_per_mask=2).keypoints(strip())
    np.testing.assert_allclose(large.position_m, (1.3, 2.0, 1.0), atol=1e-12)
    np.testing.assert_allclose(small.position_m, (0.3, 2.0, 1.0), atol=1e-12)


def test_what_is_nearer_than_the_minimum_distance_is_merged() -> None:
    def names(min_distance_m: float) -> list[str]:
        source = FeatureKeypoints(two_colours, candidates_per_mask=2, min_distance_m=min_distance_m)
        return [keypoint.name for keypoint in source.keypoints(strip())]

    assert names(0.99) == ["strip_part1", "strip_part2"]  # they are 1 m apart
    assert names(1.01) == ["strip_part1"]


def test_pixels_without_depth_are_no_keypoints() -> None:
    picture = strip()
    assert picture.depth_m is not None
    picture.depth_m[1, 6] = 0.0  # the answer of the test above
    picture.depth_m[0, 6] = np.nan
    [large, _] = FeatureKeypoints(two_colours, candidates_per_mask=2).keypoints(picture)
    assert large.pixel in {(5.5, 1.5), (7.5, 1.5), (6.5, 2.5)}
    assert large.position_m is not None


def test_a_mask_without_any_depth_has_pixels_alone() -> None:
    labels = np.ones((3, 10), np.int32)
    labels[:, 5:] = 2
    depth = np.where(labels == 1, 2.0, 0.0)
    picture = dataclasses.replace(strip(), labels=labels, mask_names={1: "seen", 2: "glass"}, depth_m=depth)
    for source in (CentroidKeypoints(), FeatureKeypoints(alike, candidates_per_mask=1)):
        [seen, glass] = source.keypoints(picture)
        np.testing.assert_allclose(seen.position_m, (0.5, 2.0, 1.0), atol=1e-12)
        assert glass.pixel == (7.5, 1.5)
        assert glass.position_m is None


def test_centroids() -> None:
    picture = strip()
    assert picture.depth_m is not None
    picture.depth_m[:, 5:] = 4.0
    # Left half: x from -0.9 to -0.1 m, mean -0.5; right half in 4 m: 0.2 to 1.8 m, mean 1. Depths 2 and 4 m.
    [middle] = CentroidKeypoints().keypoints(picture)
    np.testing.assert_allclose(middle.position_m, (1 + 0.25, 2.0, 3 - 3.0), atol=1e-12)
    np.testing.assert_allclose(middle.pixel, (5 + 10 * 0.25 / 3, 1.5), atol=1e-12)
    [flat] = CentroidKeypoints().keypoints(strip(None))
    assert (flat.name, flat.pixel, flat.position_m) == ("strip", (5.0, 1.5), None)


def view() -> SceneView:
    segmentation = np.zeros((3, 10), np.int32)
    segmentation[:, 2:5] = 2
    return SceneView(
        image=np.zeros((3, 10, 3), np.uint8),
        depth_m=np.full((3, 10), 2.0, np.float32),
        segmentation=segmentation,
        camera=CAMERA,
        keypoint_names=("hidden", "box", "behind"),
        keypoints_m=np.array([[1.4, 2.1, 1.0], [0.6, 2.0, 0.9], [1.0, 2.0, 4.0]]),
    )


def test_what_the_simulator_knows() -> None:
    hidden, box, behind = SimulatorKeypoints().keypoints(MaskedPicture.from_view(view()))
    assert (hidden.name, box.name, behind.name) == ("hidden", "box", "behind")
    np.testing.assert_allclose(hidden.pixel, (5 + 10 * 0.4 / 2, 1.5 - 10 * 0.1 / 2))
    assert box.position_m == (0.6, 2.0, 0.9)
    assert all(map(math.isnan, behind.pixel))


def test_the_simulator_source_refuses_pictures_of_unknown_scenes() -> None:
    with pytest.raises(ConfigError, match="--source features"):
        SimulatorKeypoints().keypoints(strip())


def test_distance_to_the_true_position() -> None:
    picture = MaskedPicture.from_view(view())
    [keypoint] = CentroidKeypoints().keypoints(picture)  # columns 2 to 4 are at x = -0.5, -0.3 and -0.1 m
    assert keypoint.mask == "box"
    distance_m = true_distance_m(keypoint, picture)
    assert distance_m == pytest.approx(math.hypot(0.7 - 0.6, 0.1))
    assert true_distance_m(dataclasses.replace(keypoint, position_m=None), picture) is None
    assert true_distance_m(keypoint, strip()) is None


def test_features_between_patches_are_bilinear() -> None:
    # Two by two patches on 4 by 8 pixels: their centres are at columns 2 and 6, rows 1 and 3.
    grid = np.array([[[0.0], [1.0]], [[10.0], [11.0]]])
    pixels = np.array([[2.0, 1.0], [4.0, 1.0], [6.0, 3.0], [3.0, 2.0], [0.5, 0.5], [7.5, 3.5]])
    sampled = sample_grid(grid, pixels, (4, 8))
    np.testing.assert_allclose(sampled[:, 0], [0.0, 0.5, 11.0, 5.25, 0.0, 11.0])


def test_fewer_clusters_where_fewer_values_differ() -> None:
    assert cluster_representatives(np.array([[1.0], [1.0], [5.0]]), 5) == [0, 2]
    assert cluster_representatives(np.ones((4, 2)), 3) == [0]


@given(seed=st.integers(0, 10_000), num_candidates=st.integers(1, 6), lifted=st.booleans())
@settings(max_examples=60, deadline=None)
def test_keypoints_are_in_their_mask_where_they_are_seen_and_apart(
    seed: int, num_candidates: int, lifted: bool
) -> None:
    rng = np.random.default_rng(seed)
    picture = MaskedPicture(
        image=np.zeros((12, 16, 3), np.uint8),
        labels=rng.integers(0, 4, (12, 16)),
        mask_names={1: "a", 2: "b", 3: "c"},
        depth_m=rng.uniform(0.5, 3.0, (12, 16)) * (rng.random((12, 16)) < 0.9) if lifted else None,
        camera=CAMERA if lifted else None,
    )
    grid = rng.normal(size=(4, 4, 7))
    min_distance_m = 0.3
    source = FeatureKeypoints(lambda image: grid, candidates_per_mask=num_candidates, min_distance_m=min_distance_m)
    found = source.keypoints(picture)
    assert found == source.keypoints(picture)
    assert {keypoint.mask for keypoint in found} == {"a", "b", "c"}
    for label, name in picture.mask_names.items():
        places = []
        for keypoint in (keypoint for keypoint in found if keypoint.mask == name):
            column, row = keypoint.pixel
            assert picture.labels[int(row), int(column)] == label
            assert (keypoint.position_m is not None) == lifted
            if keypoint.position_m is not None:
                [pixel], _ = CAMERA.project(np.array([keypoint.position_m]))
                np.testing.assert_allclose(pixel, keypoint.pixel, atol=1e-6)
            places.append(keypoint.position_m or keypoint.pixel)
        assert 1 <= len(places) <= num_candidates
        gaps = [math.dist(one, other) for number, one in enumerate(places) for other in places[:number]]
        assert min(gaps, default=math.inf) >= (min_distance_m if lifted else 0.05 * 12)


def test_large_masks_are_thinned_out_without_mixing_up_pixels() -> None:
    labels = np.zeros((150, 200), np.int32)
    labels[20:140, 30:180] = 1
    assert (labels == 1).sum() > MAX_PIXELS
    picture = MaskedPicture(image=np.zeros((150, 200, 3), np.uint8), labels=labels, mask_names={1: "table"})
    [middle] = FeatureKeypoints(alike, candidates_per_mask=1).keypoints(picture)
    # Every second pixel: the middle (105, 80) is met to a pixel.
    np.testing.assert_allclose(middle.pixel, (105, 80), atol=1.0)


@pytest.mark.parametrize("features", [np.zeros((4, 4)), np.full((2, 2, 3), np.nan)], ids=["no grid", "not finite"])
def test_features_that_are_no_features(features: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="features of shape"):
        FeatureKeypoints(lambda image: features).keypoints(strip())


@pytest.mark.parametrize("wrong", [{"candidates_per_mask": 0}, {"min_distance_m": -1.0}, {"min_distance_m": math.nan}])
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="wanted at least 1"):
        FeatureKeypoints(alike, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((3, 10), np.uint8)}, "wanted uint8"),
        ({"labels": np.ones((10, 3), np.int32)}, "label image is 3 x 10 pixels, the picture 10 x 3"),
        ({"labels": np.ones((3, 10))}, "labels are integers"),
        ({"labels": np.full((3, 10), -1)}, "labels are integers"),
        ({"labels": np.full((3, 10), 7)}, r"labels without a name: \[7\]"),
        (
            {"image": np.zeros((30, 10, 3), np.uint8), "labels": np.arange(300).reshape(30, 10)},
            "299 masks, at most 256",
        ),
        ({"labels": np.zeros((3, 10), np.int32)}, "every pixel is 0"),
        ({"mask_names": {1: "cup", 2: "cup"}}, "different names"),
        ({"mask_names": {1: ""}}, "different names"),
        ({"depth_m": np.ones((3, 9))}, "the depth is 9 x 3 pixels"),
        ({"depth_m": np.ones((3, 10), bool)}, "wanted numbers"),
        ({"depth_m": np.zeros((3, 10))}, "unknown"),
        ({"depth_m": np.full((3, 10), -0.5)}, "along the viewing axis"),
        ({"depth_m": np.full((3, 10), 850)}, "divide them by 1000"),
    ],
)
def test_pictures_that_do_not_fit_together(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        dataclasses.replace(strip(), **change)


def test_a_picture_with_one_far_pixel_is_in_metres() -> None:
    depth = np.full((3, 10), 0.8)
    depth[0] = 500.0  # the sky
    assert dataclasses.replace(strip(), depth_m=depth).depth_m is depth


def test_every_source_can_be_asked_for() -> None:
    assert set(get_args(get_type_hints(KeypointsConfig)["source"])) == set(KEYPOINT_SOURCES)
