"""Settings of trajectory-wise preference optimization (TPO).

The first three groups are the fields of the published release's fine-tuning command, with its names; where a default
differs from the release, the field says so. The rest is ours.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grape.config.folders import check_run_folders
from grape.config.inputs import ImageResize, PromptStyle
from grape.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a LoRA adapter on pairs of chosen and rejected trajectories (GRAPE, arXiv 2411.19309)."""

    vla_path: str
    """Checkpoint folder or hub id of the policy that made the rollouts; it is also the reference (adapter off)."""
    dataset_name: str
    """Name of both RLDS data sets."""
    chosen_traj_dir: Path
    """Folder that holds ``<dataset_name>/<version>`` with the chosen trajectories."""
    rejected_traj_dir: Path
    """The same with the rejected trajectories, nth against nth."""
    run_root_dir: Path = Path("runs")
    """Runs are written to ``<run_root_dir>/<run name>``."""
    adapter_tmp_dir: Path = Path("adapter-tmp")
    """The newest adapter is also kept at ``<adapter_tmp_dir>/<run name>``, in peft's format, as the release does. An
    earlier adapter there is replaced; a folder that holds anything else is refused."""

    batch_size: int = 1
    """Examples (pairs; window pairs with ``--objective window``) per process and accumulation step."""
    grad_accumulation_steps: int = 1
    """Accumulation steps per optimiser step: one step averages batch_size × this × processes examples."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW, per step; the release's value."""
    epoch: int = 1
    """Passes over the pairs. The paper makes one per iteration; the release's default was 10."""
    max_steps: int | None = None
    """Stop after this many optimiser steps, if ``epoch`` has not ended the run before; the release: 20,000."""
    save_steps: int = 1000
    """Optimiser steps between checkpoints; the last step is always saved. The release's default was 5,000."""
    image_aug: bool = False
    """OpenVLA's image augmentations, a function of (seed, pair, step, epoch) and the same for policy and reference;
    they replace the centre crop. The release declared True and used False."""
    shuffle_buffer_size: int = 64
    """Pairs held in memory, within which the order is shuffled; 1 keeps the stored order. The release's field of this
    name (100,000) was not read."""

    use_lora: bool = True
    """Train a LoRA adapter. False is refused: the reference is this model with the adapter off."""
    lora_rank: int = 32
    """Rank of each adapter matrix; the release's value."""
    lora_dropout: float = 0.0
    """Dropout probability before each adapter; masks are the same in every pass over a step. The release's value."""
    use_quantization: bool = False
    """4-bit base weights. True is refused in this version."""
    wandb_project: str | None = None
    """W&B project; without one W&B is off. Offline where the machine has no account, never needed to train."""
    wandb_entity: str | None = None
    """W&B user or team that owns the project."""

    objective: Literal["trajectory", "window"] = "trajectory"
    """``trajectory``: the paper's loss, over whole trajectories. ``window``: the release's, over aligned windows."""
    window_size: int = 8
    """Steps of a window (stride 1), for ``--objective window``; the release's value."""
    beta: float = 0.1
    """KL strength β, dimensionless; GRAPE (arXiv 2411.19309) eq. 3."""
    label_smoothing: float = 0.0
    """Probability that a pair is labelled the wrong way round (conservative DPO), 0 to below 0.5."""
    length_normalised: bool = False
    """Use the mean of the log-ratios over a trajectory's steps instead of their sum."""
    sft_weight: float = 0.0
    """Weight of a supervised term: mean negative log-likelihood of the chosen steps, nats (RPO, arXiv 2404.19733)."""
    include_end_token: bool = False
    """Add the end token's log-probability to the 7 action tokens', as the release does."""

    lora_alpha: int | None = None
    """Scale of the adapter, applied as alpha / rank; ``None``: min(rank, 32), as GRAPE's release."""
    lora_targets: Literal["all-linear", "llm"] = "all-linear"
    """Layers with an adapter: every linear layer that runs (as published), or the language model's alone."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, dimensionless; torch's default, which the release used."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant (the release), or half a cosine down to 0 at the last step."""
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up from 0."""
    max_grad_norm: float = 0.0
    """Clip the gradient's norm to this; 0 does not clip, as the release."""

    run_name: str | None = None
    """Name of the run's folder; ``None``: made from checkpoint, data set, batch, learning rate and adapter."""
    resume: bool = False
    """Continue the run in its folder from the last good checkpoint; a folder with a run is refused without it."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    seed: int = 7
    """Seed of the adapter's first values, the order of the pairs, augmentations and dropout."""
    center_crop: bool | None = None
    """Centre crop of the pictures (0.9 of the area); ``None``: as the episodes' policy settings say, else off."""
    prompt_style: PromptStyle = "template"
    """Words around the instruction: OpenVLA's template, or bare; rollouts that were sampled with the other are
    refused."""
    image_resize: ImageResize = "lanczos"
    """How pictures that do not have the policy's size come to it: JPEG and lanczos, or area; episodes whose pictures
    came to it in the other way are refused."""
    unnorm_key: str | None = None
    """Statistics with which actions are tokenised where episodes carry no tokens; ``None``: as the episodes say."""
    action_transform: str | None = None
    """How data made elsewhere stores actions (``libero``, ``unchanged``); ``None``: as our own data sets say."""
    image_key: str = "image"
    """Name of the camera in ``steps/observation``."""
    micro_batch_size: int = 16
    """Time steps per forward and backward pass: bounds the memory, does not change the gradient. Where both
    trajectories of a pair fit one micro-batch, a pass is saved; on a CPU pieces of 16 to 64 are faster all the same."""
    reference_cache_dir: Path | None = None
    """Where the reference's log-probabilities are kept; ``None``: ``<run_root_dir>/reference_cache``."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    dtype: str = "auto"
    """Base weights: ``float32``, ``bfloat16`` or ``auto`` (bfloat16 on a GPU). The adapter is always float32."""
    attn_implementation: str = "sdpa"
    """``sdpa``, ``eager`` or ``flash_attention_2``."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""

    @property
    def effective_run_name(self) -> str:
        """``run_name``, or the release's naming scheme."""
        if self.run_name is not None:
            return self.run_name
        batch = self.batch_size * self.grad_accumulation_steps
        checkpoint = self.vla_path.rstrip("/").split("/")[-1]
        adapter = f"lora-r{self.lora_rank}+dropout-{self.lora_dropout}"
        return f"{checkpoint}+{self.dataset_name}+b{batch}+lr-{self.learning_rate}+{adapter}"

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.run_root_dir / self.effective_run_name


_FREE_ON_RESUME = {"run_root_dir", "adapter_tmp_dir", "run_name", "resume", "save_steps", "keep_checkpoints", "device"}
_FREE_ON_RESUME |= {"wandb_project", "wandb_entity", "tensorboard", "reference_cache_dir"}
_FREE_ON_RESUME |= {
    "vla_path",
    "chosen_traj_dir",
    "rejected_traj_dir",
}  # folders may move; hashes are compared
_FREE_ON_RESUME |= {"batch_size", "grad_accumulation_steps"}  # their product with the processes is compared


def run_defining_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that a resumed run has to repeat; any other value would make it another run."""
    free = _FREE_ON_RESUME | ({"epoch", "max_steps"} if config.schedule == "constant" else set())
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name not in free}


def check_train_config(config: TrainConfig) -> None:
    """Refuse what cannot be honoured.

    Raises:
        ConfigError: With the field, the value and the reason.
    """
    if not config.use_lora:
        raise ConfigError(
            "use_lora=False: TPO compares the policy with its frozen reference, which here is the same model with the "
            "adapter off; for training of all weights use `grape sft --use_lora False`"
        )
    if config.use_quantization:
        raise ConfigError(
            "use_quantization=True: a 4-bit base is not implemented in this version; memory does not grow with the "
            "trajectory here, so lower --micro_batch_size instead"
        )
    check_run_folders(config.run_root_dir, config.effective_run_name, config.adapter_tmp_dir)
    _check_ranges(config)


_AT_LEAST_ONE = [
    "batch_size",
    "grad_accumulation_steps",
    "epoch",
    "save_steps",
    "shuffle_buffer_size",
    "lora_rank",
    "window_size",
]
_AT_LEAST_ONE += ["keep_checkpoints", "micro_batch_size"]
_AT_LEAST_ZERO = ("weight_decay", "warmup_steps", "max_grad_norm", "sft_weight", "seed")


def _check_ranges(config: TrainConfig) -> None:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in _AT_LEAST_ONE:
        if values[name] < 1:
            raise ConfigError(f"{name}={values[name]}: want at least 1")
    for name in _AT_LEAST_ZERO:
        if not 0 <= values[name] < math.inf:
            raise ConfigError(f"{name}={values[name]}: want 0 or more, and finite")
    for name in ("beta", "learning_rate"):
        if not 0 < values[name] < math.inf:
            raise ConfigError(f"{name}={values[name]}: want more than 0, and finite")
    for name in ("max_steps", "lora_alpha"):
        if values[name] is not None and values[name] < 1:
            raise ConfigError(f"{name}={values[name]}: want at least 1, or None")
    if not 0 <= config.label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing={config.label_smoothing}: want 0 to below 0.5")
    if not 0 <= config.lora_dropout < 1:
        raise ConfigError(f"lora_dropout={config.lora_dropout}: want 0 to below 1")
    if config.wandb_entity and not config.wandb_project:
        raise ConfigError("wandb_entity without wandb_project: name the project to log to")
