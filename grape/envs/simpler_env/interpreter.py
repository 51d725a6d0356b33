"""Starting the other interpreter, and talking to the simulator in it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from grape.envs.simpler_env.messages import MessageError, read_message, write_message
from grape.errors import ConfigError, MissingDependencyError, SimulatorError

SCRIPT = Path(__file__).with_name("foreign.py")
PROBE = Path(__file__).with_name("probe.py")
INSTALL_HELP = (
    "install the original SIMPLER into an environment of its own and name its interpreter: "
    "conda create -n simpler_env python=3.10; conda activate simpler_env; "
    "git clone --recurse-submodules the GitHub repository simpler-env/SimplerEnv; cd SimplerEnv; "
    'pip install "numpy<2" "gymnasium<1" && pip install -e ./ManiSkill2_real2sim && pip install -e . ; '
    "then pass --simpler_python with what `which python` prints there. SAPIEN 2 needs libvulkan.so.1 (Debian: "
    "libvulkan1) and an NVIDIA GPU"
)
_PROBE_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0


def require_python(python: str | None, suite: str) -> str:
    """The interpreter of a suite that cannot run in this one.

    Raises:
        ConfigError: None is named; the message has the install commands.
    """
    if python is None:
        raise ConfigError(
            f"{suite} is the original SIMPLER, which pins sapien 2.2.2 and an old numpy and runs in an interpreter of "
            f"its own: name it with --simpler_python (grape collect and grape eval have it); or {INSTALL_HELP}"
        )
    return python


def interpreter_versions(python: str) -> dict[str, str]:
    """Versions in the other interpreter, of Python and of what changes pictures or physics.

    Raises:
        MissingDependencyError: It cannot be run, or lacks a package; the message has the install commands.
    """
    try:
        done = subprocess.run([python, "-I", str(PROBE)], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S)
        answer = json.loads(done.stdout)
        missing, versions = answer["missing"], dict(answer["versions"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependencyError(f"simpler_python {python} cannot be run ({error}); {INSTALL_HELP}") from error
    except (ValueError, KeyError, TypeError) as error:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        raise MissingDependencyError(
            f"simpler_python {python} is no Python of 3.8 or newer ({said[0]}); {INSTALL_HELP}"
        ) from error
    if missing:
        raise MissingDependencyError(f"simpler_python {python} lacks {', '.join(missing)}; {INSTALL_HELP}")
    return versions


class ForeignSimulator:
    """A process of another interpreter that serves one environment (``foreign.py``).

    There are no timeouts here: ``grape.envs.pool`` kills the worker that waits, and the process goes with it.
    """

    def __init__(self, python: str) -> None:
        """Start the process.

        Raises:
            MissingDependencyError: There is no such interpreter.
            SimulatorError: It ended at once.
        """
        command = [python, "-I", str(SCRIPT), str(os.getpid())]
        try:
            # A session of its own, so that Ctrl-C does not reach it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise MissingDependencyError(f"simpler_python {python} cannot be run ({error}); {INSTALL_HELP}") from error
        self._finalizer = weakref.finalize(self, _kill, self._process)
        self._receive()

    @property
    def process_id(self) -> int:
        return self._process.pid

    def call(
        self, values: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Send a request and wait for its answer.

        Raises:
            SimulatorError: The simulator raised an error, or its process died.
            ConfigError: It can never do what was asked, whichever process is asked.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # reading reports the end of a dead process
            write_message(self._process.stdin, values, arrays)
        answer, content = self._receive()
        if not answer["ok"]:
            text = f"{answer['error']} ({answer['where']}, in the original SIMPLER's interpreter)"
            raise ConfigError(f"{text}; {INSTALL_HELP}") if answer["refused"] else SimulatorError(text)
        return answer, content

    def close(self) -> None:
        """End the process; calling it twice is fine."""
        if self._finalizer.alive:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # the end of its requests
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSE_TIMEOUT_S)
        self._finalizer()

    def _receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self._process.stdout is not None
        try:
            message = read_message(self._process.stdout)
        except MessageError as error:
            self._finalizer()
            raise SimulatorError(f"the original SIMPLER's interpreter cannot be understood: {error}") from error
        if message is None:
            raise SimulatorError(f"the original SIMPLER's interpreter died ({_exit_reason(self._process.wait())})")
        return message


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what could not be written to a dead process
                stream.close()


def _exit_reason(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}; its own message is above"
