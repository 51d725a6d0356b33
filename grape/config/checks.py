"""What both trainers' settings have to be, and which of them a resumed run has to repeat."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from grape.config.folders import check_run_folders
from grape.config.inputs import INPUTS_BEFORE
from grape.errors import ConfigError

if TYPE_CHECKING:
    from grape.config.sft import SFTConfig
    from grape.config.train import TrainConfig

RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "at least 1",
        lambda value: value >= 1,
        ("batch_size", "grad_accumulation_steps", "epoch", "max_steps", "save_steps", "keep_checkpoints", "val_steps")
        + ("val_frames", "shuffle_buffer_size", "lora_rank", "lora_alpha", "window_size", "micro_batch_size"),
    ),
    (
        "0 or more, and finite",
        lambda value: 0 <= value < math.inf,
        ("weight_decay", "warmup_steps", "max_grad_norm", "sft_weight", "simpo_gamma", "num_loader_processes", "seed")
        + ("feature_cache_gb",),
    ),
    (
        "more than 0, and finite",
        lambda value: 0 < value < math.inf,
        ("beta", "learning_rate", "max_memory_gb", "rank_timeout_s"),
    ),
    ("0 to below 1", lambda value: 0 <= value < 1, ("lora_dropout", "input_token_noise", "val_fraction")),
    ("0 to below 0.5", lambda value: 0 <= value < 0.5, ("label_smoothing",)),
)
"""(What is wanted, its test, names of the settings); ``None`` passes where the setting's type has it."""

_FREE_ON_RESUME = {"run_root_dir", "adapter_tmp_dir", "run_name", "resume", "save_steps", "keep_checkpoints", "device"}
_FREE_ON_RESUME |= {"wandb_project", "wandb_entity", "tensorboard", "reference_cache_dir", "num_loader_processes"}
_FREE_ON_RESUME |= {"max_memory_gb", "gradient_checkpointing"}  # micro-batches keep the size of the run's start
_FREE_ON_RESUME |= {"feature_cache_gb", "prefetch"}  # equal bits with and without
_FREE_ON_RESUME |= {"val_steps", "val_frames", "save_merged", "save_dtype", "shard_base", "rank_timeout_s"}
# Folders may move, their contents are compared; so is the product of these two with the processes.
_FREE_ON_RESUME |= {"vla_path", "data_root_dir", "chosen_traj_dir", "rejected_traj_dir"}
_FREE_ON_RESUME |= {"batch_size", "grad_accumulation_steps"}

SETTINGS_BEFORE: dict[str, Any] = {"loss": "sigmoid", "reference_free": False, "simpo_gamma": 0.0, **INPUTS_BEFORE}
"""What runs did whose checkpoints do not name these settings; a new run-defining setting is added here."""


def run_defining_settings(config: TrainConfig | SFTConfig) -> dict[str, Any]:
    """The settings that a resumed run has to repeat; any other value would make it another run."""
    free = _FREE_ON_RESUME | ({"epoch", "max_steps"} if config.schedule == "constant" else set())
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in free}


def check_values(config: TrainConfig | SFTConfig) -> None:
    """Refuse numbers out of range, words that are no choice, and folders that cannot be a run's.

    Raises:
        ConfigError: With the field, the value and the reason.
    """
    check_run_folders(config.run_root_dir, config.effective_run_name, config.adapter_tmp_dir)
    for name, kind in typing.get_type_hints(type(config)).items():
        value, optional = getattr(config, name), type(None) in typing.get_args(kind)
        if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
            *others, last = typing.get_args(kind)
            raise ConfigError(f"{name}={value!r}: want {', '.join(others)} or {last}")
        for wanted, holds, names in RANGES:
            if name in names and not (value is None and optional) and not holds(value):
                raise ConfigError(f"{name}={value}: want {wanted}{', or None' if optional else ''}")
    if config.wandb_entity and not config.wandb_project:
        raise ConfigError("wandb_entity without wandb_project: name the project to log to")
