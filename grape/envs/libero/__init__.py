"""LIBERO and LIBERO-PRO behind the protocol of ``grape.envs.protocol``."""

from __future__ import annotations

from grape.envs.libero.env import LiberoEnv
from grape.envs.libero.rendering import RenderProfile
from grape.envs.libero.tasks import LIBERO_SUITES, libero_task, task_names

__all__ = [
    "LIBERO_SUITES",
    "LiberoEnv",
    "libero_task",
    "make_libero_env",
    "task_names",
]


def make_libero_env(
    suite: str,
    task_id: int,
    *,
    render_profile: RenderProfile = "faithful",
    camera_size: int = 256,
    max_steps: int | None = None,
) -> LiberoEnv:
    """Start a simulation of one task.

    Args:
        suite: A key of ``LIBERO_SUITES``.
        task_id: Position in the suite, from 0.
        render_profile: ``"faithful"``, or ``"fast"`` without multisampling and reflections.
        camera_size: Height and width of the picture, pixels.
        max_steps: Step limit to record instead of the suite's own.

    Raises:
        ConfigError: Unknown suite, task, profile or size.
        MissingDependencyError: LIBERO is not installed.
        SimulatorError: The simulation cannot be built.
    """
    task = libero_task(suite, task_id).with_max_steps(max_steps)
    return LiberoEnv(task, render_profile=render_profile, camera_size=camera_size)
