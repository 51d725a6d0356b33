"""Simulators as Ray actors, behind the interface of ``grape.envs.pool.WorkerPool``.

Each actor owns a pool of one process with the simulator in it. What a simulator does, an exception, a native crash or a
hang, is then reported as on one machine: the episode has crashed. An actor that dies took no part in that: it was lost
with its machine, or killed there. Its episode is ``lost``, which says nothing about it: the engine runs it again.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from grape.envs.pool import EnvSpec, WorkerEvent, WorkerPool
from grape.envs.protocol import InitStateId
from grape.envs.suites import find_simulator
from grape.envs.worker import ImageFunction, Refused
from grape.errors import GrapeError, SimulatorError
from grape.rollouts.cluster.connection import NUM_STARTS, Cluster, Setup, first_line, on_this_node
from grape.rollouts.versions import library_versions, toolkit_versions

logger = logging.getLogger(__name__)

_GRACE_S = 60.0
"""Beyond an actor's own time limit: until it has been placed on a machine, and for the way there and back."""
_ACTOR_WAIT_S = 60.0


class SimulatorActor:
    """One simulator on some machine of the cluster."""

    def __init__(self, setup: Setup, suite: str, simpler_python: Path | None, pool_settings: dict[str, Any]) -> None:
        self._setup, self._suite, self._simpler_python = setup, suite, simpler_python
        self._pool_settings = pool_settings
        self._pool: WorkerPool | None = None

    def start_episode(self, spec: EnvSpec, init_state: InitStateId) -> WorkerEvent | Refused:
        return self._answer(lambda pool: pool.start_episode(0, spec, init_state))

    def step(self, action: np.ndarray) -> WorkerEvent | Refused:
        return self._answer(lambda pool: pool.send_action(0, action))

    def _answer(self, ask: Callable[[WorkerPool], None]) -> WorkerEvent | Refused:
        try:
            if self._pool is None:
                self._pool = self._start()
            ask(self._pool)
            while not (events := self._pool.wait(_ACTOR_WAIT_S)):
                pass
        except GrapeError as error:
            return Refused(on_this_node(error))
        [event] = events
        if event.kind == "crashed":
            return dataclasses.replace(event, error=f"{event.error} (on node {platform.node()})")
        return event

    def _start(self) -> WorkerPool:
        installed = library_versions(self._suite, self._simpler_python)
        names = toolkit_versions().keys() - {"torch", "transformers"} | {*find_simulator(self._suite).libraries}
        self._setup.apply(installed, names)
        return WorkerPool(1, **self._pool_settings)


@dataclass
class _Slot:
    """One worker's current actor and the request it is working on."""

    actor: Any
    request: Any = None
    """Ray's reference to the reply under way."""
    deadline: float = 0.0
    """When the actor counts as lost, on ``time.monotonic``'s clock."""
    num_deaths: int = 0
    """Of this worker's actors, in a row, without an answer between them."""


class RaySimulators:
    """Runs episodes in actors all over a cluster. Not thread-safe. Use it as a context manager."""

    def __init__(
        self,
        cluster: Cluster,
        suite: str,
        simpler_python: Path | None,
        num_workers: int,
        *,
        step_timeout_s: float = 120.0,
        start_timeout_s: float = 300.0,
        image_fn: ImageFunction | None = None,
    ) -> None:
        """Ask for the actors; each builds its simulator with its first episode.

        Args:
            cluster: Where to run them.
            suite: Whose simulator they need.
            simpler_python: As in the settings; at the same place on each machine.
            num_workers: Actors; each asks the cluster for one core.
            step_timeout_s, start_timeout_s, image_fn: As in ``WorkerPool``.
        """
        self._ray = cluster.ray
        self._step_timeout_s, self._start_timeout_s = step_timeout_s, start_timeout_s
        pool_settings = {
            "step_timeout_s": step_timeout_s,
            "start_timeout_s": start_timeout_s,
            "image_fn": image_fn,
        }
        remote = self._ray.remote(num_cpus=1, max_restarts=0)(SimulatorActor)
        self._start = lambda: remote.remote(cluster.setup, suite, simpler_python, pool_settings)
        self._slots = [_Slot(self._start()) for _ in range(num_workers)]

    def __enter__(self) -> RaySimulators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._slots)

    def start_episode(self, worker: int, spec: EnvSpec, init_state: InitStateId) -> None:
        """Ask for a reset; ``wait`` brings the first observation. Ends the worker's previous episode, if any."""
        slot = self._idle_slot(worker)
        slot.request = slot.actor.start_episode.remote(spec, init_state)
        slot.deadline = time.monotonic() + self._start_timeout_s + _GRACE_S

    def send_action(self, worker: int, action: np.ndarray) -> None:
        """Ask for a step with an action as the simulator takes it; ``wait`` brings the next observation."""
        slot = self._idle_slot(worker)
        slot.request = slot.actor.step.remote(np.asarray(action, dtype=np.float32))
        slot.deadline = time.monotonic() + self._step_timeout_s + _GRACE_S

    def wait(self, timeout_s: float) -> list[WorkerEvent]:
        """Collect what the actors have finished; empty on timeout, and at once where nothing is under way.

        Raises:
            GrapeError: A request can never work, on the machine that is named.
            SimulatorError: Actors cannot be started, or die before they do anything.
        """
        asked = {slot.request: worker for worker, slot in enumerate(self._slots) if slot.request is not None}
        if not asked:
            return []
        until = min(time.monotonic() + timeout_s, *(self._slots[worker].deadline for worker in asked.values()))
        ready, _ = self._ray.wait([*asked], num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if ready:
            ready, _ = self._ray.wait([*asked], num_returns=len(asked), timeout=0)
        events = [self._collect(asked[request]) for request in ready]
        return events + self._lose_silent()

    def close(self) -> None:
        """Kill the actors; their simulators end with them. Calling it twice is fine."""
        for slot in self._slots:
            self._ray.kill(slot.actor)
            slot.request = None

    def _idle_slot(self, worker: int) -> _Slot:
        slot = self._slots[worker]
        assert slot.request is None, f"worker {worker} is still busy: wait for its event first"
        return slot

    def _collect(self, worker: int) -> WorkerEvent:
        slot = self._slots[worker]
        request, slot.request = slot.request, None
        try:
            reply = self._ray.get(request)
        except self._ray.exceptions.RayTaskError:
            raise  # our own mistake, with the actor's traceback
        except self._ray.exceptions.RayError as error:
            return self._lose(worker, first_line(error))
        slot.num_deaths = 0
        if isinstance(reply, Refused):
            raise reply.error
        return dataclasses.replace(reply, worker=worker)

    def _lose_silent(self) -> list[WorkerEvent]:
        now = time.monotonic()
        late = [n for n, slot in enumerate(self._slots) if slot.request is not None and now >= slot.deadline]
        return [self._lose(worker, "it gave no answer in time, or the cluster had no room for it") for worker in late]

    def _lose(self, worker: int, reason: str) -> WorkerEvent:
        slot = self._slots[worker]
        slot.num_deaths, slot.request = slot.num_deaths + 1, None
        self._ray.kill(slot.actor)
        if slot.num_deaths >= NUM_STARTS:
            raise SimulatorError(
                f"the actor of simulator {worker} was lost {NUM_STARTS} times before it answered anything, at last "
                f"because {reason}; look at `ray status` and at Ray's logs (/tmp/ray/session_latest/logs on each "
                "machine), then continue with --resume"
            )
        logger.warning("the actor of simulator %d was lost (%s); another one is started", worker, reason)
        slot.actor = self._start()
        return WorkerEvent(worker=worker, kind="lost", error=reason)
