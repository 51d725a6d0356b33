"""A tiny policy and a run in the real simulator, shared by the tests of this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SETTINGS = [
    *("--task_suite_name", "libero_spatial", "--task_ids", "0", "--num_states", "2", "--num_rollouts", "2"),
    *("--max_steps", "5", "--render_profile", "fast", "--camera_size", "64", "--device", "cpu"),
]
"""Four short episodes; small pictures, as rendering is most of the time."""


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights in the published layout, with statistics of both simulators' actions."""
    pytest.importorskip("torch")
    from grape.models import new_policy, save_policy

    def span(move: float, turn: float) -> dict[str, Any]:
        low, high = [-move] * 3 + [-turn] * 3 + [0.0], [move] * 3 + [turn] * 3 + [1.0]
        return {"action": {"q01": low, "q99": high, "mask": [True] * 6 + [False]}}

    folder = tmp_path_factory.mktemp("policy") / "tiny"
    statistics = {"libero_spatial": span(0.5, 0.2), "bridge_orig": span(0.03, 0.1)}  # deflections; metres and radians
    save_policy(new_policy("test", norm_stats=statistics), folder)
    return folder


@pytest.fixture(scope="session")
def libero() -> None:
    """Skips where LIBERO is not installed."""
    if importlib.util.find_spec("libero") is None:
        pytest.skip("LIBERO is not installed")


@pytest.fixture(scope="session")
def collected_run(libero: None, tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ``grape collect`` with one worker."""
    from grape.cli.main import main

    run_dir = tmp_path_factory.mktemp("runs") / "one_worker"
    arguments = ["--pretrained_checkpoint", str(tiny_policy_dir), "--run_dir", str(run_dir), "--num_workers", "1"]
    assert main(["collect", *arguments, *SETTINGS]) == 0
    return run_dir
