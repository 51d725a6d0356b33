"""``grape states``: distance of test states to the nearest used ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from grape.cli.arguments import parse_config
from grape.config.states import StatesConfig, parse_state_range
from grape.envs import spawn
from grape.envs.suites import find_simulator, suite_task
from grape.files import write_json


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, write, report."""
    config = parse_config(StatesConfig, "states", argv)
    for task_id in config.task_ids:
        for split, indices in map(parse_state_range, (config.test, *config.used)):
            suite_task(config.task_suite_name, task_id).check_states(split, indices.start, len(indices))
    # In processes of their own: `grape demo` has loaded TensorFlow by then, beside which SIMPLER would crash.
    tasks = [spawn.call(measure_task, config, task_id) for task_id in tqdm(config.task_ids, desc="tasks")]
    content = {"suite": config.task_suite_name, "test": config.test, "used": list(config.used), "tasks": tasks}
    write_json(config.out, content)
    for task in tasks:
        distances = np.array(list(task["distance_m"].values()))
        print(
            f"{config.task_suite_name} {task['task_id']}: nearest used state {distances.min() * 100:.2f} cm away at "
            f"the closest, {np.median(distances) * 100:.2f} cm in the median ({len(distances)} test states)"
        )
        spread = ", ".join(f"{name} {x * 100:.1f} x {y * 100:.1f} cm" for name, (x, y) in task["spread_m"].items())
        print(f"    objects start within (x and y, over the test states): {spread}")
    return 0


def measure_task(config: StatesConfig, task_id: int) -> dict[str, Any]:
    """Distances and spread of one task's test states.

    Returns:
        ``distance_m``: state id -> distance to the nearest used state, i.e. the largest displacement of any movable
        object. ``spread_m``: movable object -> size in x and y of the area in which it starts.
    """
    from grape.envs.initial_states import nearest_state_distance_m, placed_positions_m
    from grape.envs.protocol import InitStateId

    simulator = find_simulator(config.task_suite_name)

    def ids(text: str) -> list[InitStateId]:
        split, indices = parse_state_range(text)
        return [InitStateId(split, index) for index in indices]

    test_ids, used_ids = ids(config.test), [state for text in config.used for state in ids(text)]
    env = simulator.make_env(config.task_suite_name, task_id, **simulator.unseen)
    try:
        test = placed_positions_m(env, test_ids)
        used = placed_positions_m(env, used_ids)
        names = env.movable_names
    finally:
        env.close()
    distances = nearest_state_distance_m(test, used)
    spread = np.ptp(test[:, :, :2], axis=0).round(6).tolist()
    return {
        "task_id": task_id,
        "num_used": len(used),
        "spread_m": dict(zip(names, spread, strict=True)),
        "distance_m": {str(state): round(float(value), 6) for state, value in zip(test_ids, distances, strict=True)},
    }
