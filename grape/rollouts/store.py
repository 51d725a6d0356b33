"""A run folder: one file per finished episode, each appearing whole or not at all.

Layout: ``run.json`` (settings and versions), ``episodes/<episode_id>.npz`` (trajectories) or
``episodes/<episode_id>.json`` (outcomes alone), ``videos/``, ``.lock``.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from grape.config.inputs import INPUTS_BEFORE
from grape.errors import RecordError
from grape.files import write_bytes_atomic
from grape.trajectory import (
    EpisodeInfo,
    Trajectory,
    load_info,
    load_trajectory,
    save_trajectory,
)

RUN_FORMAT_VERSION = 1
Keep = Literal["trajectory", "outcome"]
SETTINGS_BEFORE: dict[str, Any] = {"consecutive_successes": 1, **INPUTS_BEFORE}
"""Settings that earlier runs did not name, and what they were then: so that they can still be resumed and compared."""


class RolloutStore:
    """Read access to the episodes of a run folder; ``RunWriter`` adds to it."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = Path(run_dir)
        self.episodes_dir = self.run_dir / "episodes"
        if not (self.run_dir / "run.json").is_file():
            raise RecordError(
                f"{self.run_dir} holds no run: there is no run.json; name a folder made by `grape collect`"
            )
        _read_run(self.run_dir)

    @property
    def run(self) -> dict[str, Any]:
        """Content of run.json: ``settings``, ``details`` and ``versions``."""
        return _read_run(self.run_dir)

    def episode_ids(self) -> list[str]:
        """Names of all stored episodes, sorted."""
        return sorted(path.stem for path in self._paths())

    def has(self, episode_id: str) -> bool:
        return self._find(episode_id) is not None

    def infos(self) -> Iterator[EpisodeInfo]:
        """Headers of all stored episodes, in order of their ids; pictures are not read."""
        for path in sorted(self._paths()):
            yield read_info(path)

    def info(self, episode_id: str) -> EpisodeInfo:
        return read_info(self._require(episode_id))

    def load(self, episode_id: str) -> Trajectory:
        """Read one episode.

        Raises:
            RecordError: It is missing, damaged, or was stored without its steps.
        """
        path = self._require(episode_id)
        if path.suffix == ".json":
            raise RecordError(
                f"{path} holds the outcome alone; collect the episode with `grape collect` to have its steps"
            )
        return load_trajectory(path)

    def _paths(self) -> list[Path]:
        if not self.episodes_dir.is_dir():
            return []
        return [
            path
            for path in self.episodes_dir.iterdir()
            if path.suffix in (".npz", ".json") and not path.name.startswith(".")
        ]

    def _find(self, episode_id: str) -> Path | None:
        for suffix in (".npz", ".json"):
            path = self.episodes_dir / f"{episode_id}{suffix}"
            if path.is_file():
                return path
        return None

    def _require(self, episode_id: str) -> Path:
        path = self._find(episode_id)
        if path is None:
            raise RecordError(f"{self.run_dir} has no episode {episode_id!r}; it has {len(self._paths())} others")
        return path


class RunWriter(RolloutStore):
    """A run folder opened for adding episodes, locked against every other process.

    Use it as a context manager. ``settings`` are what changes results: resuming under others is refused.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        settings: Mapping[str, Any],
        details: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        keep: Keep = "trajectory",
        resume: bool = False,
    ) -> None:
        """Create the folder, or reopen it with ``resume``.

        Args:
            run_dir: Folder of the run.
            settings: JSON values that change results; compared on resume.
            details: Further JSON values worth keeping (paths, worker count); not compared.
            versions: Versions of the libraries; a change on resume is refused, as it may change results.
            keep: Whole trajectories, or their outcomes alone.
            resume: Continue a run that is there; on an empty folder it simply starts.

        Raises:
            RecordError: The folder is in use, already holds a run, or holds one with other or unknown settings.
        """
        self.run_dir = Path(run_dir)
        self.episodes_dir = self.run_dir / "episodes"
        self.keep = keep
        try:
            self.episodes_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"cannot create {self.episodes_dir} ({error}); choose another run folder") from error
        self._lock = _lock_folder(self.run_dir)
        try:
            wanted = _as_json({"settings": settings, "versions": versions or {}, "keep": keep})
            if (self.run_dir / "run.json").exists():
                _check_resumable(self.run_dir, _read_run(self.run_dir), wanted, resume=resume)
            elif self._paths():
                raise RecordError(
                    f"{self.run_dir} holds episodes but no run.json, so nothing says with which settings they were "
                    "made; bring it back, or choose another folder"
                )
            else:
                content = {"format_version": RUN_FORMAT_VERSION, **wanted, "details": _as_json(details or {})}
                _write(self.run_dir / "run.json", json.dumps(content, indent=2).encode())
            self._remove_leftovers()
        except BaseException:
            self.close()
            raise

    def save(self, trajectory: Trajectory) -> None:
        """Store one finished episode durably; an earlier crashed attempt at it is replaced.

        Raises:
            RecordError: It could not be written, e.g. because the disk is full; no partial file is left.
        """
        episode_id = trajectory.info.episode_id
        try:
            if self.keep == "trajectory":
                save_trajectory(self.episodes_dir / f"{episode_id}.npz", trajectory)
            else:
                content = json.dumps(dataclasses.asdict(trajectory.info)).encode()
                write_bytes_atomic(self.episodes_dir / f"{episode_id}.json", content)
        except RecordError as error:
            raise _write_error(error) from error

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove_leftovers(self) -> None:
        """Delete what a killed process left half-written; the lock says that nobody else is writing."""
        for folder in (self.run_dir, self.episodes_dir, self.run_dir / "videos"):
            for path in folder.glob(".*.tmp*"):
                path.unlink(missing_ok=True)


def _lock_folder(run_dir: Path) -> IO[str]:
    lock = open(run_dir / ".lock", "a+")  # noqa: SIM115 - held open until close()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise RecordError(
            f"{run_dir} is in use by another run ({holder or 'unknown process'}); wait for it or choose another folder"
        ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {os.uname().nodename}")
    lock.flush()
    return lock


def _check_resumable(run_dir: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], *, resume: bool) -> None:
    if not resume:
        raise RecordError(f"{run_dir} already holds a run; continue it with --resume, or choose another folder")
    for group in ("settings", "versions"):
        for name in sorted(stored[group].keys() | wanted[group].keys()):
            default = SETTINGS_BEFORE.get(name)
            old, new = stored[group].get(name, default), wanted[group].get(name, default)
            if old != new:
                raise RecordError(
                    f"{run_dir} was started with {name} = {old!r}, now it is {new!r}; "
                    "resume with the first, or choose another folder for the second"
                )
    if stored.get("keep") != wanted["keep"]:
        raise RecordError(f"{run_dir} keeps each episode's {stored.get('keep')}, not its {wanted['keep']}")


def _read_run(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "run.json"
    try:
        content = json.loads(path.read_text())
        version = content["format_version"]
        if version == RUN_FORMAT_VERSION and not all(
            isinstance(content[name], dict) for name in ("settings", "versions")
        ):
            raise TypeError("settings and versions must be objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} cannot be read ({error}); it was not written by this toolkit") from error
    if version != RUN_FORMAT_VERSION:
        raise RecordError(f"{path} has format version {version}, this release reads {RUN_FORMAT_VERSION}")
    return content


def read_info(path: Path) -> EpisodeInfo:
    """Header of one episode file of a run folder.

    Raises:
        RecordError: It is missing or damaged, or holds another episode than its name says.
    """
    info = load_info(path) if path.suffix == ".npz" else _read_outcome(path)
    if info.episode_id != path.stem:
        raise RecordError(
            f"{path} holds the episode {info.episode_id}: it was copied or renamed; give it that name, or remove it"
        )
    return info


def _read_outcome(path: Path) -> EpisodeInfo:
    try:
        header = json.loads(path.read_text())
        header["keypoint_names"] = tuple(header["keypoint_names"])
        header["goal_predicates"] = tuple(tuple(predicate) for predicate in header["goal_predicates"])
        return EpisodeInfo(**header)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is not a whole outcome file ({error}); delete it and use --resume") from error


def _write(path: Path, data: bytes) -> None:
    try:
        write_bytes_atomic(path, data)
    except RecordError as error:
        raise _write_error(error) from error


def _write_error(error: RecordError) -> RecordError:
    return RecordError(
        f"{error}; all earlier episodes are safe and no partial file was left: then continue with --resume"
    )


def _as_json(value: Any) -> Any:
    """Round trip through JSON, so that what is compared on resume is what was stored (tuples become lists)."""
    return json.loads(json.dumps(value))
