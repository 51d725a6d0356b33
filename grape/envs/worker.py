"""The process that runs one simulator for ``grape.envs.pool``."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np

from grape.envs.protocol import Env, InitStateId, Observation, TaskSpec
from grape.envs.spawn import begin
from grape.envs.suites import SIMULATORS
from grape.errors import ConfigError, GrapeError, did_you_mean

ImageFunction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """Recipe of an environment: picklable, and equal for environments that can replace each other."""

    simulator: str = "libero"
    suite: str
    task_id: int
    render_profile: str = "faithful"
    """``"faithful"``, or ``"fast"`` where the simulator has it; see docs/simulators.md."""
    camera_size: int | None = None
    """Height of the picture, pixels, before the pool's ``image_fn``; ``None`` for the simulator's own."""
    max_steps: int | None = None
    """Step limit to record; ``None`` for the suite's own."""
    python: str | None = None
    """The interpreter of a simulator that needs its own."""

    def make(self) -> Env:
        """Start the simulation.

        Raises:
            ConfigError: Unknown simulator, suite, task or render setting.
            MissingDependencyError: The simulator is not installed.
            SimulatorError: It cannot be started.
        """
        if self.simulator not in SIMULATORS:
            raise ConfigError(f"unknown simulator {self.simulator!r}.{did_you_mean(self.simulator, SIMULATORS)}")
        simulator = SIMULATORS[self.simulator]
        return simulator.make_env(
            self.suite,
            self.task_id,
            render_profile=self.render_profile,
            camera_size=simulator.camera_size if self.camera_size is None else self.camera_size,
            max_steps=self.max_steps,
            **({} if self.python is None else {"python": self.python}),
        )


@dataclass(frozen=True, kw_only=True)
class WorkerEvent:
    """What a worker reports about its episode."""

    worker: int
    kind: Literal["observation", "crashed", "lost"]
    """``lost``: the machine that ran the episode, or its part in it, is gone; that says nothing about the simulator."""
    observation: Observation | None = None
    """Its picture has been through the pool's ``image_fn``."""
    success: bool = False
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    task: TaskSpec | None = None
    """With the first observation of an episode, as are the next two."""
    init_state_hash: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Why it crashed or was lost."""


@dataclass(frozen=True)
class StartEpisode:
    """Request: reset to an initial state, in another environment where ``spec`` differs from the last one."""

    spec: EnvSpec
    init_state: InitStateId


@dataclass(frozen=True)
class TakeAction:
    """Request: one step; the policy's or the simulator's convention is the caller's business."""

    action: np.ndarray


@dataclass(frozen=True)
class Refused:
    """Reply: the request can never work, whichever worker takes it (unknown suite, no EGL)."""

    error: GrapeError


def run_worker(worker: int, connection: Connection, image_fn: ImageFunction | None) -> None:
    """Serve requests until the pool closes the pipe or dies."""
    begin()
    session = _Session(worker, image_fn)
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            break
        if request is None:  # the pool closes
            break
        try:
            reply: WorkerEvent | Refused = session.answer(request)
        except Exception as error:  # process boundary: whatever a simulator raises costs this episode and no other
            if isinstance(error, ConfigError):
                reply = Refused(error)
            else:
                reply = WorkerEvent(worker=worker, kind="crashed", error=_describe(error))
        try:
            connection.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            break
    # Freeing a simulator that is going away with its process anyway would only cost time.
    os._exit(0)


class _Session:
    """One worker's environment."""

    def __init__(self, worker: int, image_fn: ImageFunction | None) -> None:
        self._worker, self._image_fn = worker, image_fn
        self._spec: EnvSpec | None = None
        self._env: Env | None = None

    def answer(self, request: StartEpisode | TakeAction) -> WorkerEvent | Refused:
        if isinstance(request, StartEpisode):
            return self._start(request)
        assert self._env is not None, "an action before an episode"
        result = self._env.step(request.action)
        return self._event(self._env, result.observation, success=result.success)

    def _start(self, request: StartEpisode) -> WorkerEvent | Refused:
        if self._env is None or request.spec != self._spec:
            if self._env is not None:
                self._env.close()
                self._env = None
                gc.collect()
            try:
                self._env = request.spec.make()
            except GrapeError as error:
                return Refused(error)
            self._spec = request.spec
        env = self._env
        event = self._event(env, env.reset(request.init_state), success=False)
        return replace(event, task=env.task, init_state_hash=env.init_state_hash, settings=env.settings)

    def _event(self, env: Env, observation: Observation, *, success: bool) -> WorkerEvent:
        facts = env.facts()
        if self._image_fn is not None:
            observation = replace(observation, image=self._image_fn(observation.image))
        return WorkerEvent(
            worker=self._worker, kind="observation", observation=observation, success=success, facts=facts
        )


def _describe(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"
