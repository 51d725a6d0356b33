"""Settings of ``grape merge`` and ``grape parity``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

AttnImplementation = Literal["sdpa", "eager", "flash_attention_2"]
"""Attention kernels; flash_attention_2 where flash-attn is installed, on a GPU."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Fold a LoRA adapter into its base and write a full checkpoint in the published layout."""

    vla_path: str
    """Base checkpoint: folder or hub id."""
    adapter: str
    """Adapter: folder or hub id, trained here or by the original code."""
    out: Path
    """Folder to create."""
    dtype: str = "stored"
    """Type of the merged weights: float32, bfloat16, float16, or stored (the base's own, as in OpenVLA's script)."""
    device: str = "cpu"
    """Where to compute; a 7 B model in bfloat16 needs 15 GB there."""
    overwrite: bool = False
    """Replace ``out`` where it exists; never a folder that is read."""


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Compare this implementation with recorded outputs of the reference code."""

    directory: Positional[Path]
    """Folder in the goldens' layout: a checkpoint with golden.json and golden.safetensors, or a folder that holds
    such folders, openvla_preprocessing.npz or *_state_dict_shapes.json."""
    attn_implementation: AttnImplementation = "sdpa"
    """Attention kernels to check."""
    device: str = "cpu"
    """Where to compute; tolerances are for float32 on a CPU."""
