"""Actions per second: the batched collector against one environment and batch 1, in one run.

Both ways use the same policy, task, initial states, random numbers, render profile and number of actions, record the
same facts and store each episode through the same store (PNG, fsync). Simulator start-up and the actions before all
simulators are up are left out of both. What differs:

* plain has one simulator, in this process; batched is ``session.run``, as `grape collect` runs it, with one process for
  each of its simulators;
* plain decides for one observation at a time; batched for all that wait;
* plain leaves torch, linear algebra and the renderer all threads; batched gives torch the cores that the simulators
  leave, and each simulator one thread.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from grape.config.collect import CollectConfig
from grape.envs.pool import WorkerEvent
from grape.envs.protocol import Observation
from grape.rollouts import session
from grape.rollouts.episode import EpisodeRecorder
from grape.rollouts.policy import Decision, DecisionRequest, Policy
from grape.rollouts.store import RunWriter


@dataclass(frozen=True, kw_only=True)
class CollectBenchmark:
    """What is measured."""

    pretrained_checkpoint: str = "experiments/demo/nano-libero"
    """Policy."""
    task_suite_name: str = "libero_goal"
    """Suite."""
    task_id: int = 8
    """Task."""
    num_workers: int = 2
    """Simulators of the batched way."""
    num_actions: int = 60
    """Actions per episode; an episode ends earlier when it succeeds."""
    num_episodes: int = 4
    """Episodes of each way."""
    num_rounds: int = 2
    """How often both ways are measured, in turn."""
    render_profile: str = "fast"
    """faithful or fast."""
    scratch_dir: Path = Path(".")
    """Where a temporary folder for the episodes is made; on a disk, as storing them is part of what is measured."""
    out: Path | None = None
    """JSON file for the figures."""


class Clocked:
    """A policy that counts its actions, from the first decision for all simulators on: start-up is left out."""

    def __init__(self, policy: Policy, num_simulators: int) -> None:
        self._policy, self._num_simulators = policy, num_simulators
        self.name, self.checkpoint_hash, self.settings = policy.name, policy.checkpoint_hash, policy.settings
        self._started_s: float | None = None
        self._num_actions = 0

    def image_fn(self) -> Callable[[np.ndarray], np.ndarray] | None:
        return self._policy.image_fn()

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        decisions = self._policy.act(requests)
        if self._started_s is not None:
            self._num_actions += len(requests)
        elif len(requests) == self._num_simulators:
            self._started_s = time.perf_counter()
        return decisions

    def actions_per_s(self) -> float:
        """Until now."""
        assert self._started_s is not None, "the simulators never waited for one decision together"
        return self._num_actions / (time.perf_counter() - self._started_s)


def measure_plain(collect: CollectConfig) -> float:
    """One simulator, one decision at a time."""
    policy = Clocked(session.open_policy(collect), 1)
    jobs = session.plan_jobs(collect)
    env, image_fn = jobs[0].env.make(), policy.image_fn()
    assert image_fn is not None

    def event(observation: Observation, *, success: bool = False) -> WorkerEvent:
        seen = dataclasses.replace(observation, image=image_fn(observation.image))
        return WorkerEvent(
            worker=0, kind="observation", observation=seen, success=success, facts=env.facts(),
            init_state_hash=env.init_state_hash, settings=env.settings,
        )  # fmt: skip

    settings = {"kind": "benchmark", **session.result_settings(collect, policy)}
    with RunWriter(collect.run_dir, settings=settings) as writer:
        for job in jobs:
            episode = EpisodeRecorder(job)
            episode.observe(event(env.reset(job.init_state)))
            while not episode.is_over:
                [decision] = policy.act([episode.request(collect.seed)])
                action = env.to_simulator_action(decision.policy_action)
                episode.decide(decision, action)
                result = env.step(action)
                episode.observe(event(result.observation, success=result.success))
            writer.save(episode.finish(policy, collect.seed))
        speed = policy.actions_per_s()
    env.close()
    return speed


def measure_batched(collect: CollectConfig) -> float:
    """The shipped collector; the time includes ending its simulators."""
    policy = Clocked(session.open_policy(collect), collect.num_workers)
    session.run(collect, "benchmark", make_policy=lambda jobs: policy)
    return policy.actions_per_s()


def main(config: CollectBenchmark) -> None:
    """Measure both ways in turn and print the ratios."""
    versions = session.library_versions(config.task_suite_name)
    with tempfile.TemporaryDirectory(dir=config.scratch_dir) as folder:
        collect = CollectConfig(
            pretrained_checkpoint=config.pretrained_checkpoint,
            task_suite_name=config.task_suite_name,
            task_ids=(config.task_id,),
            num_states=config.num_episodes,
            num_rollouts=1,
            center_crop=False,
            run_dir=Path(folder),
            num_workers=config.num_workers,
            render_profile=config.render_profile,  # type: ignore[arg-type]
            max_steps=config.num_actions,
        )
        rounds = [
            {
                way: measure(dataclasses.replace(collect, run_dir=Path(folder) / f"{way}-{number}"))
                for way, measure in (("plain", measure_plain), ("batched", measure_batched))
            }
            for number in range(config.num_rounds)
        ]
    result = {
        "actions_per_s": [{way: round(value, 2) for way, value in entry.items()} for entry in rounds],
        "ratio": [round(entry["batched"] / entry["plain"], 2) for entry in rounds],
        "num_cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": versions,
        "checkpoint_hash": session.open_policy(collect).checkpoint_hash,
        "settings": {key: str(value) for key, value in vars(config).items()},
    }
    print(json.dumps(result, indent=1))
    if config.out is not None:
        config.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(CollectBenchmark, config=(tyro.conf.FlagConversionOff,), use_underscores=True))
