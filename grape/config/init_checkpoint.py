"""Settings of ``grape init-checkpoint``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class InitCheckpointConfig:
    """Write a checkpoint with random weights, to measure speed and memory or to train from scratch."""

    preset: str
    """Size: openvla-7b (the published shape, 7.54 B parameters, 15 GB in bfloat16), mid (91 M), micro (11 M), nano
    (4.5 M), or test."""
    out: Path
    """Folder to create; one that holds something is refused."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Type of the stored weights; OpenVLA publishes bfloat16."""
    seed: int = 0
    """Of the weights: each tensor is a function of the seed and its name."""
