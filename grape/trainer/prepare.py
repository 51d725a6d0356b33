"""From a stored preference pair to what the policy reads: pictures, instructions and action tokens.

Axis legend: N time steps of an example, the chosen ones first; H height, W width.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from grape.config.inputs import INPUTS_BEFORE
from grape.errors import ConfigError, DatasetError, PairingError
from grape.models import prepare_image
from grape.models.statistics import resolve_unnorm_key
from grape.trainer.augment import OPENVLA_AUGMENTATIONS, augment_image, augmentation_generator
from grape.trainer.reference import Fingerprint
from grape.trajectory import ACTION_DIM

if TYPE_CHECKING:
    from grape.config.train import TrainConfig
    from grape.models import OpenVLAPolicy
    from grape.rlds import EpisodeData, PreferencePair

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """Time steps of one example, the chosen ones first."""

    images: np.ndarray
    """(N, H, W, 3) uint8, augmented where asked, before any centre crop."""
    instructions: Sequence[str]
    tokens: np.ndarray
    """(N, 7) vocabulary ids."""
    num_chosen: int
    center_crop: bool
    label: str
    """Pair id and epoch (and window), for messages and for the seed of dropout masks."""

    def __len__(self) -> int:
        return len(self.tokens)


class PairPreparer:
    """Turns stored pairs into step batches, and says once what is odd about their origin."""

    def __init__(self, policy: OpenVLAPolicy, config: TrainConfig, *, base_hash: str) -> None:
        """Args: ``base_hash`` is the content hash of the checkpoint without the adapter that is trained.

        Raises:
            CheckpointError: ``unnorm_key`` is not in the checkpoint's statistics, whether or not it will be needed.
        """
        if config.unnorm_key is not None:
            resolve_unnorm_key(policy.norm_stats, config.unnorm_key)
        self._policy = policy
        self._config = config
        self._base_hash = base_hash
        self._warned: set[str] = set()

    def batch(self, pair: PreferencePair, *, epoch: int, chosen_steps: range, rejected_steps: range) -> StepBatch:
        """Decode, augment and tokenise the given time steps of a pair.

        Raises:
            DatasetError: An episode is empty, or has neither tokens nor actions in the policy's convention.
            PairingError: The two episodes were made under different picture settings.
        """
        self._check_origin(pair)
        sides = (("chosen", pair.chosen, chosen_steps), ("rejected", pair.rejected, rejected_steps))
        images = [self._images(pair.pair_id, name, episode, steps, epoch) for name, episode, steps in sides]
        tokens = [self._tokens(episode)[steps.start : steps.stop] for _, episode, steps in sides]
        instructions = [episode.instruction for _, episode, steps in sides for _ in steps]
        window = "" if len(chosen_steps) == len(pair.chosen) else f", steps {chosen_steps.start}-{chosen_steps.stop}"
        return StepBatch(
            images=np.concatenate(images),
            instructions=instructions,
            tokens=np.concatenate(tokens),
            num_chosen=len(chosen_steps),
            center_crop=self._center_crop(pair),
            label=f"pair {pair.pair_id}, epoch {epoch}{window}",
        )

    def fingerprint(self, pair: PreferencePair, *, epoch: int) -> Fingerprint:
        """Everything that a step's log-probability under the reference depends on."""
        config = self._config
        settings: dict[str, Any] = {
            "checkpoint": self._base_hash,
            "torch": torch.__version__,  # its kernels round differently
            "dtype": str(self._policy.dtype),
            "device": self._policy.device.type,
            "attention": config.attn_implementation,
            "image_size": self._policy.image_size,
            "center_crop": self._center_crop(pair),
            "end_token": config.include_end_token,
            "micro_batch_size": config.micro_batch_size,  # the last bits depend on the shape of a batch
        }
        settings |= {name: value for name, value in inputs_of(config).items() if value != INPUTS_BEFORE[name]}
        if self._policy.quantization is not None:
            settings["quantization"] = self._policy.quantization
        if config.image_aug:
            settings |= {"augmentation": str(OPENVLA_AUGMENTATIONS), "augmentation_seed": config.seed}
            settings |= {"pair_id": pair.pair_id, "epoch": epoch}
        digest = hashlib.blake2b(digest_size=16)
        for episode in (pair.chosen, pair.rejected):
            digest.update(f"{len(episode)} {episode.instruction}".encode())
            digest.update(np.ascontiguousarray(self._tokens(episode), dtype=np.int64).tobytes())
            for encoded in episode.encoded_images:
                digest.update(encoded)
        return Fingerprint.of(digest.hexdigest(), settings)

    def _images(self, pair_id: str, side: str, episode: EpisodeData, steps: range, epoch: int) -> np.ndarray:
        images = episode.decode_images(steps)
        size = self._policy.image_size
        if images.shape[1:3] != (size, size):  # made elsewhere: raw pictures of the simulator
            images = np.stack([prepare_image(image, size, self._config.image_resize) for image in images])
        if not self._config.image_aug:
            return images
        keys = ((pair_id, side, step, epoch) for step in steps)
        return np.stack(
            [
                augment_image(image, augmentation_generator(self._config.seed, *key))
                for image, key in zip(images, keys, strict=True)
            ]
        )

    def _tokens(self, episode: EpisodeData) -> np.ndarray:
        if len(episode) == 0:
            raise DatasetError(f"{episode.source} has no steps; write the data set again without it")
        if episode.action_tokens is not None:
            return episode.action_tokens
        if episode.policy_actions is None:
            raise DatasetError(
                f"{episode.source} has neither sampled tokens nor actions in the policy's convention; say how its "
                "actions are stored (action_transform of grape.rlds.PairDataset)"
            )
        key = self._config.unnorm_key or episode.metadata.get("policy_settings", {}).get("unnorm_key")
        self._warn("tokens", "%s has no sampled tokens: tokenised with the checkpoint's own statistics", episode.source)
        return self._policy.encode_actions(episode.policy_actions, key)

    def _center_crop(self, pair: PreferencePair) -> bool:
        if self._config.image_aug:  # the random crop takes its place, as in supervised training
            return False
        if self._config.center_crop is not None:
            return self._config.center_crop
        recorded = [
            bool(episode.metadata.get("policy_settings", {}).get("center_crop", False))
            for episode in (pair.chosen, pair.rejected)
        ]
        if recorded[0] != recorded[1]:
            raise PairingError(
                f"pair {pair.pair_id}: chosen was made with center_crop={recorded[0]}, rejected with {recorded[1]}; "
                "pair rollouts of one policy setting, or say --center_crop"
            )
        return recorded[0]

    def _check_origin(self, pair: PreferencePair) -> None:
        for episode in (pair.chosen, pair.rejected):
            check_inputs(episode, inputs_of(self._config))
            made_by = episode.metadata.get("checkpoint_hash")
            if made_by and made_by != self._base_hash:
                self._warn(
                    "origin",
                    "%s was made by a policy with hash %s, but --vla_path has %s: the pairs are off-policy, and the "
                    "reference is not the policy that sampled them. Pass the checkpoint that made the rollouts.",
                    episode.source,
                    str(made_by)[:12],
                    self._base_hash[:12],
                )

    def _warn(self, kind: str, message: str, *values: object) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _LOG.warning(message, *values)


def inputs_of(config: TrainConfig) -> dict[str, str]:
    """How the policy's inputs are made."""
    return {name: getattr(config, name) for name in INPUTS_BEFORE}


def check_inputs(episode: EpisodeData, wanted: Mapping[str, str]) -> None:
    """Refuse an episode whose policy read other inputs; one that was made elsewhere does not say.

    Raises:
        ConfigError: With both values and the flag.
    """
    recorded = episode.metadata.get("policy_settings")
    if not recorded:
        return
    for name, value in wanted.items():
        made_with = recorded.get(name, INPUTS_BEFORE[name])
        if made_with != value:
            raise ConfigError(
                f"{episode.source} was made with {name} {made_with!r}, not {value!r}: use one for collection, training "
                f"and evaluation (--{name} {made_with})"
            )


def check_tokens(batch: StepBatch, vocab_size: int) -> None:
    """Refuse tokens that the checkpoint's vocabulary does not have.

    Raises:
        ConfigError: The tokens come from another vocabulary.
    """
    if batch.tokens.shape[1:] != (ACTION_DIM,) or batch.tokens.min() < 0 or batch.tokens.max() >= vocab_size:
        raise ConfigError(
            f"{batch.label}: action tokens of shape {batch.tokens.shape} from {batch.tokens.min()} to "
            f"{batch.tokens.max()}; want (steps, {ACTION_DIM}) below {vocab_size}, the size of --vla_path's vocabulary"
        )
