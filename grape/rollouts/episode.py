"""Builds one ``Trajectory`` while its episode runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from grape.rollouts.policy import Decision, DecisionRequest, Policy
from grape.rollouts.randomness import step_uniforms
from grape.trajectory import ACTION_DIM, STATE_DIM, EpisodeInfo, Status, Trajectory

if TYPE_CHECKING:
    from grape.envs.pool import WorkerEvent
    from grape.envs.protocol import Observation
    from grape.rollouts.jobs import RolloutJob


class EpisodeRecorder:
    """One running episode: what was seen, decided and sent so far."""

    def __init__(self, job: RolloutJob) -> None:
        self.job = job
        self._success_run = 0
        """Steps in a row, up to now, with the goal reached."""
        self._longest_success_run = 0
        self._started = time.monotonic()
        self._init_state_hash = ""
        self._simulator_settings: dict[str, Any] = {}
        self._observations: list[Observation] = []
        self._facts: list[dict[str, np.ndarray]] = []
        self._decisions: list[Decision] = []
        self._actions: list[np.ndarray] = []

    @property
    def num_actions(self) -> int:
        return len(self._actions)

    @property
    def succeeded(self) -> bool:
        """By the job's rule, if the episode ended now."""
        return self._success_run >= (1 if self.job.consecutive_successes is None else self.job.consecutive_successes)

    @property
    def is_over(self) -> bool:
        """Succeeded for good, or every allowed action was taken and its result seen."""
        return (self.succeeded and self.job.consecutive_successes is not None) or self.num_actions >= self.job.max_steps

    def observe(self, event: WorkerEvent) -> None:
        """Add what the simulator returned after the reset, or after the last action."""
        assert event.observation is not None
        assert len(self._observations) == self.num_actions, "an observation without an action before it"
        if not self._observations:
            self._init_state_hash = event.init_state_hash
            self._simulator_settings = dict(event.settings)
        self._observations.append(event.observation)
        self._facts.append(event.facts)
        self._success_run = self._success_run + 1 if self.num_actions > 0 and event.success else 0
        self._longest_success_run = max(self._longest_success_run, self._success_run)

    def request(self, seed: int) -> DecisionRequest:
        """What the policy needs to decide the next action."""
        return DecisionRequest(
            job=self.job,
            step=self.num_actions,
            instruction=self._observations[-1].instruction or self.job.task.instruction,
            image=self._observations[-1].image,
            state=self._observations[-1].state,
            facts=self._facts[-1],
            uniforms=step_uniforms(
                seed=seed,
                suite=self.job.task.suite,
                task_id=self.job.task.task_id,
                init_state_id=str(self.job.init_state),
                rollout_index=self.job.rollout_index,
                step=self.num_actions,
            ),
        )

    def decide(self, decision: Decision, action: np.ndarray) -> None:
        """Add a decision and the action sent to the simulator for it."""
        self._decisions.append(decision)
        self._actions.append(action)

    def finish(self, policy: Policy, seed: int, *, error: str | None = None) -> Trajectory:
        """Return the record; with ``error``, that of a crashed episode up to its last complete step."""
        num_steps = min(len(self._actions), max(0, len(self._observations) - 1))
        status: Status = "crashed" if error is not None else "success" if self.succeeded else "failure"
        seen, decisions = self._observations[:num_steps], self._decisions[:num_steps]
        names = self._facts[0] if self._facts else {}
        return Trajectory(
            info=self._info(policy, seed, status, num_steps, error),
            images=np.stack([o.image for o in seen]) if seen else np.zeros((0, 0, 0, 3), np.uint8),
            action_tokens=_rows([d.tokens for d in decisions], ACTION_DIM, np.int32),
            token_logps=_rows([d.token_logps for d in decisions], ACTION_DIM),
            sampler_logps=_rows([d.sampler_logps for d in decisions], ACTION_DIM),
            policy_actions=_rows([d.policy_action for d in decisions], ACTION_DIM),
            actions=_rows(self._actions[:num_steps], ACTION_DIM),
            states=_rows([o.state for o in seen], STATE_DIM),
            facts={name: np.stack([row[name] for row in self._facts[: num_steps + 1]]) for name in names},
        )

    def _info(self, policy: Policy, seed: int, status: Status, num_steps: int, error: str | None) -> EpisodeInfo:
        task = self.job.task
        return EpisodeInfo(
            simulator=self.job.env.simulator,
            simulator_settings={**self._simulator_settings, "max_steps": self.job.max_steps},
            suite=task.suite,
            task_id=task.task_id,
            task_name=task.name,
            instruction=(self._observations[0].instruction if self._observations else None) or task.instruction,
            init_state_id=str(self.job.init_state),
            init_state_hash=self._init_state_hash,
            rollout_index=self.job.rollout_index,
            policy=policy.name,
            checkpoint_hash=policy.checkpoint_hash,
            policy_settings=dict(policy.settings),
            seed=seed,
            status=status,
            longest_success_run=None if self.job.consecutive_successes == 1 else self._longest_success_run,
            num_steps=num_steps,
            error=error,
            keypoint_names=tuple(task.keypoint_names),
            goal_predicates=tuple(tuple(predicate) for predicate in task.goal_predicates),
            wall_time_s=time.monotonic() - self._started,
        )


def _rows(values: list[np.ndarray], width: int, dtype: type = np.float32) -> np.ndarray:
    return np.stack(values).astype(dtype) if values else np.zeros((0, width), dtype)
