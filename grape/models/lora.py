"""A LoRA layer that computes in the base's type; only the small adapter matrices are cast, never an activation.

peft's own layer casts its input to the type of the adapter, which is float32 so that AdamW can move it by little. Over
a bfloat16 base that makes a float32 copy of every activation and keeps it for the backward pass. Everything else (file
format, names, ``disable_adapter``, merging, dropout) is peft's. Axis legend: M rows (batch and tokens), R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from grape.models.quantization import is_quantized


def use_light_lora(config: PeftConfig) -> None:
    """Have peft wrap linear layers (4-bit ones too, which are linear layers) in ``LightLoraLinear``."""
    if isinstance(config, LoraConfig):
        config._register_custom_module({nn.Linear: LightLoraLinear})


class LightLoraLinear(PeftLinear):
    """peft's LoRA over a linear layer, in the type of the layer's output.

    The adapter's part is added in the same matrix product that makes it, so no second output is ever written. In
    float32 that differs from peft by the rounding of one addition.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) to (..., out)."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        plain = not (args or kwargs or self.disable_adapters or self.merged)
        if not plain or any(name in self.lora_variant or self.lora_bias[name] for name in names):
            return super().forward(x, *args, **kwargs)
        # On two axes the output is no view, which is what lets it be added to in place.
        rows = x.reshape(-1, x.shape[-1])
        result = self.base_layer(rows)
        for name in names:
            down: Tensor = self.lora_A[name].weight.to(result.dtype)  # type: ignore[assignment, operator]
            up: Tensor = self.lora_B[name].weight.to(result.dtype)  # type: ignore[assignment, operator]
            inner = F.linear(self.lora_dropout[name](rows).to(result.dtype), down)  # (M, R)
            result = self._add(result, inner, up, self.scaling[name])
        return result.unflatten(0, x.shape[:-1])

    def _add(self, result: Tensor, inner: Tensor, up: Tensor, scale: float) -> Tensor:
        if is_quantized(self.get_base_layer()):  # its output comes from a function of its own, which forbids it
            return torch.addmm(result, inner, up.t(), alpha=scale)
        return result.addmm_(inner, up.t(), alpha=scale)
