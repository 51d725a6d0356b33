"""Choices worked out by hand on four tokens with probabilities 0.4, 0.3, 0.2, 0.1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from grape.errors import ConfigError
from grape.models.sampling import check_settings, choose, token_log_prob

PROBABILITIES = torch.tensor([[0.3, 0.1, 0.4, 0.2]])
LOGITS = PROBABILITIES.log() + 5  # a constant must not matter


def pick(uniform: float, **settings: float) -> tuple[int, float]:
    chosen, log_prob = choose(LOGITS, uniforms=torch.tensor([uniform]), **{"temperature": 1.0, **settings})
    return int(chosen), float(log_prob)


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 0), (0.299, 0), (0.301, 1), (0.399, 1), (0.401, 2), (0.799, 2), (0.801, 3), (0.9999, 3)],
)
def test_inverse_cdf_in_order_of_ids(uniform: float, token: int) -> None:
    chosen, log_prob = pick(uniform)
    assert chosen == token
    assert log_prob == pytest.approx(math.log(float(PROBABILITIES[0, token])), abs=1e-6)


def test_greedy_takes_the_largest_with_certainty() -> None:
    chosen, log_prob = choose(LOGITS, temperature=0.0)
    assert (int(chosen), float(log_prob)) == (2, 0.0)


def test_temperature_sharpens() -> None:
    # At temperature 1/2 probabilities are squared: 0.09, 0.01, 0.16, 0.04, of 0.3.
    chosen, log_prob = pick(0.31, temperature=0.5)
    assert chosen == 1
    assert log_prob == pytest.approx(math.log(0.01 / 0.3), abs=1e-6)


@pytest.mark.parametrize(("uniform", "token"), [(0.42, 0), (0.43, 2), (0.999, 2)])
def test_top_p_keeps_the_smallest_sufficient_set(uniform: float, token: int) -> None:
    # 0.4 + 0.3 reach 0.6, so tokens 0 and 2 stay, with 3/7 and 4/7.
    chosen, log_prob = pick(uniform, top_p=0.6)
    assert chosen == token
    assert log_prob == pytest.approx(math.log({0: 3 / 7, 2: 4 / 7}[token]), abs=1e-6)


def test_tiny_top_p_is_greedy_and_1_is_off() -> None:
    assert {pick(uniform, top_p=1e-9)[0] for uniform in (0.0, 0.5, 0.999)} == {2}
    assert pick(0.35, top_p=1.0) == pick(0.35)


def test_frequencies_match_probabilities() -> None:
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    chosen, _ = choose(LOGITS.expand(20_000, -1), temperature=1.0, uniforms=uniforms)
    frequencies = torch.bincount(chosen, minlength=4) / 20_000
    # Five standard errors of the largest: 5 sqrt(0.24 / 20000) = 0.017.
    torch.testing.assert_close(frequencies, PROBABILITIES[0], atol=0.017, rtol=0)


def test_token_log_prob_is_over_everything_at_temperature_1() -> None:
    logits = torch.log(torch.tensor([[[1.0, 2.0, 5.0]]]))
    assert float(token_log_prob(logits, torch.tensor([[1]]))) == pytest.approx(math.log(2 / 8), abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "top_p", "uniforms", "message"),
    [
        (-1.0, None, None, "temperature is -1"),
        (float("nan"), None, None, "temperature is nan"),
        (1.0, 0.0, np.zeros((2, 7)), "top_p is 0"),
        (1.0, None, None, "needs uniforms"),
        (1.0, None, np.zeros((1, 7)), r"wanted \(2, 7\)"),
        (1.0, None, np.ones((2, 7)), r"\[0, 1\)"),
    ],
)
def test_settings_that_cannot_be_honoured(temperature, top_p, uniforms, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(temperature, top_p, uniforms, num_rows=2)
