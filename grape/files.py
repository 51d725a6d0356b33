"""Files and folders that appear whole or not at all, also after a power cut, and locks that keep others out."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grape.errors import GrapeError, RecordError

CACHE_VARIABLE = "GRAPE_CACHE"
"""Environment variable with the folder for remembered hashes and answers; default ``~/.cache/grape-vla``."""


def cache_folder() -> Path:
    """Where things are kept that all runs share; it need not exist."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "grape-vla")


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is either absent, old or whole, also after a power cut.

    Raises:
        RecordError: It cannot be written, e.g. because the disk is full or a folder has its name.
    """
    try:
        _replace_atomically(path, data)
    except OSError as error:
        raise RecordError(
            f"{path} could not be written ({error.strerror or error}); free some space, or name another place"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read, as ``write_bytes_atomic`` does.

    Raises:
        RecordError: It cannot be written.
        ValueError: A number in it is not finite.
    """
    write_bytes_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _replace_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # not mkstemp, whose files their owner alone can read: shared folders are read by others, as far as the umask lets
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of ``target``; what was there disappears only then.

    Both are on one file system. A kill in between can leave the old folder as ``.tmp-stale-<name>`` beside ``target``;
    the next call removes it.
    """
    sync_tree(new)
    stale = target.with_name(f".tmp-stale-{target.name}")
    if target.exists():
        shutil.rmtree(stale, ignore_errors=True)
        os.rename(target, stale)
    try:
        os.rename(new, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.rename(stale, target)  # fails where nothing was there
        raise
    shutil.rmtree(stale, ignore_errors=True)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """``sync`` for a folder and all that is in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


@contextlib.contextmanager
def hold_lock(path: Path, kind: type[GrapeError], *, advice: str) -> Iterator[None]:
    """Hold a folder's lock file for this process; the lock goes with the process, however it ends.

    Args:
        path: The lock file; its folder is made if need be.
        kind: Of the error.
        advice: What a user does who wants another folder.

    Raises:
        GrapeError: Of that ``kind``: another process holds it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise kind(f"cannot write into {path.parent} ({error}); {advice}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise kind(f"another run is writing into {path.parent}; wait for it, or {advice}") from error
        yield
