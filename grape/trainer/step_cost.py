"""What one micro-batch costs in memory, counted without a GPU and without data.

The step that the trainer takes, forward and backward, runs once on torch's meta device, where tensors have shapes and
types but no bytes: the policy of the checkpoint, its adapter, its attention kernel, its gradient checkpointing. What
autograd keeps is seen through ``saved_tensors_hooks``, what is alive through the operators' results. There is no
formula to maintain; openvla-7b takes a few seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grape.models import load_policy
from grape.models.recompute import recompute_blocks
from grape.trainer.gradient import StepScorer
from grape.trainer.kernels import training_attention
from grape.trainer.prepare import StepBatch
from grape.trajectory import ACTION_DIM

if TYPE_CHECKING:
    from grape.config.train import TrainConfig
    from grape.models import OpenVLAPolicy


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """A number of bytes that grows with the time steps (rows) of a micro-batch."""

    fixed: int
    per_row: int

    def at(self, rows: int) -> int:
        """Bytes of a micro-batch of that many rows."""
        return self.fixed + rows * self.per_row


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Memory of one micro-batch beside weights, gradients and the optimiser."""

    activations: Bytes
    """Kept by autograd for the backward pass, up to the logits."""
    logits: Bytes
    """Kept from the logits on."""
    peak: Bytes
    """The most that is alive at one time, forward or backward: the two above, and what lives for a moment."""


def measure_step(
    config: TrainConfig, *, device: torch.device, dtype: torch.dtype, instruction: str, recompute: bool
) -> StepCost:
    """Count what a micro-batch needs.

    Args:
        config: Settings of the run.
        device: Where it will run; decides the attention kernel.
        dtype: Type of the base weights.
        instruction: The longest of the data: rows of a micro-batch are padded to it.
        recompute: With gradient checkpointing.
    """
    policy = meta_policy(config, dtype)
    if recompute:
        # A function mode is off inside Tensor.backward, so blocks that run again there switch it on themselves.
        recompute_blocks(policy.network, replay_dropout=config.lora_dropout > 0, within=lambda: OnMeta(device))
    two, three = (_count(policy, config, device, instruction, rows) for rows in (2, 3))  # one may be kept as a view
    return StepCost(**{name: _line(two[name], three[name]) for name in two})


def meta_policy(config: TrainConfig, dtype: torch.dtype) -> OpenVLAPolicy:
    """The run's policy and adapter without bytes."""
    # flash-attn's own kernel does not run here; torch's, which takes its place, keeps the same tensors.
    attention = "eager" if config.attn_implementation == "eager" else "sdpa"
    name = str(dtype).removeprefix("torch.")
    policy = load_policy(config.vla_path, device="meta", dtype=name, attn_implementation=attention)
    policy.use_prompt_style(config.prompt_style)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        policy.with_adapter(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, "gaussian")
    return policy


def _line(two: int, three: int) -> Bytes:
    return Bytes(fixed=3 * two - 2 * three, per_row=three - two)


def _count(
    policy: OpenVLAPolicy, config: TrainConfig, device: torch.device, instruction: str, rows: int
) -> Mapping[str, int]:
    scorer, batch = StepScorer(policy, config), _empty_batch(policy, instruction, rows)
    for parameter in policy.model.parameters():  # gradients are there already, as in all passes but a step's first
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    kept, alive = KeptBytes(policy.model), AliveBytes(policy.model)
    before_logits: list[int] = []
    hook = policy.model.register_forward_hook(lambda *_: before_logits.append(kept.total))
    with training_attention(device), OnMeta(device), alive:
        with kept:
            step_logps = scorer.score(batch, slice(0, rows))
        step_logps.sum().backward()
    hook.remove()
    [activations] = before_logits
    return {"activations": activations, "logits": kept.total - activations, "peak": alive.peak}


def _empty_batch(policy: OpenVLAPolicy, instruction: str, rows: int) -> StepBatch:
    size = policy.image_size
    return StepBatch(
        images=np.zeros((rows, size, size, 3), np.uint8),
        instructions=[instruction] * rows,
        tokens=np.zeros((rows, ACTION_DIM), np.int64),
        num_chosen=rows,
        center_crop=False,
        label="memory plan",
    )


def _storages(model: nn.Module) -> Iterable[torch.UntypedStorage]:
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor.untyped_storage()
        if tensor.grad is not None:
            yield tensor.grad.untyped_storage()


class KeptBytes:
    """Inside the context, adds up what autograd keeps: each storage once, weights not at all."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {storage._cdata for storage in _storages(model)}
        self._kept: dict[int, int] = {}  # kept storages live until the backward pass, so no number comes twice
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes kept so far."""
        return sum(self._kept.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._kept[storage._cdata] = storage.nbytes()
        return tensor

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


class AliveBytes(TorchDispatchMode):
    """Inside the context, follows the storages that operators make, until they are freed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = weakref.WeakSet(_storages(model))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._follow(result.untyped_storage())
        return results

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self._add(storage.nbytes())
        weakref.finalize(storage, self._add, -storage.nbytes())

    def _add(self, num_bytes: int) -> None:
        self.alive += num_bytes
        self.peak = max(self.peak, self.alive)


class OnMeta(TorchFunctionMode):
    """Inside the context, meta tensors take the way through the code that real ones take on ``device``."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._on_gpu = device.type == "cuda"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and args[0].is_meta:
            return True  # the one question asked: transformers', whether positions count up without a gap. They do.
        if func is F.scaled_dot_product_attention and self._on_gpu:
            return _attention_on_gpu(*args, **kwargs)
        return func(*args, **kwargs)


def _attention_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The operators that torch takes on a GPU: flash, and in float32 the memory-efficient one.

    Both keep query, key, value, output and one number per query and head. On the meta device torch would take the
    plain one, which keeps all pairs of tokens.
    """
    assert attn_mask is None and not enable_gqa
    if query.dtype == torch.float32:
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, dropout_p, is_causal, scale=scale
        )[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
