"""A folder of many files that appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from grape.errors import DatasetError
from grape.files import sync, sync_tree


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Give a working folder beside ``target``; on success fsync it and rename it to ``target``.

    A killed run leaves only the hidden working folder, which the next run into the same ``target`` clears.

    Args:
        target: The folder to create.

    Yields:
        The empty working folder.

    Raises:
        DatasetError: ``target`` exists, another run is writing it, or the disk is full or refuses.
    """
    target = Path(os.path.abspath(target))
    _refuse_existing(target)
    working = target.parent / f".{target.name}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_working_folder(working, target)
    except OSError as error:
        raise DatasetError(f"cannot write beside {target} ({error}); choose another --out") from error
    try:
        yield working
        sync_tree(working)
        _refuse_existing(target)
        os.rename(working, target)
        sync(target.parent)
    except OSError as error:
        raise DatasetError(
            f"writing {target} failed ({error}); {_free_space(target.parent)} free there; make room and run the same "
            "command again (nothing was published)"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            if working.stat().st_ino == os.fstat(lock).st_ino:
                shutil.rmtree(working, ignore_errors=True)
        os.close(lock)


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise DatasetError(f"{target} exists already and is left as it is; choose another --out or remove it first")


def _lock_working_folder(working: Path, target: Path) -> int:
    """Create or take over the working folder; returns the descriptor whose lock keeps others out."""
    while True:
        working.mkdir(exist_ok=True)
        descriptor = os.open(working, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DatasetError(
                f"another run is writing {target} right now; wait for it or choose another --out"
            ) from None
        # The other run may have renamed or removed the folder between open and lock: then try once more.
        if working.exists() and working.stat().st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)
    for entry in working.iterdir():  # what a killed run left
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return descriptor


def _free_space(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB"
