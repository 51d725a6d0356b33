"""Gradient checkpointing changes what is kept, and no gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from grape.models import OpenVLAPolicy
from grape.models.recompute import blocks, recompute_blocks
from tests.models.tiny_policy import INSTRUCTIONS, make_policy


def adapted(targets: str = "all-linear", dropout: float = 0.0) -> OpenVLAPolicy:
    torch.manual_seed(0)
    policy = make_policy().with_adapter(2, dropout=dropout, targets=targets)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    policy.model.train(dropout > 0)
    return policy


def gradients(policy: OpenVLAPolicy, images: list[np.ndarray]) -> tuple[dict[str, Tensor], Tensor, int]:
    """Gradients, log-probabilities, and the number of tensors that autograd kept."""
    tokens = np.random.default_rng(0).integers(0, 256, (len(images), 7)) + policy.action_tokenizer.first_id
    kept: list[int] = []
    torch.manual_seed(1)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(1) or tensor, lambda tensor: tensor):
        logps = policy.log_prob(images, INSTRUCTIONS, tokens)
    logps.sum().backward()
    values = {name: value.grad for name, value in policy.model.named_parameters() if value.grad is not None}
    return values, logps.detach(), len(kept)


@pytest.mark.parametrize(("targets", "dropout"), [("all-linear", 0.0), ("llm", 0.0), ("all-linear", 0.3)])
def test_gradients_are_the_same(images: list[np.ndarray], targets: str, dropout: float) -> None:
    plain, recomputed = adapted(targets, dropout), adapted(targets, dropout)
    recompute_blocks(recomputed.network, replay_dropout=dropout > 0)
    assert recomputed.model.training is (dropout > 0)
    wanted, logps, num_kept = gradients(plain, images)
    got, same_logps, fewer_kept = gradients(recomputed, images)
    assert torch.equal(logps, same_logps)
    assert fewer_kept < num_kept / 2
    assert got.keys() == wanted.keys() and max(value.abs().max() for value in wanted.values()) > 1e-3
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-7)  # float32; the same operations again


def test_only_blocks_that_are_trained_run_again(images: list[np.ndarray]) -> None:
    policy = adapted("llm")
    recompute_blocks(policy.network)
    runs = {id(block): 0 for block in blocks(policy.network)}
    for block in blocks(policy.network):
        block.register_forward_hook(lambda module, *_: runs.__setitem__(id(module), runs[id(module)] + 1))
        first = next(module for module in block.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda *_, block=block: runs.__setitem__(id(block), runs[id(block)] + 1))
    gradients(policy, images)
    towers = {
        id(block)
        for tower in (policy.network.vision_backbone.featurizer, policy.network.vision_backbone.fused_featurizer)
        for block in tower.blocks
    }
    # A block and its first layer run once; where the block runs again, its layer does so a second time.
    assert {runs[block] for block in runs if block not in towers} == {3}
    assert {runs[block] for block in towers} == {0, 2}  # 0: each tower's last block never runs


def test_without_gradients_nothing_changes(images: list[np.ndarray]) -> None:
    plain, recomputed = adapted(), adapted()
    recompute_blocks(recomputed.network)
    settings = {"unnorm_key": "bridge_orig"}
    wanted, got = plain.act(images, INSTRUCTIONS, **settings), recomputed.act(images, INSTRUCTIONS, **settings)
    assert np.array_equal(got.tokens, wanted.tokens) and np.array_equal(got.token_logps, wanted.token_logps)
    assert recomputed.network.state_dict().keys() == plain.network.state_dict().keys()
