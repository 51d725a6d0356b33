"""Which request puts the original SIMPLER into a named initial state."""

from __future__ import annotations

from typing import Any

import numpy as np

from grape.envs.protocol import OFFICIAL_SPLIT, InitStateId, TaskSpec
from grape.envs.simpler.placement import PublishedPoses, place, sampling_seed
from grape.envs.simpler_env.tasks import OriginalTask
from grape.errors import ConfigError


def published_poses(description: dict[str, Any]) -> PublishedPoses | None:
    """The WidowX tasks' own configurations, out of the environment's description; ``None`` for other tasks.

    Positions are (P, O, 2) m here: the original lets objects fall onto the table.
    """
    if description["xy_configs"] is None:
        return None
    return PublishedPoses(
        positions=np.array(description["xy_configs"], np.float64),
        quaternions=np.array(description["quat_configs"], np.float64),
    )


def state_request(
    spec: TaskSpec, task: OriginalTask, poses: PublishedPoses | None, init_state: InitStateId, attempt: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The request ``reset`` of ``foreign.py``.

    Args:
        spec: For the seed.
        task: For the region, or the published states.
        poses: What is published for a WidowX task.
        init_state: Which state.
        attempt: Counts draws that settled badly, from 0.

    Returns:
        The request, and where the objects (O, 2) are put, m, if that is known.

    Raises:
        ConfigError: There is no such state.
    """
    if task.bridge is not None:
        assert poses is not None, "a WidowX task has its configurations"
        positions, quaternions = place(spec, task.bridge, poses, init_state, attempt)
        objects = {"_xy_configs": [positions.tolist()], "_quat_configs": [quaternions.tolist()]}
        return _request(0, {"obj_init_options": {"episode_id": 0}}, objects), positions
    if init_state.split == OFFICIAL_SPLIT:
        spec.check_states(init_state.split, init_state.index, 1)
        assert task.published is not None, "more than 0 states are published"
        return task.published[init_state.index], None
    if not task.is_sampled:
        raise ConfigError(
            f"got {init_state} of {spec.suite}/{spec.task_id} ({spec.name}), which has only official states: the "
            "simulator chooses among these by its seed, so that others would repeat the test states"
        )
    seed = sampling_seed(spec, init_state, attempt) % 2**32
    return _request(seed, {}, {"prepackaged_config": True}), None


def _request(seed: int, options: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    # Built anew, so that the settled state does not depend on what ran before.
    return {
        "seed": seed,
        "options": {"reconfigure": True, **options},
        "attributes": attributes,
        "urdf_version": None,
        "overlay": None,
    }
