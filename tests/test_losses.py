"""Losses against values derived by hand, with nothing but exp and log of plain numbers."""

from __future__ import annotations

import inspect
import math
from math import exp, log
from typing import Any, get_args, get_type_hints

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from grape.config.train import TrainConfig
from grape.losses import (
    LOSSES,
    PreferenceLoss,
    preference_loss,
    step_log_ratios,
    supervised_loss,
    trajectory_log_ratio,
)


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def loss_at(margin: float, **settings: Any) -> PreferenceLoss:
    """Of one term with Δ = margin, both sides moved away from 0."""
    return preference_loss(values(margin - 1.0), values(-1.0), **settings)


SMOOTHED = {"beta": 0.5, "label_smoothing": 0.25}
BY_HAND = [
    # sigmoid: L = log(1 + e^-βΔ), dL/dΔ = -β e^-βΔ / (1 + e^-βΔ) = -β / (1 + e^βΔ)
    ("sigmoid", {"beta": 0.1}, 0.0, log(2), -0.05),
    ("sigmoid", {"beta": 0.5}, 4.0, log(1 + exp(-2)), -0.5 / (1 + exp(2))),  # 0.126928 and -0.059601
    ("sigmoid", {"beta": 0.5}, -4.0, log(1 + exp(2)), -0.5 / (1 + exp(-2))),
    # with ε = 1/4: 3/4 log(1 + e^-βΔ) + 1/4 log(1 + e^βΔ), slope β (1/4 / (1 + e^-βΔ) - 3/4 / (1 + e^βΔ))
    (
        "sigmoid", SMOOTHED, 4.0,
        0.75 * log(1 + exp(-2)) + 0.25 * log(1 + exp(2)),  # 0.75 * 0.126928 + 0.25 * 2.126928 = 0.626928
        0.5 * (0.25 / (1 + exp(-2)) - 0.75 / (1 + exp(2))),  # 0.5 * (0.220199 - 0.089402) = 0.065399
    ),
    # with γ = 1/2, SimPO: βΔ - γ = 1.5 takes the place of βΔ
    ("sigmoid", {"beta": 0.5, "simpo_gamma": 0.5}, 4.0, log(1 + exp(-1.5)), -0.5 / (1 + exp(1.5))),
    # both: a pair labelled the wrong way round has Δ = -4, so its exponent is -2 - 0.5
    (
        "sigmoid", SMOOTHED | {"simpo_gamma": 0.5}, 4.0,
        0.75 * log(1 + exp(-1.5)) + 0.25 * log(1 + exp(2.5)),
        0.5 * (0.25 / (1 + exp(-2.5)) - 0.75 / (1 + exp(1.5))),
    ),
    # robust, ε = 1/4: (3/4 log(1 + e^-βΔ) - 1/4 log(1 + e^βΔ)) / (1/2)
    #   = (0.095196 - 0.531732) / 0.5 = -0.873072; slope -0.5 (0.089402 + 0.220199) / 0.5 = -0.309601
    (
        "robust", SMOOTHED, 4.0,
        1.5 * log(1 + exp(-2)) - 0.5 * log(1 + exp(2)),
        -0.5 * (1.5 / (1 + exp(2)) + 0.5 / (1 + exp(-2))),
    ),
    (
        "robust", SMOOTHED | {"simpo_gamma": 0.5}, 4.0,
        1.5 * log(1 + exp(-1.5)) - 0.5 * log(1 + exp(2.5)),
        -0.5 * (1.5 / (1 + exp(1.5)) + 0.5 / (1 + exp(-2.5))),
    ),
    # hinge: max(0, 1 - βΔ), slope -β below Δ = 1/β and 0 above
    ("hinge", {"beta": 0.5}, 1.0, 0.5, -0.5),
    ("hinge", {"beta": 0.5}, -4.0, 3.0, -0.5),
    ("hinge", {"beta": 0.5}, 4.0, 0.0, 0.0),
    # ipo: (Δ - 1 / 2β)^2, slope 2 (Δ - 1 / 2β); 1 / 2β = 1 for β = 0.5 and 5 for β = 0.1
    ("ipo", {"beta": 0.5}, 4.0, 9.0, 6.0),
    ("ipo", {"beta": 0.5}, -1.0, 4.0, -4.0),
    ("ipo", {"beta": 0.1}, 0.0, 25.0, -10.0),
    ("ipo", {"beta": 0.1}, 5.0, 0.0, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "margin", "value", "slope"), BY_HAND)
def test_value_and_gradient_by_hand(
    name: str, settings: dict[str, float], margin: float, value: float, slope: float
) -> None:
    chosen, rejected = values(margin - 1.0), values(-1.0)
    result = preference_loss(chosen, rejected, loss=name, **settings)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(value, rel=1e-12, abs=1e-12)
    assert result.coefficient.item() == pytest.approx(slope, rel=1e-12, abs=1e-12)
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(slope, rel=1e-12, abs=1e-12)
    assert rejected.grad.item() == pytest.approx(-slope, rel=1e-12, abs=1e-12)


def test_every_loss_is_checked_by_hand_and_can_be_configured() -> None:
    assert {name for name, *_ in BY_HAND} == LOSSES.keys() == set(get_args(get_type_hints(TrainConfig)["loss"]))


def test_the_figures_in_the_comments_above() -> None:
    assert loss_at(4.0, beta=0.5).loss.item() == pytest.approx(0.126928, abs=1e-6)
    assert loss_at(4.0, **SMOOTHED).loss.item() == pytest.approx(0.626928, abs=1e-6)
    assert loss_at(4.0, **SMOOTHED).coefficient.item() == pytest.approx(0.065399, abs=1e-6)
    assert loss_at(4.0, loss="robust", **SMOOTHED).loss.item() == pytest.approx(-0.873072, abs=1e-6)
    assert loss_at(4.0, loss="robust", **SMOOTHED).coefficient.item() == pytest.approx(-0.309601, abs=1e-6)


def test_robust_tends_to_sigmoid_and_is_it_at_zero() -> None:
    assert loss_at(4.0, loss="robust", beta=0.5).loss.item() == pytest.approx(log(1 + exp(-2)), rel=1e-14)
    # dL/dε at 0 is 2 l(Δ) - l(Δ) - l(-Δ) = log(1 + e^-2) - log(1 + e^2) = -2
    for flips in (1e-3, 1e-6):
        value = loss_at(4.0, loss="robust", beta=0.5, label_smoothing=flips).loss.item()
        assert value - log(1 + exp(-2)) == pytest.approx(-2 * flips, rel=3 * flips)  # the next term is -4 ε²


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_robust_is_unbiased_under_flips(gamma: float) -> None:
    # One of four pairs with Δ = 4 is labelled the wrong way round and shows Δ = -4: the mean is that of clean labels.
    labels = values(4.0, 4.0, -4.0, 4.0)
    result = preference_loss(labels, values(0, 0, 0, 0), loss="robust", simpo_gamma=gamma, **SMOOTHED)
    assert result.loss.item() == pytest.approx(log(1 + exp(-(2 - gamma))), rel=1e-12)


def test_how_hard_each_loss_pulls_far_out() -> None:
    assert loss_at(1e4, loss="robust", **SMOOTHED).coefficient.item() == -0.25  # -β ε / (1 - 2ε): never lets go
    assert loss_at(1e4, **SMOOTHED).coefficient.item() == 0.125  # β ε: draws back
    assert loss_at(1e4, beta=0.5).coefficient.item() == 0.0
    for name in ("sigmoid", "hinge"):
        assert loss_at(-1e4, loss=name, beta=0.5).coefficient.item() == -0.5
    assert loss_at(-1e4, loss="ipo", beta=0.5).coefficient.item() == -20002.0  # grows with the distance


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("margin", [-7000.0, -3.0, 2.0, 7000.0])
def test_the_gradient_is_the_coefficient_far_out_too(name: str, margin: float) -> None:
    settings = {"label_smoothing": 0.2} if name == "robust" else {}
    chosen = values(margin, 0.5)
    result = preference_loss(chosen, values(0.5, 0.5), loss=name, beta=0.3, **settings)
    result.losses.sum().backward()
    assert math.isfinite(result.loss.item())
    assert chosen.grad is not None and torch.equal(chosen.grad, result.coefficient)


def test_loss_is_the_mean_over_terms() -> None:
    result = preference_loss(values(3.0, 0.0), values(-1.0, 0.0), beta=0.5)
    assert result.loss.item() == pytest.approx((log(1 + exp(-2)) + log(2)) / 2, rel=1e-12)
    assert result.losses.shape == (2,)


def test_rewards_carry_no_gradient() -> None:
    result = preference_loss(values(3.0), values(-1.0), beta=0.5)
    assert (result.chosen_rewards.item(), result.rejected_rewards.item()) == (1.5, -0.5)
    assert not (result.chosen_rewards.requires_grad or result.rejected_rewards.requires_grad)
    assert not result.coefficient.requires_grad


def test_the_coefficient_is_known_without_gradients() -> None:
    with torch.no_grad():
        assert loss_at(0.0, beta=0.1).coefficient.item() == -0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "want beta > 0"),
        ({"beta": -1.0}, "want beta > 0"),
        ({"beta": math.nan}, "want beta > 0"),
        ({"label_smoothing": 0.5}, "label_smoothing < 0.5"),
        ({"label_smoothing": -0.1}, "0 <= label_smoothing"),
        ({"simpo_gamma": -0.1}, "simpo_gamma >= 0"),
        ({"loss": "dpo"}, "want a loss among sigmoid, ipo, hinge, robust, got 'dpo'"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "0 with the hinge loss, got 0.1 and 0.0"),
        ({"loss": "ipo", "simpo_gamma": 0.1}, "0 with the ipo loss, got 0.0 and 0.1"),
    ],
)
def test_settings_outside_their_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_at(1.0, **settings)


def test_terms_have_to_have_a_counterpart() -> None:
    as_users_run_it = inspect.unwrap(preference_loss)  # without the tests' own shape check
    with pytest.raises(ValueError, match=r"as many chosen as rejected terms.*\(3,\), \(1,\)"):
        as_users_run_it(torch.zeros(3), torch.zeros(1))
    with pytest.raises(ValueError, match="at least one"):
        as_users_run_it(torch.zeros(0), torch.zeros(0))


def test_log_ratio_is_a_sum_or_a_mean() -> None:
    policy, reference = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-1.5, -2.5, -2.0])
    assert step_log_ratios(policy, reference).tolist() == [0.5, 0.5, -2.0]
    assert trajectory_log_ratio(policy, reference).item() == -1.0  # 0.5 + 0.5 - 2
    assert trajectory_log_ratio(policy, reference, length_normalised=True).item() == pytest.approx(-1 / 3)


def test_without_a_reference_it_is_the_log_probability() -> None:
    policy = torch.tensor([-1.0, -2.0, -4.5])
    assert step_log_ratios(policy, None).tolist() == [-1.0, -2.0, -4.5]
    assert trajectory_log_ratio(policy, None).item() == -7.5
    assert trajectory_log_ratio(policy, None, length_normalised=True).item() == -2.5


def test_log_ratio_keeps_small_differences_of_long_trajectories() -> None:
    # 520 steps of -60 nats with a difference of 1e-3 each: two float32 sums would be off by more than 1e-3.
    reference = torch.full((520,), -60.0)
    policy = reference + torch.tensor(2.0**-10)
    assert trajectory_log_ratio(policy, reference).item() == pytest.approx(520 * 2.0**-10, rel=1e-7)


def test_log_ratio_refuses_different_lengths() -> None:
    as_users_run_it = inspect.unwrap(step_log_ratios)  # without the tests' own shape check
    with pytest.raises(ValueError, match="two equal"):
        as_users_run_it(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="two equal"):
        as_users_run_it(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match="two equal"):
        as_users_run_it(torch.zeros(0), None)


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError, match="step"):
        trajectory_log_ratio(torch.zeros(3), torch.zeros(4))


def test_supervised_loss_is_the_mean_negative_log_likelihood() -> None:
    assert supervised_loss(torch.tensor([-1.0, -3.0])).item() == 2.0
