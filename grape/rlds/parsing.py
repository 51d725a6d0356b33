"""From one decoded TFDS example to ``EpisodeData``. Knows what data sets made elsewhere leave out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grape.errors import DatasetError, did_you_mean
from grape.rlds.episode import EpisodeData
from grape.trajectory import ACTION_DIM

INSTRUCTION_KEYS = ("language_instruction", "natural_language_instruction")


def check_features(features: Any, image_key: str, folder: Path) -> None:
    """Refuse a data set without the features that every reader needs.

    Raises:
        DatasetError: A feature is missing; names what is there.
    """
    if "steps" not in features:
        raise DatasetError(f"{folder} is not RLDS: it has no 'steps', only {', '.join(sorted(features))}")
    step = features["steps"].feature
    for name in ("action", "observation"):
        if name not in step:
            raise DatasetError(f"{folder} lacks steps/{name}; its steps have {', '.join(sorted(step))}")
    if image_key not in step["observation"]:
        raise DatasetError(
            f"{folder} has no picture steps/observation/{image_key}."
            f"{did_you_mean(image_key, step['observation'])} Pass its name as image_key"
        )


def parse_episode(
    example: dict[str, Any],
    source: str,
    position: int,
    image_key: str,
    transform: Callable[[np.ndarray], np.ndarray] | None,
) -> EpisodeData:
    """Turn one example, its steps batched and its pictures still encoded, into an ``EpisodeData``.

    Raises:
        DatasetError: The episode has no step, or its actions are not seven numbers.
    """
    steps = example["steps"]
    actions = np.asarray(steps["action"], dtype=np.float32)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != ACTION_DIM:
        raise DatasetError(f"{source}: actions have shape {actions.shape}, wanted (steps, 7) with at least one step")
    policy_actions = _optional(steps, "policy_action")
    if policy_actions is None and transform is not None:
        policy_actions = transform(actions)
    tokens = _sampled_tokens(steps)
    return EpisodeData(
        source=source,
        position=position,
        encoded_images=tuple(steps["observation"][image_key]),
        actions=actions,
        policy_actions=policy_actions,
        action_tokens=tokens,
        token_logps=_optional(steps, "token_logps") if tokens is not None else None,
        sampler_logps=_optional(steps, "sampler_logps") if tokens is not None else None,
        states=_optional(steps["observation"], "state"),
        instruction=_instruction(example, source),
        metadata=_metadata(example),
    )


def parse_metadata(example: dict[str, Any], source: str) -> dict[str, Any]:
    """Metadata of one example, and its instruction."""
    return {**_metadata(example), "language_instruction": _instruction(example, source)}


def _sampled_tokens(steps: dict[str, Any]) -> np.ndarray | None:
    """Tokens as sampled; None where there are none, or where a scripted expert left placeholders (0 or less)."""
    if "action_tokens" not in steps:
        return None
    tokens = np.asarray(steps["action_tokens"], dtype=np.int32)
    return tokens if (tokens > 0).all() else None


def _optional(parts: dict[str, Any], name: str) -> np.ndarray | None:
    return np.asarray(parts[name], dtype=np.float32) if name in parts else None


def _instruction(example: dict[str, Any], source: str) -> str:
    for name in INSTRUCTION_KEYS:
        for part in (example.get("steps", {}), example.get("steps", {}).get("observation", {})):
            if name in part and len(part[name]):
                return part[name][0].decode()
        if name in example.get("episode_metadata", {}):
            return example["episode_metadata"][name].decode()
    raise DatasetError(f"{source} has no instruction under {' or '.join(INSTRUCTION_KEYS)}")


def _metadata(example: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for name, value in example.get("episode_metadata", {}).items():
        plain = value.decode() if isinstance(value, bytes) else value.item() if np.ndim(value) == 0 else value
        metadata[name] = plain
        if name.endswith("_json"):
            with contextlib.suppress(ValueError, TypeError):  # other makers' fields may mean something else
                metadata[name.removesuffix("_json")] = json.loads(plain)
                del metadata[name]
    return metadata
