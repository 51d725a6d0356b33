"""Training checkpoints that are whole or absent, and the lock that keeps one run per folder.

A checkpoint is a folder ``step-00000042`` with ``state.pt`` (whatever the trainer needs to go on), files that
the trainer exports beside it (for example a peft adapter) and ``manifest.json`` with the SHA-256 of each.
The folder is written under a temporary name and renamed when everything is on the disk, so a process that is
killed at any moment leaves the last good checkpoint as it was.

    store = CheckpointStore(run_dir / "checkpoints", keep_last=2)
    with lock_run_dir(run_dir):
        latest = store.load_latest()                       # None for a fresh run
        store.save(step, {"model": ..., "optimizer": ...}, export=lambda folder: policy.save_adapter(folder))
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape.errors import CheckpointError, ConfigError, TrainingError
from grape.files import hold_lock, replace_folder
from grape.models.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, STATISTICS_FILE, TRAINING_FILE

FORMAT_VERSION = 1
_LOG = logging.getLogger(__name__)
_PREFIX = "step-"
_MANIFEST = "manifest.json"
_STATE = "state.pt"
_ADAPTER_FILES = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINING_FILE, STATISTICS_FILE, "README.md"}
_TORCH_CANNOT_WRITE = ("inline_container.cc", "iostream error")
"""What torch 2.13 says where the room for a file runs out; the second where only its last 2 KB do not fit."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint that was read back."""

    step: int
    """Optimiser steps done when it was written."""
    directory: Path
    state: dict[str, Any]
    """What ``save`` was given: tensors on the CPU and plain Python values."""


class CheckpointStore:
    """The checkpoints of one run folder."""

    def __init__(self, directory: Path, *, keep_last: int = 2) -> None:
        """Args: ``directory`` is created on the first save; ``keep_last`` newest checkpoints are kept (at least 1)."""
        self.directory = directory
        self.keep_last = max(1, keep_last)

    def steps(self) -> list[int]:
        """Steps of all checkpoints in the folder, ascending, without verifying them."""
        names = [path.name for path in self.directory.glob(f"{_PREFIX}*") if path.is_dir()]
        return sorted(int(name.removeprefix(_PREFIX)) for name in names if name.removeprefix(_PREFIX).isdigit())

    def save(self, step: int, state: Mapping[str, Any], *, export: Callable[[Path], None] | None = None) -> Path:
        """Write a checkpoint atomically, then drop the oldest ones.

        Args:
            step: Optimiser steps done.
            state: Nested dicts, lists and tuples of tensors and plain values (read back with ``weights_only``).
            export: Writes further files into the checkpoint's folder, e.g. the adapter in peft's format.

        Raises:
            TrainingError: The disk is full or not writable; the checkpoints that existed are untouched.
        """
        target = self.directory / f"{_PREFIX}{step:08d}"
        temporary = self.directory / f".tmp-{target.name}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._drop_leftovers()
            temporary.mkdir()
            _save_state(state, temporary / _STATE)
            if export is not None:
                export(temporary)
            _write_manifest(temporary, step)
            replace_folder(temporary, target)
        except _write_errors() as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._cannot_save(step, error) from error
        for old in self.steps()[: -self.keep_last]:
            shutil.rmtree(self.directory / f"{_PREFIX}{old:08d}", ignore_errors=True)
        return target

    def load_latest(self) -> Checkpoint | None:
        """Read the newest checkpoint whose files match its manifest; damaged ones are passed over and named.

        Returns:
            The checkpoint, or ``None`` where the folder holds none.

        Raises:
            CheckpointError: There are checkpoints, but every one is damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            directory = self.directory / f"{_PREFIX}{step:08d}"
            try:
                return _read(directory, step)
            except CheckpointError as error:
                _LOG.warning("Checkpoint of step %d is damaged and is passed over: %s", step, error)
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {self.directory} are damaged; delete the folder to start again"
            )
        return None

    def _drop_leftovers(self) -> None:
        for leftover in self.directory.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _cannot_save(self, step: int, error: Exception) -> TrainingError:
        code = getattr(error, "errno", None)
        full = code in (errno.ENOSPC, errno.EDQUOT) or shutil.disk_usage(_existing(self.directory)).free < 1 << 20
        why = "the disk is full" if full else f"{type(error).__name__}: {error}"
        kept = self.steps()
        good = f"the last good checkpoint, step {kept[-1]}, is untouched" if kept else "there is no earlier checkpoint"
        return TrainingError(
            f"cannot write the checkpoint of step {step} into {self.directory} ({why}); {good}. "
            "Make room and continue with --resume True"
        )


def lock_run_dir(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a run folder for this process.

    Raises:
        TrainingError: Another process is training into the same folder, or it cannot be written.
    """
    return hold_lock(directory / ".lock", TrainingError, advice="choose another --run_root_dir")


def refuse_foreign_content(directory: Path) -> None:
    """Refuse to let an adapter take the place of anything but an earlier adapter.

    Raises:
        ConfigError: ``directory`` is a file, or a folder that holds something else.
    """
    if not directory.exists():
        return
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else {directory.name}
    foreign = sorted(names - _ADAPTER_FILES if ADAPTER_CONFIG in names else names)
    if foreign:
        raise ConfigError(
            f"{directory} would be replaced by the adapter, but it holds something else ({', '.join(foreign[:3])}); "
            "move that away, or choose another --run_name"
        )


def write_directory(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put it in the place of ``target``.

    Runs that write the same ``target`` wait for each other, so the working folder that one finds was left by a killed
    run. It is ``.tmp-<name>`` beside ``target``, with the lock file ``.lock-<name>``, which stays.

    Raises:
        TrainingError: The disk is full or not writable; what was at ``target`` is untouched.
    """
    temporary = target.with_name(f".tmp-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_name(f".lock-{target.name}"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                write(temporary)
                replace_folder(temporary, target)
            finally:  # before the lock is given up: after it the folder is another run's
                shutil.rmtree(temporary, ignore_errors=True)
    except _write_errors() as error:
        raise TrainingError(f"cannot write {target} ({error}); make room and continue with --resume True") from error


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    """``torch.save``, where a file that cannot be written is an ``OSError``.

    torch raises a RuntimeError for it, as for much else (no memory, say), which is not to be taken for a full disk.
    """
    import torch

    try:
        torch.save(dict(state), path)
    except RuntimeError as error:
        if not any(mark in str(error) for mark in _TORCH_CANNOT_WRITE):
            raise
        raise OSError(f"torch could not write {path.name}: {error}") from error


def _write_errors() -> tuple[type[Exception], ...]:
    """What a full disk looks like: safetensors wraps the system's error in its own."""
    from safetensors import SafetensorError

    return OSError, SafetensorError


def _read(directory: Path, step: int) -> Checkpoint:
    import torch

    try:
        manifest = json.loads((directory / _MANIFEST).read_text())
        version, digests = manifest["format_version"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / _MANIFEST} is not readable ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{directory} has format version {version}, this release reads {FORMAT_VERSION}")
    for name, digest in digests.items():
        try:
            if _sha256(directory / name) != digest:
                raise CheckpointError(f"{directory / name} differs from what was written")
        except OSError as error:
            raise CheckpointError(f"{directory / name} is not readable ({error})") from error
    state = torch.load(directory / _STATE, map_location="cpu", weights_only=True)
    return Checkpoint(step=step, directory=directory, state=state)


def _write_manifest(directory: Path, step: int) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    digests = {str(path.relative_to(directory)): _sha256(path) for path in files}
    manifest = {"format_version": FORMAT_VERSION, "step": step, "sha256": digests}
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
