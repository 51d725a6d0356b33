"""What goes into and what comes out of a policy.

Axis legend: B batch, L text tokens, N patch tokens, D width, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ActionBatch:
    """What ``act`` returns: numpy arrays, one row per observation."""

    tokens: np.ndarray
    """(B, 7) int32 vocabulary ids as sampled."""
    token_logps: np.ndarray
    """(B, 7) float32, full vocabulary, temperature 1."""
    sampler_logps: np.ndarray
    """(B, 7) float32, of the restricted, tempered distribution sampled from; 0 when greedy."""
    actions: np.ndarray
    """(B, 7) float32 in the robot's units."""


@dataclass(frozen=True, kw_only=True)
class ForwardInputs:
    """Padded inputs of one forward pass, on the policy's device."""

    pixel_values: Float[Tensor, "B 6 H W"] | None
    """``None`` where ``image_features`` takes their place."""
    input_ids: Int[Tensor, "B L"]
    """Prompt, action prefix and (when scoring) action tokens; padded on the right."""
    num_prompt_ids: Int[Tensor, " B"]
    """Tokens before the first action token."""
    image_features: Float[Tensor, "B N D"] | None = None
    """What towers and projector made of the pictures."""
