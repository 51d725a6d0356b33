"""Losses against values derived by hand."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from jaxtyping import TypeCheckError

from grape.losses import supervised_loss, tpo_loss, trajectory_log_ratio


def pair(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64, requires_grad=True)


def test_equal_policies_cost_log_two() -> None:
    result = tpo_loss(pair(0.0), pair(0.0), beta=0.1)
    assert result.loss.item() == pytest.approx(math.log(2))
    assert result.coefficient.item() == pytest.approx(-0.05)  # -β σ(0)


def test_loss_by_hand() -> None:
    # β Δ = 0.5 (3 - (-1)) = 2; -log σ(2) = log(1 + e^-2) = 0.126928; dL/dΔ = -0.5 σ(-2) = -0.5 * 0.119203
    result = tpo_loss(pair(3.0), pair(-1.0), beta=0.5)
    assert result.loss.item() == pytest.approx(0.126928, abs=1e-6)
    assert result.coefficient.item() == pytest.approx(-0.0596015, abs=1e-6)
    assert result.chosen_rewards.item() == 1.5
    assert result.rejected_rewards.item() == -0.5


def test_smoothed_loss_by_hand() -> None:
    # ε = 0.25, β Δ = 2: 0.75 log(1 + e^-2) + 0.25 log(1 + e^2) = 0.75 * 0.126928 + 0.25 * 2.126928 = 0.626928
    # dL/dΔ = β (ε - σ(-2)) = 0.5 (0.25 - 0.119203) = 0.0653985
    result = tpo_loss(pair(3.0), pair(-1.0), beta=0.5, label_smoothing=0.25)
    assert result.loss.item() == pytest.approx(0.626928, abs=1e-6)
    assert result.coefficient.item() == pytest.approx(0.0653985, abs=1e-6)


def test_loss_is_the_mean_over_pairs() -> None:
    chosen, rejected = torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 0.0])
    result = tpo_loss(chosen, rejected, beta=0.5)
    assert result.loss.item() == pytest.approx((0.126928 + math.log(2)) / 2, abs=1e-6)
    assert result.losses.shape == (2,)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("margin", [-700.0, -3.0, 0.0, 2.0, 700.0])
def test_coefficient_is_the_derivative(margin: float, smoothing: float) -> None:
    chosen, rejected = pair(margin), pair(0.5)
    result = tpo_loss(chosen, rejected, beta=0.3, label_smoothing=smoothing)
    result.loss.backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(result.coefficient.item(), rel=1e-9)
    assert rejected.grad.item() == pytest.approx(-result.coefficient.item(), rel=1e-9)
    assert math.isfinite(result.loss.item())


def test_rewards_carry_no_gradient() -> None:
    result = tpo_loss(pair(1.0), pair(0.0))
    assert not (result.chosen_rewards.requires_grad or result.rejected_rewards.requires_grad)
    assert not result.coefficient.requires_grad


@pytest.mark.parametrize(
    "settings", [{"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}, {"label_smoothing": -0.1}]
)
def test_settings_outside_their_range(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="want beta > 0"):
        tpo_loss(pair(1.0), pair(0.0), **settings)


def test_log_ratio_is_a_sum_or_a_mean() -> None:
    policy, reference = torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([-1.5, -2.5, -2.0])
    assert trajectory_log_ratio(policy, reference).item() == -1.0  # 0.5 + 0.5 - 2
    assert trajectory_log_ratio(policy, reference, length_normalised=True).item() == pytest.approx(-1 / 3)


def test_log_ratio_keeps_small_differences_of_long_trajectories() -> None:
    # 520 steps of -60 nats with a difference of 1e-3 each: two float32 sums would be off by more than 1e-3.
    reference = torch.full((520,), -60.0)
    policy = reference + torch.tensor(2.0**-10)
    assert trajectory_log_ratio(policy, reference).item() == pytest.approx(520 * 2.0**-10, rel=1e-7)


def test_log_ratio_refuses_different_lengths() -> None:
    as_users_run_it = inspect.unwrap(trajectory_log_ratio)  # without the tests' own shape check
    with pytest.raises(ValueError, match="two equal"):
        as_users_run_it(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="two equal"):
        as_users_run_it(torch.zeros(0), torch.zeros(0))


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError, match="step"):
        trajectory_log_ratio(torch.zeros(3), torch.zeros(4))


def test_supervised_loss_is_the_mean_negative_log_likelihood() -> None:
    assert supervised_loss(torch.tensor([-1.0, -3.0])).item() == 2.0
