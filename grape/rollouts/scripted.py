"""Scripted demonstrators as policies of the rollout engine.

What is recorded as ``policy_actions`` is always what the expert would do: the label to imitate. What is executed may
differ: with noise, so that demonstrations hold recoveries (DART, arXiv 1703.09327), or because a student drives
(DAgger, arXiv 1011.0686).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from grape.config.inputs import ImageResize
from grape.envs.libero.actions import policy_gripper
from grape.envs.libero.experts import PickAndPlaceExpert
from grape.envs.protocol import TaskSpec
from grape.envs.simpler.actions import policy_gripper as bridge_policy_gripper
from grape.envs.simpler.experts import FULL_DEFLECTION_M, BridgeExpert
from grape.envs.suites import find_simulator
from grape.errors import ConfigError
from grape.models.preprocessing import prepare_image
from grape.rollouts.policy import Decision, DecisionRequest, Policy
from grape.trajectory import ACTION_DIM

NO_TOKENS = np.full(ACTION_DIM, -1, np.int32)
"""Recorded where no tokens were sampled."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationNoise:
    """Disturbances of a demonstration; all zero for clean ones."""

    jitter: float = 0.0
    """Largest standard deviation of white noise on each translation axis, fraction of full deflection."""
    burst_probability: float = 0.0
    """Chance per step that some random steps begin, see ``Experts.burst_steps``."""
    start_burst_probability: float = 0.0
    """Chance that an episode begins with random steps, which spreads the starting poses."""


class Expert(Protocol):
    """One task's demonstrator; a function of the facts alone."""

    def act(self, facts: dict[str, np.ndarray]) -> np.ndarray:
        """The action (7,) as the simulator takes it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A simulator's scripted experts, and how much their demonstrations may be disturbed."""

    make: Callable[..., Expert]
    """From a task; ``careless_m`` makes it a careless one, see ``grape.envs.pick_and_place.Grasp``."""
    policy_gripper: Callable[[float], float]
    """The simulator's gripper as the policy's: 1 open, 0 closed."""
    full_deflection: float
    """Largest translation per action on each axis, in the simulator's unit; what is executed stays within it."""
    burst_steps: tuple[int, int]
    """Fewest and most steps of a disturbance."""
    start_burst_steps: tuple[int, int]
    """The same at the start of an episode."""


EXPERTS: dict[str, Experts] = {
    "libero": Experts(  # 20 Hz, a controller scaled to -1 … 1
        make=PickAndPlaceExpert,
        policy_gripper=policy_gripper,
        full_deflection=1.0,
        burst_steps=(2, 8),
        start_burst_steps=(3, 24),
    ),
    "simpler": Experts(  # 5 Hz, metres
        make=BridgeExpert,
        policy_gripper=bridge_policy_gripper,
        full_deflection=FULL_DEFLECTION_M,
        burst_steps=(1, 2),
        start_burst_steps=(1, 6),
    ),
}
"""By simulator."""


class ScriptedDemonstrator:
    """Scripted experts for whatever tasks the jobs name.

    Args:
        image_size: Side of the recorded pictures, pixels.
        noise: How what is executed differs from the recorded label.
        image_resize: How they come to that size.
        careless_m: How far beside the grasp a careless expert closes the fingers, metres; 0 for a careful one.
    """

    name = "scripted"
    checkpoint_hash = "scripted"

    def __init__(
        self,
        *,
        image_size: int,
        noise: DemonstrationNoise | None = None,
        image_resize: ImageResize = "lanczos",
        careless_m: float = 0.0,
    ) -> None:
        self._image_size, self._image_resize, self._careless_m = image_size, image_resize, careless_m
        self._noise = noise or DemonstrationNoise()
        self._experts: dict[tuple[str, int], Expert] = {}
        self._disturbances: dict[str, _Disturbance] = {}
        self.settings: dict[str, Any] = {
            "image_size": image_size,
            "image_resize": image_resize,
            "careless_m": careless_m,
            **vars(self._noise),
        }

    def image_fn(self) -> Callable[[np.ndarray], np.ndarray]:
        return functools.partial(prepare_image, size=self._image_size, resize=self._image_resize)

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        return [self._decide(request) for request in requests]

    def expert(self, task: TaskSpec) -> Expert:
        """The task's expert.

        Raises:
            ConfigError: There is none for its simulator, or for its goal.
        """
        key = (task.suite, task.task_id)
        if key not in self._experts:
            self._experts[key] = experts_of(task.suite).make(task, careless_m=self._careless_m)
        return self._experts[key]

    def label(self, request: DecisionRequest) -> np.ndarray:
        """The expert's action (7,) in the policy's convention: gripper 1 open, 0 closed."""
        task = request.job.task
        action = self.expert(task).act(dict(request.facts))
        action[6] = experts_of(task.suite).policy_gripper(action[6])
        return action

    def _decide(self, request: DecisionRequest) -> Decision:
        label = self.label(request)
        if request.step == 0:
            experts = experts_of(request.job.task.suite)
            self._disturbances[request.job.episode_id] = _Disturbance(self._noise, experts, request.uniforms)
        executed = self._disturbances[request.job.episode_id].apply(label, request.uniforms)
        return unsampled(label, executed)


def experts_of(suite: str) -> Experts:
    """The experts of a suite's simulator.

    Raises:
        ConfigError: It has none.
    """
    simulator = find_simulator(suite).name
    if simulator not in EXPERTS:
        raise ConfigError(
            f"there are no scripted experts for {suite}: {simulator} has none, only {', '.join(EXPERTS)} has; roll out "
            "a policy with grape collect instead"
        )
    return EXPERTS[simulator]


class CorrectedStudent:
    """A policy that drives while the expert labels every state that it visits (DAgger)."""

    def __init__(self, student: Policy, expert: ScriptedDemonstrator) -> None:
        self._student, self._expert = student, expert
        self.name = f"scripted, driven by {student.name}"
        self.checkpoint_hash = f"scripted, driven by {student.checkpoint_hash}"
        self.settings = {**student.settings, "labels": "scripted"}

    def image_fn(self) -> Callable[[np.ndarray], np.ndarray] | None:
        return self._student.image_fn()

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        return [
            unsampled(self._expert.label(request), executed=decision.policy_action)
            for request, decision in zip(requests, self._student.act(requests), strict=True)
        ]


def unsampled(label: np.ndarray, executed: np.ndarray | None = None) -> Decision:
    """A decision without tokens."""
    unknown = np.full(ACTION_DIM, np.nan, np.float32)
    return Decision(
        policy_action=label,
        tokens=NO_TOKENS,
        token_logps=unknown,
        sampler_logps=unknown,
        executed_policy_action=executed,
    )


class _Disturbance:
    """Noise of one episode; a function of the steps' uniforms alone."""

    def __init__(self, noise: DemonstrationNoise, experts: Experts, uniforms: np.ndarray) -> None:
        rng = _generator(uniforms)
        self._noise, self._experts = noise, experts
        self._jitter = noise.jitter * rng.choice([0.0, 0.5, 1.0])
        fewest, most = experts.start_burst_steps
        self._steps_left = int(rng.integers(fewest, most + 1)) if rng.random() < noise.start_burst_probability else 0
        self._direction = rng.uniform(-1.0, 1.0, 3)
        self._gripper: float | None = 1.0 if rng.random() < 0.8 else 0.0

    def apply(self, label: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        rng = _generator(uniforms)
        executed, full = label.copy(), self._experts.full_deflection
        if self._steps_left == 0 and rng.random() < self._noise.burst_probability:
            fewest, most = self._experts.burst_steps
            self._steps_left = int(rng.integers(fewest, most + 1))
            self._direction = rng.uniform(-1.0, 1.0, 3) * rng.choice([0.5, 1.0])
            self._gripper = None if rng.random() < 0.85 else float(rng.integers(0, 2))
        if self._steps_left > 0:
            self._steps_left -= 1
            executed[:3] = self._direction * full
            executed[6] = label[6] if self._gripper is None else self._gripper
        else:
            executed[:3] += rng.normal(0.0, self._jitter, 3) * full
        executed[:3] = np.clip(executed[:3], -full, full)
        return executed


def _generator(uniforms: np.ndarray) -> np.random.Generator:
    return np.random.default_rng((uniforms * 2**32).astype(np.uint64).tolist())
