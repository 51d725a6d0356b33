"""SIMPLER's four tasks on the CPU: the expert's success, steps per second of one core, and memory.

Each task runs in a process of its own, one thread, as a worker of the pool does: every step is simulated, drawn and
asked for its facts. Time is the process's processor time, so that other jobs on the machine do not count; resets and
the start of the simulator are left out of it.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import trange

from grape.envs import spawn
from grape.envs.protocol import InitStateId
from grape.envs.simpler import make_simpler_env
from grape.envs.simpler.experts import BridgeExpert
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
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
    pictures: Path | None = None
    """Folder for each task's first picture, as PNG."""


def measure(config: SimplerBenchmark, task_id: int) -> dict[str, object]:
    """One task, in this process."""
    env = make_simpler_env(SUITE, task_id)
    seconds, steps, successes = 0.0, 0, 0
    for index in range(config.num_states):
        observation = env.reset(InitStateId(config.init_split, index))
        if index == 0 and config.pictures is not None:
            save_picture(config.pictures / f"{SUITE}_{task_id}.png", observation.image)
        expert, started_s, success = BridgeExpert(env.task), time.process_time(), False
        for _ in range(env.task.max_steps):
            success = env.step(expert.act(env.facts())).success
        seconds += time.process_time() - started_s
        steps += env.task.max_steps
        successes += success
    instruction = env.task.instruction
    env.close()
    return {
        "task": task_id,
        "instruction": instruction,
        "successes": successes,
        "num_states": config.num_states,
        "steps_per_core_second": round(steps / seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def save_picture(path: Path, image: object) -> None:
    """Write an (H, W, 3) uint8 picture."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def main(config: SimplerBenchmark) -> None:
    """Measure every task and print the figures."""
    tasks = [spawn.call(measure, config, task_id) for task_id in trange(len(BRIDGE_TASKS), desc="tasks")]
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
