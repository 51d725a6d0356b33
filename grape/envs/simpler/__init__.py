"""SIMPLER's WidowX bridge tasks on ManiSkill 3, behind the protocol of ``grape.envs.protocol``."""

from __future__ import annotations

from grape.envs.simpler.assets import asset_root, check_assets
from grape.envs.simpler.download import download_assets
from grape.envs.simpler.env import SimplerEnv
from grape.envs.simpler.suites import SIMPLER_SUITES, VARIED_SUITE, bridge_task, simpler_task, task_names

__all__ = [
    "SIMPLER_SUITES",
    "VARIED_SUITE",
    "SimplerEnv",
    "download_assets",
    "make_simpler_env",
    "require_assets",
    "simpler_task",
    "task_names",
]


def make_simpler_env(
    suite: str,
    task_id: int,
    *,
    render_profile: str = "faithful",
    camera_size: int = 480,
    max_steps: int | None = None,
) -> SimplerEnv:
    """Start a simulation of one task on the CPU.

    Args:
        suite: A key of ``SIMPLER_SUITES``.
        task_id: Position in the suite, from 0.
        render_profile: Only ``"faithful"``: there is nothing to save that would not change the picture.
        camera_size: Height of the picture, pixels; its width is 4/3 of it. SIMPLER's is 480.
        max_steps: Step limit to record instead of the published one.

    Raises:
        ConfigError: Unknown suite, task or profile, or a size that cannot be.
        MissingDependencyError: ManiSkill or the assets are not installed.
        SimulatorError: The simulation cannot be built, for instance without a Vulkan driver.
    """
    task = simpler_task(suite, task_id).with_max_steps(max_steps)
    return SimplerEnv(task, render_profile=render_profile, camera_size=camera_size)


def require_assets(suite: str, task_id: int) -> None:
    """Refuse a task whose assets are not on this machine.

    Raises:
        ConfigError: Unknown suite or task.
        MissingDependencyError: Files are missing; the message names the first ones and the download.
    """
    check_assets(asset_root(), bridge_task(suite, task_id))
