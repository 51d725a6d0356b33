"""The count of operations behind every figure of utilisation, against the count that torch makes of a real pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.operations import count
from grape.models import OpenVLAPolicy, new_policy


def product(added: torch.Size, left: torch.Size, right: torch.Size, **_: object) -> int:
    """Operations of a matrix product, from its shapes."""
    return 2 * left[0] * left[1] * right[1]


def counted_by_torch(policy: OpenVLAPolicy, *, backward: bool) -> tuple[int, int]:
    """Operations of one row, and its number of text tokens."""
    size, token = policy.image_size, policy.action_tokenizer.first_id
    inputs = policy.forward_inputs([np.zeros((size, size, 3), np.uint8)], ["pick up the bowl"], np.full((1, 7), token))
    # the plain kernel is made of matrix products, which are counted one by one
    in_place = {torch.ops.aten.addmm_: product}  # which torch's counter does not know
    with (
        FlopCounterMode(display=False, custom_mapping=in_place) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.set_grad_enabled(backward),
    ):
        logits = policy.action_logits(inputs)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops(), inputs.input_ids.shape[1]


@pytest.mark.parametrize("preset", ["test", "nano"])
def test_by_hand_equals_torch(preset: str) -> None:
    policy = new_policy(preset)
    forward, num_text_tokens = counted_by_torch(policy, backward=False)
    assert count(policy.config, num_text_tokens=num_text_tokens).forward == forward
    policy.with_adapter(8)
    found = count(policy.config, num_text_tokens=num_text_tokens, lora_rank=8)
    without_gradients, _ = counted_by_torch(policy, backward=False)
    both_ways, _ = counted_by_torch(policy, backward=True)
    assert found.forward == without_gradients
    assert found.training_step == without_gradients + both_ways
