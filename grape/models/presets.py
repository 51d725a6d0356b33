"""Sizes of new policies, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grape.models.openvla import OpenVLAConfig
from grape.models.vision import TowerConfig

PATCH_SIZE = 14
NUM_REGISTERS = 4
NUM_ACTION_BINS = 256
VOCAB_MULTIPLE = 64
PUBLISHED_VOCAB = 32_000

PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"image_size": 112, "tower_width": 128, "tower_blocks": 4, "text_width": 192, "text_layers": 4, "heads": 4},
    "micro": {
        "image_size": 112,
        "tower_width": 192,
        "tower_blocks": 5,
        "text_width": 256,
        "text_layers": 6,
        "heads": 4,
    },
    "mid": {
        "image_size": 224,
        "tower_width": 384,
        "tower_blocks": 7,
        "text_width": 768,
        "text_layers": 8,
        "heads": 12,
    },
    "test": {"image_size": 28, "tower_width": 16, "tower_blocks": 2, "text_width": 32, "text_layers": 2, "heads": 2},
}
"""Sizes by name: nano 4.5 M parameters, micro 11.3 M, mid 91 M (openvla-7b's picture and 256 patches), test for unit
tests."""

OPENVLA_7B = "openvla-7b"
"""The published checkpoint's shape, 7.54 B parameters; see ``openvla_7b_config``."""


def preset_config(sizes: Mapping[str, int], *, real_vocab_size: int) -> OpenVLAConfig:
    """Turn a preset's numbers into a full configuration."""
    width, heads = sizes["tower_width"], sizes["heads"]
    tower: dict[str, Any] = {
        "image_size": sizes["image_size"],
        "patch_size": PATCH_SIZE,
        "width": width,
        "num_blocks": sizes["tower_blocks"],
        "num_heads": heads,
        "mlp_width": 4 * width,
    }
    text_width = sizes["text_width"]
    return OpenVLAConfig(
        dino=TowerConfig(**tower, num_registers=NUM_REGISTERS, has_class_token=True, has_layer_scale=True),
        siglip=TowerConfig(**tower, has_pooling_head=True),
        text={
            "model_type": "llama",
            "hidden_size": text_width,
            "intermediate_size": 8 * math.ceil(text_width / 3),  # Llama's ratio of 8/3
            "num_hidden_layers": sizes["text_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "pad_token_id": real_vocab_size,
            "vocab_size": real_vocab_size + VOCAB_MULTIPLE,
        },
        num_action_bins=NUM_ACTION_BINS,
        vocab_padding=VOCAB_MULTIPLE,
    )


def openvla_7b_config() -> OpenVLAConfig:
    """DINOv2 ViT-L/14 with registers, SigLIP so400m/14 and Llama-2-7B, at 224 pixels (arXiv 2406.09246)."""
    tower: dict[str, Any] = {"image_size": 224, "patch_size": PATCH_SIZE, "num_heads": 16}
    dino: dict[str, Any] = {"width": 1024, "num_blocks": 24, "mlp_width": 4096, "num_registers": NUM_REGISTERS}
    siglip: dict[str, Any] = {"width": 1152, "num_blocks": 27, "mlp_width": 4304, "has_pooling_head": True}
    return OpenVLAConfig(
        dino=TowerConfig(**tower, **dino, has_class_token=True, has_layer_scale=True),
        siglip=TowerConfig(**tower, **siglip),
        text={
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
            "pad_token_id": PUBLISHED_VOCAB,
            "vocab_size": PUBLISHED_VOCAB + VOCAB_MULTIPLE,
        },
        num_action_bins=NUM_ACTION_BINS,
        vocab_padding=VOCAB_MULTIPLE,
    )
