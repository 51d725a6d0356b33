"""experiments/nano/train.py on demonstrations of either simulator."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grape.cli.experts import demonstrate
from grape.config.experts import ExpertsConfig
from grape.errors import ConfigError
from grape.rollouts.store import RolloutStore

IMAGE_SIZE = 28  # of the preset "test"


@pytest.fixture(scope="module")
def training(repository: Path) -> dict[str, Any]:
    """What the script defines."""
    pytest.importorskip("torch")
    return runpy.run_path(str(repository / "experiments" / "nano" / "train.py"))


@pytest.mark.parametrize(
    ("simulator", "suite", "task_ids", "full_deflection", "full_turn"),
    [("libero", "libero_goal", (8,), 1.0, 1.0), ("simpler", "simpler_bridge", (0, 2), 0.03, 0.3)],
)
def test_it_trains_on_demonstrations_of_either_simulator(
    request, training, tmp_path, simulator, suite, task_ids, full_deflection, full_turn
):
    request.getfixturevalue(simulator)
    config = ExpertsConfig(
        run_dir=tmp_path / "demos", task_suite_name=suite, task_ids=task_ids, num_states=2, jitter=0.5,
        image_size=IMAGE_SIZE, max_steps=10, num_workers=1, seed=1,
        render_profile="fast" if simulator == "libero" else "faithful",
    )  # fmt: skip
    demonstrate(config)
    store = RolloutStore(config.run_dir)
    recorded = np.concatenate([store.load(name).policy_actions for name in store.episode_ids()])
    frames = training["read_frames"]((config.run_dir,))
    np.testing.assert_array_equal(frames.labels, recorded)  # asked anew, not what the noise made of them
    assert (frames.suite, len(frames.images), len(frames.facts)) == (suite, len(recorded), len(recorded))

    out = tmp_path / "policy"
    training["train"](
        training["NanoTraining"](
            run_dirs=(config.run_dir,), out=out, preset="test", steps=2, batch_size=4, num_threads=1
        )
    )
    from grape.models import load_policy

    policy = load_policy(str(out))
    span = policy.norm_stats[suite]["action"]["q99"]
    # In the simulator's unit, metres and rad or a share of full deflection; a turn at full speed is not needed here.
    assert max(span[:3]) == pytest.approx(full_deflection) and max(span[3:6]) <= full_turn * (1 + 1e-6)
    decoded = policy.decode_actions(policy.encode_actions(recorded, suite), suite)
    half_bin = np.array([*span[:6], 1.0]) / 255  # 256 edges over twice the span
    assert (np.abs(decoded - recorded) <= half_bin * (1 + 1e-6)).all()


def test_statistics_have_full_deflections_zero_in_the_middle_and_no_empty_axis(training):
    labels = np.zeros((1000, 7), np.float32)
    labels[:, 0], labels[::2, 1], labels[3, 5], labels[::3, 6] = 0.03, -0.015, 0.3, 1.0
    statistics = training["action_statistics"](labels)
    # z, roll and pitch never move: the smallest span of the others. The one turn in 1000 frames is not cut off.
    wanted = [0.03, 0.015, 0.015, 0.015, 0.015, 0.3, 1.0]
    assert statistics["q99"] == pytest.approx(wanted)
    assert statistics["q01"] == pytest.approx([*(-value for value in wanted[:6]), 0.0])
    assert statistics["mask"] == [True] * 6 + [False]


def test_a_folder_without_demonstrations_is_refused(training, tmp_path):
    with pytest.raises(ConfigError, match="no suite"):
        training["read_frames"]((tmp_path,))
