"""``grape score``: stored rollouts in, one number for each with all that it is made of; no simulator, no policy."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from grape.cli.arguments import complete_switches
from grape.cli.score_report import format_report, write_plot
from grape.config.score import GuidedCostConfig, ScoreConfig, guided_cost_settings
from grape.constraints import (
    COSTS,
    StageTrace,
    TaskConstraints,
    derive_constraints,
    evaluate_stages,
    load_constraints,
    shipped_constraints,
)
from grape.envs.protocol import TaskSpec
from grape.envs.suites import SIMULATORS
from grape.errors import ConfigError, ConstraintError, RecordError
from grape.files import write_json
from grape.rewards import REWARDS, GuidedCost, external_reward, self_reward, stage_costs
from grape.rewards.guided_cost import TERMS
from grape.rewards.ranking import describe_ranking
from grape.rollouts.store import RolloutStore, read_info
from grape.trajectory import EpisodeInfo, load_trajectory

FORMAT_VERSION = 1
REWARD = "guided_cost"


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, score, write, report."""
    config = parse_arguments(argv)
    out = scores_path(config)
    scores = score_runs(config)
    write_json(out, scores)
    print(format_report(scores))
    if config.plot is not None:
        write_plot(config.plot, scores)
    pair = shlex.join(["grape", "pair", *map(str, config.runs), "--scores", str(out)])
    print(f"wrote {out}; pair with: {pair} --out DIR --dataset_name NAME")
    return 0


def parse_arguments(argv: list[str] | None) -> ScoreConfig:
    """Read flags; those of the guided cost start from the chosen preset and objective."""
    arguments = sys.argv[1:] if argv is None else argv
    early = argparse.ArgumentParser(prog="grape score", add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default=ScoreConfig.preset)
    early.add_argument("--objective", default=ScoreConfig.objective)
    named = vars(early.parse_known_args(arguments)[0])
    return tyro.cli(
        ScoreConfig,
        args=complete_switches(ScoreConfig, arguments),
        prog="grape score",
        default=ScoreConfig(runs=tyro.MISSING, guided_cost=guided_cost_settings(**named), **named),
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes),
        use_underscores=True,
    )


def scores_path(config: ScoreConfig) -> Path:
    """Where the scores go."""
    if config.out is not None:
        return config.out
    if len(config.runs) > 1:
        raise ConfigError(f"{len(config.runs)} runs are scored together; name the scores file with --out")
    name = config.preset if config.objective == ScoreConfig.objective else f"{config.preset}-{config.objective}"
    return Path(*config.runs) / "scores" / f"{name}.json"


@dataclass(frozen=True, kw_only=True)
class EpisodeTerms:
    """One episode's header, stages and terms before they are weighed against the other episodes."""

    info: EpisodeInfo
    trace: StageTrace
    stage_cost: np.ndarray
    """(S,) C_s."""
    r_self: float | None
    """Nats; ``None`` where no policy's probabilities were recorded and λ_self is 0."""
    r_ext: float
    constraints_source: str


def score_runs(config: ScoreConfig) -> dict[str, Any]:
    """Score every finished episode of the runs; crashed ones are listed, never scored.

    Returns:
        The content of the scores file: ``settings``, ``statistics``, ``episodes``, ``unscored`` and ``report``.

    Raises:
        RecordError: A run or an episode file is missing or damaged; the message names it.
        ConstraintError: A task's constraints cannot be derived, read or evaluated.
    """
    if not config.runs:
        raise ConfigError("no run to score was named; try: grape score RUN")
    constraints = ConstraintSource(config.constraints_dir)
    terms: dict[str, EpisodeTerms] = {}
    unscored: dict[str, str] = {}
    for path in tqdm(list(episode_paths(config.runs)), desc="score", unit="episode", disable=None):
        info = read_info(path)
        if info.status == "crashed":
            unscored[info.episode_id] = f"crashed: {info.error}"
            continue
        terms[info.episode_id] = evaluate_episode(path, info, constraints.of(info), config.guided_cost)
    if not terms:
        runs = ", ".join(str(run) for run in config.runs)
        raise RecordError(f"there is no finished episode in {runs} ({len(unscored)} crashed); collect some first")
    constraints.check_used()
    episodes = list(terms.values())
    result = REWARDS[REWARD](
        np.array([0.0 if episode.r_self is None else episode.r_self for episode in episodes]),
        np.array([episode.r_ext for episode in episodes]),
        np.array([episode.info.status == "success" for episode in episodes], np.float64),
        [task_of(episode.info) for episode in episodes],
        config.guided_cost,
    )
    return {
        "format_version": FORMAT_VERSION,
        "settings": {
            "reward": REWARD,
            "preset": config.preset,
            "objective": config.objective,
            "constraints_dir": str(config.constraints_dir) if config.constraints_dir else None,
            **dataclasses.asdict(config.guided_cost),
        },
        "statistics": result.statistics,
        "episodes": {episode.info.episode_id: entry(episode, result, i) for i, episode in enumerate(episodes)},
        "unscored": unscored,
        "report": report(episodes, result),
    }


def episode_paths(runs: Sequence[Path]) -> Iterator[Path]:
    """Episode files of all runs; the same name in two runs is refused, because scores are kept by name."""
    owner: dict[str, Path] = {}
    for run in runs:
        store = RolloutStore(run)
        for name in store.episode_ids():
            path = store.episodes_dir / f"{name}.npz"
            if not path.is_file():
                raise RecordError(
                    f"{run} holds the outcome of {name} alone; only what `grape collect` stores can be scored"
                )
            if name in owner:
                raise RecordError(
                    f"{owner[name]} and {run} both hold {name}; score them one by one, with two files --out"
                )
            owner[name] = run
            yield path


def evaluate_episode(
    path: Path, info: EpisodeInfo, constraints: TaskConstraints, config: GuidedCostConfig
) -> EpisodeTerms:
    """Stages and terms of one stored episode."""
    trajectory = load_trajectory(path, images=False)
    token_logps, facts = trajectory.token_logps, trajectory.facts
    try:
        trace = evaluate_stages(constraints, facts, info.keypoint_names)
    except ConstraintError as error:
        raise ConstraintError(f"{path}: {error}") from error
    costs = stage_costs(trace.costs, config, [stage.thresholds for stage in constraints.stages])
    r_self: float | None = None
    if np.isfinite(token_logps).all():
        r_self = self_reward(token_logps, config)
    elif config.lambda_self != 0:
        raise RecordError(f"{path} has no log-probabilities of a policy; score it with --lambda_self 0")
    return EpisodeTerms(
        info=info,
        trace=trace,
        stage_cost=costs,
        r_self=r_self,
        r_ext=external_reward(costs, trace.reached, config),
        constraints_source=constraints.source,
    )


class ConstraintSource:
    """Each task's constraints: from the user's folder, else those that are shipped, else derived from the goal."""

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and not folder.is_dir():
            raise ConstraintError(f"{folder} is not a folder of stage constraints")
        self._folder = folder
        self._known: dict[tuple[object, ...], TaskConstraints] = {}
        self._missed: list[str] = []
        self._used = folder is None

    def of(self, info: EpisodeInfo) -> TaskConstraints:
        """Constraints for the episode's task."""
        key = (info.suite, info.task_id, info.goal_predicates, info.keypoint_names)
        if key not in self._known:
            self._known[key] = self._make(info)
        return self._known[key]

    def check_used(self) -> None:
        """Raise ``ConstraintError`` where the user's folder has constraints of none of the tasks."""
        if not self._used:
            raise ConstraintError(f"{self._folder} has constraints of none of these tasks; wanted {self._missed[0]}")

    def _make(self, info: EpisodeInfo) -> TaskConstraints:
        for suffix in (".json", ".yaml", ".yml"):
            path = None if self._folder is None else self._folder / f"{info.suite}_{info.task_id}{suffix}"
            if path is not None and path.is_file():
                self._used = True
                constraints = load_constraints(path)
                if constraints.instruction != info.instruction:
                    print(f"note: {path} is about {constraints.instruction!r}, the episodes about {info.instruction!r}")
                return _checked(constraints, info)
        self._missed.append(f"{info.suite}_{info.task_id}.json")
        return _checked(toolkit_constraints(info), info)


def toolkit_constraints(task: EpisodeInfo | TaskSpec) -> TaskConstraints:
    """What the toolkit itself knows of a task: shipped constraints, else derived ones.

    Raises:
        ConstraintError: There are none, and none can be derived.
    """
    bases = {variant: base for simulator in SIMULATORS.values() for variant, base in simulator.varied_suite.items()}
    if (shipped := shipped_constraints(bases.get(task.suite, task.suite), task.task_id)) is None:
        return derive_constraints(task.goal_predicates, task.keypoint_names, task.instruction)
    return shipped.about(task.instruction, task.keypoint_names) if task.suite in bases else shipped


def _checked(constraints: TaskConstraints, info: EpisodeInfo) -> TaskConstraints:
    constraints.check_keypoints(info.keypoint_names)
    return constraints


def task_of(info: EpisodeInfo) -> str:
    """Key of a task in statistics and report."""
    return f"{info.suite}/{info.task_id}"


def entry(episode: EpisodeTerms, result: GuidedCost, index: int) -> dict[str, Any]:
    """One episode's line in the scores file."""
    info, trace = episode.info, episode.trace
    stages = [
        {
            "name": name,
            "reached": bool(trace.reached[s]),
            "completed": bool(trace.completed[s]),
            "num_steps": int(trace.num_steps[s]),
            "first_step": _first_step(trace.stage, s),
            "cost": float(episode.stage_cost[s]),
            **{cost: float(trace.costs[cost][s]) for cost in COSTS},
        }
        for s, name in enumerate(trace.stage_names)
    ]
    return {
        "score": float(result.score[index]),
        "r_self": episode.r_self,
        "r_ext": episode.r_ext,
        "i_success": int(info.status == "success"),
        "weighted": {name: float(result.weighted[name][index]) for name in TERMS},
        "success_shift": float(result.success_shift[index]),
        "task": task_of(info),
        "init_state_id": info.init_state_id,
        "num_steps": info.num_steps,
        "checkpoint_hash": info.checkpoint_hash,
        "constraints": episode.constraints_source,
        "stages": stages,
    }


def _first_step(stages: np.ndarray, stage: int) -> int | None:
    """The first row of facts in which a stage is the current one; ``None`` if it was passed in between or never was."""
    rows = np.flatnonzero(stages == stage)
    return int(rows[0]) if len(rows) else None


def report(episodes: Sequence[EpisodeTerms], result: GuidedCost) -> dict[str, Any]:
    """What decides each task's ranking."""
    reports: dict[str, Any] = {}
    tasks = np.array([task_of(episode.info) for episode in episodes])
    for task in dict.fromkeys(tasks.tolist()):
        own = np.flatnonzero(tasks == task).tolist()
        members = [episodes[i] for i in own]
        raw = {
            "r_self": np.array([one.r_self or 0.0 for one in members]),
            "r_ext": np.array([one.r_ext for one in members]),
            "i_success": np.array([one.info.status == "success" for one in members], np.float64),
        }
        reports[task] = {
            "instruction": members[0].info.instruction,
            **describe_ranking(
                raw,
                {name: result.weighted[name][own] for name in TERMS},
                result.score[own],
                np.array([one.info.num_steps for one in members]),
                [(one.info.init_state_id, one.info.init_state_hash) for one in members],
            ),
        }
    return reports
