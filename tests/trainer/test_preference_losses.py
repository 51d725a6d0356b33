"""Each configured objective through the trainer: by hand, against one graph written plainly, and when resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grape.config.train import TrainConfig
from grape.errors import ConfigError
from grape.models import OpenVLAPolicy
from grape.trainer.checkpoint import CheckpointStore
from grape.trainer.examples import Example, example_steps
from grape.trainer.gradient import StepScorer, backward_example, example_loss
from grape.trainer.loop import train
from grape.trainer.metrics import read_metrics
from grape.trainer.prepare import PairPreparer, StepBatch
from tests.trainer import tiny

CHOSEN, REJECTED = [-1.0, -2.0, -6.0], [-4.0, -6.0]
REFERENCE = [-2.0, -1.0, -8.0, -3.0, -5.5]  # log-ratios: 1, -1, 2 of the chosen steps, -1, -0.5 of the rejected ones
SIMPO = {"reference_free": True, "length_normalised": True, "beta": 2.0, "simpo_gamma": 1.0}


def loss_and_gradient(config: TrainConfig, num_chosen: int = 3, num_rejected: int = 2) -> tuple[float, list[float]]:
    """Of the example above, the given number of steps of each side."""
    logps = torch.tensor([*CHOSEN[:num_chosen], *REJECTED[:num_rejected]], requires_grad=True)
    reference = torch.tensor([*REFERENCE[:num_chosen], *REFERENCE[3 : 3 + num_rejected]])
    loss, result = example_loss(config, logps, None if config.reference_free else reference, num_chosen)
    loss.backward()
    assert logps.grad is not None and result.loss == loss.item()
    return loss.item(), logps.grad.tolist()


def test_a_pair_without_a_reference_by_hand() -> None:
    # SimPO: means -3 and -5, βΔ - γ = 2 * 2 - 1 = 3. A step of n has the nth part of ∓β / (1 + e^3).
    loss, gradient = loss_and_gradient(tiny.tiny_config(Path("x"), Path("y"), **SIMPO))
    assert loss == pytest.approx(log(1 + exp(-3)), rel=1e-12)
    pull = 2 / (1 + exp(3))
    assert gradient == pytest.approx([-pull / 3] * 3 + [pull / 2] * 2, rel=1e-6)  # float32 leaves


def test_single_steps_by_hand() -> None:
    # Log-ratios 1, -1 against -1, -0.5: Δ = 2 and -0.5, two terms, β = 1.
    config = tiny.tiny_config(Path("x"), Path("y"), objective="step", beta=1.0)
    loss, gradient = loss_and_gradient(config, num_chosen=2)
    assert loss == pytest.approx((log(1 + exp(-2)) + log(1 + exp(0.5))) / 2, rel=1e-12)
    pulls = [0.5 / (1 + exp(2)), 0.5 / (1 + exp(-0.5))]
    assert gradient == pytest.approx([-pulls[0], -pulls[1], pulls[0], pulls[1]], rel=1e-6)
    # with the supervised term, weight 0.5: minus the mean of -1 and -2, a quarter off each chosen step's slope
    with_term = dataclasses.replace(config, sft_weight=0.5)
    more_loss, more_gradient = loss_and_gradient(with_term, num_chosen=2)
    assert more_loss - loss == pytest.approx(0.5 * 1.5)
    assert more_gradient == pytest.approx([-pulls[0] - 0.25, -pulls[1] - 0.25, pulls[0], pulls[1]], rel=1e-6)


def test_what_is_logged_of_single_steps() -> None:
    config = tiny.tiny_config(Path("x"), Path("y"), objective="step", beta=1.0)
    logps, reference = torch.tensor([-1.0, -2.0, -4.0, -6.0]), torch.tensor([-2.0, -1.0, -3.0, -5.5])
    _, result = example_loss(config, logps, reference, 2)
    assert (result.chosen_reward, result.rejected_reward) == (0.0, -0.75)  # means of 1, -1 and of -1, -0.5
    assert (result.chosen_logp, result.rejected_logp) == (-3.0, -10.0)
    assert result.coefficient == pytest.approx(-(1 / (1 + exp(2)) + 1 / (1 + exp(-0.5))) / 2)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_single_steps_are_the_mean_of_windows_of_one_step(loss: str) -> None:
    config = tiny.tiny_config(Path("x"), Path("y"), objective="step", loss=loss, beta=0.7)
    windows = dataclasses.replace(config, objective="window", window_size=1)
    logps, reference = torch.tensor([-1.0, -2.0, -4.0, -6.0]), torch.tensor([-2.0, -1.0, -3.0, -5.5])
    whole, _ = example_loss(config, logps, reference, 2)
    single = [example_loss(windows, logps[at], reference[at], 1)[0].item() for at in ([0, 2], [1, 3])]
    assert whole.item() == pytest.approx(sum(single) / 2, rel=1e-12)


def softplus(value: Tensor) -> Tensor:
    return torch.log1p(torch.exp(value))


Plain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
OBJECTIVES: list[tuple[dict[str, Any], Plain]] = [
    # (flags, the loss written plainly; c, r: chosen and rejected steps under the policy, C, R: under the reference)
    ({"beta": 0.1}, lambda c, r, C, R: softplus(-0.1 * (c.sum() - C.sum() - r.sum() + R.sum()))),
    ({"loss": "ipo", "beta": 0.1}, lambda c, r, C, R: (c.sum() - C.sum() - r.sum() + R.sum() - 5) ** 2),
    ({"loss": "hinge", "beta": 0.02}, lambda c, r, C, R: 1 - 0.02 * (c.sum() - C.sum() - r.sum() + R.sum())),
    (
        {"loss": "robust", "label_smoothing": 0.2},
        lambda c, r, C, R: (
            (
                0.8 * softplus(-0.1 * (c.sum() - C.sum() - r.sum() + R.sum()))
                - 0.2 * softplus(0.1 * (c.sum() - C.sum() - r.sum() + R.sum()))
            )
            / 0.6
        ),
    ),
    (SIMPO, lambda c, r, C, R: softplus(1 - 2 * (c.mean() - r.mean()))),
    (
        {"reference_free": True, "length_normalised": True, "loss": "hinge", "beta": 0.1, "sft_weight": 0.3},
        lambda c, r, C, R: 1 - 0.1 * (c.mean() - r.mean()) - 0.3 * c.mean(),
    ),
    ({"objective": "step", "beta": 0.5}, lambda c, r, C, R: softplus(-0.5 * (c - C - r + R)).mean()),
    (
        {"objective": "step", "reference_free": True, "beta": 0.5, "simpo_gamma": 0.3},
        lambda c, r, C, R: softplus(0.3 - 0.5 * (c - r)).mean(),
    ),
    ({"objective": "step", "loss": "ipo", "beta": 0.5}, lambda c, r, C, R: ((c - C - r + R - 1) ** 2).mean()),
]


@pytest.mark.parametrize(("changes", "plain"), OBJECTIVES, ids=[str(changes) for changes, _ in OBJECTIVES])
def test_gradient_equals_one_graph_written_plainly(
    policy: OpenVLAPolicy, checkpoint: Path, tmp_path: Path, changes: dict[str, Any], plain: Plain
) -> None:
    config = tiny.tiny_config(checkpoint, tmp_path, **changes)
    batch = make_batch(policy, config)
    scorer = StepScorer(policy, config)
    reference = scorer.score_reference(batch)  # no adapter yet
    parameters = add_moved_adapter(policy, config)
    steps = policy.log_prob(list(batch.images), batch.instructions, batch.tokens).sum(dim=-1).double()
    sides = [*steps.split([batch.num_chosen, len(batch) - batch.num_chosen])]
    sides += [*reference.double().split([batch.num_chosen, len(batch) - batch.num_chosen])]
    loss = plain(*sides)
    wanted = torch.autograd.grad(loss, parameters)
    largest = max(value.abs().max().item() for value in wanted)
    assert loss > 0 and largest > 1e-4  # a hinge or a sigmoid that is satisfied would have no gradient to compare

    result = backward_example(scorer, batch, None if config.reference_free else reference, weight=1.0)

    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for parameter, value in zip(parameters, wanted, strict=True):
        # float32 sums in another order: 1e-5 of the largest entry is about a hundred roundings
        torch.testing.assert_close(parameter.grad, value, rtol=1e-4, atol=1e-5 * largest)


def make_batch(policy: OpenVLAPolicy, config: TrainConfig) -> StepBatch:
    pair = tiny.make_pairs([(7, 11)], policy.action_tokenizer.first_id).pairs[0]
    preparer = PairPreparer(policy, config, base_hash=policy.checkpoint_hash)
    chosen, rejected = example_steps(Example(0, aligned=config.objective == "step"), 7, 11, config.window_size)
    return preparer.batch(pair, epoch=0, chosen_steps=chosen, rejected_steps=rejected)


def add_moved_adapter(policy: OpenVLAPolicy, config: TrainConfig) -> list[Tensor]:
    """An adapter away from its start, where half of the gradient would be zero."""
    torch.manual_seed(0)
    policy.with_adapter(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, "gaussian")
    parameters = [value for value in policy.model.parameters() if value.requires_grad]
    with torch.no_grad():
        for value in parameters:
            value.add_(0.1 * torch.randn_like(value))
    return parameters


def test_without_a_reference_none_is_computed(
    checkpoint: Path, first_action_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: OpenVLAPolicy) -> None:
        raise AssertionError("the adapter was switched off for a reference")

    monkeypatch.setattr(OpenVLAPolicy, "reference", refuse)
    pairs = tiny.make_pairs([(3, 6), (5, 2)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path, **SIMPO, epoch=8, batch_size=2)
    train(config, pairs)
    rows = read_metrics(config.run_dir)
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
    assert not (tmp_path / "runs" / "reference_cache").exists()
    with pytest.raises(AssertionError, match="switched off"):  # what this test rests on
        train(tiny.tiny_config(checkpoint, tmp_path, run_name="with_reference"), pairs)


def test_single_steps_train_and_share_the_reference(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    pairs = tiny.make_pairs([(3, 6), (5, 2)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path, objective="step", epoch=8, batch_size=2)
    train(config, pairs)
    rows = read_metrics(config.run_dir)
    assert rows[0]["loss"] == pytest.approx(log(2))  # the adapter starts at the reference
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert len(list((tmp_path / "runs" / "reference_cache").rglob("*.npz"))) == 2  # of whole pairs, for any objective


def test_a_run_goes_on_with_its_own_loss_only(checkpoint: Path, first_action_id: int, tmp_path: Path) -> None:
    pairs = tiny.make_pairs([(3, 4), (4, 3)], first_action_id)
    config = tiny.tiny_config(checkpoint, tmp_path)
    train(config, pairs)
    again = dataclasses.replace(config, resume=True, epoch=2)
    others = [{"loss": "hinge"}, {"reference_free": True, "length_normalised": True}, {"objective": "step"}]
    told = ["loss: sigmoid then, hinge now", "reference_free: False then, True now", "objective: trajectory then, step"]
    for changes, message in zip(others, told, strict=True):
        with pytest.raises(ConfigError, match=message):
            train(dataclasses.replace(again, **changes), pairs)  # type: ignore[arg-type]

    forget_later_settings(config)
    with pytest.raises(ConfigError, match="loss: sigmoid then, hinge now"):
        train(dataclasses.replace(again, loss="hinge"), pairs)
    train(again, pairs)
    assert [row["step"] for row in read_metrics(config.run_dir)] == [1, 2, 3, 4]


def forget_later_settings(config: TrainConfig) -> None:
    """Make the newest checkpoint one of the releases before these settings."""
    store = CheckpointStore(config.run_dir / "checkpoints")
    checkpoint = store.load_latest()
    assert checkpoint is not None
    for name in ("loss", "reference_free", "simpo_gamma"):
        del checkpoint.state["settings"][name]
    store.save(checkpoint.step, checkpoint.state)
