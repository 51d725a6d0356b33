"""SIMPLER's four tasks on the CPU: the expert's success, steps per second of one core, and memory.

Each task runs in a process of its own, one thread, as a worker of the pool does: every step is simulated, drawn and
asked for its facts. Time is the process's processor time, in which other jobs on the machine count only as far as they
share its caches; resets and the start of the simulator are left out of it.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import trange

from grape.envs import spawn
from grape.envs.protocol import InitStateId
from grape.envs.simpler import make_simpler_env
from grape.envs.simpler.experts import BridgeExpert
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
from grape.errors import ConfigError
from grape.rollouts.session import library_versions


@dataclass(frozen=True, kw_only=True)
class SimplerBenchmark:
    """What is measured."""

    init_split: str = "official"
    """Split of the initial states."""
    num_states: int = 24
    """Of each task, from 0 on."""
    out: Path | None = None
    """JSON file for the figures."""
    picture: Path | None = None
    """Image file for the four tasks' first pictures, 2 x 2."""

    def __post_init__(self) -> None:
        if self.num_states < 1:
            raise ConfigError(f"num_states is {self.num_states}; it must be at least 1")


def measure(config: SimplerBenchmark, task_id: int) -> tuple[dict[str, object], np.ndarray]:
    """One task, in this process: its figures, and its first picture (H, W, 3)."""
    env = make_simpler_env(SUITE, task_id)
    seconds, steps, successes, first = 0.0, 0, 0, None
    for index in range(config.num_states):
        observation = env.reset(InitStateId(config.init_split, index))
        first = observation.image if first is None else first
        expert, started_s, success = BridgeExpert(env.task), time.process_time(), False
        for _ in range(env.task.max_steps):
            success = env.step(expert.act(env.facts())).success
        seconds += time.process_time() - started_s
        steps += env.task.max_steps
        successes += success
    instruction = env.task.instruction
    env.close()
    figures = {
        "task": task_id,
        "instruction": instruction,
        "successes": successes,
        "num_states": config.num_states,
        "steps_per_core_second": round(steps / seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    return figures, first


def save_picture(path: Path, pictures: list[np.ndarray]) -> None:
    """Write four (H, W, 3) uint8 pictures in two rows, at half their size."""
    rows = [np.concatenate(pictures[start : start + 2], axis=1) for start in (0, 2)]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(path)


def main(config: SimplerBenchmark) -> None:
    """Measure every task and print the figures."""
    measured = [spawn.call(measure, config, task_id) for task_id in trange(len(BRIDGE_TASKS), desc="tasks")]
    tasks = [figures for figures, _ in measured]
    if config.picture is not None:
        save_picture(config.picture, [picture for _, picture in measured])
    result = {
        "tasks": tasks,
        "machine": platform.machine(),
        "versions": library_versions(SUITE),
        "settings": {"init_split": config.init_split, "num_states": config.num_states},
    }
    print(json.dumps(result, indent=1))
    if config.out is not None:
        config.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(SimplerBenchmark, config=(tyro.conf.FlagConversionOff,), use_underscores=True))
