"""Does a policy follow the objective that its pairs were chosen under? One base, one set of rollouts, three adapters.

    python -m experiments.objectives.run --run_dir runs/objectives

Stages that are done are not run again: the same command continues. How a step is trained and how rollouts are rendered
stands in experiments/demo/plan.json; what is this experiment's own, in plan.json beside this file.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.objectives.counts import MEASURES, Counts, State, compare_states, count_run, mean_by_state
from experiments.objectives.pairs import join, make_pairs
from grape.cli.main import run_command
from grape.cli.pair import ScoredRun, read_scores, write_pairs
from grape.config.pair import PairingSettings
from grape.config.score import OBJECTIVES
from grape.demo.stages import Command, Stage, flags_to_arguments, open_run, run_stages
from grape.errors import ConfigError, GrapeError
from grape.files import write_bytes_atomic
from grape.rollouts.store import RolloutStore

HERE = Path(__file__).parent
BASE, BASELINE = "base", "task_completion"
DATASET = "objective"


@dataclass(frozen=True, kw_only=True)
class RunObjectives:
    """Collect, score, pair and train under each objective, collect again, compare."""

    run_dir: Path = Path("runs/objectives")
    """Folder of the run; an unfinished run in it is continued."""
    plan: Path = HERE / "plan.json"
    """Tasks, states and pairs."""
    demo_plan: Path = HERE.parent / "demo" / "plan.json"
    """Where the flags of rendering (collect), cutting (pair) and training (train) come from."""
    rollouts: Path | None = None
    """A run of `grape collect` with the plan's policy to make pairs from, instead of collecting one."""
    num_steps: int | None = None
    """Optimiser steps of each training; None takes as many as the plan's epochs give with the fewest pairs."""
    num_workers: int = 2
    """Simulator processes."""
    device: str = "auto"
    """torch device of the policy."""


class Experiment:
    """The stages, in order, and where their files go."""

    def __init__(self, config: RunObjectives) -> None:
        self.config = config
        self.plan, self.demo = json.loads(config.plan.read_text()), json.loads(config.demo_plan.read_text())
        self.rollouts = config.rollouts or config.run_dir / "rollouts"

    def stages(self) -> list[Stage]:
        """Everything before the comparison."""
        stages = [] if self.config.rollouts else [self._collect_rollouts()]
        stages += [self._score(), self._pair()]
        stages += [self._train(objective) for objective in OBJECTIVES]
        return stages + [self._test(arm) for arm in (BASE, *OBJECTIVES)]

    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        shared = {name: self.demo[name] for name in ("collect", "pair", "train")}
        return {"plan": self.plan, "demo": shared, "num_steps": self.config.num_steps}

    def identity(self) -> dict[str, Any]:
        """What decides the result."""
        return self.settings() | {"rollouts": str(self.rollouts)}

    def pairs(self, objective: str) -> Path:
        return self.config.run_dir / "pairs" / objective

    def scores(self, objective: str) -> Path:
        return self.config.run_dir / "scores" / f"{objective}.json"

    def test_run(self, arm: str) -> Path:
        return self.config.run_dir / "test" / arm

    def _collect(self, out: Path, states: Mapping[str, Any], adapter: Path | None = None) -> Command:
        flags = {
            **self.demo["collect"],
            "pretrained_checkpoint": self.plan["policy"],
            **({"adapter": adapter} if adapter else {}),
            **{name: self.plan[name] for name in ("task_suite_name", "task_ids")},
            **states,
            "num_workers": self.config.num_workers,
            "device": self.config.device,
            "run_dir": out,
            "resume": True,
        }
        return ("collect", *flags_to_arguments(flags))

    def _collect_rollouts(self) -> Stage:
        return Stage(
            name="collect",
            why="several rollouts of each initial state: many, so that there is something to choose among successes.",
            commands=lambda: [self._collect(self.rollouts, self.plan["rollouts"])],
        )

    def _score(self) -> Stage:
        return Stage(
            name="score",
            why="the same rollouts under each objective.",
            commands=lambda: [
                ("score", str(self.rollouts), "--objective", objective, "--out", str(self.scores(objective)))
                for objective in OBJECTIVES
            ],
        )

    def _pair(self) -> Stage:
        return Stage(
            name="pair",
            why="success against failure, and success against success: the latter differ only in the objective.",
            before=self._write_pairs,
            commands=lambda: [],
        )

    def _write_pairs(self) -> None:
        shutil.rmtree(self.config.run_dir / "pairs", ignore_errors=True)
        cut = {name: self.demo["pair"][name] for name in ("cut_at_parting", "steps_after_parting")}
        for objective in OBJECTIVES:
            run = ScoredRun(RolloutStore(self.rollouts), self.scores(objective), read_scores(self.scores(objective)))
            episodes = [one for one in run.episodes() if one.info.task_id in self.plan["task_ids"]]
            reports = [
                make_pairs(episodes, name, PairingSettings(**settings, **cut))
                for name, settings in self.plan["pairs"].items()
            ]
            write_pairs(self.pairs(objective), DATASET, join(reports), [run])

    def num_pairs(self, objective: str) -> int:
        return len(json.loads((self.pairs(objective) / "pairing.json").read_text())["pairs"])

    def num_steps(self) -> int:
        """The same for every objective: as the fewest pairs give."""
        if self.config.num_steps is not None:
            return self.config.num_steps
        train = self.demo["train"]
        fewest = min(self.num_pairs(objective) for objective in OBJECTIVES)
        return max(1, train["epoch"] * fewest // train["batch_size"])

    def _train(self, objective: str) -> Stage:
        training = self.config.run_dir / "train" / objective
        return Stage(
            name=f"train-{objective}",
            why="TPO with the settings of the proof, as many steps as under the other objectives.",
            commands=lambda: [
                (
                    "train",
                    *flags_to_arguments(
                        {
                            **self.demo["train"],
                            "epoch": self.num_steps(),  # more than enough: max_steps ends it
                            "max_steps": self.num_steps(),
                            "vla_path": self.plan["policy"],
                            "dataset_name": DATASET,
                            "chosen_traj_dir": self.pairs(objective) / "chosen",
                            "rejected_traj_dir": self.pairs(objective) / "rejected",
                            "run_root_dir": training.parent,
                            "run_name": training.name,
                            "adapter_tmp_dir": self.config.run_dir / "adapter",
                            "device": self.config.device,
                            "resume": training.exists(),
                        }
                    ),
                )
            ],
        )

    def _test(self, arm: str) -> Stage:
        adapter = None if arm == BASE else self.config.run_dir / "adapter" / arm
        return Stage(
            name=f"test-{arm}",
            why="greedy, from initial states that nothing else has used; facts are recorded.",
            commands=lambda: [self._collect(self.test_run(arm), self.plan["test"], adapter)],
        )

    def result(self) -> dict[str, Any]:
        """What each policy did, and paired differences by initial state."""
        counted = {arm: count_run(self.test_run(arm)).values() for arm in (BASE, *OBJECTIVES)}
        return {
            **self.settings(),
            "num_pairs": {objective: self.num_pairs(objective) for objective in OBJECTIVES},
            "num_train_steps": self.num_steps(),
            "arms": {arm: mean_of_arm(episodes) for arm, episodes in counted.items()},
            **compare_arms({arm: mean_by_state(episodes) for arm, episodes in counted.items()}),
        }


def mean_of_arm(episodes: Any) -> dict[str, float]:
    """Mean of each measure over the arm's episodes; the path of successes also on its own."""
    counts: list[Counts] = [one for _, one in episodes]
    won = [one for one in counts if one.success]
    means = {name: sum(getattr(one, name) for one in counts) / len(counts) for name in MEASURES}
    for name in ("collision_steps", "path_m") if won else ():
        means[f"{name}_of_successes"] = sum(getattr(one, name) for one in won) / len(won)
    return {"num_episodes": len(counts), **means}


def compare_arms(means: Mapping[str, Mapping[State, Mapping[str, float]]]) -> dict[str, Any]:
    """Each trained arm against the base, and the objectives against task completion.

    ``both_succeed``: over the states alone on which both arms do. A failure goes on to the last step, so that over all
    states a policy that succeeds more often has the shorter path, whatever its objective.
    """
    contrasts = [(BASE, objective) for objective in OBJECTIVES]
    contrasts += [(BASELINE, objective) for objective in OBJECTIVES if objective != BASELINE]
    result: dict[str, Any] = {}
    for before, after in contrasts:
        first, second = means[before], means[after]
        both = [state for state in first if state in second and first[state]["success"] and second[state]["success"]]
        result[f"{after} - {before}"] = {
            "all": {name: compare_states(_column(first, name), _column(second, name)) for name in MEASURES},
            "both_succeed": {
                name: compare_states(_column(first, name, both), _column(second, name, both)) for name in MEASURES
            }
            if both
            else None,
        }
    return {"differences": result}


def _column(
    means: Mapping[State, Mapping[str, float]], name: str, states: list[State] | None = None
) -> dict[State, float]:
    return {state: means[state][name] for state in (means if states is None else states)}


def table(result: Mapping[str, Any]) -> str:
    """Arms, then differences, as lines for a terminal."""
    lines = [f"{arm}: " + ", ".join(f"{name} {value:.3f}" for name, value in one.items()) for arm, one in
             result["arms"].items()]  # fmt: skip
    for contrast, groups in result["differences"].items():
        for group, measures in groups.items():
            for name, one in (measures or {}).items():
                lines.append(
                    f"{contrast}, {group} ({one['num_states']}), {name}: {one['difference']:+.3f} "
                    f"[{one['low']:+.3f}, {one['high']:+.3f}], less in {one['num_lower']}, more in {one['num_higher']}"
                )
    return "\n".join(lines)


def main() -> int:
    """Parse the command line, run what is not done yet, compare."""
    config = tyro.cli(RunObjectives, use_underscores=True)
    try:
        if config.num_steps is not None and config.num_steps < 1:
            raise ConfigError(f"num_steps is {config.num_steps}; it must be at least 1")
        experiment = Experiment(config)
        with open_run(config.run_dir, experiment.identity()):
            run_stages(config.run_dir, experiment.stages(), run_command)
            result = experiment.result()
            write_bytes_atomic(config.run_dir / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    except GrapeError as error:
        print(f"objectives: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("objectives: interrupted; the same command continues", file=sys.stderr)
        return 130
    print(table(result))
    print(f"wrote {config.run_dir / 'result.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
