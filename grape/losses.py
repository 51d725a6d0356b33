"""Preference losses as pure functions of log-probabilities.

Axis legend: step = control steps of one trajectory, pair = preference pairs. Log-probabilities are in nats and
are log π(a_t | o_t) of a step: the sum over its 7 action tokens, over the full vocabulary at temperature 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TPOLoss:
    """A preference loss with what is logged beside it."""

    loss: Float[Tensor, ""]
    """Mean over the pairs; differentiable."""
    losses: Float[Tensor, " pair"]
    coefficient: Float[Tensor, " pair"]
    """dL_pair / dΔ, without gradient; Δ is the chosen log-ratio minus the rejected one."""
    chosen_rewards: Float[Tensor, " pair"]
    """β times the chosen log-ratio, without gradient."""
    rejected_rewards: Float[Tensor, " pair"]


def trajectory_log_ratio(
    policy_logps: Float[Tensor, " step"], reference_logps: Float[Tensor, " step"], *, length_normalised: bool = False
) -> Float[Tensor, ""]:
    """log πθ(trajectory) − log πref(trajectory): the sum over steps, or their mean.

    The difference is taken per step, before the sum, and summed in float64: two sums of some thousand nats
    would lose the digits in which they differ.

    Args:
        policy_logps: Under the policy that is trained.
        reference_logps: Under the frozen reference.
        length_normalised: Divide by the number of steps, so that long trajectories weigh no more than short ones
            (as SimPO, arXiv 2405.14734, does for text).

    Raises:
        ValueError: The two differ in length, or there is no step.
    """
    if policy_logps.shape != reference_logps.shape or policy_logps.ndim != 1 or not len(policy_logps):
        raise ValueError(
            f"want two equal, non-empty 1-d shapes, got {tuple(policy_logps.shape)}, {tuple(reference_logps.shape)}"
        )
    log_ratios = policy_logps.double() - reference_logps.double()
    return log_ratios.mean() if length_normalised else log_ratios.sum()


def tpo_loss(
    chosen_log_ratio: Float[Tensor, " pair"],
    rejected_log_ratio: Float[Tensor, " pair"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> TPOLoss:
    """Trajectory-wise preference optimization: −log σ(βΔ), GRAPE (arXiv 2411.19309) eq. 3.

    With smoothing ε it is −(1 − ε) log σ(βΔ) − ε log σ(−βΔ) (conservative DPO): ε is the probability that a
    pair is labelled the wrong way round.

    Args:
        chosen_log_ratio: log πθ/πref of the chosen trajectories.
        rejected_log_ratio: The same of the rejected trajectories.
        beta: KL strength β, dimensionless.
        label_smoothing: ε, from 0 to below 0.5.

    Returns:
        The loss, its value and its derivative with respect to Δ per pair, and the rewards.

    Raises:
        ValueError: β is not positive, or ε is outside [0, 0.5).
    """
    if beta <= 0 or not 0 <= label_smoothing < 0.5:
        raise ValueError(f"want beta > 0 and 0 <= label_smoothing < 0.5, got {beta} and {label_smoothing}")
    scaled_margin = beta * (chosen_log_ratio - rejected_log_ratio)
    losses = -(1 - label_smoothing) * F.logsigmoid(scaled_margin) - label_smoothing * F.logsigmoid(-scaled_margin)
    return TPOLoss(
        loss=losses.mean(),
        losses=losses,
        coefficient=beta * (label_smoothing - torch.sigmoid(-scaled_margin.detach())),
        chosen_rewards=beta * chosen_log_ratio.detach(),
        rejected_rewards=beta * rejected_log_ratio.detach(),
    )


def supervised_loss(chosen_logps: Float[Tensor, " step"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the chosen steps: the supervised term of RPO (arXiv 2404.19733) eq. 1."""
    return -chosen_logps.double().mean()
