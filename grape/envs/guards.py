"""What every simulator refuses, in the same words."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from grape.envs.protocol import ACTION_DIM, InitStateId
from grape.errors import SimulatorError


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
