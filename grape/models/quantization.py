"""A base in 4 bits for LoRA on top (QLoRA, arXiv 2305.14314), through bitsandbytes.

NF4 with double quantisation, computed in the policy's type: 4.13 bits a weight. The language model's linear layers
only, where almost all weights are; towers, projector, embeddings and output layer keep their type.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grape.errors import ConfigError
from grape.models.folder import TRAINING_FILE, read_json
from grape.models.openvla import OpenVLA
from grape.optional import require

SCHEME = "nf4, double quantisation, language model's linear layers"


def replace_layers(network: OpenVLA, dtype: torch.dtype | None) -> None:
    """Make room for packed weights in a network on the meta device.

    Args:
        network: Without weights.
        dtype: Of products; ``None`` is that of the activations.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    silence_bitsandbytes()
    bnb: Any = require("bitsandbytes", extra="quantization")
    for layer in network.language_model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, nn.Linear):
                    packed = bnb.nn.Linear4bit(
                        linear.in_features,
                        linear.out_features,
                        bias=linear.bias is not None,
                        compute_dtype=dtype,
                        compress_statistics=True,
                        quant_type="nf4",
                        device="meta",
                    )
                    # It would repack the weights for CPUs in a pass without gradients, and have none afterwards.
                    packed.support_avx512bf16_for_cpu = False
                    setattr(parent, name, packed)


def replaced_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that ``replace_layers`` made, by the name of their weight."""
    return {
        f"{name}.weight": module for name, module in network.named_modules() if type(module).__name__ == "Linear4bit"
    }


def pack(layer: nn.Module, weight: Tensor, device: torch.device) -> None:
    """Quantise a weight on the device and give it to its layer."""
    bnb: Any = require("bitsandbytes", extra="quantization")
    packed = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer)
    layer.weight = packed.to(device)


def is_quantized(layer: nn.Module) -> bool:
    """Whether a layer's weights are packed numbers, not floats."""
    return not layer.weight.dtype.is_floating_point  # type: ignore[union-attr]


def quantized_bytes(network: nn.Module) -> int:
    """What 4-bit layers hold beside their packed weights: scales, and the scales' own."""
    states = [getattr(parameter, "quant_state", None) for parameter in network.parameters()]
    parts = [part for state in states if state is not None for part in (state.absmax, state.code)]
    parts += [state.state2.absmax for state in states if state is not None and state.state2 is not None]
    return sum(part.nbytes for part in parts)


def was_quantized(adapter: Path) -> bool:
    """Whether an adapter's folder says that it was trained on a 4-bit base."""
    record = adapter / TRAINING_FILE
    return record.is_file() and bool(read_json(record).get("quantization"))


def refuse_quantized(network: nn.Module) -> None:
    """Rounded weights are never written back.

    Raises:
        ConfigError: The network has some.
    """
    if any(is_quantized(layer) for layer in network.modules() if isinstance(layer, nn.Linear)):
        raise ConfigError(
            "the base is quantised, and its rounded weights are not written; load the checkpoint without quantisation "
            "(`grape merge` does) and merge the adapter there"
        )


def silence_bitsandbytes() -> None:
    """Before it is imported: it warns that a CPU kernel is missing which nothing here uses."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
