"""A function in a process of its own: what it returns, raises, and how it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from grape.envs import spawn
from grape.errors import ConfigError, SimulatorError

CALLER = """
import os, time
from grape.envs import spawn
def sleep():
    print(os.getpid(), flush=True)
    time.sleep(200)
if __name__ == "__main__":
    spawn.call(sleep)
"""
FIRST_START = """
import multiprocessing, signal
from multiprocessing import resource_tracker
from grape.envs import spawn
def blocked():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
class Process:
    def start(self):
        resource_tracker.ensure_running()  # as the start of a spawned process does
        print(blocked())
spawn.start(Process())
print(blocked())
"""


def process_and_threads(word: str) -> tuple[str, int, str]:
    return word, os.getpid(), os.environ["OMP_NUM_THREADS"]


def refuse(word: str) -> None:
    raise ConfigError(f"not {word}")


def mistake() -> None:
    raise KeyError("absent")


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
    with pytest.raises(SimulatorError, match="process of die died"):
        spawn.call(die)


def test_a_mistake_keeps_its_traceback():
    with pytest.raises(KeyError) as caught:
        spawn.call(mistake)
    assert "in mistake" in str(caught.value.__cause__)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_caller(number, tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert int(process.stdout.readline()) != process.pid
    process.send_signal(number)
    # Returns when the last process that holds the pipes has ended; the called one would sleep for 200 s.
    process.communicate(timeout=60)
    assert process.returncode != 0


def test_the_first_process_starts_with_ctrl_c_held_back():
    # In a fresh process, where multiprocessing's resource tracker does not run yet: its start lifts a mask.
    done = subprocess.run([sys.executable, "-c", FIRST_START], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "False"]
