"""What a policy's first vision tower (DINOv2 in a published OpenVLA) makes of the patches of a picture."""

from __future__ import annotations

import numpy as np
import torch

from grape.config.inputs import ImageResize
from grape.models import sampling
from grape.models.policy import OpenVLAPolicy
from grape.models.preprocessing import prepare_image


@torch.inference_mode()
def patch_features(policy: OpenVLAPolicy, image: np.ndarray, *, image_resize: ImageResize = "lanczos") -> np.ndarray:
    """Features of the tower ``vision_backbone.featurizer``, whole picture, no crop.

    Args:
        policy: Any OpenVLA.
        image: (H, W, 3) uint8, upright, of any size; one that is not square is squeezed, as the policy saw it.
        image_resize: As the policy was trained.

    Returns:
        (h, w, D) float32, of patches that cover the picture row by row: 16 by 16 by 1024 in openvla-7b.
    """
    prepared = prepare_image(image, policy.image_size, image_resize)
    pixels = policy.image_transform([prepared], device=policy.device)[:, :3].to(policy.dtype)
    with sampling.evaluation_mode(policy.model):
        tokens = policy.network.vision_backbone.featurizer(pixels)[0]
    side = policy.image_size // policy.config.dino.patch_size
    return tokens.float().cpu().numpy().reshape(side, side, -1)
