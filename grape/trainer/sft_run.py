"""What a supervised run is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grape.config.inputs import CROP_KEY
from grape.config.sft import SFTConfig
from grape.models import OpenVLAPolicy, load_policy, new_policy
from grape.models.statistics import action_range
from grape.rlds import EpisodeDataset
from grape.trainer.continuation import Run, make_optimizer, open_checkpoints
from grape.trainer.sft_data import (
    Survey,
    choose_center_crop,
    choose_statistics,
    held_out_episodes,
    make_labeller,
    open_episodes,
    survey_episodes,
    uses_tokens,
    validation_frames,
)
from grape.trainer.sft_frames import EpisodeBuffer, EpisodeSource, Frame, FrameOrder, LabelEpisode, frame_of

if TYPE_CHECKING:
    from grape.trainer.distributed import Ranks


@dataclass(kw_only=True)
class SFTRun(Run):
    """Everything that an optimiser step touches."""

    config: SFTConfig
    new_statistics: dict[str, Any]
    """Action statistics that the run adds to the checkpoint's."""
    order: FrameOrder
    episodes: EpisodeBuffer
    validation: list[Frame]
    center_crop: bool

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.max_steps

    @property
    def frames_per_step(self) -> int:
        """Over all processes and accumulation steps."""
        return self.config.batch_size * self.config.grad_accumulation_steps * self.ranks.world_size

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """Type of the computation where it is not float32."""
        return torch.bfloat16 if computes_in_bfloat16(self.config, self.ranks.device) else None

    def frame_batches(self) -> Iterator[list[Frame]]:
        """This process's frames of each optimiser step that is left."""
        refs = self.order.frames(self.step * self.frames_per_step)
        for _ in range(self.step, self.config.max_steps):
            mine = list(islice(refs, self.frames_per_step))[self.ranks.rank :: self.ranks.world_size]
            batch = []
            for chunks, ref in mine:
                key = (self.config.seed, "sft", ref.episode, ref.step, ref.epoch) if self.config.image_aug else None
                batch.append(frame_of(self.episodes.get(chunks, ref.episode), ref.step, key))
            yield batch


def computes_in_bfloat16(config: SFTConfig, device: torch.device) -> bool:
    """Whether forward passes run under autocast."""
    return config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == "cuda")


def prepare_run(config: SFTConfig, ranks: Ranks, episodes: EpisodeSource | None) -> SFTRun:
    """Read the data set once and make the policy.

    Args:
        config: Settings.
        ranks: Processes of the run.
        episodes: Data; ``None`` opens what the settings name.

    Raises:
        ConfigError: The folder holds a run and ``resume`` is off.
        DatasetError: There is nothing to train on.
    """
    checkpoints = open_checkpoints(config)
    episodes = open_episodes(config) if episodes is None else episodes
    survey = survey_episodes(episodes, config.image_resize)
    policy = make_policy(config, survey, ranks.device)
    policy.use_prompt_style(config.prompt_style)
    base_hash = policy.checkpoint_hash
    with_tokens = uses_tokens(config, survey, base_hash if config.preset is None else None)
    stored = episodes.statistics() if isinstance(episodes, EpisodeDataset) else None
    statistics = {} if with_tokens else choose_statistics(config, policy.norm_stats, survey, stored)
    policy.norm_stats = policy.norm_stats | statistics
    if not with_tokens or config.unnorm_key is not None:
        action_range(policy.norm_stats, config.unnorm_key or config.dataset_name)  # refuse bad ones before the work
    label = make_labeller(config, policy, survey, with_tokens=with_tokens)
    held_out = held_out_episodes(survey.states, config.val_fraction, config.seed)
    lengths = {n: length for n, length in enumerate(survey.lengths) if n not in set(held_out)}
    parameters = prepare_parameters(config, policy)
    center_crop = choose_center_crop(config, survey)
    policy.source_config[CROP_KEY] = center_crop or config.image_aug
    return SFTRun(
        config=config,
        ranks=ranks,
        policy=policy,
        base_hash=base_hash,
        data_digest=survey.digest,
        new_statistics=statistics,
        order=FrameOrder(lengths, seed=config.seed, buffer_frames=config.shuffle_buffer_size),
        episodes=EpisodeBuffer(episodes, lengths, label),
        validation=_validation(config, episodes, survey, held_out, label),
        center_crop=center_crop,
        parameters=parameters,
        optimizer=make_optimizer(config, parameters, ranks.device),
        checkpoints=checkpoints,
    )


def make_policy(config: SFTConfig, survey: Survey, device: torch.device) -> OpenVLAPolicy:
    """New weights, or a checkpoint's; in float32 where they are trained."""
    if config.preset is not None:
        policy = new_policy(config.preset, instructions=survey.instructions, seed=config.seed)
        policy.model.to(device)
        return policy
    assert config.vla_path is not None  # check_sft_config
    frozen_type = "bfloat16" if computes_in_bfloat16(config, device) else "float32"
    return load_policy(
        config.vla_path,
        device=str(device),
        dtype=frozen_type if config.trains_adapter else "float32",
        attn_implementation=config.attn_implementation,
    )


def prepare_parameters(config: SFTConfig, policy: OpenVLAPolicy) -> dict[str, Tensor]:
    """Add the adapter where one is trained; the weights to train, by name."""
    if config.trains_adapter:
        torch.manual_seed(config.seed)  # the adapter's first values: the same in every process
        policy.with_adapter(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets, "gaussian")
    policy.model.train(config.lora_dropout > 0)
    return {name: value for name, value in policy.model.named_parameters() if value.requires_grad}


def _validation(
    config: SFTConfig, episodes: EpisodeSource, survey: Survey, held_out: list[int], label: LabelEpisode
) -> list[Frame]:
    if config.val_split is not None:
        split = open_episodes(config, config.val_split)
        lengths = survey_episodes(split).lengths
        return validation_frames(split, range(len(split)), lengths, label, config.val_frames)
    return validation_frames(episodes, held_out, survey.lengths, label, config.val_frames) if held_out else []
