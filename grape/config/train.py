"""Settings of trajectory-wise preference optimization (TPO).

The first three groups are the fields of the published release's fine-tuning command, with its names; where a default
differs from the release, the field says so. The rest is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grape.config.checks import check_values
from grape.config.inputs import ImageResize, PromptStyle
from grape.config.losses import check_loss
from grape.config.model import AttnImplementation
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
    """Pairs that each process holds in memory, pictures still encoded, and within which the order is shuffled; 1 keeps
    the stored order. The release's field of this name (100,000) was not read."""

    use_lora: bool = True
    """Train a LoRA adapter. False is refused: the reference is this model with the adapter off."""
    lora_rank: int = 32
    """Rank of each adapter matrix; the release's value."""
    lora_dropout: float = 0.0
    """Dropout probability before each adapter; masks are the same in every pass over a step. The release's value."""
    use_quantization: bool = False
    """Hold the language model's linear layers in 4 bits (QLoRA, arXiv 2305.14314; NF4, constants quantised again), with
    bitsandbytes. The reference is the quantised base, too. Merge the adapter into the checkpoint as it is."""
    wandb_project: str | None = None
    """W&B project; without one W&B is off. Offline where the machine has no account, never needed to train."""
    wandb_entity: str | None = None
    """W&B user or team that owns the project."""

    objective: Literal["trajectory", "window", "step"] = "trajectory"
    """What is compared. ``trajectory``: whole trajectories, as the paper. ``window``: aligned windows, as the release.
    ``step``: a term per time step that both have, averaged over the pair."""
    window_size: int = 8
    """Steps of a window (stride 1), for ``--objective window``; the release's value."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Loss of the difference Δ of log-ratios, chosen minus rejected: DPO's, and with whole trajectories TPO's; IPO's
    (arXiv 2310.12036); SLiC-HF's hinge (arXiv 2305.10425); rDPO's (arXiv 2403.00409), which wants label_smoothing."""
    beta: float = 0.1
    """KL strength β, dimensionless; GRAPE (arXiv 2411.19309) eq. 3. With ``ipo``, Δ is drawn to 1 / (2β) nats."""
    label_smoothing: float = 0.0
    """Probability that a pair is labelled the wrong way round, 0 to below 0.5; ``sigmoid``: conservative DPO."""
    reference_free: bool = False
    """Compare log-probabilities, not log-ratios to the reference, which is not run (SimPO, arXiv 2405.14734)."""
    simpo_gamma: float = 0.0
    """Target margin γ with ``reference_free``: −log σ(βΔ − γ), dimensionless."""
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
    micro_batch_size: int | None = None
    """Time steps per forward and backward pass: bounds the memory, does not change the gradient. ``None``: on a GPU
    the most that fit, up to 64; on a CPU 16 (pieces of 16 to 64 are the fastest there), fewer where ``max_memory_gb``
    asks for it. Halved where memory runs out all the same. docs/memory.md."""
    max_memory_gb: float | None = None
    """Device memory that the run may take, in 1e9 bytes, weights included; on a GPU a hard cap of torch's allocator.
    ``None``: what is free on the GPU at the start; on a CPU no limit."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Keep a block's input alone and run the block again for its gradient: less memory, one more forward pass.
    ``auto``: only where 4 time steps per pass do not fit otherwise."""
    feature_cache_gb: float = 4.0
    """Host memory for what the frozen towers and the projector make of pictures, in 1e9 bytes, with ``--lora_targets
    llm``: 2.1 MB a picture for a 7 B model. It pays across epochs where all pairs fit. 0: only the pair in hand."""
    prefetch: bool = True
    """Decode, augment and crop the next example's pictures in a thread while the current one trains."""
    reference_cache_dir: Path | None = None
    """Where the reference's log-probabilities are kept; ``None``: ``<run_root_dir>/reference_cache``."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the base weights; ``auto``: bfloat16 on a GPU, else float32. The adapter is always float32."""
    shard_base: bool = False
    """Spread the frozen base over the processes of the run (FSDP2), for one that does not fit a GPU; the adapter stays
    whole in each. Results are the same."""
    rank_timeout_s: float = 600.0
    """With several processes: seconds after which one that does not answer ends the run."""
    attn_implementation: AttnImplementation = "sdpa"
    """Attention kernels; ``flash_attention_2`` where flash-attn is installed, on a GPU."""
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
    if config.use_quantization and config.shard_base:
        raise ConfigError(
            "use_quantization=True with shard_base=True: packed 4-bit weights are not spread over processes here; a "
            "4-bit base of 7 B takes about 5.5 GB, so leave --shard_base out"
        )
    check_values(config)
    check_loss(config)
