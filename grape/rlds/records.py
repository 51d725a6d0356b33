"""Episodes on their way into an RLDS data set, and the features of that data set.

Axis legend: T steps, H height, W width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grape.errors import DatasetError
from grape.rlds.runtime import tensorflow
from grape.trajectory import ACTION_DIM, STATE_DIM, EpisodeInfo, Trajectory, encode_png

UNSCORED = float("nan")


@dataclass(frozen=True, kw_only=True)
class ExportEpisode:
    """A trajectory and what its data set has to say about it beyond the trajectory itself."""

    trajectory: Trajectory
    pair_id: str = ""
    """Same in chosen and rejected; empty outside preference data."""
    num_steps: int | None = None
    """At most this many steps are written, from the first on; None writes all."""
    score: float | None = None
    """Guided cost R."""
    terms: dict[str, Any] = field(default_factory=dict)
    """The scores file's entry for the episode."""
    score_settings: dict[str, Any] = field(default_factory=dict)
    """The scores file's settings."""
    run: str = ""
    """Name of the run folder that the episode comes from."""


_METADATA_TEXTS = (
    "pair_id",
    "episode_id",
    "run",
    "simulator",
    "simulator_settings_json",
    "suite",
    "task_name",
    "init_state_id",
    "init_state_hash",
    "policy",
    "checkpoint_hash",
    "policy_settings_json",
    "status",
    "goal_predicates_json",
    "score_terms_json",
    "score_settings_json",
    "language_instruction",
)
_METADATA_INTEGERS = ("task_id", "rollout_index", "seed", "num_steps")
_METADATA_FLOATS = ("score", "r_self", "r_ext", "i_success")


def build_features(image_shape: tuple[int, int, int]) -> Any:
    """TFDS features of an episode in the standard RLDS layout, plus tokens and log-probabilities.

    Args:
        image_shape: (H, W, 3) of every picture.
    """
    tf, tfds = tensorflow().tf, tensorflow().tfds
    features = tfds.features
    seven_floats = features.Tensor(shape=(ACTION_DIM,), dtype=np.float32)
    step = {
        "observation": {
            "image": features.Image(shape=image_shape, dtype=np.uint8, encoding_format="png"),
            "state": features.Tensor(shape=(STATE_DIM,), dtype=np.float32),
        },
        "action": seven_floats,
        "policy_action": features.Tensor(shape=(ACTION_DIM,), dtype=np.float32),
        "action_tokens": features.Tensor(shape=(ACTION_DIM,), dtype=np.int32),
        "token_logps": features.Tensor(shape=(ACTION_DIM,), dtype=np.float32),
        "sampler_logps": features.Tensor(shape=(ACTION_DIM,), dtype=np.float32),
        "language_instruction": features.Text(),
        "is_first": tf.bool,
        "is_last": tf.bool,
        "is_terminal": tf.bool,
        "reward": np.float32,
        "discount": np.float32,
    }
    metadata: dict[str, Any] = {name: features.Text() for name in _METADATA_TEXTS}
    metadata |= {name: np.int64 for name in _METADATA_INTEGERS}
    metadata |= {name: np.float32 for name in _METADATA_FLOATS}
    metadata["success"] = tf.bool
    return features.FeaturesDict({"steps": features.Dataset(step), "episode_metadata": metadata})


def check_writable(episode: ExportEpisode, image_shape: tuple[int, int, int]) -> None:
    """Refuse an episode that would not survive the round trip.

    Raises:
        DatasetError: It is crashed, empty, or of another shape than the first one.
    """
    trajectory = episode.trajectory
    name = f"{episode.run}/{trajectory.info.episode_id}".lstrip("/")
    if trajectory.info.status == "crashed":
        raise DatasetError(f"{name} crashed; crashed episodes are never written to a data set")
    if trajectory.info.num_steps == 0:
        raise DatasetError(f"{name} has no steps; leave it out")
    if trajectory.images.dtype != np.uint8 or trajectory.images.shape[1:] != image_shape:
        raise DatasetError(
            f"{name} has pictures of {trajectory.images.shape[1:]} {trajectory.images.dtype}, the first episode's are "
            f"{image_shape} uint8; write one data set for each picture size"
        )
    if trajectory.states.shape[1:] != (STATE_DIM,):
        raise DatasetError(f"{name} has states of {trajectory.states.shape[1:]} numbers, not {STATE_DIM}")


def to_example(episode: ExportEpisode) -> dict[str, Any]:
    """The nested dict that ``build_features`` describes; steps are made one at a time."""
    return {"steps": _steps(episode.trajectory, _num_written(episode)), "episode_metadata": _metadata(episode)}


def _num_written(episode: ExportEpisode) -> int:
    whole = episode.trajectory.info.num_steps
    return whole if episode.num_steps is None else min(episode.num_steps, whole)


def _steps(trajectory: Trajectory, num_steps: int) -> Iterator[dict[str, Any]]:
    for step in range(num_steps):
        succeeds = step == trajectory.info.num_steps - 1 and trajectory.info.status == "success"
        yield {
            "observation": {
                "image": encode_png(trajectory.images[step]),
                "state": np.asarray(trajectory.states[step], np.float32),
            },
            "action": np.asarray(trajectory.actions[step], np.float32),
            "policy_action": np.asarray(trajectory.policy_actions[step], np.float32),
            "action_tokens": np.asarray(trajectory.action_tokens[step], np.int32),
            "token_logps": np.asarray(trajectory.token_logps[step], np.float32),
            "sampler_logps": np.asarray(trajectory.sampler_logps[step], np.float32),
            "language_instruction": trajectory.info.instruction,
            "is_first": step == 0,
            "is_last": step == num_steps - 1,
            "is_terminal": succeeds,
            "reward": np.float32(succeeds),
            "discount": np.float32(1.0),
        }


def _metadata(episode: ExportEpisode) -> dict[str, Any]:
    info: EpisodeInfo = episode.trajectory.info
    return {
        "pair_id": episode.pair_id,
        "episode_id": info.episode_id,
        "run": episode.run,
        "simulator": info.simulator,
        "simulator_settings_json": json.dumps(info.simulator_settings, sort_keys=True),
        "suite": info.suite,
        "task_name": info.task_name,
        "init_state_id": info.init_state_id,
        "init_state_hash": info.init_state_hash,
        "policy": info.policy,
        "checkpoint_hash": info.checkpoint_hash,
        "policy_settings_json": json.dumps(info.policy_settings, sort_keys=True),
        "status": info.status,
        "goal_predicates_json": json.dumps(info.goal_predicates),
        "score_terms_json": json.dumps(episode.terms, sort_keys=True),
        "score_settings_json": json.dumps(episode.score_settings, sort_keys=True),
        "language_instruction": info.instruction,
        "task_id": info.task_id,
        "rollout_index": info.rollout_index,
        "seed": info.seed,
        "num_steps": _num_written(episode),
        "score": _number(episode.score),
        "r_self": _number(episode.terms.get("r_self")),
        "r_ext": _number(episode.terms.get("r_ext")),
        "i_success": _number(episode.terms.get("i_success")),
        "success": info.status == "success",
    }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else UNSCORED
