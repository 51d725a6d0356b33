"""A picture with the masks of its objects: what keypoint sources look at, from a simulator or from files.

Axis legend: H height, W width, N pixels of one mask. Pixels are (column, row), the centre of the first at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from grape.errors import RecordError
from grape.scene import Camera, SceneView

LARGEST_DEPTH_M = 100.0
"""A picture in which everything is further away than this was given in another unit."""
MAX_MASKS = 256
"""No segmenter finds so many objects; depth given as masks has more, and drawing them takes squared time."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The pixels of one object that can be used: those of known depth, or all where no depth is known."""

    name: str
    pixels: np.ndarray
    """(N, 2) centres of pixels, N >= 1."""
    points_m: np.ndarray | None
    """(N, 3) what is seen there, world frame; ``None`` without depth or camera."""


@dataclass(frozen=True, kw_only=True)
class MaskedPicture:
    """A picture, which object each pixel shows, and optionally how far away that is and from where it was taken."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB, upright."""
    labels: np.ndarray
    """(H, W) integers: which mask a pixel belongs to, 0 for none."""
    mask_names: Mapping[int, str]
    """Name of each label in ``labels``; labels that are not in the picture may have names, too."""
    depth_m: np.ndarray | None = None
    """(H, W) along the camera's z axis; 0 or not finite where unknown."""
    camera: Camera | None = None
    true_positions_m: Mapping[str, np.ndarray] = field(default_factory=dict)
    """(3,) world frame for each object that a simulator knows, also for one that is not seen."""

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise RecordError(
                f"got a picture of {self.image.dtype} {self.image.shape}; wanted uint8 (height, width, 3)"
            )
        self._check_labels()
        if self.depth_m is not None:
            self._check_depth(self.depth_m)

    @classmethod
    def from_view(cls, view: SceneView) -> MaskedPicture:
        """The same from a simulator's view, with the positions that it knows."""
        return cls(
            image=view.image,
            labels=view.segmentation,
            mask_names=dict(enumerate(view.keypoint_names, start=1)),
            depth_m=view.depth_m,
            camera=view.camera,
            true_positions_m=dict(zip(view.keypoint_names, view.keypoints_m, strict=True)),
        )

    def masks(self) -> Iterator[Mask]:
        """The masks that are seen, by label."""
        for label in np.unique(self.labels[self.labels != 0]):
            rows, columns = np.nonzero(self.labels == label)
            depth = None if self.depth_m is None or self.camera is None else self.depth_m[rows, columns]
            known = np.zeros(len(rows), bool) if depth is None else np.isfinite(depth) & (depth > 0)
            used = known if known.any() else np.ones(len(rows), bool)
            pixels = np.stack([columns, rows], axis=1)[used] + 0.5
            points = self.camera.lift(pixels, depth[used]) if known.any() else None  # type: ignore[union-attr, index]
            yield Mask(name=self.mask_names[int(label)], pixels=pixels, points_m=points)

    def _check_labels(self) -> None:
        self._check_size("label image", self.labels)
        if not np.issubdtype(self.labels.dtype, np.integer) or self.labels.min() < 0:
            raise RecordError(f"labels are integers from 0 (no mask), got {self.labels.dtype} from {self.labels.min()}")
        found = set(np.unique(self.labels).tolist()) - {0}
        if len(found) > MAX_MASKS:
            raise RecordError(
                f"the label image has {len(found)} masks, at most {MAX_MASKS} are allowed; is it depth, or a picture?"
            )
        unnamed = sorted(found - self.mask_names.keys())
        if unnamed:
            raise RecordError(
                f"the label image has labels without a name: {unnamed[:8]}; name them, or set what is no object to 0"
            )
        if not self.labels.any():
            raise RecordError("the label image has no mask: every pixel is 0; wanted a number from 1 for each object")
        names = [*self.mask_names.values()]
        if len(set(names)) != len(names) or not all(names):
            raise RecordError(f"masks need different names that are not empty, got {names}")

    def _check_depth(self, depth_m: np.ndarray) -> None:
        self._check_size("depth", depth_m)
        if not np.issubdtype(depth_m.dtype, np.number) or np.iscomplexobj(depth_m):
            raise RecordError(f"got depth of type {depth_m.dtype}; wanted numbers, in m")
        known = depth_m[np.isfinite(depth_m) & (depth_m != 0)]
        if not len(known):
            raise RecordError("the depth is unknown (0 or not finite) at every pixel; leave it out if there is none")
        if known.min() < 0:
            raise RecordError(
                f"got a depth of {known.min():g} m; wanted distances along the viewing axis, which are > 0"
            )
        if known.min() > LARGEST_DEPTH_M:
            raise RecordError(
                f"every depth is more than {LARGEST_DEPTH_M:g} m (the smallest {known.min():g}); wanted metres: "
                "if these are millimetres, divide them by 1000, or give them as 16-bit PNG"
            )

    def _check_size(self, what: str, values: np.ndarray) -> None:
        if values.shape != self.image.shape[:2]:
            got, wanted = _size(values.shape), _size(self.image.shape)
            raise RecordError(f"the {what} is {got}, the picture {wanted}; wanted one value for each of its pixels")


def _size(shape: tuple[int, ...]) -> str:
    """For people, who say width first."""
    return f"{shape[1]} x {shape[0]} pixels" if len(shape) > 1 else f"of shape {shape}"
