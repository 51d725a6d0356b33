"""``grape eval``: success rates with intervals on named initial states."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

from grape.cli.arguments import parse_config
from grape.cli.interruption import resumable
from grape.config.collect import OFFICIAL_SPLIT
from grape.config.evaluate import EvaluateConfig
from grape.evaluation import (
    StateOutcome,
    SuccessRate,
    states_from_episodes,
    states_from_json,
    states_to_json,
    success_by_rule,
    success_rate,
)
from grape.files import write_bytes_atomic, write_json
from grape.optional import require
from grape.trajectory import EpisodeInfo, Trajectory

RESULT_FORMAT_VERSION = 1
RESULT_FILE = "results.json"
NUM_ATTEMPTS = 2
"""An episode whose simulator crashed is run once more; then it counts as crashed."""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(EvaluateConfig, "eval", argv)
    run_dir = config.run_dir or new_run_dir(config)
    config = dataclasses.replace(config, run_dir=run_dir)
    with resumable("eval", argv, run_dir, "--run_dir", str(run_dir)):
        result = evaluate(config)
    print(format_table(result))
    print(f"\nwritten to {run_dir / RESULT_FILE}")
    return 0


def new_run_dir(config: EvaluateConfig) -> Path:
    """Folder of a new evaluation, under its published name."""
    stamp = time.strftime("%Y_%m_%d-%H_%M_%S")
    name = f"EVAL-{config.task_suite_name}-{config.model_family}-{stamp}"
    return config.local_log_dir / (f"{name}--{config.run_id_note}" if config.run_id_note else name)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run what the folder does not hold yet; write and return the result (see ``build_result``)."""
    from grape.rollouts import session
    from grape.rollouts.store import RolloutStore
    from grape.rollouts.video import write_episode_video

    assert config.run_dir is not None, "main() names the folder"
    videos_dir = config.run_dir / "videos"
    wanted = {"none": (), "failures": ("failure",), "successes": ("success",), "all": ("success", "failure")}

    def record(trajectory: Trajectory) -> None:
        if trajectory.info.status in wanted[config.videos]:
            write_episode_video(videos_dir, trajectory)

    if config.use_wandb:
        require("wandb", extra="wandb")  # now, not after hours of simulation
    if config.init_split == OFFICIAL_SPLIT:
        print("note: the official states are for testing only: tune on others, and count every look", file=sys.stderr)
    started = time.monotonic()
    details = ("pretrained_checkpoint", "adapter", "num_workers", "device", "run_id_note", "simpler_python")
    episodes = session.run(config, "evaluate", details=details, num_attempts=NUM_ATTEMPTS, on_episode=record)
    run = RolloutStore(config.run_dir).run
    result = build_result(run, episodes, wall_time_s=time.monotonic() - started)
    write_json(config.run_dir / RESULT_FILE, result)
    write_bytes_atomic(config.run_dir / "results.txt", format_table(result).encode())
    if config.use_wandb:
        log_to_wandb(config, result)
    return result


def build_result(run: dict[str, Any], episodes: list[EpisodeInfo], *, wall_time_s: float) -> dict[str, Any]:
    """Everything that a comparison, a table or a reader needs, as JSON values."""
    states = states_from_episodes(episodes)
    tasks = []
    for task_id in sorted({state.task_id for state in states}):
        of_task = [episode for episode in episodes if episode.task_id == task_id]
        tasks.append(_task_result(of_task, [state for state in states if state.task_id == task_id]))
    ran = next((episode for episode in episodes if episode.status != "crashed"), episodes[0])
    return {
        "format_version": RESULT_FORMAT_VERSION,
        "settings": run["settings"],
        "details": run["details"],
        "versions": run["versions"],
        "checkpoint_hash": episodes[0].checkpoint_hash,
        "simulator_settings": ran.simulator_settings,
        "total": dataclasses.asdict(success_rate(states)),
        **_by_rule("total_by_rule", episodes),
        "tasks": tasks,
        "num_episodes": len(episodes),
        "crashed_episodes": {e.episode_id: e.error for e in episodes if e.status == "crashed"},
        "wall_time_s": round(wall_time_s, 1),
        "episode_time_s": round(math.fsum(episode.wall_time_s for episode in episodes), 1),
    }


def _task_result(episodes: list[EpisodeInfo], states: list[StateOutcome]) -> dict[str, Any]:
    """One task's part of the result."""
    assets = [a for episode in episodes if (a := episode.simulator_settings.get("assets")) is not None]
    return {
        "task_id": episodes[0].task_id,
        "name": episodes[0].task_name,
        "instruction": episodes[0].instruction,
        **({"assets": assets[0]} if assets else {}),
        "success": dataclasses.asdict(success_rate(states)),
        **_by_rule("success_by_rule", episodes),
        "states": states_to_json(states),
    }


def _by_rule(name: str, episodes: list[EpisodeInfo]) -> dict[str, Any]:
    """The further ways to count success, where the episodes did not end with the first one."""
    rates = success_by_rule(episodes)
    return {} if rates is None else {name: {rule: dataclasses.asdict(rate) for rule, rate in rates.items()}}


def format_table(result: dict[str, Any]) -> str:
    """The result for the eye: one line per task, the total, then the outcome of each state."""
    settings = result["settings"]
    head = (
        f"{settings['suite']}, split {settings['init_split']}, temperature {settings['temperature']:g}, "
        f"checkpoint {result['checkpoint_hash'][:12]}"
    )
    lines = [head, "", f"{'successes':>12}  {'rate':>7}  {'95 % interval':>15}  {'crashed':>7}  task"]
    for task in result["tasks"]:
        lines.append(_table_row(task["success"], f"{task['task_id']} {task['instruction']}"))
    lines.append(_table_row(result["total"], "total"))
    for rule, success in result.get("total_by_rule", {}).items():
        lines.append(_table_row(success, f"total, goal reached: {rule.replace('_', ' ')}"))
    lines += ["", "per state: + success, - failure, ! crashed"]
    for task in result["tasks"]:
        states = states_from_json(task["task_id"], task["states"])
        lines.append(f"  task {task['task_id']}, {states[0].init_state_id} on: {' '.join(map(_marks, states))}")
    return "\n".join(lines)


def _table_row(success: dict[str, Any], label: str) -> str:
    rate = SuccessRate(**success)
    share = "–" if rate.rate is None else f"{100 * rate.rate:.1f} %"
    interval = f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return f"{rate.successes:>7g}/{rate.trials:<4d}  {share:>7}  {interval:>15}  {rate.num_crashed:>7d}  {label}"


def _marks(state: StateOutcome) -> str:
    return "".join("!" if outcome is None else "+" if outcome else "-" for outcome in state.outcomes)


def log_to_wandb(config: EvaluateConfig, result: dict[str, Any]) -> None:
    """Send the success rates to Weights & Biases; without an account they stay on disk as an offline run.

    A task of which every episode crashed has no rate and is left out. The same row goes to ``metrics.jsonl``.
    """
    from grape.trainer.metrics import MetricsLogger

    assert config.run_dir is not None
    rates = {f"success_rate/{task['task_id']}": task["success"]["rate"] for task in result["tasks"]}
    rates["success_rate/total"] = result["total"]["rate"]
    logger = MetricsLogger(
        config.run_dir,
        wandb_project=config.wandb_project,
        wandb_entity=config.wandb_entity,
        config=result["settings"],
    )
    known = {name: rate for name, rate in rates.items() if rate is not None}
    logger.log(1, {**known, "num_episodes": result["num_episodes"]})
    logger.close()
