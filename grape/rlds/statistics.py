"""Action and proprioception statistics in the shape of OpenVLA's ``dataset_statistics.json``.

Axis legend: N steps over all episodes, D numbers of an action or state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grape.files import write_json

STATISTICS_FILE = "dataset_statistics.json"


def dataset_statistics(name: str, actions: Sequence[np.ndarray], states: Sequence[np.ndarray]) -> dict[str, Any]:
    """Statistics over all steps, keyed by data set name as OpenVLA's loader writes them.

    Args:
        name: Data set name, which becomes the unnormalisation key.
        actions: One (T, 7) array for each episode, in the policy's convention (gripper in [0, 1], 1 = open).
        states: One (T, 8) array for each episode.

    Returns:
        ``{name: {"action": {...}, "proprio": {...}, "num_transitions": N, "num_trajectories": E}}``. The gripper, last
        of the action, is masked: it is not normalised.
    """
    all_actions = np.concatenate(actions).astype(np.float64)
    summary = _summary(all_actions)
    summary["mask"] = [True] * (all_actions.shape[1] - 1) + [False]
    return {
        name: {
            "action": summary,
            "proprio": _summary(np.concatenate(states).astype(np.float64)),
            "num_transitions": len(all_actions),
            "num_trajectories": len(actions),
        }
    }


def write_statistics(folder: Path, statistics: dict[str, Any]) -> Path:
    """Write ``dataset_statistics.json`` into a data set's version folder (or any other)."""
    path = folder / STATISTICS_FILE
    write_json(path, statistics)
    return path


def _summary(values: np.ndarray) -> dict[str, Any]:
    return {
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "min": values.min(axis=0).tolist(),
        "q01": np.quantile(values, 0.01, axis=0).tolist(),
        "q99": np.quantile(values, 0.99, axis=0).tolist(),
    }
