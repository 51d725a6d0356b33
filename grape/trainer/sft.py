"""Supervised fine-tuning, from a configuration to a checkpoint or an adapter; read it from ``fine_tune`` downwards.

The loss is OpenVLA's: mean cross-entropy of the 7 action tokens and the end token, over the full vocabulary.
Axis legend: B frames, P the 8 tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from grape.config.sft import SFTConfig, check_sft_config
from grape.trainer.checkpoint import lock_run_dir, refuse_foreign_content
from grape.trainer.continuation import check_same_start, explain_lost_rank, stop_if_any
from grape.trainer.distributed import StopRequest, join_ranks, stop_on_interrupt
from grape.trainer.kernels import training_attention
from grape.trainer.schedule import learning_rate_at
from grape.trainer.sft_frames import EpisodeSource, Frame, PictureLoader, load_pictures
from grape.trainer.sft_run import SFTRun, prepare_run
from grape.trainer.sft_storage import ADAPTER_FOLDER, export_result, resume, save, start_logger

if TYPE_CHECKING:
    from torch import Tensor

    from grape.trainer.metrics import MetricsLogger

_LOG = logging.getLogger(__name__)
ADVICE = "Lower --learning_rate, or check the data"
NUM_TARGETS = 8
"""Tokens that are learnt from each frame: 7 of the action, and the end token."""
LOGGED = ("loss", "action_accuracy", "l1_loss")
"""Names as in OpenVLA's log: nats per token; share of right action tokens; mean distance of decoded normalised
actions."""


def fine_tune(config: SFTConfig, episodes: EpisodeSource | None = None) -> Path:
    """Train, and return the folder of the result: a checkpoint in the published layout, or an adapter.

    Args:
        config: Settings.
        episodes: Data to train on; ``None`` reads the RLDS data set that the settings name.

    Raises:
        GrapeError: Settings, checkpoint or data cannot be used, or training had to stop.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written first.
    """
    check_sft_config(config)
    if config.trains_adapter:
        refuse_foreign_content(config.run_dir / ADAPTER_FOLDER)
    if config.adapter_tmp_dir is not None:
        refuse_foreign_content(config.adapter_tmp_dir / config.effective_run_name)
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join_ranks(config.device))
        stack.enter_context(explain_lost_rank(config, ranks))
        if ranks.first:
            stack.enter_context(lock_run_dir(config.run_dir))
        run = prepare_run(config, ranks, episodes)
        resume(run)
        check_same_start(run)
        logger = start_logger(run) if ranks.first else None
        if logger is not None:
            stack.callback(logger.close)
        loader = PictureLoader(run.policy.image_size, config.num_loader_processes, config.image_resize)
        loader = stack.enter_context(loader)
        train_steps(run, loader, logger, stack.enter_context(stop_on_interrupt()))
        result = export_result(run)
        ranks.wait()
    return result


def train_steps(run: SFTRun, loader: PictureLoader, logger: MetricsLogger | None, stop: StopRequest) -> None:
    """Take the optimiser steps that are left, validating and saving on the way."""
    config = run.config
    progress = tqdm(total=config.max_steps, initial=run.step, desc="SFT", unit="step", disable=not run.ranks.first)
    with progress:
        for frames, images in loader.load(run.frame_batches()):
            metrics = train_step(run, frames, images)
            run.step += 1
            last = run.step == config.max_steps
            if run.validation and (last or run.step % config.val_steps == 0):
                metrics |= validate(run)
            if logger is not None:
                logger.log(run.step, metrics)
            progress.set_postfix({name: f"{metrics[name]:.3f}" for name in LOGGED}, refresh=False)
            progress.update()
            stopping = run.ranks.any_of(stop.asked)
            if stopping or last or run.step % config.save_steps == 0:
                save(run)
            if stopping and not last:
                _LOG.warning("Stopped after step %d of %d; go on with --resume True", run.step, config.max_steps)
                raise KeyboardInterrupt


def train_step(run: SFTRun, frames: Sequence[Frame], images: Sequence[np.ndarray]) -> dict[str, float]:
    """One optimiser step on the mean loss of the frames of all processes.

    Returns:
        What is logged.

    Raises:
        TrainingError: Something is not finite; the weights are left as they were after the step before.
    """
    config, started = run.config, time.perf_counter()
    learning_rate = learning_rate_at(
        run.step, peak=config.learning_rate, schedule=config.schedule,
        warmup_steps=config.warmup_steps, num_steps=config.max_steps,
    )  # fmt: skip
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate
    run.optimizer.zero_grad(set_to_none=True)
    if config.lora_dropout:  # masks depend on seed, step and process alone, so a resumed run draws the same
        torch.manual_seed(zlib.crc32(f"{config.seed} {run.step} {run.ranks.rank}".encode()))
    sums = backward_frames(run, frames, images)
    run.ranks.sum_gradients(list(run.parameters.values()))
    grad_norm = torch.nn.utils.clip_grad_norm_(run.parameters.values(), config.max_grad_norm or math.inf).item()
    failure = "" if math.isfinite(grad_norm) else f"the gradient is not finite, from {frames[0].source} on"
    stop_if_any(run, failure, advice=ADVICE)
    run.optimizer.step()
    return means(run, sums, run.frames_per_step) | {
        "grad_norm": grad_norm,
        "lr": learning_rate,
        "epoch": run.step * run.frames_per_step / run.order.frames_per_epoch,
        "step_time_s": time.perf_counter() - started,
    }


def backward_frames(run: SFTRun, frames: Sequence[Frame], images: Sequence[np.ndarray]) -> Tensor:
    """Add the gradient of this process's frames, batch by batch; returns their sums as ``batch_loss`` does."""
    inputs = noised_tokens(run, np.stack([frame.tokens for frame in frames]))
    sums, failure, size = torch.zeros(len(LOGGED), dtype=torch.float64), "", run.config.batch_size
    for start in range(0, len(frames), size):
        rows = slice(start, start + size)
        loss, parts = batch_loss(run, frames[rows], images[rows], inputs[rows], center_crop=run.center_crop)
        if not torch.isfinite(loss):
            failure = f"the loss is {loss.item()} over {frames[start].source} and {len(frames[rows]) - 1} more frames"
            break
        with training_attention(run.ranks.device):
            (loss / (run.frames_per_step * NUM_TARGETS)).backward()
        sums += parts
    stop_if_any(run, failure, advice=ADVICE)
    return sums


def noised_tokens(run: SFTRun, tokens: np.ndarray) -> np.ndarray:
    """Input tokens, (B, 7): some replaced by the same column of another frame of this step, as the settings say."""
    if not run.config.input_token_noise:
        return tokens
    generator = np.random.default_rng(np.random.SeedSequence([run.config.seed, run.step, run.ranks.rank]))
    replaced = generator.random(tokens.shape) < run.config.input_token_noise
    return np.where(replaced, tokens[generator.permutation(len(tokens))], tokens)


def batch_loss(
    run: SFTRun,
    frames: Sequence[Frame],
    images: Sequence[np.ndarray],
    input_tokens: np.ndarray,
    *,
    center_crop: bool,
) -> tuple[Tensor, Tensor]:
    """Forward pass over one batch.

    Args:
        run: Its policy.
        frames: B frames; their tokens are the targets.
        images: B pictures.
        input_tokens: (B, 7) tokens that the policy reads.
        center_crop: Crop the pictures.

    Returns:
        The loss in nats, summed over frames and tokens, and (3,) sums over frames of what ``LOGGED`` names.
    """
    tokens = np.stack([frame.tokens for frame in frames])
    instructions = [frame.instruction for frame in frames]
    inputs = run.policy.forward_inputs(images, instructions, input_tokens, center_crop=center_crop)
    device = run.ranks.device
    with (
        training_attention(device),
        torch.autocast(device.type, run.autocast_dtype or torch.bfloat16, enabled=run.autocast_dtype is not None),
    ):
        logits = run.policy.action_logits(inputs, include_end_token=True)
    targets = run.policy.target_tokens(tokens, include_end_token=True)
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
    predicted = logits.detach()[:, :-1].argmax(dim=-1).cpu().numpy()
    decode = run.policy.action_tokenizer.decode
    right = (predicted == tokens).mean(axis=1).sum()
    distance = np.abs(decode(predicted) - decode(tokens)).mean(axis=1).sum()
    return loss, torch.tensor([loss.item() / NUM_TARGETS, right, distance], dtype=torch.float64)


@torch.no_grad()
def validate(run: SFTRun) -> dict[str, float]:
    """The logged values on the held-out frames, not augmented, cropped where evaluation has to."""
    center_crop = run.center_crop or run.config.image_aug
    mine = run.validation[run.ranks.rank :: run.ranks.world_size]
    sums = torch.zeros(len(LOGGED), dtype=torch.float64)
    was_training = run.policy.model.training
    run.policy.model.eval()
    for start in range(0, len(mine), run.config.batch_size):
        frames = mine[start : start + run.config.batch_size]
        images = load_pictures(frames, run.policy.image_size, run.config.image_resize)
        tokens = np.stack([frame.tokens for frame in frames])
        sums += batch_loss(run, frames, images, tokens, center_crop=center_crop)[1]
    run.policy.model.train(was_training)
    return {f"val/{name}": value for name, value in means(run, sums, len(run.validation)).items()}


def means(run: SFTRun, sums: Tensor, num_frames: int) -> dict[str, float]:
    """Sums of this process's frames to means over those of all processes."""
    return dict(zip(LOGGED, (run.ranks.sum_values(sums) / num_frames).tolist(), strict=True))
