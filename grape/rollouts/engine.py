"""The rollout loop: every worker that waits for an action is served by one batched decision per tick."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from grape.envs.pool import Pool, WorkerEvent
from grape.envs.suites import SIMULATORS
from grape.errors import SimulatorError
from grape.rollouts.episode import EpisodeRecorder
from grape.rollouts.jobs import JobQueue, RolloutJob
from grape.rollouts.policy import Policy
from grape.trajectory import Trajectory

IDLE_WAIT_S = 1.0
"""How long one wait lasts while no worker needs a decision; only bounds the reaction to Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How the engine runs; only ``seed`` changes random numbers, the rest changes last bits at most."""

    seed: int = 0
    """Root of all sampling (see ``randomness``)."""
    max_batch_wait_s: float = 1.0
    """How long workers that are ready wait for those in the middle of a step before the policy acts without them."""
    max_consecutive_crashes: int = 10
    """Give up after this many crashed episodes in a row: the simulator itself does not work here."""
    max_losses: int = 3
    """An episode that was lost this often, as its machine was, counts as crashed: it may be what kills it."""


class Progress(Protocol):
    """Told about everything worth showing."""

    def acted(self, num_actions: int) -> None: ...
    def finished(self, trajectory: Trajectory) -> None: ...


def run_rollouts(
    policy: Policy,
    jobs: Iterable[RolloutJob],
    pool: Pool,
    settings: RolloutSettings,
    sink: Callable[[Trajectory], None],
    progress: Progress | None = None,
) -> None:
    """Run all jobs and hand each finished episode, crashed ones too, to ``sink``.

    Raises:
        SimulatorError: ``max_consecutive_crashes`` episodes in a row crashed.
    """
    _Engine(policy, jobs, pool, settings, sink, progress).run()


class _Engine:
    def __init__(
        self,
        policy: Policy,
        jobs: Iterable[RolloutJob],
        pool: Pool,
        settings: RolloutSettings,
        sink: Callable[[Trajectory], None],
        progress: Progress | None,
    ) -> None:
        self.policy, self.pool, self.settings, self.sink, self.progress = policy, pool, settings, sink, progress
        self.queue = JobQueue(jobs)
        self.running: dict[int, EpisodeRecorder] = {}
        self.stepping: set[int] = set()
        """Workers that will answer an action soon; workers in a reset take seconds and are not waited for."""
        self.waiting: set[int] = set()
        """Workers that need a decision."""
        self.consecutive_crashes = 0
        self.losses: Counter[str] = Counter()
        """By episode."""

    def run(self) -> None:
        for worker in range(len(self.pool)):
            self.start_next(worker)
        while self.running:
            self.gather()
            if self.waiting:
                self.act()

    def start_next(self, worker: int) -> None:
        job = self.queue.take(worker)
        if job is not None:
            self.start(worker, job)

    def start(self, worker: int, job: RolloutJob) -> None:
        self.running[worker] = EpisodeRecorder(job)
        self.pool.start_episode(worker, job.env, job.init_state)

    def gather(self) -> None:
        """Collect events until no worker is in the middle of a step, or those have been waited for long enough."""
        deadline = None
        while self.running:
            timeout_s = IDLE_WAIT_S
            if self.waiting:
                deadline = deadline or time.monotonic() + self.settings.max_batch_wait_s
                timeout_s = max(0.0, deadline - time.monotonic()) if self.stepping else 0.0
            events = self.pool.wait(timeout_s)
            for event in events:
                self.handle(event)
            if self.waiting and not events and timeout_s == 0.0:
                return

    def handle(self, event: WorkerEvent) -> None:
        worker = event.worker
        self.stepping.discard(worker)
        self.waiting.discard(worker)
        if worker not in self.running:  # an idle worker died: no episode is lost
            return
        if event.kind == "crashed":
            self.finish(worker, error=event.error or "the worker gave no reason")
            return
        if event.kind == "lost":
            self.run_again(worker, event.error)
            return
        episode = self.running[worker]
        episode.observe(event)
        if episode.is_over:
            self.finish(worker)
        else:
            self.waiting.add(worker)

    def run_again(self, worker: int, reason: str | None) -> None:
        """From the start, with the same random numbers; nothing of the lost part was stored."""
        job = self.running[worker].job
        self.losses[job.episode_id] += 1
        if self.losses[job.episode_id] < self.settings.max_losses:
            self.start(worker, job)
        else:
            self.finish(worker, error=f"lost {self.settings.max_losses} times, at last because {reason}")

    def finish(self, worker: int, *, error: str | None = None) -> None:
        trajectory = self.running.pop(worker).finish(self.policy, self.settings.seed, error=error)
        self.sink(trajectory)
        if self.progress is not None:
            self.progress.finished(trajectory)
        self.consecutive_crashes = 0 if error is None else self.consecutive_crashes + 1
        if self.consecutive_crashes >= self.settings.max_consecutive_crashes:
            raise SimulatorError(
                f"{self.consecutive_crashes} episodes in a row crashed, the last one with: {error}; "
                "they are recorded as crashed: mend the simulator, then continue with --resume"
            )
        self.start_next(worker)

    def act(self) -> None:
        """One tick: a batch of decisions for all waiting workers."""
        workers = sorted(self.waiting)
        decisions = self.policy.act([self.running[worker].request(self.settings.seed) for worker in workers])
        for worker, decision in zip(workers, decisions, strict=True):
            episode = self.running[worker]
            executed = decision.executed_policy_action
            wanted = decision.policy_action if executed is None else executed
            action = SIMULATORS[episode.job.env.simulator].to_simulator_action(wanted)
            episode.decide(decision, action)  # converted here, so that what is stored is what was sent
            self.pool.send_action(worker, action)
        self.waiting.clear()
        self.stepping.update(workers)
        if self.progress is not None:
            self.progress.acted(len(workers))
