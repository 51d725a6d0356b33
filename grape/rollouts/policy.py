"""What the rollout engine needs of a policy, and the OpenVLA that provides it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from grape.config.inputs import CROP_KEY, ImageResize

if TYPE_CHECKING:
    from grape.models import OpenVLAPolicy
    from grape.rollouts.jobs import RolloutJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DecisionRequest:
    """One worker that waits for an action."""

    job: RolloutJob
    step: int
    """Actions already taken in this episode."""
    instruction: str
    """What the policy is told: the task's, unless the simulator has the word."""
    image: np.ndarray
    """Picture before acting, after the policy's ``image_fn``; uint8 (H, W, 3)."""
    state: np.ndarray
    """Proprioception, float32 (8,)."""
    facts: Mapping[str, np.ndarray]
    """Privileged facts, one row each (see ``Trajectory``); for scripted policies only."""
    uniforms: np.ndarray
    """(7,) in [0, 1): the step's randomness. A policy that draws its own numbers is not reproducible."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One action, in the policy's convention (gripper in [0, 1], 1 open)."""

    policy_action: np.ndarray
    """Unnormalised, float32 (7,)."""
    tokens: np.ndarray
    """int32 (7,), as sampled."""
    token_logps: np.ndarray
    """float32 (7,), nats; full vocabulary, temperature 1."""
    sampler_logps: np.ndarray
    """float32 (7,), nats; of the distribution that was sampled from."""
    executed_policy_action: np.ndarray | None = None
    """Sent to the simulator in place of ``policy_action``, by demonstrators whose labels differ from what they do."""


class Policy(Protocol):
    """Anything that can drive the engine.

    A scripted policy recognises a new episode by ``request.step == 0`` and tells episodes apart by ``request.job``.
    """

    name: str
    """Checkpoint path or hub id, or ``"scripted"``."""
    checkpoint_hash: str
    settings: dict[str, Any]
    """Everything else that changes the actions; recorded with each episode."""

    def image_fn(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Return what turns the simulator's picture into the policy's; picklable, it runs in the workers."""
        ...

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        """Decide for all waiting workers at once; a decision must not depend on the other requests."""
        ...


class SampledVLA:
    """An OpenVLA with fixed sampling settings."""

    def __init__(
        self,
        policy: OpenVLAPolicy,
        *,
        name: str,
        unnorm_key: str,
        temperature: float,
        top_p: float | None = None,
        center_crop: bool = False,
        image_resize: ImageResize = "lanczos",
    ) -> None:
        self.name = name
        self.checkpoint_hash = policy.checkpoint_hash
        self._policy = policy
        self._sampling: dict[str, Any] = {
            "unnorm_key": unnorm_key,
            "temperature": temperature,
            "top_p": top_p,
            "center_crop": center_crop,
            "restrict_to_actions": True,
        }
        self._image_resize = image_resize
        self.settings = {
            **self._sampling,
            "dtype": str(policy.dtype).removeprefix("torch."),
            "prompt_style": policy.prompts.style,
            "image_resize": image_resize,
        }

    def image_fn(self) -> Callable[[np.ndarray], np.ndarray]:
        from grape.models.preprocessing import prepare_image

        return functools.partial(prepare_image, size=self._policy.image_size, resize=self._image_resize)

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        batch = self._policy.act(
            [request.image for request in requests],
            [request.instruction for request in requests],
            uniforms=np.stack([request.uniforms for request in requests]),
            **self._sampling,
        )
        return [
            Decision(
                policy_action=np.asarray(batch.actions[row], np.float32),
                tokens=np.asarray(batch.tokens[row], np.int32),
                token_logps=np.asarray(batch.token_logps[row], np.float32),
                sampler_logps=np.asarray(batch.sampler_logps[row], np.float32),
            )
            for row in range(len(requests))
        ]


def choose_unnorm_key(
    norm_stats: Mapping[str, Any],
    suite: str,
    wanted: str | None = None,
    *,
    adapter_keys: Collection[str] = (),
    alternatives: Sequence[str] = (),
) -> str:
    """Choose the statistics with which actions are unnormalised.

    Without ``wanted``: the suite's name, or that with ``_no_noops``, or one of the ``alternatives`` (other names for
    data of the suite's kind), in this order, or the only entry that there is. A warning says
    where that is another name than the suite's, or not one of the ``adapter_keys`` (entries that came with the adapter,
    which was trained with one of them).

    Raises:
        CheckpointError: There are no statistics, or none under that name; the known names are listed.
    """
    from grape.models.statistics import NO_NOOPS_SUFFIX, resolve_unnorm_key

    if wanted is not None:
        return resolve_unnorm_key(norm_stats, wanted)
    names = (suite, suite + NO_NOOPS_SUFFIX, *alternatives)
    known = next((name for name in names if name in norm_stats), suite)
    key = resolve_unnorm_key(norm_stats, None if len(norm_stats) == 1 else known)
    if key not in names:
        logger.warning(
            "there are no action statistics of %s; the only ones, %s, are taken (--unnorm_key %s says that this is "
            "meant)", suite, key, key,
        )  # fmt: skip
    elif adapter_keys and key not in adapter_keys:
        logger.warning(
            "the checkpoint's action statistics %s are taken, but the adapter brought its own: %s; choose with "
            "--unnorm_key", key, ", ".join(sorted(adapter_keys)),
        )  # fmt: skip
    return key


def note_other_crop(source_config: Mapping[str, Any], *, center_crop: bool) -> None:
    """Log a warning where a policy says that it was trained for the other crop.

    Args:
        source_config: Its config.json; an adapter's word has replaced the checkpoint's.
        center_crop: Whether pictures are going to be cropped.
    """
    trained = source_config.get(CROP_KEY)
    if isinstance(trained, bool) and trained != center_crop:
        logger.warning(
            "center_crop is %s, but the policy was trained for %s, as its files say: pass --center_crop %s unless this "
            "is meant", center_crop, trained, trained,
        )  # fmt: skip
