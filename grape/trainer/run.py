"""What a TPO run is made of, and how it is saved and found again."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from grape.config.checks import run_defining_settings
from grape.config.train import TrainConfig
from grape.errors import DatasetError
from grape.models import load_policy
from grape.models.adapter import save_adapter
from grape.models.folder import TRAINING_FILE
from grape.models.recompute import recompute_blocks
from grape.trainer.checkpoint import write_directory
from grape.trainer.continuation import (
    Run,
    check_same_start,
    describe_run,
    make_optimizer,
    open_checkpoints,
    open_log,
    read_state,
    take_up,
)
from grape.trainer.distributed import Ranks
from grape.trainer.examples import PairBuffer, PairSource, TrainingPlan, make_plan, survey_pairs
from grape.trainer.gradient import StepScorer
from grape.trainer.memory import MemoryPlan, cap_memory, loading, settle_memory
from grape.trainer.metrics import MetricsLogger
from grape.trainer.prefetch import ExamplesAhead
from grape.trainer.prepare import PairPreparer
from grape.trainer.reference import ReferenceCache
from grape.trainer.sharding import Lockstep, check_sharding, shard_base

_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainingRun(Run):
    """Everything that an optimiser step touches."""

    config: TrainConfig
    plan: TrainingPlan
    pairs: PairBuffer
    preparer: PairPreparer
    scorer: StepScorer
    reference: ReferenceCache
    memory: MemoryPlan | None
    """``None`` where memory decided nothing."""
    in_step: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    """Where a step's passes are made; under ``shard_base`` it keeps them paired with those of the other processes."""
    ahead: ExamplesAhead = field(init=False)
    """Prepares the next example; there while steps are taken."""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.plan.num_steps


def open_pairs(config: TrainConfig) -> PairSource:
    """The two RLDS data sets that the settings name."""
    from grape.rlds import PairDataset

    return PairDataset(
        config.chosen_traj_dir,
        config.rejected_traj_dir,
        config.dataset_name,
        image_key=config.image_key,
        action_transform=config.action_transform,
    )


def prepare_run(config: TrainConfig, ranks: Ranks, pairs: PairSource) -> TrainingRun:
    """Load the policy, add the adapter, lay out the steps, and go on where the run folder left off.

    Raises:
        ConfigError: The folder holds a run and ``resume`` is off, or a run with other settings.
        DatasetError: There are no pairs.
        PairingError: Chosen and rejected are the wrong way round.
        CheckpointError: ``unnorm_key`` is not in the checkpoint's statistics.
    """
    if config.shard_base:
        check_sharding(ranks)
    checkpoints = open_checkpoints(config)
    if len(pairs) == 0:
        raise DatasetError(
            f"{config.chosen_traj_dir} and {config.rejected_traj_dir} hold no pairs; nothing to train on"
        )
    survey = survey_pairs(pairs)
    cap_memory(config, ranks.device)
    with loading(config.vla_path, ranks.device):
        policy = load_policy(
            config.vla_path,
            device=str(ranks.device),
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
            stay_on_host=config.shard_base,
            quantize=config.use_quantization,
        )
    policy.use_prompt_style(config.prompt_style)
    base_hash = policy.checkpoint_hash
    torch.manual_seed(config.seed)  # the adapter's first values: the same in every process
    policy.with_adapter(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, "gaussian")
    parameters = {name: value for name, value in policy.model.named_parameters() if value.requires_grad}
    state = read_state(config, checkpoints)
    config, memory = settle_memory(config, policy, ranks, survey, state)
    if config.gradient_checkpointing == "on":
        recompute_blocks(policy.network, replay_dropout=config.lora_dropout > 0)
    if config.shard_base:
        shard_base(policy, parameters.values(), ranks)
    run = TrainingRun(
        config=config,
        ranks=ranks,
        policy=policy,
        base_hash=base_hash,
        data_digest=survey.digest,
        plan=make_plan(config, survey, num_processes=ranks.world_size),
        pairs=PairBuffer(pairs, config.shuffle_buffer_size),
        preparer=PairPreparer(policy, config, base_hash=base_hash),
        scorer=StepScorer(policy, config),
        reference=ReferenceCache(config.reference_cache_dir or config.run_root_dir / "reference_cache"),
        parameters=parameters,
        optimizer=make_optimizer(config, parameters, ranks.device),
        checkpoints=checkpoints,
        memory=memory,
    )
    if config.shard_base:
        run.in_step = Lockstep(ranks, run.scorer).step
    if state is not None:
        resume(run, state)
    check_same_start(run)
    return run


def start_logger(run: TrainingRun) -> MetricsLogger:
    """Write run.json and open the metrics."""
    plan = run.plan
    num_trained = sum(value.numel() for value in run.parameters.values())
    _LOG.info(
        "TPO: %d pairs, %d steps (%d examples each), %.2f M adapter weights, %d process(es) on %s, into %s",
        plan.num_pairs, plan.num_steps, plan.examples_per_step, num_trained / 1e6, run.ranks.world_size,
        run.ranks.device, run.config.run_dir,
    )  # fmt: skip
    return open_log(run, describe(run))


def save(run: TrainingRun) -> None:
    """Write a complete checkpoint, and the newest adapter to ``adapter_tmp_dir``; the first process does it."""
    if not run.ranks.first:
        return
    state = {
        "adapter": {name: value.detach().cpu() for name, value in run.parameters.items()},
        "optimizer": run.optimizer.state_dict(),
        "step": run.step,  # learning rate and data position are functions of it
        "examples_per_step": run.plan.examples_per_step,
        "num_pairs": run.plan.num_pairs,
        "base_hash": run.base_hash,
        "data_digest": run.data_digest,
        "settings": run_defining_settings(run.config),
        "micro_batch_size": run.scorer.micro_batch_size,  # below that of the settings where memory has run out
        "gradient_checkpointing": run.config.gradient_checkpointing,
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if run.ranks.device.type == "cuda" else None,
    }
    run.checkpoints.save(run.step, state, export=lambda folder: export_adapter(run, folder / "adapter"))
    write_directory(newest_adapter_dir(run.config), lambda folder: export_adapter(run, folder))


def newest_adapter_dir(config: TrainConfig) -> Path:
    """Where the newest adapter is kept beside the checkpoints."""
    return config.adapter_tmp_dir / config.effective_run_name


def export_adapter(run: TrainingRun, directory: Path) -> None:
    """Write the adapter in peft's format, with where it comes from in ``training.json``."""
    save_adapter(run.policy, directory)
    (directory / TRAINING_FILE).write_text(json.dumps(describe(run) | {"steps_done": run.step}, indent=1))


def describe(run: TrainingRun) -> dict[str, Any]:
    """Settings, versions and sizes of a run, as JSON values."""
    details = {
        "num_pairs": run.plan.num_pairs,
        "num_steps": run.plan.num_steps,
        "examples_per_step": run.plan.examples_per_step,
        "num_processes": run.ranks.world_size,
        "device": str(run.ranks.device),
        "dtype": str(run.policy.dtype),
        "quantization": run.policy.quantization,
        "memory_plan": None if run.memory is None else run.memory.to_json(),
    }
    return describe_run(run, details)


def resume(run: TrainingRun, state: dict[str, Any]) -> None:
    """Take up a checkpoint of the run folder.

    Raises:
        ConfigError: It belongs to a run with other settings or data.
    """
    stored_digest = state.get("data_digest", run.data_digest)  # the first checkpoints did not store it
    take_up(
        run,
        state,
        state["adapter"],
        identity=_identity(run.base_hash, run.data_digest, run.plan.num_pairs, run.plan.examples_per_step),
        stored_identity=_identity(state["base_hash"], stored_digest, state["num_pairs"], state["examples_per_step"]),
    )
    run.scorer.micro_batch_size = state.get("micro_batch_size", run.scorer.micro_batch_size)  # the first did not say
    torch.set_rng_state(state["torch_rng"])
    if run.ranks.device.type == "cuda" and state["cuda_rng"] is not None:
        torch.cuda.set_rng_state(state["cuda_rng"])


def _identity(base_hash: str, data_digest: str, num_pairs: int, examples_per_step: int) -> dict[str, Any]:
    return {
        "content hash of vla_path": base_hash,
        "digest of the pairs in chosen_traj_dir and rejected_traj_dir": data_digest,
        "number of pairs": num_pairs,
        "batch_size x grad_accumulation_steps x processes": examples_per_step,
    }
