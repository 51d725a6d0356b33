"""The original SIMPLER (``simpler_env``, SAPIEN 2) in an interpreter of its own, behind the protocol of ``Env``."""

from __future__ import annotations

from grape.envs.simpler_env.env import OriginalSimplerEnv, check_settings
from grape.envs.simpler_env.interpreter import interpreter_versions, require_python
from grape.envs.simpler_env.tasks import BRIDGE_SUITE, GOOGLE_SUITE, simpler_env_task, task_names

LIBRARIES = ("simpler_env", "mani_skill2_real2sim", "sapien")
"""What is recorded of the other interpreter with each run; the episodes have more."""

__all__ = [
    "BRIDGE_SUITE",
    "GOOGLE_SUITE",
    "LIBRARIES",
    "OriginalSimplerEnv",
    "installed_simpler_env",
    "make_original_simpler_env",
    "simpler_env_task",
    "task_names",
]


def make_original_simpler_env(
    suite: str,
    task_id: int,
    *,
    render_profile: str = "faithful",
    camera_size: int | None = None,
    max_steps: int | None = None,
    python: str | None = None,
) -> OriginalSimplerEnv:
    """Start a simulation of one task.

    Args:
        suite: ``BRIDGE_SUITE`` or ``GOOGLE_SUITE``.
        task_id: Position in the suite, from 0.
        render_profile: Only ``"faithful"``.
        camera_size: Height of the picture, pixels; only the published one: 480 for the WidowX, 512 for the Google
            Robot. ``None`` takes it.
        max_steps: Step limit to record instead of the published one.
        python: The interpreter that has ``simpler_env``.

    Raises:
        ConfigError: Unknown suite, task or setting, or no interpreter is named.
        MissingDependencyError: The interpreter cannot be run or lacks a package; the message has the install commands.
        SimulatorError: The simulation cannot be built, for instance without a GPU.
    """
    task = simpler_env_task(suite, task_id).with_max_steps(max_steps)
    check_settings(suite, render_profile, camera_size)
    chosen = require_python(python, suite)
    interpreter_versions(chosen)
    return OriginalSimplerEnv(task, chosen)


def installed_simpler_env(suite: str, python: str | None) -> dict[str, str]:
    """Versions of the libraries in the named interpreter, as they are recorded with a run.

    Raises:
        ConfigError: None is named.
        MissingDependencyError: It cannot be run, or lacks a package; the message has the install commands.
    """
    versions = interpreter_versions(require_python(python, suite))
    return {name: versions[name] for name in LIBRARIES if name in versions}
