"""Preference losses as pure functions of log-probabilities; docs/preference_losses.md says which is for what.

Axis legend: step = control steps of one trajectory; term = comparisons of a chosen with a rejected side, namely
pairs of trajectories, pairs of windows, or the time steps that the two trajectories of a pair have in common.
Log-probabilities are in nats and are log π(a_t | o_t) of a step: the sum over its 7 action tokens, over the full
vocabulary at temperature 1. Δ is the chosen side's log-ratio minus the rejected one's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss:
    """A preference loss with what is logged beside it."""

    loss: Float[Tensor, ""]
    """Mean over the terms; differentiable."""
    losses: Float[Tensor, " term"]
    coefficient: Float[Tensor, " term"]
    """dL_term / dΔ, without gradient."""
    chosen_rewards: Float[Tensor, " term"]
    """β times the chosen log-ratio, without gradient."""
    rejected_rewards: Float[Tensor, " term"]


def step_log_ratios(
    policy_logps: Float[Tensor, " step"], reference_logps: Float[Tensor, " step"] | None
) -> Float[Tensor, " step"]:
    """log πθ(a_t | o_t) − log πref(a_t | o_t) in float64, or log πθ itself where there is no reference.

    Raises:
        ValueError: The two differ in length, or there is no step.
    """
    reference = torch.zeros_like(policy_logps) if reference_logps is None else reference_logps
    if policy_logps.shape != reference.shape or policy_logps.ndim != 1 or not len(policy_logps):
        raise ValueError(
            f"want two equal, non-empty 1-d shapes, got {tuple(policy_logps.shape)}, {tuple(reference.shape)}"
        )
    return policy_logps.double() - reference.double()


def trajectory_log_ratio(
    policy_logps: Float[Tensor, " step"],
    reference_logps: Float[Tensor, " step"] | None,
    *,
    length_normalised: bool = False,
) -> Float[Tensor, ""]:
    """log πθ(trajectory) − log πref(trajectory): the sum over steps, or their mean.

    The difference is taken per step, before the sum, and summed in float64: two sums of some thousand nats
    would lose the digits in which they differ.

    Args:
        policy_logps: Under the policy that is trained.
        reference_logps: Under the frozen reference; ``None`` leaves it out.
        length_normalised: Divide by the number of steps, so that long trajectories weigh no more than short ones
            (as SimPO, arXiv 2405.14734, does for text).

    Raises:
        ValueError: The two differ in length, or there is no step.
    """
    log_ratios = step_log_ratios(policy_logps, reference_logps)
    return log_ratios.mean() if length_normalised else log_ratios.sum()


def sigmoid_loss(
    margin: Float[Tensor, " term"], *, beta: float, label_smoothing: float = 0.0, simpo_gamma: float = 0.0
) -> Float[Tensor, " term"]:
    """−log σ(βΔ − γ): DPO (arXiv 2305.18290) eq. 7; over trajectories TPO, GRAPE (arXiv 2411.19309) eq. 3.

    With smoothing ε it is −(1 − ε) log σ(βΔ − γ) − ε log σ(−βΔ − γ), conservative DPO. γ above 0 is SimPO's
    (arXiv 2405.14734, eq. 6).
    """
    return (1 - label_smoothing) * _cost(margin, beta, simpo_gamma) + label_smoothing * _cost(
        -margin, beta, simpo_gamma
    )


def robust_loss(
    margin: Float[Tensor, " term"], *, beta: float, label_smoothing: float = 0.0, simpo_gamma: float = 0.0
) -> Float[Tensor, " term"]:
    """((1 − ε) l(Δ) − ε l(−Δ)) / (1 − 2ε) with l(Δ) = −log σ(βΔ − γ): rDPO (arXiv 2403.00409).

    Its mean over labels that are wrong with probability ε is l of the right label. It has no lower bound: on one pair
    dL/dΔ never gets weaker than −βε / (1 − 2ε).
    """
    right, wrong = _cost(margin, beta, simpo_gamma), _cost(-margin, beta, simpo_gamma)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def hinge_loss(
    margin: Float[Tensor, " term"], *, beta: float, label_smoothing: float = 0.0, simpo_gamma: float = 0.0
) -> Float[Tensor, " term"]:
    """max(0, 1 − βΔ): SLiC-HF (arXiv 2305.10425), on log-ratios as in RSO (arXiv 2309.06657).

    Without a reference it is β times SLiC-HF's max(0, δ − Δ) with δ = 1/β.

    Raises:
        ValueError: ε or γ is not 0: the hinge has neither.
    """
    _want_zero("hinge", label_smoothing, simpo_gamma)
    return F.relu(1 - beta * margin)


def ipo_loss(
    margin: Float[Tensor, " term"], *, beta: float, label_smoothing: float = 0.0, simpo_gamma: float = 0.0
) -> Float[Tensor, " term"]:
    """(Δ − 1 / (2β))²: IPO (arXiv 2310.12036) eq. 17, whose τ is β here. The least is at Δ = 1 / (2β) nats.

    Raises:
        ValueError: ε or γ is not 0: IPO has neither.
    """
    _want_zero("ipo", label_smoothing, simpo_gamma)
    return (margin - 1 / (2 * beta)) ** 2


class LossOfMargin(Protocol):
    """A loss per term as a function of Δ."""

    def __call__(
        self, margin: Tensor, *, beta: float, label_smoothing: float = 0.0, simpo_gamma: float = 0.0
    ) -> Tensor:
        """Values of the same shape as ``margin``, differentiable."""


LOSSES: dict[str, LossOfMargin] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "robust": robust_loss,
}
"""By the names of ``--loss``."""


def preference_loss(
    chosen_log_ratio: Float[Tensor, " term"],
    rejected_log_ratio: Float[Tensor, " term"],
    *,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    simpo_gamma: float = 0.0,
) -> PreferenceLoss:
    """A loss of the difference between chosen and rejected, and its derivative.

    Args:
        chosen_log_ratio: log πθ/πref of the chosen sides; log πθ where there is no reference.
        rejected_log_ratio: The same of the rejected sides.
        loss: A name in ``LOSSES``.
        beta: KL strength β, dimensionless.
        label_smoothing: ε, the probability that a pair is labelled the wrong way round, from 0 to below 0.5.
        simpo_gamma: Target margin γ, in units of βΔ.

    Raises:
        ValueError: The name is unknown, the sides differ in shape, β is not positive, ε is outside [0, 0.5), γ is
            negative, or the loss has no such setting.
    """
    if loss not in LOSSES:
        raise ValueError(f"want a loss among {', '.join(LOSSES)}, got {loss!r}")
    if chosen_log_ratio.shape != rejected_log_ratio.shape or not chosen_log_ratio.numel():
        shapes = tuple(chosen_log_ratio.shape), tuple(rejected_log_ratio.shape)
        raise ValueError(f"want as many chosen as rejected terms, and at least one, got shapes {shapes}")
    if not (beta > 0 and 0 <= label_smoothing < 0.5 and simpo_gamma >= 0):
        raise ValueError(
            "want beta > 0, 0 <= label_smoothing < 0.5 and simpo_gamma >= 0, "
            f"got {beta}, {label_smoothing} and {simpo_gamma}"
        )
    settings = {"beta": beta, "label_smoothing": label_smoothing, "simpo_gamma": simpo_gamma}
    margin = chosen_log_ratio - rejected_log_ratio
    losses = LOSSES[loss](margin, **settings)
    with torch.enable_grad():  # each term depends on its own Δ alone, so the sum's gradient is theirs
        leaf = margin.detach().requires_grad_()
        [coefficient] = torch.autograd.grad(LOSSES[loss](leaf, **settings).sum(), leaf)
    return PreferenceLoss(
        loss=losses.mean(),
        losses=losses,
        coefficient=coefficient,
        chosen_rewards=beta * chosen_log_ratio.detach(),
        rejected_rewards=beta * rejected_log_ratio.detach(),
    )


def supervised_loss(chosen_logps: Float[Tensor, " step"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the chosen steps: the supervised term of RPO (arXiv 2404.19733) eq. 1."""
    return -chosen_logps.double().mean()


def _cost(margin: Tensor, beta: float, gamma: float) -> Tensor:
    return -F.logsigmoid(beta * margin - gamma)


def _want_zero(name: str, label_smoothing: float, simpo_gamma: float) -> None:
    if label_smoothing or simpo_gamma:
        raise ValueError(
            f"want label_smoothing and simpo_gamma 0 with the {name} loss, got {label_smoothing} and {simpo_gamma}"
        )
