"""Starting processes, and calling a function in one: simulators and TensorFlow do not bear each other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

from grape.errors import SimulatorError

Answer = TypeVar("Answer")

SINGLE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LP_NUM_THREADS": "1",
}
"""Workers are the parallelism: one thread each for linear algebra, and for Mesa's software renderer (LP)."""


def call(function: Callable[..., Answer], *arguments: object) -> Answer:
    """Call a function in a new process, which ends with the call.

    Args:
        function: Of a module, so that the process can import it.
        arguments: Picklable.

    Raises:
        SimulatorError: The process died.
        Exception: What the function raises.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=begin) as executor:
        try:
            with _environment(SINGLE_THREAD), _held_back_signals():
                future = executor.submit(function, *arguments)  # starts the process
            return future.result()
        except BrokenProcessPool as error:
            raise SimulatorError(f"the process of {function.__name__} died; what it said is above") from error
        except KeyboardInterrupt:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def begin() -> None:
    """First thing in a new process: leave Ctrl-C to the one that started it, and end with that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, name="grape-parent-watch", daemon=True).start()


def _end_with_parent() -> None:
    """Leave as soon as the parent is gone, however long what is under way would still take."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(0)


def start(process: SpawnProcess) -> None:
    """Start a process with ``SINGLE_THREAD`` in its environment; Ctrl-C and SIGTERM wait until it is started."""
    with _environment(SINGLE_THREAD), _held_back_signals():
        process.start()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started meanwhile, unless the user has set them."""
    added = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _held_back_signals() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while a process starts, which would otherwise read half of what it is sent.

    The handlers are what holds them back: a signal may reach a thread that has it unblocked. The mask is for the new
    process, which inherits it until it has its own handler of Ctrl-C.
    """
    resource_tracker.ensure_running()  # otherwise the first process starts it, which lifts the mask
    caught: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda arrived, _: caught.append(arrived))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for arrived in caught:
            signal.raise_signal(arrived)
