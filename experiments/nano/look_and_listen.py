"""Does a policy look, and does it listen? Success with blanked pictures, frozen pictures, and another instruction.

Four arms on the same initial states, greedy:

* ``normal``: as it is evaluated;
* ``blank``: every picture is mid-grey;
* ``frozen``: every picture is the first one of its episode;
* ``other_instruction``: the prompt names another task of the list; success still means the task's own goal.

Prints a Markdown table and writes it beside the episodes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from grape.config.collect import OFFICIAL_SPLIT
from grape.config.evaluate import EvaluateConfig
from grape.envs.suites import suite_task
from grape.errors import ConfigError
from grape.evaluation import states_from_episodes, success_rate
from grape.rollouts import session
from grape.rollouts.policy import Decision, DecisionRequest, Policy


@dataclass(frozen=True, kw_only=True)
class LookAndListen:
    """Ablate the policy's two inputs."""

    pretrained_checkpoint: str
    """Policy to examine."""
    run_dir: Path
    """Where episodes and the table go; one folder per arm."""
    task_suite_name: str = "libero_goal"
    """Suite."""
    task_ids: tuple[int, ...] = (8, 1, 4, 6)
    """Tasks; each one's other instruction is that of the next in the list."""
    init_split: str = "validation"
    """Split of initial states, never the official one."""
    render_profile: Literal["faithful", "fast"] = "fast"
    """As in grape eval; SIMPLER has only faithful."""
    num_states: int = 5
    """States per task."""
    max_steps: int | None = None
    """Step limit; None takes the suite's."""
    resume: bool = False
    """Continue in run_dir."""
    num_workers: int = 2
    """Simulator processes."""

    def __post_init__(self) -> None:
        if self.init_split == OFFICIAL_SPLIT:
            raise ConfigError("init_split is official, but those states are for testing only; take another")


class Ablated:
    """A policy behind a filter on what it is asked."""

    def __init__(self, policy: Policy, arm: str, change: Callable[[DecisionRequest], DecisionRequest]) -> None:
        self._policy, self._change = policy, change
        self.name, self.checkpoint_hash = policy.name, policy.checkpoint_hash
        self.settings = {**policy.settings, "ablation": arm}

    def image_fn(self) -> Callable[[np.ndarray], np.ndarray] | None:
        return self._policy.image_fn()

    def act(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        return self._policy.act([self._change(request) for request in requests])


def make_arms(config: LookAndListen) -> dict[str, Callable[[DecisionRequest], DecisionRequest]]:
    """Arm to what it changes of a request."""
    tasks = [suite_task(config.task_suite_name, task_id) for task_id in config.task_ids]
    other = {task.task_id: tasks[(number + 1) % len(tasks)].instruction for number, task in enumerate(tasks)}
    first_images: dict[str, np.ndarray] = {}

    def blank(request: DecisionRequest) -> DecisionRequest:
        return dataclasses.replace(request, image=np.full_like(request.image, 127))

    def frozen(request: DecisionRequest) -> DecisionRequest:
        if request.step == 0:
            first_images[request.job.episode_id] = request.image
        return dataclasses.replace(request, image=first_images[request.job.episode_id])

    def other_instruction(request: DecisionRequest) -> DecisionRequest:
        return dataclasses.replace(request, instruction=other[request.job.task.task_id])

    return {"normal": lambda request: request, "blank": blank, "frozen": frozen, "other_instruction": other_instruction}


def main(config: LookAndListen) -> None:
    """Run all arms and write the table."""
    evaluation = EvaluateConfig(
        pretrained_checkpoint=config.pretrained_checkpoint,
        task_suite_name=config.task_suite_name,
        task_ids=config.task_ids,
        init_split=config.init_split,
        num_trials_per_task=config.num_states,
        max_steps=config.max_steps,
        render_profile=config.render_profile,
        center_crop=False,
        run_dir=config.run_dir,
        resume=config.resume,
        num_workers=config.num_workers,
    )
    open_once = functools.cache(lambda: session.open_policy(evaluation))
    lines = ["| arm | success | 95 % interval |", "| --- | --- | --- |"]
    for arm, change in make_arms(config).items():
        episodes = session.run(
            dataclasses.replace(evaluation, run_dir=config.run_dir / arm),
            "look_and_listen",
            make_policy=lambda jobs, arm=arm, change=change: Ablated(open_once(), arm, change),
        )
        rate = success_rate(states_from_episodes(episodes))
        lines.append(f"| {arm} | {rate.successes:g}/{rate.trials} | {rate.low:.0%} to {rate.high:.0%} |")
    table = "\n".join(lines)
    (config.run_dir / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main(tyro.cli(LookAndListen, config=(tyro.conf.FlagConversionOff,), use_underscores=True))
