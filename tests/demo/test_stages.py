"""Stages: done ones are not repeated, a stop keeps what is finished, another run is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from grape.demo.stages import (
    Stage,
    StageFailedError,
    distinct_means,
    first_difference,
    flags_to_arguments,
    format_duration,
    open_run,
    read_stage,
    run_stages,
    total_time_in_words,
)
from grape.errors import ConfigError, RecordError


class Commands:
    """Stands where the command line does: notes what was run, and ends as it is told to."""

    def __init__(self, codes: dict[str, int]) -> None:
        self.codes, self.ran = codes, []  # type: ignore[var-annotated]

    def __call__(self, name: str, argv: Sequence[str]) -> int:
        self.ran.append((name, *argv))
        return self.codes.get(name, 0)


def stage(name: str, *commands: tuple[str, ...]) -> Stage:
    return Stage(name=name, why="because.", commands=lambda: commands)


STAGES = [stage("one", ("collect", "--a", "1")), stage("two", ("score",), ("pair",)), stage("three", ("train",))]


def test_a_run_continues_where_it_stopped(tmp_path: Path) -> None:
    stopped = Commands({"pair": 130})
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, STAGES, stopped)
    assert [name for name, *_ in stopped.ran] == ["collect", "score", "pair"]
    assert read_stage(tmp_path, "two")["status"] == "stopped"
    spent_s = read_stage(tmp_path, "two")["duration_s"]

    again = Commands({})
    run_stages(tmp_path, STAGES, again)
    assert [name for name, *_ in again.ran] == ["score", "pair", "train"], (
        "a stopped stage starts over, done ones do not"
    )
    record = read_stage(tmp_path, "two")
    assert (record["status"], record["attempts"]) == ("done", 2)
    assert record["duration_s"] >= spent_s
    assert record["commands"] == ["grape score", "grape pair"]

    idle = Commands({})
    run_stages(tmp_path, STAGES, idle)
    assert idle.ran == []


def test_a_failed_command_names_itself_and_stops_the_run(tmp_path: Path) -> None:
    commands = Commands({"collect": 1})
    with pytest.raises(StageFailedError, match="grape collect --a 1.*exit code 1"):
        run_stages(tmp_path, STAGES, commands)
    assert len(commands.ran) == 1
    assert read_stage(tmp_path, "one")["status"] == "stopped"


KILLED = """
import os, pathlib, signal, sys
from grape.demo.stages import Stage, run_stages
stage = Stage(name="one", why="because.", commands=lambda: [("collect",)])
run_stages(pathlib.Path(sys.argv[1]), [stage], lambda name, argv: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_attempt_is_counted_because_its_time_is_lost(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, stdout=subprocess.DEVNULL)
        assert done.returncode == -signal.SIGKILL
    run_stages(tmp_path, STAGES, Commands({}))
    record = read_stage(tmp_path, "one")
    assert (record["attempts"], record["killed_attempts"]) == (3, 2)
    assert read_stage(tmp_path, "two")["killed_attempts"] == 0


def test_time_in_words_says_what_it_lacks() -> None:
    assert total_time_in_words({"one": 50.0, "two": 20.0}, {"one": 0, "two": 0}) == "1 min 10 s"
    assert total_time_in_words({"one": 50.0}, {"one": 1}) == "50 s, not counting 1 killed attempt"
    assert total_time_in_words({"one": 50.0}, {"one": 2}) == "50 s, not counting 2 killed attempts"


def test_a_stage_continued_with_other_code_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, STAGES, Commands({"pair": 130}), {"code_commit": "a"})
    run_stages(tmp_path, STAGES, Commands({}), {"code_commit": "b"})
    assert distinct_means({name: read_stage(tmp_path, name) for name in ("one", "two", "three")}) == [
        {"code_commit": "a", "stages": ["one", "two"]},
        {"code_commit": "b", "stages": ["two", "three"]},
    ]


def test_leftovers_of_a_stopped_attempt_are_removed_first(tmp_path: Path) -> None:
    leftover = tmp_path / "pairs"
    leftover.write_text("half")
    clean = Stage(name="pair", why="because.", commands=lambda: [("pair",)], before=leftover.unlink)
    run_stages(tmp_path, [clean], Commands({}))
    assert not leftover.exists()


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    with open_run(tmp_path, {"plan": {"train": {"beta": 0.1}}}):
        pass
    with open_run(tmp_path, {"plan": {"train": {"beta": 0.1}}}):
        pass
    with (
        pytest.raises(ConfigError, match=r"plan\.train\.beta was 0\.1, now it is 0\.2"),
        open_run(tmp_path, {"plan": {"train": {"beta": 0.2}}}),
    ):
        pass


def test_what_decides_nothing_is_kept_as_it_was(tmp_path: Path) -> None:
    with open_run(tmp_path, {"plan": 1}, {"plan_commit": "a"}) as started:
        assert started == {"plan": 1, "plan_commit": "a"}
    with open_run(tmp_path, {"plan": 1}, {"plan_commit": "b"}) as started:
        assert started == {"plan": 1, "plan_commit": "a"}


@pytest.mark.parametrize("name", ["a_file", "a_file/run"])
def test_a_folder_that_cannot_be_written_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with (
        pytest.raises(RecordError, match=f"cannot write into {tmp_path / name} .*; pass another --run_dir"),
        open_run(tmp_path / name, {}),
    ):
        pass


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with open_run(tmp_path, {}), pytest.raises(RecordError, match="another run"), open_run(tmp_path, {}):
        pass


def test_first_difference() -> None:
    assert first_difference({"a": [1, 2]}, {"a": [1, 2]}) == ""
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b was 'not set', now it is 2"


def test_flags() -> None:
    flags = {"task_ids": (0, 3), "resume": True, "top_p": None, "guided_cost.lambda_ext": 0.5}
    assert flags_to_arguments(flags) == [
        "--task_ids", "0", "3", "--resume", "True", "--top_p", "None", "--guided_cost.lambda_ext", "0.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7380, "2 h 03 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
