"""Settings of ``grape constraints keypoints``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grape.config.inputs import ImageResize
from grape.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KeypointsConfig:
    """Find keypoints in a picture: of a simulator (suite, task_id), or from files (image, masks)."""

    out: Path
    """Folder to write keypoints.png and keypoints.json into."""
    source: Literal["features", "centroids", "simulator"] = "features"
    """features: parts of each mask, clustered by what the policy's tower sees; centroids: the middle of what is seen of
    each mask; simulator: the objects' true positions."""
    suite: str | None = None
    """Suite of the simulator, e.g. libero_goal or simpler_bridge."""
    task_id: int | None = None
    """Task of the suite, counted from 0."""
    init_state: str = "train/0"
    """Initial state as SPLIT/INDEX."""
    image: Path | None = None
    """Picture."""
    masks: Path | None = None
    """PNG with one integer per pixel: which object it shows, 0 for none. From any segmenter."""
    mask_names: Path | None = None
    """JSON with the objects' names, e.g. {"1": "mug"}; without it they are mask_1 and so on."""
    depth: Path | None = None
    """Depth along the camera's z axis: .npy in m, or 16-bit PNG in mm; 0 where unknown."""
    camera: Path | None = None
    """JSON with intrinsics (3 by 3, pixels) and camera_to_world (4 by 4, m; axes x right, y down, z forward)."""
    pretrained_checkpoint: str | None = None
    """OpenVLA whose first vision tower describes the picture (for features): folder or hub id."""
    image_resize: ImageResize = "lanczos"
    """How pictures come to the policy's size, as it was trained."""
    device: str = "auto"
    """Where the tower runs: auto, cpu, cuda."""
    candidates_per_mask: int = 5
    """Clusters in each mask (for features)."""
    min_distance_m: float = 0.06
    """Least distance of two keypoints of one mask, m (for features); without depth 5 % of the picture's height."""

    def __post_init__(self) -> None:
        in_simulator, in_files = self.suite is not None, self.image is not None
        if in_simulator == in_files:
            raise ConfigError("name either a simulator's scene (--suite, --task_id) or files (--image, --masks)")
        if in_simulator and self.task_id is None:
            raise ConfigError("--suite needs --task_id")
        if in_files and self.masks is None:
            raise ConfigError("--image needs --masks: a PNG with one integer per pixel, from any segmenter")
        of_files = ("masks", "mask_names", "depth", "camera")
        foreign = [name for name in (of_files if in_simulator else ("task_id",)) if getattr(self, name) is not None]
        if foreign:
            raise ConfigError(f"--{foreign[0]} does not belong to {'--suite' if in_simulator else '--image'}")
        written = {(self.out / name).resolve() for name in ("keypoints.png", "keypoints.json")}
        for path in (self.image, self.masks, self.mask_names, self.depth, self.camera):
            if path is not None and path.resolve() in written:
                raise ConfigError(f"{path} would be replaced by what is written; name another folder with --out")
        if (self.depth is None) != (self.camera is None):
            raise ConfigError("--depth and --camera go together: positions in m need both")
        if self.source == "simulator" and in_files:
            raise ConfigError("--source simulator needs --suite; files do not tell true positions")
        if (self.source == "features") != (self.pretrained_checkpoint is not None):
            raise ConfigError("--source features, and no other, needs --pretrained_checkpoint")
