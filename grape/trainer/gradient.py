"""The exact gradient of a trajectory loss; its graph does not grow with the trajectory.

The loss is a function of each step's log-probability, and its derivative with respect to them is known once they are:

    dL/dθ = Σ_t (dL / dlog π_t) · ∇θ log π_t

So one pass without gradients gives every log π_t, the scalar loss gives the weights dL/dlog π_t, and a second pass
goes backward micro-batch by micro-batch of time steps. Nothing is approximated. Axis legend: N steps of an example.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from grape.errors import TrainingError
from grape.losses import preference_loss, step_log_ratios, supervised_loss, trajectory_log_ratio
from grape.trainer.features import GB, FeatureStore

if TYPE_CHECKING:
    from grape.config.train import TrainConfig
    from grape.models import OpenVLAPolicy
    from grape.trainer.prepare import StepBatch


@dataclass(frozen=True, kw_only=True)
class ExampleResult:
    """What one example contributed, for the log; values in nats where they are log-probabilities."""

    loss: float
    chosen_reward: float
    rejected_reward: float
    chosen_logp: float
    rejected_logp: float
    coefficient: float
    """dL/dΔ; where an example has several terms, their mean."""

    def logged(self) -> dict[str, float]:
        """The example's values under the names of the log."""
        return {
            "loss": self.loss,
            "rewards/chosen": self.chosen_reward,
            "rewards/rejected": self.rejected_reward,
            "rewards/margins": self.chosen_reward - self.rejected_reward,
            "rewards/accuracies": float(self.chosen_reward > self.rejected_reward),
            "logps/chosen": self.chosen_logp,
            "logps/rejected": self.rejected_logp,
        }


CPU_MICRO_BATCH = 16
"""Time steps per pass where memory does not decide; on a CPU more of them take longer (docs/training.md)."""
LOGGED = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies") + (
    "logps/chosen",
    "logps/rejected",
)
"""Names of ``ExampleResult.logged``, in the order of the log."""


def example_loss(
    config: TrainConfig, step_logps: Float[Tensor, " N"], reference_logps: Float[Tensor, " N"] | None, num_chosen: int
) -> tuple[Float[Tensor, ""], ExampleResult]:
    """The configured loss of one example from the step log-probabilities of policy and reference, if there is one.

    It is one term, or with ``objective="step"`` the mean over one term per time step.
    """
    chosen_logps, rejected_logps = step_logps[:num_chosen], step_logps[num_chosen:]
    references = (
        (None, None) if reference_logps is None else (reference_logps[:num_chosen], reference_logps[num_chosen:])
    )
    ratios = [
        step_log_ratios(policy, reference)
        if config.objective == "step"
        else trajectory_log_ratio(policy, reference, length_normalised=config.length_normalised)[None]
        for policy, reference in zip((chosen_logps, rejected_logps), references, strict=True)
    ]
    preference = preference_loss(
        *ratios,
        loss=config.loss,
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        simpo_gamma=config.simpo_gamma,
    )
    loss = preference.loss
    if config.sft_weight:
        loss = loss + config.sft_weight * supervised_loss(chosen_logps)
    result = ExampleResult(
        loss=loss.item(),
        chosen_reward=preference.chosen_rewards.mean().item(),
        rejected_reward=preference.rejected_rewards.mean().item(),
        chosen_logp=chosen_logps.detach().double().sum().item(),
        rejected_logp=rejected_logps.detach().double().sum().item(),
        coefficient=preference.coefficient.mean().item(),
    )
    return loss, result


class StepScorer:
    """Step log-probabilities of batches, one micro-batch of time steps at a time.

    This is the one place where the trainer calls the policy.
    """

    def __init__(self, policy: OpenVLAPolicy, config: TrainConfig) -> None:
        self.policy = policy
        self.config = config
        self.micro_batch_size = config.micro_batch_size or CPU_MICRO_BATCH
        """Time steps per pass; halved where memory runs out."""
        policy.model.train(config.lora_dropout > 0)
        # Frozen towers and projector make the same of a picture each time. A spread base has to run whole.
        frozen = config.lora_targets == "llm" and not config.shard_base
        self._features = FeatureStore(int(config.feature_cache_gb * GB)) if frozen else None

    def micro_batches(self, batch: StepBatch) -> list[slice]:
        """Rows of each micro-batch; the same in every pass, so that results are equal bit for bit."""
        size = self.micro_batch_size
        return [slice(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]

    def score(self, batch: StepBatch, rows: slice) -> Float[Tensor, " N"]:
        """log π of the given rows, differentiable where gradients are on; dropout masks depend on the rows alone."""
        features = None if self._features is None else self._features.of(self.policy, batch, rows)
        with self._replayed_dropout(batch, rows):
            token_logps = self.policy.log_prob(
                list(batch.images[rows]),
                batch.instructions[rows],
                batch.tokens[rows],
                center_crop=batch.center_crop,
                include_end_token=self.config.include_end_token,
                image_features=features,
            )
        return token_logps.sum(dim=-1)

    @torch.no_grad()
    def score_all(self, batch: StepBatch) -> Float[Tensor, " N"]:
        """log π of every row, without gradients."""
        return torch.cat([self.score(batch, rows) for rows in self.micro_batches(batch)])

    def score_reference(self, batch: StepBatch) -> Float[Tensor, " N"]:
        """log πref of every row: the adapter is off."""
        with self.policy.reference():
            return self.score_all(batch)

    @contextlib.contextmanager
    def _replayed_dropout(self, batch: StepBatch, rows: slice) -> Iterator[None]:
        if not self.config.lora_dropout:
            yield
            return
        devices = [self.policy.device] if self.policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(zlib.crc32(f"{self.config.seed} {batch.label} {rows.start}".encode()))
            yield


def backward_example(
    scorer: StepScorer, batch: StepBatch, reference_logps: Float[Tensor, " N"] | None, *, weight: float
) -> ExampleResult:
    """Add ``weight`` times the gradient of one example's loss to the parameters' gradients.

    Args:
        scorer: The policy.
        batch: Time steps of the example.
        reference_logps: log πref of the same steps; ``None`` for a loss without a reference.
        weight: 1 / number of examples in the optimiser step.

    Raises:
        TrainingError: A log-probability or the loss is not finite; names the pair.
    """
    parts = scorer.micro_batches(batch)
    one_pass = len(parts) == 1  # nothing to split: the first pass may keep its graph
    step_logps = scorer.score(batch, parts[0]) if one_pass else scorer.score_all(batch).requires_grad_()
    if reference_logps is not None:
        reference_logps = reference_logps.to(step_logps.device)
    loss, result = example_loss(scorer.config, step_logps, reference_logps, batch.num_chosen)
    known = [step_logps, loss] if reference_logps is None else [step_logps, loss, reference_logps]
    if not all(torch.isfinite(values).all() for values in known):
        raise TrainingError(f"{batch.label}: loss {result.loss}, or a log-probability in it, is not finite")
    (loss * weight).backward()
    if not one_pass:
        assert step_logps.grad is not None
        for rows in parts:
            (scorer.score(batch, rows) * step_logps.grad[rows]).sum().backward()
    return result
