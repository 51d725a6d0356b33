"""How a run of either trainer is described, goes on where it left off, and stops in all of its processes at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import platform
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import grape
from grape.config.checks import SETTINGS_BEFORE, run_defining_settings
from grape.config.sft import SFTConfig
from grape.config.train import TrainConfig
from grape.errors import ConfigError, TrainingError
from grape.files import write_bytes_atomic
from grape.models import OpenVLAPolicy
from grape.optional import installed_versions
from grape.trainer.checkpoint import CheckpointStore
from grape.trainer.distributed import RANK_TIMEOUT_S, RankLostError, Ranks, lost_rank
from grape.trainer.metrics import MetricsLogger

_LOG = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "peft", "numpy", "pillow", "tensorflow-datasets", "bitsandbytes")


@dataclass(kw_only=True)
class Run(ABC):
    """What an optimiser step of either trainer touches."""

    config: TrainConfig | SFTConfig
    ranks: Ranks
    policy: OpenVLAPolicy
    base_hash: str
    """Content hash of the weights that the run starts from, without the adapter."""
    data_digest: str
    """Of everything that is trained on."""
    parameters: Mapping[str, Tensor]
    """Weights that are trained, by name."""
    optimizer: torch.optim.Optimizer
    checkpoints: CheckpointStore
    step: int = 0
    """Optimiser steps done."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""


def open_checkpoints(config: TrainConfig | SFTConfig) -> CheckpointStore:
    """The checkpoints of the run folder.

    Raises:
        ConfigError: There are some, and ``resume`` is off.
    """
    checkpoints = CheckpointStore(config.run_dir / "checkpoints", keep_last=config.keep_checkpoints)
    if (steps := checkpoints.steps()) and not config.resume:
        raise ConfigError(
            f"{config.run_dir} holds a run of {steps[-1]} steps; continue it with --resume True, or choose another "
            "--run_name"
        )
    return checkpoints


def make_optimizer(
    config: TrainConfig | SFTConfig, parameters: Mapping[str, Tensor], device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; the learning rate is set before each step."""
    return torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )


def describe_run(run: Run, details: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, versions and sizes of a run, as JSON values; ``details`` are the trainer's own."""
    settings = dataclasses.asdict(run.config)
    return {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        "base_checkpoint_hash": run.base_hash,
        "data_digest": run.data_digest,
        **details,
        "versions": {"grape": grape.__version__, "python": platform.python_version(), **installed_versions(_PACKAGES)},
    }


def open_log(run: Run, description: Mapping[str, Any]) -> MetricsLogger:
    """Write run.json and open the metrics."""
    config = run.config
    write_bytes_atomic(config.run_dir / "run.json", json.dumps(description, indent=1).encode())
    return MetricsLogger(
        config.run_dir,
        resume_step=run.step,
        wandb_project=config.wandb_project,
        wandb_entity=config.wandb_entity,
        tensorboard=config.tensorboard,
        config=description["config"],
    )


def read_state(config: TrainConfig | SFTConfig, checkpoints: CheckpointStore) -> dict[str, Any] | None:
    """State of the last good checkpoint, where the run is to be resumed and there is one."""
    if not config.resume:
        return None
    if (checkpoint := checkpoints.load_latest()) is None:
        _LOG.info("Nothing to resume in %s: starting at step 0", config.run_dir)
        return None
    return checkpoint.state


def take_up(
    run: Run,
    state: dict[str, Any],
    weights: dict[str, Tensor],
    *,
    identity: dict[str, Any],
    stored_identity: dict[str, Any],
) -> None:
    """Go on from a checkpoint: weights, optimiser and step.

    Args:
        run: The run, at its start.
        state: What the checkpoint holds.
        weights: Those in it, by the names of ``run.parameters``.
        identity: What makes the run this run beside its settings, in words.
        stored_identity: The same of the run that wrote the checkpoint.

    Raises:
        ConfigError: It belongs to a run with other settings or data.
    """
    wanted = run_defining_settings(run.config) | identity
    before = {name: value for name, value in SETTINGS_BEFORE.items() if name in wanted}
    stored = before | state["settings"] | stored_identity
    odd = [
        f"{name}: {stored.get(name)} then, {wanted.get(name)} now"
        for name in sorted(wanted.keys() | stored.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if odd:
        raise ConfigError(
            f"{run.config.run_dir} was trained with other settings or data ({'; '.join(odd)}); repeat them, or choose "
            "another --run_name"
        )
    with torch.no_grad():
        for name, value in run.parameters.items():
            value.copy_(weights[name])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step = state["step"]
    _LOG.info("Resuming %s at step %d of %d", run.config.run_dir, run.step, run.num_steps)


def stop_if_any(run: Run, failure: str, *, advice: str) -> None:
    """Stop every process where one has failed, with the reason and where to go on.

    Raises:
        TrainingError: ``failure`` is not empty in some process.
    """
    if not run.ranks.any_of(bool(failure)):
        return
    told = "; ".join(filter(None, run.ranks.gather_texts(failure)))
    raise TrainingError(f"training stopped at step {run.step + 1}: {told}; {_last_good(run.checkpoints)}. {advice}")


def _last_good(checkpoints: CheckpointStore) -> str:
    saved = checkpoints.steps()
    return f"the last good checkpoint, step {saved[-1]}, is kept" if saved else "no checkpoint was due before it"


def check_same_start(run: Run) -> None:
    """Refuse processes that do not go on from one place with one base and one data set.

    Raises:
        ConfigError: They differ, e.g. because machines do not share the run folder.
    """
    places = run.ranks.gather_texts(f"step {run.step}, base {run.base_hash[:12]}, data {run.data_digest[:12]}")
    if len(set(places)) > 1:
        told = "; ".join(f"process {rank}: {place}" for rank, place in enumerate(places))
        raise ConfigError(
            f"the processes of this run do not start from the same place ({told}); all machines need the same "
            f"checkpoint, the same data, and one shared run folder, {run.config.run_dir}"
        )


@contextlib.contextmanager
def explain_lost_rank(config: TrainConfig | SFTConfig, ranks: Ranks) -> Iterator[None]:
    """Inside the context torch's errors about other processes are one message, with where to go on.

    Raises:
        RankLostError: Another process has gone, or does not answer.
    """
    limit = f"{RANK_TIMEOUT_S:g} s"
    if isinstance(config, TrainConfig):
        limit = f"{config.rank_timeout_s:g} s (--rank_timeout_s)"
    try:
        yield
    except RuntimeError as error:
        reason = lost_rank(error, limit=limit) if ranks.world_size > 1 else None
        if reason is None:
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun now ends the others; the message has to get out first
        good = _last_good(CheckpointStore(config.run_dir / "checkpoints"))
        raise RankLostError(
            f"training stopped: {reason}; {good}. Its own message, if it could give one, says why; continue with "
            "--resume True"
        ) from error
