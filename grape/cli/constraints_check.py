"""``grape constraints check``: are stage constraints worth trusting? Tried on stored rollouts, nothing is simulated."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from grape.cli.arguments import parse_config
from grape.cli.check_report import format_check
from grape.cli.check_task import Paths, check_task
from grape.cli.score import ConstraintSource, episode_paths, task_of
from grape.config.constraints_check import ConstraintsCheckConfig
from grape.config.score import PRESETS
from grape.constraints import TaskConstraints, load_constraints
from grape.errors import ConfigError, RecordError, did_you_mean
from grape.files import write_json
from grape.rollouts.store import read_info

FORMAT_VERSION = 1


def main(argv: list[str] | None = None) -> int:
    """Check, report, and answer by the exit code: 0 usable, 1 with the reasons why not."""
    config = parse_config(ConstraintsCheckConfig, "constraints check", argv)
    report = check_rollouts(config)
    if config.out is not None:
        write_json(config.out, report)
    print("\n\n".join(format_check(one) for one in report["tasks"].values()))
    if config.strip is not None:
        from grape.cli.check_strip import write_strip

        [episodes] = _tasks(config).values()
        print(write_strip(config.strip, episodes, constraints_of(config, episodes), PRESETS[config.preset]))
    return 0 if report["usable"] else 1


def check_rollouts(config: ConstraintsCheckConfig) -> dict[str, Any]:
    """Check the constraints of every chosen task.

    Returns:
        The content of the report file: ``settings``, ``usable``, and for each task what ``check_task`` returns.

    Raises:
        ConfigError: The rollouts are of several tasks, or not of the named one.
        RecordError: A run or an episode is damaged, or there is no finished episode.
        ConstraintError: The file cannot be read.
    """
    tasks = {
        task: check_task(
            episodes,
            constraints_of(config, episodes),
            PRESETS[config.preset],
            num_resamples=config.num_resamples,
            seed=config.seed,
        )
        for task, episodes in _tasks(config).items()
    }
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    usable = not any(one["reasons"] for one in tasks.values())
    return {"format_version": FORMAT_VERSION, "settings": settings, "usable": usable, "tasks": tasks}


def _tasks(config: ConstraintsCheckConfig) -> dict[str, Paths]:
    """Episodes of each chosen task; crashed ones are left out."""
    found: dict[str, Paths] = {}
    for path in episode_paths(config.rollouts):
        info = read_info(path)
        if info.status != "crashed":
            found.setdefault(task_of(info), {})[path] = info
    runs = ", ".join(map(str, config.rollouts))
    if not found:
        raise RecordError(f"there is no finished episode in {runs}; collect some first")
    if config.task is not None:
        if config.task not in found:
            raise ConfigError(f"{runs}: no finished episode of task {config.task!r}.{did_you_mean(config.task, found)}")
        return {config.task: found[config.task]}
    if len(found) > 1 and (config.file is not None or config.strip is not None):
        what = "a file of constraints is about one task, and a strip shows one"
        raise ConfigError(f"{runs}: episodes of {', '.join(sorted(found))}; {what}: name it with --task")
    return dict(sorted(found.items()))


def constraints_of(config: ConstraintsCheckConfig, episodes: Paths) -> TaskConstraints:
    """Those of the file, or those that ``grape score`` would take."""
    if config.file is not None:
        return load_constraints(config.file)
    return ConstraintSource(None).of(next(iter(episodes.values())))
