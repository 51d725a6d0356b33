"""Running stages so that they can be stopped at any moment and continued.

A run folder holds ``demo.json`` (what the run is) and ``stages/<name>.json`` (one per stage: its commands, when it
started, how long it took, with what code and device). A stage whose record says ``done`` is not run again.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from grape.errors import ConfigError, GrapeError, RecordError
from grape.files import hold_lock, write_json

RunCommand = Callable[[str, Sequence[str]], int]
"""Runs ``grape NAME ARGV…`` and returns its exit code."""
Command = tuple[str, ...]
"""Name of a ``grape`` command and its arguments."""
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the pipeline."""

    name: str
    why: str
    """One sentence for the person who watches."""
    commands: Callable[[], Sequence[Command]]
    """Asked for when the stage starts: a command may depend on what earlier stages left."""
    before: Callable[[], None] = lambda: None
    """Runs first, e.g. to remove what an interrupted attempt left."""


class StageFailedError(GrapeError):
    """A stage's command refused or failed; the finished stages are kept."""


def run_stages(
    run_dir: Path, stages: Sequence[Stage], run_command: RunCommand, means: Mapping[str, Any] | None = None
) -> None:
    """Run every stage that is not done yet, in order.

    Args:
        run_dir: Folder of the run.
        stages: What to run.
        run_command: Runs one command.
        means: JSON values that say with what it runs (code, device), kept in the record of each stage that runs.

    Raises:
        StageFailedError: A command returned an error.
        KeyboardInterrupt: A command was interrupted.
    """
    for number, stage in enumerate(stages, start=1):
        record = read_stage(run_dir, stage.name)
        heading = f"[{number}/{len(stages)}] {stage.name}"
        if record.get("status") == "done":
            print(f"{heading}: done in an earlier run ({format_duration(record['duration_s'])})", flush=True)
            continue
        print(f"\n{heading}: {stage.why}", flush=True)
        _run_stage(run_dir, stage, record, run_command, dict(means or {}))
        print(f"{heading}: {format_duration(read_stage(run_dir, stage.name)['duration_s'])}", flush=True)


def _run_stage(
    run_dir: Path, stage: Stage, record: Mapping[str, Any], run_command: RunCommand, means: Mapping[str, Any]
) -> None:
    commands = list(stage.commands())
    spent_before_s = record.get("duration_s", 0.0)
    ran_with = record.get("ran_with", [])
    # Only a kill (or a power cut) leaves "running" behind: when that attempt ended, so how long it took, is unknown.
    killed_attempts = record.get("killed_attempts", 0) + (record.get("status") == "running")
    started_at, start = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()

    def save(status: str) -> None:
        content = {
            "status": status,
            "commands": [command_line(command) for command in commands],
            "started_at": record.get("started_at", started_at),
            "attempts": record.get("attempts", 0) + 1,
            "killed_attempts": killed_attempts,
            "ran_with": ran_with if means in ran_with else [*ran_with, means],
            "duration_s": round(spent_before_s + time.monotonic() - start, 2),
        }
        write_json(_stage_path(run_dir, stage.name), content)

    save("running")
    try:
        stage.before()
        for command in commands:
            print(f"    $ {command_line(command)}", flush=True)
            code = run_command(command[0], command[1:])
            if code == EXIT_INTERRUPTED:
                raise KeyboardInterrupt
            if code:
                raise StageFailedError(
                    f"stage {stage.name} stopped: `{command_line(command)}` ended with exit code {code} (its message "
                    "is above); earlier stages are kept and the same command continues here"
                )
    except BaseException:
        save("stopped")
        raise
    save("done")


def read_stage(run_dir: Path, name: str) -> dict[str, Any]:
    """A stage's record; empty if it never started."""
    path = _stage_path(run_dir, name)
    return json.loads(path.read_text()) if path.is_file() else {}


def distinct_means(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The code, device and workers that stages ran with: one entry, or more where a run was continued with others.

    Args:
        records: Stage name -> its record.

    Returns:
        The different ``means`` in order, each with the names of its ``stages``.
    """
    distinct: list[dict[str, Any]] = []
    for record in records.values():
        distinct += [means for means in record.get("ran_with", []) if means not in distinct]
    return [
        {**means, "stages": [name for name, record in records.items() if means in record.get("ran_with", [])]}
        for means in distinct
    ]


def _stage_path(run_dir: Path, name: str) -> Path:
    return run_dir / "stages" / f"{name}.json"


def command_line(command: Command) -> str:
    """The command as one would type it."""
    return shlex.join(["grape", *command])


def flags_to_arguments(flags: Mapping[str, Any]) -> list[str]:
    """``{"beta": 0.1, "stages": [1, 2]}`` as ``--beta 0.1 --stages 1 2``."""
    arguments: list[str] = []
    for name, value in flags.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        arguments += [f"--{name}", *map(str, values)]
    return arguments


@contextmanager
def open_run(
    run_dir: Path, identity: Mapping[str, Any], remembered: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Lock a run folder, and make sure that it holds this run or none.

    Args:
        run_dir: Folder of the run, made if need be.
        identity: JSON values that decide the result; compared with those that the run started with.
        remembered: Further JSON values that are kept as they were when the run started, and not compared.

    Yields:
        Both, as they were when the run started.

    Raises:
        RecordError: Another process uses the folder, or it cannot be written.
        ConfigError: The folder holds a run with other settings; the first difference is named.
    """
    with hold_lock(run_dir / ".demo.lock", RecordError, advice="pass another --run_dir"):
        path = run_dir / "demo.json"
        wanted, kept = json.loads(json.dumps(identity)), dict(remembered or {})
        if path.is_file():
            started = json.loads(path.read_text())
            difference = first_difference({name: started[name] for name in started if name not in kept}, wanted)
            if difference:
                raise ConfigError(
                    f"{run_dir} holds a run with other settings: {difference}; "
                    "pass another --run_dir, or remove the folder to start again"
                )
        else:
            started = wanted | kept
            write_json(path, started)
        yield started


def first_difference(stored: Any, wanted: Any, where: str = "") -> str:
    """Name the first entry in which two JSON values differ; empty if there is none."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in sorted(stored.keys() | wanted.keys()):
            inner = f"{where}.{name}" if where else name
            if name not in stored or name not in wanted:
                return f"{inner} was {stored.get(name, 'not set')!r}, now it is {wanted.get(name, 'not set')!r}"
            difference = first_difference(stored[name], wanted[name], inner)
            if difference:
                return difference
        return ""
    return "" if stored == wanted else f"{where} was {stored!r}, now it is {wanted!r}"


def format_duration(seconds: float) -> str:
    """Seconds for people: ``42 s``, ``3 min 05 s``, ``1 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def total_time_in_words(wall_time_s: Mapping[str, float], killed_attempts: Mapping[str, int]) -> str:
    """All stages' time together, and whether something is missing in it; both by stage."""
    killed = sum(killed_attempts.values())
    time = format_duration(sum(wall_time_s.values()))
    return f"{time}, not counting {killed} killed {'attempt' if killed == 1 else 'attempts'}" if killed else time
