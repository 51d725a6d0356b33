"""From what a Bridge policy says to what a controller reads.

The policy's rotation is three Euler deltas about fixed axes (roll, pitch, yaw; ``sxyz``). The original SIMPLER's
controller reads an axis-angle vector, ManiSkill 3's Euler angles about moving axes (``XYZ``). Both go through the
matrix, so that both end in the same orientation; passing the deltas on as they are would be off by their product.
"""

from __future__ import annotations

import numpy as np

from grape.envs.rotations import (
    axis_angle,
    matrix_from_static_xyz,
    quaternion_from_matrix,
    rotating_xyz_from_matrix,
)
from grape.errors import SimulatorError
from grape.trajectory import ACTION_DIM

OPEN_THRESHOLD = 0.5
"""Policies give the gripper in [0, 1] with 1 for open."""


def to_maniskill(policy_action: np.ndarray) -> np.ndarray:
    """(7,) float32 for ManiSkill 3: position delta (m, robot's base frame), Euler ``XYZ`` (rad), gripper +1 open.

    Args:
        policy_action: (7,) unnormalised: position delta (m), roll, pitch, yaw (rad, fixed axes), gripper in [0, 1].

    Raises:
        SimulatorError: Not 7 finite numbers.
    """
    position, matrix, gripper = _parts(policy_action)
    return np.concatenate([position, rotating_xyz_from_matrix(matrix), gripper]).astype(np.float32)


def to_original_simpler(policy_action: np.ndarray) -> np.ndarray:
    """(7,) float32 for the original SIMPLER: as ``to_maniskill``, but with the rotation as axis-angle (rad)."""
    position, matrix, gripper = _parts(policy_action)
    return np.concatenate([position, axis_angle(quaternion_from_matrix(matrix)), gripper]).astype(np.float32)


def to_google_robot(policy_action: np.ndarray) -> np.ndarray:
    """(7,) float32 for the original SIMPLER's Google Robot: as ``to_original_simpler``, but with the gripper as it is,
    an opening in [0, 1]: its relative command depends on earlier ones (``grape.envs.simpler_env.gripper``)."""
    action = to_original_simpler(policy_action)
    action[6] = policy_action[6]
    return action


def policy_gripper(maniskill_gripper: float) -> float:
    """ManiSkill's −1 (closed) to +1 (open) as the policy's 0 (closed) to 1 (open)."""
    return (1.0 + maniskill_gripper) / 2.0


def _parts(policy_action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = np.asarray(policy_action, dtype=np.float64)
    if values.shape != (ACTION_DIM,) or not np.isfinite(values).all():
        raise SimulatorError(f"got action {policy_action!r}, wanted {ACTION_DIM} finite numbers")
    gripper = np.array([1.0 if values[6] > OPEN_THRESHOLD else -1.0])
    return values[:3], matrix_from_static_xyz(values[3:6]), gripper
