"""Where keypoints come from: what the simulator knows, or what a picture with masks shows.

Axis legend: H height, W width, N pixels of one mask, h by w patches of D features each, C clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from grape.constraints.masked_picture import Mask, MaskedPicture
from grape.errors import ConfigError

Features = Callable[[np.ndarray], np.ndarray]
"""A picture (H, W, 3) uint8 to (h, w, D) features of equal patches that cover it."""

NUM_COMPONENTS = 3  # of the features, as in ReKep: what differs most inside the mask, without texture and noise
MAX_ROUNDS = 100  # of k-means, which has usually settled after 10 to 20
MAX_PIXELS = 10_000  # of a mask that are clustered; of a larger one every n-th, so that memory stays bounded
FLAT_MIN_DISTANCE = 0.05  # of the picture's height: least distance of keypoints where no depth tells it in metres


@dataclass(frozen=True, kw_only=True)
class Keypoint:
    """One named point of the scene."""

    name: str
    mask: str
    """Name of the mask (the object) to which it belongs."""
    pixel: tuple[float, float]
    """(column, row); of a known position it may lie outside the picture, and is nan behind the camera."""
    position_m: tuple[float, float, float] | None
    """World frame; ``None`` without depth or camera."""


class KeypointSource(Protocol):
    """Finds keypoints."""

    def keypoints(self, picture: MaskedPicture) -> list[Keypoint]:
        """The keypoints of one picture; the same for the same picture."""
        ...


class SimulatorKeypoints:
    """The objects' names and true positions, as the simulator knows them; also of objects that are not seen."""

    def keypoints(self, picture: MaskedPicture) -> list[Keypoint]:
        """One keypoint for each object.

        Raises:
            ConfigError: The picture does not come from a simulator.
        """
        if not picture.true_positions_m or picture.camera is None:
            raise ConfigError(
                "true positions are known in a simulator only; take --source features (or centroids), or name --suite"
            )
        positions = np.stack([*picture.true_positions_m.values()])
        pixels, depth = picture.camera.project(positions)
        pixels[depth <= 0] = np.nan
        return [
            _keypoint(name, name, pixel, position)
            for name, pixel, position in zip(picture.true_positions_m, pixels, positions, strict=True)
        ]


class CentroidKeypoints:
    """One keypoint for each mask, the mean of what is seen of it: no features, hence no policy."""

    def keypoints(self, picture: MaskedPicture) -> list[Keypoint]:
        """One keypoint for each mask; without depth the mean pixel alone."""
        found = []
        for mask in picture.masks():
            if mask.points_m is None or picture.camera is None:
                found.append(_keypoint(mask.name, mask.name, mask.pixels.mean(axis=0), None))
                continue
            position = mask.points_m.mean(axis=0)
            pixel = picture.camera.project(position[None])[0][0]
            found.append(_keypoint(mask.name, mask.name, pixel, position))
        return found


class FeatureKeypoints:
    """Parts of each object: clusters of what looks alike and lies together, as ReKep proposes them (arXiv 2409.01652,
    section 3.3 and keypoint_proposal.py of github.com/huangwl18/ReKep at 5520bd3).

    Inside each mask, features and positions are clustered by k-means; each cluster gives the pixel that is nearest to
    its centre, the largest first; one that is too near to an earlier one of its mask counts to that one. Where it
    departs: masks are not merged with each other (the bowl's rim and the plate under it stay two keypoints), large
    masks are kept, the pixel is nearest by features and positions together, and both keep their proportions when they
    are scaled to an extent of 1 (scaled axis by axis, the noise across a flat object counts as much as its length).
    """

    def __init__(self, features: Features, *, candidates_per_mask: int = 5, min_distance_m: float = 0.06) -> None:
        """Take a policy's tower, or anything that describes patches.

        Args:
            features: See ``Features``; ``grape.models.features.patch_features`` is one.
            candidates_per_mask: Clusters in each mask (ReKep: 5).
            min_distance_m: Least distance of two keypoints of a mask (ReKep: 0.06).
        """
        if candidates_per_mask < 1 or not min_distance_m >= 0:
            raise ConfigError(
                f"got candidates_per_mask={candidates_per_mask} and min_distance_m={min_distance_m}; wanted at least 1 "
                "and at least 0"
            )
        self._features = features
        self._num_candidates, self._min_distance_m = candidates_per_mask, min_distance_m

    def keypoints(self, picture: MaskedPicture) -> list[Keypoint]:
        """At least one keypoint for each mask, named ``<mask>_part<number>``.

        Raises:
            ConfigError: The features are not finite, or no grid.
        """
        grid = np.asarray(self._features(picture.image), np.float64)
        if grid.ndim != 3 or not np.isfinite(grid).all():
            raise ConfigError(f"got features of shape {grid.shape}; wanted finite numbers, (rows, columns, features)")
        found = []
        for mask in picture.masks():
            for number, index in enumerate(self._parts(mask, grid, picture.image.shape[:2]), start=1):
                position = None if mask.points_m is None else mask.points_m[index]
                found.append(_keypoint(f"{mask.name}_part{number}", mask.name, mask.pixels[index], position))
        return found

    def _parts(self, mask: Mask, grid: np.ndarray, size: tuple[int, int]) -> list[int]:
        """Which of the mask's pixels become keypoints."""
        stride = -(-len(mask.pixels) // MAX_PIXELS)
        places = (mask.pixels if mask.points_m is None else mask.points_m)[::stride]
        min_distance = FLAT_MIN_DISTANCE * size[0] if mask.points_m is None else self._min_distance_m
        components = principal_components(sample_grid(grid, mask.pixels[::stride], size), NUM_COMPONENTS)
        values = np.concatenate([to_unit_extent(components), to_unit_extent(places)], axis=1)
        kept = keep_apart(places, cluster_representatives(values, self._num_candidates), min_distance)
        return [index * stride for index in kept]


KEYPOINT_SOURCES: dict[str, type[KeypointSource]] = {
    "features": FeatureKeypoints,
    "centroids": CentroidKeypoints,
    "simulator": SimulatorKeypoints,
}
"""Every source by its name."""


def true_distance_m(keypoint: Keypoint, picture: MaskedPicture) -> float | None:
    """From a keypoint to the true position of its object; ``None`` where either is not known."""
    true_position = picture.true_positions_m.get(keypoint.mask)
    if true_position is None or keypoint.position_m is None:
        return None
    return float(np.linalg.norm(np.asarray(keypoint.position_m) - true_position))


def sample_grid(grid: np.ndarray, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Features at single pixels, bilinearly between the centres of patches.

    Args:
        grid: (h, w, D) features of equal patches that cover the picture.
        pixels: (N, 2) columns and rows.
        size: Height and width of the picture, pixels.

    Returns:
        (N, D); outside the outermost centres, the outermost patch's own.
    """
    limits = np.array([grid.shape[1] - 1, grid.shape[0] - 1])
    cells = pixels * (limits + 1) / np.array([size[1], size[0]]) - 0.5
    cells = np.clip(cells, 0, limits)
    lower = np.floor(cells).astype(int)
    upper = np.minimum(lower + 1, limits)
    right, down = (cells - lower).T[:, :, None]
    above = grid[lower[:, 1], lower[:, 0]] * (1 - right) + grid[lower[:, 1], upper[:, 0]] * right
    below = grid[upper[:, 1], lower[:, 0]] * (1 - right) + grid[upper[:, 1], upper[:, 0]] * right
    return above * (1 - down) + below * down


def principal_components(values: np.ndarray, num_components: int) -> np.ndarray:
    """(N, D) values in the directions in which they differ most, (N, at most num_components)."""
    centred = values - values.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # by rising variance
    return centred @ directions[:, ::-1][:, :num_components]


def to_unit_extent(values: np.ndarray) -> np.ndarray:
    """Scale (N, D) values, all columns alike, so that the largest extent is 1; values that are all equal stay so."""
    extent = float(np.ptp(values, axis=0).max())
    return values / extent if extent > 0 else np.zeros_like(values)


def cluster_representatives(values: np.ndarray, num_clusters: int) -> list[int]:
    """K-means, without chance: it starts from the value nearest to the mean, then from the furthest ones.

    Args:
        values: (N, D).
        num_clusters: C; fewer are found where fewer values differ.

    Returns:
        For each cluster the index of the value nearest to its centre, the largest cluster first.
    """
    starts = [int(_distances(values, values.mean(axis=0)[None])[:, 0].argmin())]
    while len(starts) < num_clusters:
        from_starts = _distances(values, values[starts]).min(axis=1)
        if from_starts.max() == 0:
            break
        starts.append(int(from_starts.argmax()))
    centres = values[starts]
    for _ in range(MAX_ROUNDS):
        nearest = _distances(values, centres).argmin(axis=1)
        # A centre that has lost all its values stays where it was.
        means = [values[nearest == i].mean(axis=0) if (nearest == i).any() else centres[i] for i in range(len(centres))]
        if np.array_equal(means, centres):
            break
        centres = np.stack(means)
    distances = _distances(values, centres)
    sizes = np.bincount(distances.argmin(axis=1), minlength=len(centres))
    return [int(distances[:, i].argmin()) for i in np.argsort(-sizes, kind="stable") if sizes[i]]


def keep_apart(places: np.ndarray, chosen: list[int], min_distance: float) -> list[int]:
    """Of the chosen places, in their order, those that are at least ``min_distance`` from all that were kept."""
    kept: list[int] = []
    for index in chosen:
        if not kept or np.linalg.norm(places[kept] - places[index], axis=1).min() >= min_distance:
            kept.append(index)
    return kept


def _distances(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, C) squared distances."""
    return np.stack([((values - centre) ** 2).sum(axis=1) for centre in centres], axis=1)


def _keypoint(name: str, mask: str, pixel: np.ndarray, position: np.ndarray | None) -> Keypoint:
    where = None if position is None else (float(position[0]), float(position[1]), float(position[2]))
    return Keypoint(name=name, mask=mask, pixel=(float(pixel[0]), float(pixel[1])), position_m=where)
