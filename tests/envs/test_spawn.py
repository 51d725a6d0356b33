"""A function in a process of its own: what it returns, raises, and how it dies."""

from __future__ import annotations

import os
import signal

import pytest

from grape.envs import spawn
from grape.errors import ConfigError, SimulatorError


def process_and_threads(word: str) -> tuple[str, int, str]:
    return word, os.getpid(), os.environ["OMP_NUM_THREADS"]


def refuse(word: str) -> None:
    raise ConfigError(f"not {word}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_it_runs_elsewhere_with_one_thread(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    word, process_id, threads = spawn.call(process_and_threads, "here")
    assert (word, threads) == ("here", "1") and process_id != os.getpid()
    assert "OMP_NUM_THREADS" not in os.environ


def test_errors_and_deaths_reach_the_caller():
    with pytest.raises(ConfigError, match="not this"):
        spawn.call(refuse, "this")
    with pytest.raises(SimulatorError, match="process of die died .killed by SIGSEGV"):
        spawn.call(die)
