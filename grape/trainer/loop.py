"""Trajectory-wise preference optimization, from a configuration to an adapter; read it from ``train`` downwards.

One optimiser step averages the exact gradients of ``batch_size × grad_accumulation_steps × processes`` examples. Each
process takes its share of them, and the gradient is summed over the processes once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from grape.config.train import TrainConfig, check_train_config
from grape.errors import TrainingError
from grape.trainer import memory
from grape.trainer.checkpoint import lock_run_dir, refuse_foreign_content, write_directory
from grape.trainer.continuation import explain_lost_rank, stop_if_any
from grape.trainer.distributed import Ranks, StopRequest, join_ranks, stop_on_interrupt
from grape.trainer.examples import Example, PairSource
from grape.trainer.gradient import LOGGED, ExampleResult, backward_example
from grape.trainer.kernels import training_attention
from grape.trainer.prefetch import ExamplesAhead, cropped
from grape.trainer.prepare import StepBatch, check_tokens
from grape.trainer.run import (
    TrainingRun,
    export_adapter,
    newest_adapter_dir,
    open_pairs,
    prepare_run,
    save,
    start_logger,
)
from grape.trainer.schedule import learning_rate_at

if TYPE_CHECKING:
    from torch import Tensor

    from grape.rlds import PreferencePair
    from grape.trainer.metrics import MetricsLogger

_LOG = logging.getLogger(__name__)
ADAPTER_FOLDER = "adapter"
ADVICE = "Take the pair out, or lower --learning_rate"


def train(config: TrainConfig, pairs: PairSource | None = None) -> Path:
    """Train an adapter and return its folder.

    Args:
        config: Settings.
        pairs: Preference pairs; ``None`` reads the two RLDS data sets that the settings name.

    Raises:
        GrapeError: Settings, checkpoint or data cannot be used, or training had to stop.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint was written first.
    """
    check_train_config(config)
    adapter_dir = config.run_dir / ADAPTER_FOLDER
    for folder in (adapter_dir, newest_adapter_dir(config)):
        refuse_foreign_content(folder)
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join_ranks(config.device, config.rank_timeout_s))
        stack.enter_context(explain_lost_rank(config, ranks))
        if ranks.first:
            stack.enter_context(lock_run_dir(config.run_dir))
        run = prepare_run(config, ranks, open_pairs(config) if pairs is None else pairs)
        logger = start_logger(run) if ranks.first else None
        if logger is not None:
            stack.callback(logger.close)
        stack.enter_context(training_attention(ranks.device))
        run.ahead = stack.enter_context(ExamplesAhead(run))
        train_steps(run, logger, stack.enter_context(stop_on_interrupt()))
        if ranks.first:
            # Both, also where nothing was left to train: a kill may have come between checkpoint and newest adapter.
            for folder in (adapter_dir, newest_adapter_dir(config)):
                write_directory(folder, lambda folder: export_adapter(run, folder))
        ranks.wait()
    return adapter_dir


def train_steps(run: TrainingRun, logger: MetricsLogger | None, stop: StopRequest) -> None:
    """Take the optimiser steps that are left, saving on the way."""
    num_steps = run.num_steps
    progress = tqdm(total=num_steps, initial=run.step, desc="TPO", unit="step", disable=not run.ranks.first)
    with progress:
        for epoch, examples in run.plan.steps(run.step):
            metrics = train_step(run, epoch, examples)
            run.step += 1
            if logger is not None:
                logger.log(run.step, metrics)
            progress.set_postfix(
                {name: f"{metrics[name]:.3f}" for name in ("loss", "rewards/accuracies")}, refresh=False
            )
            progress.update()
            stopping = run.ranks.any_of(stop.asked)
            if stopping or run.step % run.config.save_steps == 0 or run.step == num_steps:
                save(run)
            if stopping and run.step < num_steps:
                _LOG.warning("Stopped after step %d of %d; go on with --resume True", run.step, num_steps)
                raise KeyboardInterrupt
    _LOG.info("Reference: %d pairs from cache, %d computed", run.reference.num_from_disk, run.reference.num_computed)


def train_step(run: TrainingRun, epoch: int, examples: list[Example]) -> dict[str, float]:
    """One optimiser step on the mean loss of ``examples``.

    Returns:
        What is logged: means over the examples of all processes.

    Raises:
        TrainingError: Something is not finite; the weights are left as they were after the step before.
    """
    config, started = run.config, time.perf_counter()
    learning_rate = learning_rate_at(
        run.step,
        peak=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        num_steps=run.num_steps,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    mine = examples[run.ranks.rank :: run.ranks.world_size]
    with run.in_step():
        results, failure = backward_share(run, mine, epoch, weight=1 / len(examples))
    stop_if_any(run, failure, advice=ADVICE)
    run.ranks.sum_gradients(list(run.parameters.values()))
    grad_norm = torch.nn.utils.clip_grad_norm_(run.parameters.values(), config.max_grad_norm or math.inf).item()
    if not math.isfinite(grad_norm):
        pair_ids = sorted({run.pairs.get(example.pair_index).pair_id for example in examples})
        failure = f"the gradient is not finite over pair(s) {', '.join(pair_ids[:8])}"
        stop_if_any(run, failure, advice=ADVICE)
    run.optimizer.step()
    metrics = mean_metrics(run.ranks, results, num_examples=len(examples))
    return metrics | {
        "grad_norm": grad_norm,
        "lr": learning_rate,
        "epoch": epoch,
        "step_time_s": time.perf_counter() - started,
    }


def backward_share(
    run: TrainingRun, examples: list[Example], epoch: int, *, weight: float
) -> tuple[list[ExampleResult], str]:
    """The gradient of this process's examples of a step, from zero; with smaller micro-batches where memory runs out.

    Returns:
        What the examples contributed, and why one of them failed, or an empty text. It is told to the other processes
        by the caller, so that none of them waits for this one.
    """
    while True:
        run.optimizer.zero_grad(set_to_none=True)  # half a backward pass may be in it
        results: list[ExampleResult] = []
        failure, out_of_memory = "", False
        try:
            for example in examples:
                results.append(backward_pair(run, example, epoch, weight=weight))
        except TrainingError as error:
            failure = str(error)
        except torch.cuda.OutOfMemoryError:  # its traceback holds the graph, so the rest happens below
            if run.config.shard_base:  # a pass of all processes, which one alone cannot make again
                raise
            out_of_memory = True
        if run.config.shard_base or not run.ranks.any_of(out_of_memory):
            return results, failure
        halve_micro_batch(run)


def halve_micro_batch(run: TrainingRun) -> None:
    """Go on with half as many time steps per pass, in every process.

    Raises:
        TrainingError: It was one.
    """
    size = run.scorer.micro_batch_size
    stop_if_any(run, "out of memory with one time step per pass" if size == 1 else "", advice=memory.ADVICE)
    run.scorer.micro_batch_size = size // 2
    if run.ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    _LOG.warning(
        "Out of memory in step %d with %d time steps per pass; the step is taken again, with %d from now on",
        run.step + 1, size, size // 2,
    )  # fmt: skip


def backward_pair(run: TrainingRun, example: Example, epoch: int, *, weight: float) -> ExampleResult:
    """Add ``weight`` times one example's gradient to the adapter's."""
    prepared = run.ahead.take(example, epoch)
    pair, batch, chosen, rejected = prepared.pair, prepared.batch, prepared.chosen_steps, prepared.rejected_steps
    check_tokens(batch, run.policy.config.real_vocab_size)
    if run.config.reference_free:
        return backward_example(run.scorer, batch, None, weight=weight)
    reference = reference_logps(run, example, pair, epoch, batch)
    parts = reference[chosen.start : chosen.stop], reference[len(pair.chosen) :][rejected.start : rejected.stop]
    return backward_example(run.scorer, batch, torch.cat(parts), weight=weight)


def reference_logps(run: TrainingRun, example: Example, pair: PreferencePair, epoch: int, batch: StepBatch) -> Tensor:
    """log πref of every step of a pair, chosen first: remembered, read from the disk, or computed now."""
    picture_epoch = epoch if run.config.image_aug else 0
    known = run.reference.recall(example.pair_index, picture_epoch)
    if known is not None:
        return known
    num_chosen, num_rejected = len(pair.chosen), len(pair.rejected)
    fingerprint = run.preparer.fingerprint(pair, epoch=epoch)
    stored = run.reference.load(example.pair_index, picture_epoch, fingerprint, num_steps=num_chosen + num_rejected)
    if stored is not None:
        return stored
    if len(batch) < num_chosen + num_rejected:  # a window: the whole pair is scored once, for all of its windows
        whole = range(num_chosen), range(num_rejected)
        batch = cropped(run.preparer.batch(pair, epoch=epoch, chosen_steps=whole[0], rejected_steps=whole[1]))
    step_logps = run.scorer.score_reference(batch)
    if not torch.isfinite(step_logps).all():
        raise TrainingError(f"{batch.label}: a log-probability under the reference is not finite")
    return run.reference.store(example.pair_index, picture_epoch, fingerprint, step_logps)


def mean_metrics(ranks: Ranks, results: list[ExampleResult], *, num_examples: int) -> dict[str, float]:
    """Average what the examples of all processes contributed."""
    sums = torch.tensor([[result.logged()[name] for result in results] for name in LOGGED], dtype=torch.float64).sum(1)
    means = ranks.sum_values(sums) / num_examples
    return dict(zip(LOGGED, means.tolist(), strict=True))
