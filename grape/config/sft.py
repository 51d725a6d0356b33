"""Settings of supervised fine-tuning.

Names are those of OpenVLA's own fine-tuning script where it has the field, else those of ``grape train``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grape.config.checks import check_values
from grape.config.inputs import ImageResize, PromptStyle
from grape.config.model import AttnImplementation
from grape.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Fine-tune an OpenVLA of any size on the actions of an RLDS data set (OpenVLA, arXiv 2406.09246)."""

    dataset_name: str
    """Name of the RLDS data set, and of the action statistics that are computed from it (``unnorm_key``)."""
    data_root_dir: Path
    """Folder that holds ``<dataset_name>/<version>``: what ``grape export --out`` wrote, or the ``chosen`` folder of
    ``grape pair``."""
    vla_path: str | None = None
    """Checkpoint folder or hub id to start from; either this or ``preset``."""
    preset: str | None = None
    """Start from new weights of this size (``nano``, ``micro``, ``mid``, ``test``); trains all of them, from
    ``seed``."""
    run_root_dir: Path = Path("runs")
    """Runs are written to ``<run_root_dir>/<run name>``."""
    run_name: str | None = None
    """Name of the run's folder; ``None``: made from checkpoint, data set, batch, learning rate and adapter."""
    adapter_tmp_dir: Path | None = None
    """Where given, the newest adapter is also kept at ``<adapter_tmp_dir>/<run name>``, as ``grape train`` does. An
    earlier adapter there is replaced; a folder that holds anything else is refused."""

    max_steps: int = 10_000
    """Optimiser steps of the run; the data set is repeated, in another order each time, as long as they last."""
    batch_size: int = 16
    """Frames per process and accumulation step; OpenVLA's value."""
    grad_accumulation_steps: int = 1
    """Accumulation steps per optimiser step: one step averages batch_size × this × processes frames."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW. OpenVLA's value for LoRA; it used 2e-5 for all weights, new ones take about 1e-3."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant (OpenVLA), or half a cosine down to 0 at the last step."""
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up from 0."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, dimensionless; torch's default, which OpenVLA used."""
    max_grad_norm: float = 1.0
    """Clip the gradient's norm to this; 0 does not clip. 1 is the value of OpenVLA's training of all weights."""
    input_token_noise: float = 0.0
    """Probability that an action token is replaced, as input alone, by another frame's of the batch: the policy then
    learns less to continue its own previous token and more to look. 0 is OpenVLA's."""

    image_aug: bool = False
    """OpenVLA's image augmentations, a function of (seed, episode, step, epoch); evaluate with a centre crop then."""
    center_crop: bool | None = None
    """Centre crop of the pictures (0.9 of the area) without ``image_aug``; ``None``: as the episodes' policy settings
    say, else off."""
    prompt_style: PromptStyle = "template"
    """Words around the instruction: OpenVLA's template, or bare; evaluate with the same."""
    image_resize: ImageResize = "lanczos"
    """How pictures that do not have the policy's size come to it: JPEG and lanczos, or area; episodes whose pictures
    came to it in the other way are refused."""
    shuffle_buffer_size: int = 100_000
    """Frames held in memory, still encoded, among which the order is shuffled; OpenVLA's value. A data set that fits
    is read once."""
    num_loader_processes: int = 0
    """Processes that decode and augment pictures ahead of the training; 0 does it in the training process. The
    result does not depend on it."""
    image_key: str = "image"
    """Name of the camera in ``steps/observation``."""
    action_transform: str | None = None
    """How data made elsewhere stores actions (``libero``, ``unchanged``); ``None``: the data set has
    ``policy_action`` or sampled tokens, as ours do."""

    labels: Literal["auto", "tokens", "actions"] = "auto"
    """``tokens``: the stored tokens. ``actions``: ``policy_action`` (what the demonstrator intended), else the
    transformed ``action``, tokenised with statistics. ``auto``: tokens where this checkpoint sampled them."""
    unnorm_key: str | None = None
    """Tokenise actions with these statistics of ``vla_path``; ``None``: with the data set's own, which are then
    stored in the checkpoint under ``dataset_name``."""

    use_lora: bool | None = None
    """Train a LoRA adapter (True) or all weights (False); ``None``: an adapter with ``vla_path``, all weights with
    ``preset``."""
    lora_rank: int = 32
    """Rank of each adapter matrix; OpenVLA's value."""
    lora_alpha: int | None = None
    """Scale of the adapter, applied as alpha / rank; ``None``: min(rank, 32), as ``grape train``. OpenVLA: 16."""
    lora_dropout: float = 0.0
    """Dropout probability before each adapter; OpenVLA's value."""
    lora_targets: Literal["all-linear", "llm"] = "all-linear"
    """Layers with an adapter: every linear layer that runs (OpenVLA), or the language model's alone."""
    save_merged: bool = False
    """With an adapter: also write the merged checkpoint at the end. Statistics of new data are in it alone."""
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number type of the checkpoint that is written; OpenVLA publishes bfloat16."""

    val_split: str | None = None
    """Split of the data set to validate on; or use ``val_fraction``."""
    val_fraction: float = 0.0
    """Share of the initial states (of the episodes, where states are not named) that is held out of the training
    split to validate on, 0 to below 1."""
    val_steps: int = 500
    """Optimiser steps between validations; the last step is always validated."""
    val_frames: int = 512
    """Frames of the held-out episodes to validate on, spread evenly; the same ones each time."""

    save_steps: int = 1000
    """Optimiser steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    resume: bool = False
    """Continue the run in its folder from the last good checkpoint; a folder with a run is refused without it."""
    seed: int = 7
    """Seed of new weights, the order of the frames, augmentations, token noise, dropout and the held-out episodes."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the computation, and of the frozen weights under an adapter; ``auto``: bfloat16 on a GPU, else float32.
    Weights that are trained, and their optimiser, are always float32."""
    attn_implementation: AttnImplementation = "sdpa"
    """Attention kernels, for ``vla_path``; ``flash_attention_2`` where flash-attn is installed, on a GPU."""
    wandb_project: str | None = None
    """W&B project; without one W&B is off. Offline where the machine has no account, never needed to train."""
    wandb_entity: str | None = None
    """W&B user or team that owns the project."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""

    @property
    def trains_adapter(self) -> bool:
        """``use_lora``, or its default."""
        return self.preset is None if self.use_lora is None else self.use_lora

    @property
    def source(self) -> str:
        """Where the weights come from, for people."""
        return self.vla_path if self.vla_path is not None else f"new:{self.preset}"

    @property
    def effective_run_name(self) -> str:
        """``run_name``, or one made from the settings, after OpenVLA's scheme."""
        if self.run_name is not None:
            return self.run_name
        start = self.source.rstrip("/").split("/")[-1].replace(":", "-")
        batch = self.batch_size * self.grad_accumulation_steps
        kind = f"+lora-r{self.lora_rank}+dropout-{self.lora_dropout}" if self.trains_adapter else ""
        return f"{start}+{self.dataset_name}+sft+b{batch}+lr-{self.learning_rate}{kind}"

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.run_root_dir / self.effective_run_name


def check_sft_config(config: SFTConfig) -> None:
    """Refuse what cannot be honoured.

    Raises:
        ConfigError: With the field, the value and the reason.
    """
    if (config.vla_path is None) == (config.preset is None):
        raise ConfigError(
            f"vla_path={config.vla_path!r} and preset={config.preset!r}: give one of them, a checkpoint to start from "
            "or the size of new weights"
        )
    if config.preset is not None:
        _check_new_weights(config)
    if config.save_merged and not config.trains_adapter:
        raise ConfigError("save_merged=True: without an adapter the checkpoint is written anyway; leave the flag out")
    if config.adapter_tmp_dir is not None and not config.trains_adapter:
        raise ConfigError("adapter_tmp_dir is for an adapter, and all weights are trained; leave the flag out")
    if config.image_aug and config.center_crop:
        raise ConfigError("image_aug=True takes a random crop of each picture in place of center_crop; leave one out")
    if config.val_split is not None and config.val_fraction:
        raise ConfigError(f"val_split={config.val_split!r} and val_fraction={config.val_fraction}: give one of them")
    check_values(config)


def _check_new_weights(config: SFTConfig) -> None:
    if config.trains_adapter:
        raise ConfigError("use_lora=True with preset: new weights have nothing to adapt; leave the flag out")
    if config.unnorm_key is not None:
        raise ConfigError("unnorm_key with preset: new weights have no statistics; they are computed from the data set")
    if config.labels == "tokens":
        raise ConfigError("labels=tokens with preset: the stored tokens belong to the vocabulary of another policy")
