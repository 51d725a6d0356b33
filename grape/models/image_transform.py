"""Policy images to the towers' pixel values. Axis legend: B batch, H height, W width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from grape.errors import CheckpointError, ConfigError
from grape.models.preprocessing import center_crop as crop_center
from grape.models.preprocessing import resize_bicubic

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


class ImageTransform:
    """Resize where needed, scale to [0, 1], normalise once per tower, stack on channels."""

    def __init__(
        self,
        size: int,
        *,
        means: Sequence[Sequence[float]] = (IMAGENET_MEAN, HALF),
        stds: Sequence[Sequence[float]] = (IMAGENET_STD, HALF),
    ) -> None:
        self.size = size
        self.means = torch.tensor(means, dtype=torch.float32).reshape(1, -1, 1, 1)
        self.stds = torch.tensor(stds, dtype=torch.float32).reshape(1, -1, 1, 1)

    @classmethod
    def from_preprocessor_config(cls, config: Mapping[str, Any], size: int) -> ImageTransform:
        """Read ``means`` and ``stds`` of preprocessor_config.json."""
        try:
            means, stds = config["means"], config["stds"]
        except KeyError as error:
            raise CheckpointError(f"preprocessor_config.json lacks {error}") from error
        strategy = config.get("image_resize_strategy", "resize-naive")
        if strategy != "resize-naive":
            raise CheckpointError(
                f"image_resize_strategy is {strategy!r}; only 'resize-naive' (openvla-7b's) is supported"
            )
        if np.shape(means) != (2, 3) or np.shape(stds) != (2, 3):
            raise CheckpointError(
                f"preprocessor_config.json has means of shape {np.shape(means)}; wanted two towers, (2, 3)"
            )
        return cls(size, means=means, stds=stds)

    def __call__(
        self, images: Sequence[np.ndarray], *, center_crop: bool = False, device: torch.device | None = None
    ) -> Float[Tensor, "B 6 H W"]:
        """Transform B pictures, (H, W, 3) uint8 each; the result is float32 on the device."""
        prepared = []
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ConfigError(f"got an image of {image.dtype} {image.shape}; wanted uint8 (height, width, 3)")
            prepared.append(crop_center(image, self.size) if center_crop else resize_bicubic(image, self.size))
        # Division before normalisation, each tower on its own copy: bit-equal with the published processor.
        pixels = torch.from_numpy(np.stack(prepared)).to(device).permute(0, 3, 1, 2).float().div(255)
        return pixels.repeat(1, 2, 1, 1).sub_(self.means.to(device)).div_(self.stds.to(device))
