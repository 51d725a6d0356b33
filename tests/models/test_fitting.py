"""Batches that do not fit: a network that is out of memory above some rows, on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grape.errors import SamplingError
from grape.models import decoding
from tests.models.tiny_policy import INSTRUCTIONS

KEY = "bridge_orig"
TOLERANCE = 1e-4
"""Nats, float32: products in batches of other sizes add up in another order."""


@pytest.fixture
def rows(policy, monkeypatch):
    """Seven observations, and what makes the policy's network run out of memory above a number of rows."""
    monkeypatch.setitem(decoding.PREFILL_ROWS, "cpu", 64)
    rng = np.random.default_rng(5)
    images = list(rng.integers(0, 256, (7, 28, 28, 3), dtype=np.uint8))
    sizes: list[int] = []

    def limit(num_rows: int) -> None:
        def check(_module, arguments) -> None:
            sizes.append(len(arguments[0]))
            if len(arguments[0]) > num_rows:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee docs")

        policy.network.vision_backbone.register_forward_pre_hook(check)

    def act():
        return policy.act(
            images,
            [INSTRUCTIONS[row % 3] for row in range(7)],
            unnorm_key=KEY,
            temperature=1.0,
            uniforms=np.random.default_rng(6).random((7, 7)),
        )

    return act, limit, sizes


def test_a_batch_that_does_not_fit_is_halved_until_it_does(rows, caplog) -> None:
    act, limit, sizes = rows
    whole = act()
    limit(2)
    halved = act()
    assert sizes == [7, 4, 2, 2, 2, 1]
    np.testing.assert_array_equal(halved.tokens, whole.tokens)
    np.testing.assert_allclose(halved.token_logps, whole.token_logps, atol=TOLERANCE)
    np.testing.assert_allclose(halved.sampler_logps, whole.sampler_logps, atol=TOLERANCE)
    np.testing.assert_array_equal(halved.actions, whole.actions)
    assert [record.message.split(" do not")[0] for record in caplog.records] == [
        "7 observations at once",
        "4 observations at once",
    ]
    act()
    assert sizes[6:] == [2, 2, 2, 1]  # remembered, and not said again
    assert len(caplog.records) == 2


def test_one_observation_that_does_not_fit_is_an_error_with_the_numbers(rows) -> None:
    act, limit, _ = rows
    limit(0)
    with pytest.raises(SamplingError, match=r"one observation alone.*2\.00 GiB.*dtype bfloat16"):
        act()
