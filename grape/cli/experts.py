"""``grape experts``: demonstrations by scripted experts, and the table of their success."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from grape.cli.arguments import parse_config
from grape.cli.interruption import resumable
from grape.config.collect import CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.config.experts import ExpertsConfig
from grape.trajectory import EpisodeInfo

if TYPE_CHECKING:
    from grape.envs.protocol import TaskSpec
    from grape.rollouts.jobs import RolloutJob
    from grape.rollouts.policy import Policy
    from grape.rollouts.scripted import ScriptedDemonstrator


def main(argv: list[str] | None = None) -> int:
    config = parse_config(ExpertsConfig, "experts", argv)
    with resumable("experts", argv, config.run_dir):
        episodes = demonstrate(config)
    print(success_table(episodes, by_rule=config.measure_only))
    if not config.measure_only:
        print(f"next: grape export {shlex.quote(str(config.run_dir))} --out DIR --dataset_name NAME, then grape sft")
    return 0


def demonstrate(config: ExpertsConfig) -> list[EpisodeInfo]:
    """Run what the folder does not hold yet and return the headers of all its episodes."""
    from grape.rollouts import session
    from grape.rollouts.scripted import CorrectedStudent

    like = _as_evaluation(config) if config.measure_only else _as_collection(config)

    def make_policy(jobs: list[RolloutJob]) -> Policy:
        expert = _make_expert(config, [job.task for job in jobs])
        return expert if config.student is None else CorrectedStudent(session.open_policy(like), expert)

    return session.run(like, "experts", details=("policy", "num_workers"), make_policy=make_policy)


def success_table(episodes: list[EpisodeInfo], *, by_rule: bool = False) -> str:
    """Markdown table: successes of trials per task, with Wilson 95 % intervals.

    Args:
        episodes: Of any tasks.
        by_rule: They ran as in evaluation: one column for each rule of success that applies to them.
    """
    from grape.evaluation import SuccessRate, states_from_episodes, success_by_rule, success_rate

    def rates(of_task: list[EpisodeInfo]) -> dict[str, SuccessRate]:
        found = success_by_rule(of_task) if by_rule else None
        return found or {"success": success_rate(states_from_episodes(of_task))}

    names = [name.replace("_", " ") for name in rates(episodes)]
    lines = [
        "| suite | task | instruction | " + " | ".join(f"{name} | 95 % interval" for name in names) + " |",
        "| --- | --- | --- |" + " --- | --- |" * len(names),
    ]
    for suite, task_id, instruction in sorted({(one.suite, one.task_id, one.instruction) for one in episodes}):
        of_task = [episode for episode in episodes if (episode.suite, episode.task_id) == (suite, task_id)]
        cells = [f"{r.successes:g}/{r.trials} | {r.low:.0%} to {r.high:.0%}" for r in rates(of_task).values()]
        lines.append(f"| {suite} | {task_id} | {instruction} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _make_expert(config: ExpertsConfig, tasks: list[TaskSpec]) -> ScriptedDemonstrator:
    from grape.rollouts.scripted import DemonstrationNoise, ScriptedDemonstrator

    noise = DemonstrationNoise(
        jitter=config.jitter,
        burst_probability=config.burst_probability,
        start_burst_probability=config.start_burst_probability,
    )
    expert = ScriptedDemonstrator(
        image_size=config.image_size, noise=noise, image_resize=config.image_resize, careless_m=config.careless_m
    )
    for task in tasks:  # refuses a task without an expert before a simulator is started
        expert.expert(task)
    return expert


def _as_collection(config: ExpertsConfig) -> CollectConfig:
    """The same run as settings of the collector, whose job planning it shares."""
    return CollectConfig(
        **_shared(config),
        num_states=config.num_states,
        num_rollouts=1,
        temperature=config.temperature,
        center_crop=False,
    )


def _as_evaluation(config: ExpertsConfig) -> EvaluateConfig:
    """The same run as settings of the evaluation; nobody looks at its pictures, so they are small."""
    from grape.envs.suites import find_simulator

    return EvaluateConfig(
        **_shared(config),
        num_trials_per_task=config.num_states,
        camera_size=find_simulator(config.task_suite_name).unseen["camera_size"],
    )


def _shared(config: ExpertsConfig) -> dict[str, Any]:
    names = (
        "task_suite_name", "task_ids", "init_split", "first_state", "prompt_style", "image_resize", "seed",
        "render_profile", "max_steps", "run_dir", "resume", "num_workers", "step_timeout_s",
    )  # fmt: skip
    settings = {name: getattr(config, name) for name in names}
    return {"pretrained_checkpoint": config.student or "scripted", **settings}
