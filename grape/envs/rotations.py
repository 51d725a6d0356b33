"""Rotations, in numpy alone. Angles in rad; matrices act on column vectors; quaternions are xyzw unless said."""

from __future__ import annotations

import numpy as np


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector, rad, of a unit quaternion xyzw; the angle is in [0, 2π], as in OpenVLA's data."""
    cosine = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - cosine * cosine)
    if sine < 1e-8:
        return np.zeros(3)
    return quaternion[:3] * (2.0 * np.arccos(cosine) / sine)


def matrix_from_static_xyz(angles: np.ndarray) -> np.ndarray:
    """(3, 3) matrix of roll, pitch, yaw about *fixed* x, y, z in this order: ``sxyz``, as in Bridge's data."""
    roll, pitch, yaw = np.asarray(angles, dtype=np.float64)
    return _about(2, yaw) @ _about(1, pitch) @ _about(0, roll)


def matrix_from_rotating_xyz(angles: np.ndarray) -> np.ndarray:
    """(3, 3) matrix of angles about the *moving* x, y, z in this order: Euler ``XYZ``, what ManiSkill 3 reads."""
    first, second, third = np.asarray(angles, dtype=np.float64)
    return _about(0, first) @ _about(1, second) @ _about(2, third)


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) matrix of a unit quaternion xyzw."""
    x, y, z, w = np.asarray(quaternion, dtype=np.float64)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotating_xyz_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """(3,) angles, rad, that ``matrix_from_rotating_xyz`` turns into this matrix; the second in [-π/2, π/2].

    At ±π/2 the other two turn about the same axis; the third is then 0.
    """
    cosine = np.hypot(matrix[0, 0], matrix[0, 1])
    second = np.arctan2(matrix[0, 2], cosine)
    if cosine < 1e-9:
        return np.array([np.arctan2(matrix[2, 1], matrix[1, 1]), second, 0.0])
    return np.array(
        [np.arctan2(-matrix[1, 2], matrix[2, 2]), second, np.arctan2(-matrix[0, 1], matrix[0, 0])], dtype=np.float64
    )


def quaternion_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """(4,) unit quaternion xyzw with w >= 0."""
    # The eigenvector of this symmetric matrix's largest eigenvalue is the quaternion (Bar-Itzhack 2000); no branches.
    xx, xy, xz, yx, yy, yz, zx, zy, zz = np.asarray(matrix, dtype=np.float64).ravel()
    symmetric = np.array(
        [
            [xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, yy - xx - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    quaternion = np.linalg.eigh(symmetric)[1][:, -1]
    return quaternion if quaternion[3] >= 0.0 else -quaternion


def turned_about_z(quaternion_wxyz: np.ndarray, angle: float) -> np.ndarray:
    """(4,) wxyz: the orientation after a turn by ``angle``, rad, about the world's vertical."""
    cosine, sine = np.cos(angle / 2.0), np.sin(angle / 2.0)
    w, x, y, z = np.asarray(quaternion_wxyz, dtype=np.float64)
    return np.array([cosine * w - sine * z, cosine * x - sine * y, cosine * y + sine * x, cosine * z + sine * w])


def _about(axis: int, angle: float) -> np.ndarray:
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -np.sin(angle)
    return matrix
