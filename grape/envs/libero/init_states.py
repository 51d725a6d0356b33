"""Initial states: the official ones, read from LIBERO's files, and others sampled from the task's own regions.

Only the split ``official`` reads files. Every other split is sampled by a seed derived from (suite, task, split,
index), so splits are disjoint by construction and state ``train/17`` is the same in every process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grape.envs.libero.package import libero_root
from grape.envs.protocol import InitStateId, TaskSpec
from grape.errors import ConfigError, SimulatorError

OFFICIAL_SEED = 0
"""OpenVLA's evaluation seeds LIBERO with 0 before it loads an official state; it decides where fixtures stand."""


def load_official_states(suite: str, name: str) -> np.ndarray:
    """Read a task's official states, (num_states, 1 + num_positions + num_velocities) float64.

    Raises:
        SimulatorError: The installed LIBERO has no readable file for this task.
    """
    base = libero_root() / "init_files" / suite
    for path in (base / f"{name}.pruned_init.npz", base / f"{name}.pruned_init"):
        if path.is_file():
            return _read_npz(path) if path.suffix == ".npz" else read_torch_archive(path)
    raise SimulatorError(
        f"the installed LIBERO has no official initial states for {suite}/{name}; "
        "use a sampled split such as validation/0"
    )


def official_state(states: np.ndarray, task: TaskSpec, index: int) -> np.ndarray:
    """Pick one official state.

    Raises:
        ConfigError: There are fewer.
    """
    if index >= len(states):
        raise ConfigError(
            f"got official/{index} of {task.suite}/{task.task_id}, wanted official/0 to {len(states) - 1}"
        )
    return states[index]


def sampling_seed(task: TaskSpec, init_state: InitStateId, attempt: int) -> np.ndarray:
    """Eight 32-bit words for ``numpy.random.seed``, different for every (suite, task, split, index, attempt)."""
    text = f"{task.suite}/{task.task_id}/{init_state.split}/{init_state.index}/{attempt}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")


@contextlib.contextmanager
def numpy_seed(seed: int | np.ndarray) -> Iterator[None]:
    """Seed numpy's global generator, which LIBERO's samplers draw from, and put the caller's state back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _read_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive["states"], dtype=np.float64)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SimulatorError(f"cannot read the initial states in {path} ({error}); reinstall LIBERO") from error


def read_torch_archive(path: Path) -> np.ndarray:
    """Read a numpy array that ``torch.save`` wrote, without torch and without running code from the file.

    The original repository stores its states so; ``torch.load`` refuses them since 2.6, whose default trusts tensors
    only. An array is pickled whole into the archive's ``data.pkl``, so numpy's own constructors are all it takes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            states = _ArrayUnpickler(io.BytesIO(archive.read(member))).load()
    except (OSError, StopIteration, EOFError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise SimulatorError(f"cannot read the initial states in {path} ({error}); download LIBERO again") from error
    return np.asarray(states, dtype=np.float64)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else."""

    _ALLOWED = frozenset(
        {("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numpy", "ndarray"), ("numpy", "dtype")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if module == "_codecs" and name == "encode":  # how protocol 2 writes bytes
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and (module.split(".")[-1], name) in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, wanted a plain numpy array")
