"""The stages of a demo run: which command each of them is, and where its files are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grape.config.demo import DemoConfig
from grape.demo.flags import Flags
from grape.demo.plan import DemoPlan, StateRange
from grape.demo.stages import Command, Stage, flags_to_arguments
from grape.errors import RecordError
from grape.trainer.metrics import read_metrics

ADAPTER_LINK = "adapter"
BEFORE, AFTER, SUPERVISED = "before", "after", "supervised"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What an arm evaluates: a checkpoint, with or without an adapter on top."""

    checkpoint: str
    adapter: Path | None = None

    def flags(self) -> Flags:
        """As flags of ``grape eval`` and ``grape collect``."""
        return {"pretrained_checkpoint": self.checkpoint} | ({"adapter": self.adapter} if self.adapter else {})


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a run keeps what. ``iteration`` counts from 0."""

    run_dir: Path
    plan: DemoPlan

    def evaluation(self, arm: str, suite: str) -> Path:
        return self.run_dir / "evaluate" / arm / suite

    def rollouts(self, iteration: int, suite: str) -> Path:
        return self._iteration(iteration) / "rollouts" / suite

    def scores(self, iteration: int, suite: str) -> Path:
        return self._iteration(iteration) / "scores" / f"{suite}.json"

    def pairs(self, iteration: int) -> Path:
        return self._iteration(iteration) / "pairs"

    def training(self, iteration: int) -> Path:
        """Run folder of TPO: metrics and checkpoints."""
        return self._iteration(iteration) / "train" / "tpo"

    def adapter(self, iteration: int) -> Path:
        """Newest adapter of TPO, in peft's format."""
        return self._iteration(iteration) / ADAPTER_LINK / "tpo"

    def merged(self, iteration: int) -> Path:
        return self._iteration(iteration) / "merged"

    def supervised(self) -> Path:
        """Run folder of the supervised arm."""
        return self.run_dir / "supervised" / "sft"

    def whole_pairs(self) -> Path:
        """The last iteration's pairs, uncut: the supervised arm imitates chosen trajectories to their end."""
        return self.run_dir / "supervised" / "pairs"

    def supervised_adapter(self) -> Path:
        return self.run_dir / "supervised" / ADAPTER_LINK / "sft"

    def base(self, iteration: int) -> str:
        """Checkpoint that makes the rollouts of an iteration, and is trained in it."""
        return self.plan.policy if iteration == 0 else str(self.merged(iteration - 1))

    def policies(self) -> dict[str, Policy]:
        """The arms in order of evaluation."""
        last = self.plan.iterations - 1
        arms = {
            BEFORE: Policy(checkpoint=self.plan.policy),
            AFTER: Policy(checkpoint=self.base(last), adapter=self.adapter(last)),
        }
        if self.plan.supervised_arm:
            arms[SUPERVISED] = Policy(checkpoint=self.base(last), adapter=self.supervised_adapter())
        return arms

    def distances(self, suite: str) -> Path:
        """Distance of each test state to the nearest used one."""
        return self.run_dir / "states" / f"{suite}.json"

    def _iteration(self, iteration: int) -> Path:
        return self.run_dir / f"iteration{iteration + 1}"


def num_gradient_steps(training_dir: Path) -> int:
    """Optimiser steps of a finished training run, as its log says."""
    rows = read_metrics(training_dir)
    if not rows:
        raise RecordError(f"{training_dir} has no training log; remove its stage record and train again")
    return int(rows[-1]["step"])


def build_stages(
    config: DemoConfig,
    plan: DemoPlan,
    layout: Layout,
    count_steps: Callable[[Path], int] = num_gradient_steps,
) -> list[Stage]:
    """Every stage before the report, in order.

    Args:
        config: With what means to run.
        plan: What to run.
        layout: Where files go.
        count_steps: Gives the gradient steps of the training run in a folder.
    """
    builder = _Builder(config, plan, layout, count_steps)
    stages = [builder.evaluate(BEFORE)]
    for iteration in range(plan.iterations):
        stages += [builder.collect(iteration), builder.score(iteration), builder.pair(iteration)]
        stages.append(builder.train(iteration))
        if iteration + 1 < plan.iterations:
            stages.append(builder.merge(iteration))
    stages.append(builder.evaluate(AFTER))
    if plan.supervised_arm:
        stages += [builder.train_supervised(), builder.evaluate(SUPERVISED)]
    return [*stages, builder.measure_states()]


@dataclass(frozen=True)
class _Builder:
    config: DemoConfig
    plan: DemoPlan
    layout: Layout
    count_steps: Callable[[Path], int]

    # A plan's flags come first in each command, so that even a flag missing in SET_BY_THE_DEMO could not win.

    def evaluate(self, arm: str) -> Stage:
        states = self.plan.test_states
        what = {
            BEFORE: "the policy as it is",
            AFTER: "the same initial states again, with the adapter from preference optimization",
            SUPERVISED: "the same initial states again, with the adapter from the chosen trajectories alone",
        }[arm]
        return Stage(
            name=f"evaluate-{arm}",
            why=f"measure {what}: greedy, {self.plan.num_test_states} {states.split} states, one episode each.",
            commands=lambda: [
                self._command(
                    "eval",
                    self.plan.evaluate,
                    self.layout.policies()[arm].flags(),
                    self._rollout_flags(suite, states, "num_trials_per_task"),
                    {"run_dir": self.layout.evaluation(arm, suite), "resume": True, "videos": "all"},
                )
                for suite in self.plan.tasks
            ],
        )

    def collect(self, iteration: int) -> Stage:
        states = self.plan.rollout_states.shifted(iteration)
        return Stage(
            name=self._numbered("collect", iteration),
            why="sample several rollouts from each initial state: the policy's own successes and failures.",
            commands=lambda: [
                self._command(
                    "collect",
                    self.plan.collect,
                    {"pretrained_checkpoint": self.layout.base(iteration)},
                    self._rollout_flags(suite, states, "num_states"),
                    {"run_dir": self.layout.rollouts(iteration, suite), "resume": True},
                )
                for suite in self.plan.tasks
            ],
        )

    def score(self, iteration: int) -> Stage:
        return Stage(
            name=self._numbered("score", iteration),
            why="rank the rollouts with the guided cost: the policy's own likelihood, stage costs and success.",
            before=lambda: _remove(self.layout.scores(iteration, "any").parent),
            commands=lambda: [
                ("score", str(self.layout.rollouts(iteration, suite)))
                + self._arguments(self.plan.score, {"out": self.layout.scores(iteration, suite)})
                for suite in self.plan.tasks
            ],
        )

    def pair(self, iteration: int) -> Stage:
        suites = list(self.plan.tasks)
        runs = [str(self.layout.rollouts(iteration, suite)) for suite in suites]
        scores = [self.layout.scores(iteration, suite) for suite in suites]
        places: list[Flags] = [{"out": self.layout.pairs(iteration)}]
        if self.plan.supervised_arm and iteration == self.plan.iterations - 1:
            places.append({"out": self.layout.whole_pairs(), "cut_at_parting": False})
        return Stage(
            name=self._numbered("pair", iteration),
            why="from the same initial state, a better and a worse rollout make one preference pair.",
            before=lambda: _remove(*(place["out"] for place in places)),
            commands=lambda: [
                ("pair", *runs)
                + self._arguments(self.plan.pair, {"scores": scores, "dataset_name": self.plan.name}, place)
                for place in places
            ],
        )

    def train(self, iteration: int) -> Stage:
        pairs, training = self.layout.pairs(iteration), self.layout.training(iteration)
        return Stage(
            name=self._numbered("train", iteration),
            why="train a LoRA adapter so that chosen trajectories become likelier than rejected ones (TPO).",
            commands=lambda: [
                self._command(
                    "train",
                    self.plan.train,
                    {"vla_path": self.layout.base(iteration), "dataset_name": self.plan.name},
                    {"chosen_traj_dir": pairs / "chosen", "rejected_traj_dir": pairs / "rejected"},
                    {"run_root_dir": training.parent, "run_name": training.name},
                    {"adapter_tmp_dir": self.layout.adapter(iteration).parent},
                    {"device": self.config.device, "resume": training.exists()},
                )
            ],
        )

    def merge(self, iteration: int) -> Stage:
        merged = self.layout.merged(iteration)
        flags = {"vla_path": self.layout.base(iteration), "adapter": self.layout.adapter(iteration), "out": merged}
        return Stage(
            name=self._numbered("merge", iteration),
            why="merge the adapter: the next iteration starts from this policy.",
            before=lambda: _remove(merged),
            commands=lambda: [self._command("merge", flags)],
        )

    def train_supervised(self) -> Stage:
        last = self.plan.iterations - 1
        training = self.layout.supervised()
        return Stage(
            name="train-supervised",
            why="the control: imitate the chosen trajectories alone, whole, for as many gradient steps as TPO took.",
            commands=lambda: [
                self._command(
                    "sft",
                    self.plan.sft,
                    {"vla_path": self.layout.base(last), "dataset_name": self.plan.name},
                    {"data_root_dir": self.layout.whole_pairs() / "chosen"},
                    {"run_root_dir": training.parent, "run_name": training.name},
                    {"adapter_tmp_dir": self.layout.supervised_adapter().parent},
                    {"max_steps": self.count_steps(self.layout.training(last))},
                    {"device": self.config.device, "resume": training.exists()},
                )
            ],
        )

    def measure_states(self) -> Stage:
        rollouts = [str(self.plan.rollout_states.shifted(iteration)) for iteration in range(self.plan.iterations)]
        return Stage(
            name="measure-states",
            why="how far is each test state from the nearest one that was used before? Resets only, no pictures.",
            commands=lambda: [
                self._command(
                    "states",
                    {"task_suite_name": suite, "task_ids": task_ids, "test": self.plan.test_states},
                    {"used": [*self.plan.used_states, *rollouts], "out": self.layout.distances(suite)},
                )
                for suite, task_ids in self.plan.tasks.items()
            ],
        )

    def _rollout_flags(self, suite: str, states: StateRange, count_flag: str) -> Flags:
        return {
            "task_suite_name": suite,
            "task_ids": self.plan.tasks[suite],
            "init_split": states.split,
            "first_state": states.first,
            count_flag: states.num_per_task,
            "num_workers": self.config.num_workers,
            "device": self.config.device,
        }

    def _numbered(self, name: str, iteration: int) -> str:
        return name if self.plan.iterations == 1 else f"{name}-{iteration + 1}"

    def _command(self, name: str, *groups: Mapping[str, Any]) -> Command:
        return (name, *self._arguments(*groups))

    @staticmethod
    def _arguments(*groups: Mapping[str, Any]) -> Command:
        merged: Flags = {}
        for group in groups:
            merged |= group
        return tuple(flags_to_arguments(merged))


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
