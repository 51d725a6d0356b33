"""Gradient checkpointing: a block keeps its input alone, and is run again when its gradient is due.

Less memory for one more forward pass. Nothing here has to do with checkpoints on the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from grape.models.openvla import OpenVLA

Context = contextlib.AbstractContextManager[Any]


def recompute_blocks(
    network: OpenVLA, *, replay_dropout: bool = False, within: Callable[[], Context] = contextlib.nullcontext
) -> None:
    """From now on recompute every Llama layer and tower block that is trained; others keep nothing anyway.

    transformers has this for Llama, but only in training mode, and the trainer runs in evaluation mode where there is
    no dropout.

    Args:
        network: The bare network, its adapter in place.
        replay_dropout: Remember the state of the random generators at each block, so that masks are the same again.
        within: Makes the context in which a block runs again.
    """
    for block in blocks(network):
        if any(parameter.requires_grad for parameter in block.parameters()):
            block.forward = _recomputed(block.forward, replay_dropout, within)  # type: ignore[method-assign]


def blocks(network: OpenVLA) -> Iterator[nn.Module]:
    """The blocks of both towers, then Llama's layers."""
    yield from network.vision_backbone.featurizer.blocks
    yield from network.vision_backbone.fused_featurizer.blocks
    yield from network.language_model.model.layers


def _recomputed(forward: Callable[..., Any], replay_dropout: bool, within: Callable[[], Context]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=replay_dropout,
            context_fn=lambda: (contextlib.nullcontext(), within()),
            **kwargs,
        )

    return run
