"""What every simulator refuses, in the same words."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from grape.envs.protocol import InitStateId
from grape.errors import ConfigError, SimulatorError, did_you_mean
from grape.trajectory import ACTION_DIM

T = TypeVar("T")


def find_task(suites: Mapping[str, Sequence[T]], suite: str, task_id: int) -> T:
    """One task of a simulator's suites.

    Raises:
        ConfigError: The suite or the task does not exist.
    """
    if suite not in suites:
        raise ConfigError(f"unknown suite {suite!r}.{did_you_mean(suite, suites)}")
    if not 0 <= task_id < len(suites[suite]):
        raise ConfigError(f"got task {task_id} of {suite}, wanted 0 to {len(suites[suite]) - 1}")
    return suites[suite][task_id]


def require_reset(init_state: InitStateId | None, call: str) -> InitStateId:
    """The initial state of the episode under way.

    Raises:
        SimulatorError: There is none; ``call`` names what was asked for too early.
    """
    if init_state is None:
        raise SimulatorError(f"{call} before reset: call reset(InitStateId('train', 0)) first")
    return init_state


def checked_action(action: Sequence[float] | np.ndarray) -> np.ndarray:
    """(7,) float32, a copy: what is recorded, or repeated by a snapshot, is then exactly what was sent.

    Raises:
        SimulatorError: Not 7 finite numbers.
    """
    values = np.array(action, dtype=np.float32)
    if values.shape != (ACTION_DIM,) or not np.isfinite(values).all():
        raise SimulatorError(f"got action {action!r}, wanted {ACTION_DIM} finite numbers")
    return values


def refuse_tensorflow(simulator: str) -> None:
    """Refuse to render in a process that has loaded TensorFlow: both bring an LLVM, and Mesa's renderer then dies.

    Raises:
        SimulatorError: TensorFlow is loaded.
    """
    if "tensorflow" in sys.modules:
        raise SimulatorError(
            f"TensorFlow is loaded in this process, and {simulator}'s pictures would crash it; render in another "
            "process, as grape.envs.pool.WorkerPool does, or read RLDS data in another one"
        )
