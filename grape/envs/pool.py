"""Worker processes with one simulator each, behind an interface that never blocks on one of them.

A worker that dies or hangs costs its episode only: the episode ends with a ``crashed`` event and the worker is
replaced. The caller keeps at most one request per worker under way, and takes whatever ``wait`` brings.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import signal
import threading
import time
import weakref
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Protocol

import numpy as np

from grape.envs.protocol import InitStateId
from grape.envs.spawn import start
from grape.envs.worker import EnvSpec, ImageFunction, Refused, StartEpisode, TakeAction, WorkerEvent, run_worker
from grape.errors import ConfigError, SimulatorError

__all__ = ["EnvSpec", "Pool", "WorkerEvent", "WorkerPool"]

_CLOSE_TIMEOUT_S = 5.0


class Pool(Protocol):
    """Simulators that run episodes side by side, wherever they are; as ``WorkerPool`` documents it."""

    def __enter__(self) -> Pool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __len__(self) -> int: ...
    def start_episode(self, worker: int, spec: EnvSpec, init_state: InitStateId) -> None: ...
    def send_action(self, worker: int, action: np.ndarray) -> None: ...
    def wait(self, timeout_s: float) -> list[WorkerEvent]: ...


@dataclass
class _Slot:
    """One worker's current process and the request it is working on."""

    process: SpawnProcess
    connection: Connection
    incarnation: int
    deadline: float | None = None
    """When the request under way counts as hung, on ``time.monotonic``'s clock; ``None`` when there is none."""
    timeout_s: float = 0.0
    answered: bool = False
    """Whether this process has answered any request, so that it did start."""
    lost: str | None = None
    """Why the process that ran the current episode is gone, where nothing was under way when it went."""


class WorkerPool:
    """Runs episodes in parallel processes. Not thread-safe. Use it as a context manager.

    Processes are spawned, so a script that makes a pool needs ``if __name__ == "__main__":``.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        step_timeout_s: float = 120.0,
        start_timeout_s: float = 300.0,
        image_fn: ImageFunction | None = None,
    ) -> None:
        """Start the processes; each builds its simulator with its first episode.

        Args:
            num_workers: Processes; each takes 1.7 to 2.5 GB when it renders.
            step_timeout_s: After this long without an answer to an action, a worker counts as hung.
            start_timeout_s: The same for the start of an episode, which may build the simulator.
            image_fn: Applied to each picture in the worker, e.g. ``grape.models.prepare_image`` with a size; must be
                picklable.

        Raises:
            ConfigError: A setting cannot be honoured.
        """
        if num_workers < 1 or step_timeout_s <= 0 or start_timeout_s <= 0:
            raise ConfigError(
                f"got num_workers={num_workers}, step_timeout_s={step_timeout_s}, start_timeout_s={start_timeout_s}; "
                "wanted at least one worker and positive timeouts"
            )
        try:
            pickle.dumps(image_fn)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(f"image_fn cannot be sent to a process ({error}); use a module's function") from error
        self._step_timeout_s, self._start_timeout_s = step_timeout_s, start_timeout_s
        self._image_fn = image_fn
        self._replies: queue.SimpleQueue[tuple[int, int, WorkerEvent | Refused | None]] = queue.SimpleQueue()
        self._pending: list[WorkerEvent] = []
        self._slots: list[_Slot] = []
        self._finalizer = weakref.finalize(self, _kill_all, self._slots)
        for worker in range(num_workers):
            self._slots.append(self._spawn(worker, incarnation=0))

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(graceful=kind is None)

    def __len__(self) -> int:
        return len(self._slots)

    def process_id(self, worker: int) -> int:
        """The worker's current process."""
        process_id = self._slots[worker].process.pid
        assert process_id is not None
        return process_id

    def start_episode(self, worker: int, spec: EnvSpec, init_state: InitStateId) -> None:
        """Ask for a reset; ``wait`` brings the first observation. Ends the worker's previous episode, if any."""
        slot = self._idle_slot(worker)
        if not slot.process.is_alive():
            slot = self._restart(worker)
        slot.lost = None
        self._send(slot, StartEpisode(spec, init_state), self._start_timeout_s)

    def send_action(self, worker: int, action: np.ndarray) -> None:
        """Ask for a step with an action as the simulator takes it; ``wait`` brings the next observation."""
        slot = self._idle_slot(worker)
        if slot.lost is not None:
            self._pending.append(WorkerEvent(worker=worker, kind="crashed", error=slot.lost))
            slot.lost = None
            return
        self._send(slot, TakeAction(np.asarray(action, dtype=np.float32)), self._step_timeout_s)

    def wait(self, timeout_s: float) -> list[WorkerEvent]:
        """Collect what the workers have finished.

        Args:
            timeout_s: Longest time to wait for a first event; returns at once where nothing is under way.

        Returns:
            All events that are ready; empty on timeout.

        Raises:
            GrapeError: A request can never work (unknown suite or state, simulator not installed, no EGL), or the
                processes cannot start at all.
        """
        end = time.monotonic() + timeout_s
        events, self._pending = self._pending, []
        while True:
            deadlines = [slot.deadline for slot in self._slots if slot.deadline is not None]
            until = min([end, *deadlines]) if not events else 0.0
            events += self._collect(block_s=until - time.monotonic() if deadlines else 0.0)
            events += self._kill_hung()
            if events or not deadlines or time.monotonic() >= end:
                return events

    def close(self, *, graceful: bool = True) -> None:
        """End all workers and reap them; calling it twice is fine.

        Args:
            graceful: Let idle workers leave by themselves; otherwise kill them at once.
        """
        if graceful and self._finalizer.alive:
            for slot in self._slots:
                if slot.deadline is None:
                    with contextlib.suppress(OSError):  # it may be dead already
                        slot.connection.send(None)
            end = time.monotonic() + _CLOSE_TIMEOUT_S
            for slot in self._slots:
                if slot.deadline is None:
                    slot.process.join(max(0.0, end - time.monotonic()))
        self._finalizer()

    def _idle_slot(self, worker: int) -> _Slot:
        slot = self._slots[worker]
        assert slot.deadline is None, f"worker {worker} is still busy: wait for its event first"
        return slot

    def _send(self, slot: _Slot, request: StartEpisode | TakeAction, timeout_s: float) -> None:
        slot.deadline, slot.timeout_s = time.monotonic() + timeout_s, timeout_s
        with contextlib.suppress(OSError):  # its reader reports the end of a dead worker
            slot.connection.send(request)

    def _collect(self, block_s: float) -> list[WorkerEvent]:
        events: list[WorkerEvent] = []
        while True:
            try:
                worker, incarnation, reply = self._replies.get(block=block_s > 0, timeout=max(block_s, 0.001))
            except queue.Empty:
                return events
            block_s = 0.0
            slot = self._slots[worker]
            if incarnation != slot.incarnation:
                continue  # from a process that has been replaced
            slot.answered |= reply is not None
            if isinstance(reply, Refused):
                slot.deadline = None
                raise reply.error
            event = reply if reply is not None else self._on_death(worker, slot)
            if event is None:
                continue
            slot.deadline = None
            if event.kind == "crashed" and reply is not None:
                self._restart(worker)  # what a simulator is worth after an exception is unknown
            events.append(event)

    def _on_death(self, worker: int, slot: _Slot) -> WorkerEvent | None:
        slot.process.join()
        if slot.process.exitcode == 1 and not slot.answered:
            raise SimulatorError(
                "a worker process could not start, its own message is above; a script that makes a WorkerPool needs "
                "if __name__ == '__main__': around it"
            )
        reason = f"the worker process died ({_exit_reason(slot.process.exitcode)})"
        was_busy = slot.deadline is not None
        replacement = self._restart(worker)
        if not was_busy:
            replacement.lost = reason
            return None
        return WorkerEvent(worker=worker, kind="crashed", error=reason)

    def _kill_hung(self) -> list[WorkerEvent]:
        events = []
        for worker, slot in enumerate(self._slots):
            if slot.deadline is not None and time.monotonic() >= slot.deadline:
                self._restart(worker)
                error = f"the worker process gave no answer for {slot.timeout_s:g} s and was killed"
                events.append(WorkerEvent(worker=worker, kind="crashed", error=error))
        return events

    def _restart(self, worker: int) -> _Slot:
        old = self._slots[worker]
        old.process.kill()
        old.process.join()
        self._slots[worker] = self._spawn(worker, incarnation=old.incarnation + 1)
        return self._slots[worker]

    def _spawn(self, worker: int, incarnation: int) -> _Slot:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_worker, args=(worker, theirs, self._image_fn), name=f"grape-worker-{worker}", daemon=True
        )
        start(process)
        theirs.close()  # so that the worker's death ends the pipe
        reader = threading.Thread(
            target=_read_replies,
            args=(ours, worker, incarnation, self._replies),
            name=f"grape-reader-{worker}",
            daemon=True,
        )
        reader.start()
        return _Slot(process, ours, incarnation)


def _read_replies(connection: Connection, worker: int, incarnation: int, replies: queue.SimpleQueue) -> None:
    """Move replies from a pipe to the queue; a worker stopped in the middle of a message blocks this thread only."""
    try:
        while True:
            replies.put((worker, incarnation, connection.recv()))
    except (EOFError, OSError):
        replies.put((worker, incarnation, None))
        connection.close()


def _kill_all(slots: list[_Slot]) -> None:
    for slot in slots:
        slot.process.kill()
    for slot in slots:
        slot.process.join()


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        hint = ", perhaps for memory" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"exit code {code}"
