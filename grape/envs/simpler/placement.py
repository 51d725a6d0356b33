"""Initial states: the published ones by their ids, and others drawn from the region that the published ones span.

Only the split ``official`` gives published poses. Every other split is drawn by a seed derived from (task, split,
index), so splits are disjoint by construction and state ``train/17`` is the same in every process, and the same places
in every variant of a task.

Axis legend: P published positions, Q published orientations, O objects (the moved one, then its target).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from grape.envs.protocol import OFFICIAL_SPLIT, InitStateId, TaskSpec
from grape.envs.rotations import turned_about_z
from grape.envs.simpler.tasks import SUITE, BridgeTask
from grape.errors import ConfigError, SimulatorError

MAX_DRAWS = 1000


@dataclass(frozen=True)
class PublishedPoses:
    """ManiSkill's own poses of a task's objects before they settle; id = position × Q + orientation."""

    positions: np.ndarray
    """(P, O, 3) m, world."""
    quaternions: np.ndarray
    """(Q, O, 4) wxyz."""

    def __len__(self) -> int:
        return len(self.positions) * len(self.quaternions)


def place(
    task: TaskSpec, bridge: BridgeTask, poses: PublishedPoses, init_state: InitStateId, attempt: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the objects are put before they settle.

    Args:
        task: For the seed.
        bridge: For the region.
        poses: What is published.
        init_state: Which state.
        attempt: Counts draws that settled badly, from 0; must be 0 for a published state.

    Returns:
        Positions (O, 3) m and quaternions (O, 4) wxyz.

    Raises:
        ConfigError: There is no such published state.
        SimulatorError: The region has no room.
    """
    if init_state.split == OFFICIAL_SPLIT:
        assert attempt == 0, "a published state is what it is"
        position, orientation = divmod(official_index(task, bridge, init_state.index), len(poses.quaternions))
        return poses.positions[position], poses.quaternions[orientation]
    return _draw(bridge, poses, np.random.default_rng(sampling_seed(task, init_state, attempt)))


def official_index(task: TaskSpec, bridge: BridgeTask, index: int) -> int:
    """The published id, never wrapped round.

    Raises:
        ConfigError: There are fewer.
    """
    if not 0 <= index < bridge.num_official:
        raise ConfigError(
            f"got official/{index} of {task.suite}/{task.task_id} ({task.name}), wanted official/0 to "
            f"{bridge.num_official - 1}: larger ids would repeat these states; sample more with another split"
        )
    return index


def sampling_seed(task: TaskSpec, init_state: InitStateId, attempt: int) -> int:
    """A 256-bit seed, different for every (task, split, index, attempt), the same in all variants of the task."""
    text = f"{SUITE}/{task.task_id}/{init_state.split}/{init_state.index}/{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "little")


def _draw(bridge: BridgeTask, poses: PublishedPoses, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    lowest, highest = poses.positions.min(axis=0), poses.positions.max(axis=0)
    for _ in range(MAX_DRAWS):
        positions = generator.uniform(lowest, highest)
        if np.linalg.norm(positions[0, :2] - positions[1, :2]) >= bridge.min_separation_m:
            break
    else:
        raise SimulatorError(f"{bridge.environment}: no room for both objects in {MAX_DRAWS} draws")
    quaternions = poses.quaternions[generator.choice(bridge.base_orientations)].copy()
    quaternions[0] = turned_about_z(quaternions[0], generator.uniform(*bridge.yaw_range_rad))
    return positions, quaternions
