"""Noise of scripted demonstrations: reproducible, bounded, and never in the label."""

from __future__ import annotations

import numpy as np
import pytest

from grape.cli.experts import demonstrate
from grape.config.experts import ExpertsConfig
from grape.errors import ConfigError
from grape.rollouts.randomness import step_uniforms
from grape.rollouts.scripted import DemonstrationNoise, _Disturbance, unsampled

LABEL = np.array([0.5, 0, -1, 0, 0, 0, 1], np.float32)


def uniforms(step, rollout=0):
    return step_uniforms(
        seed=0, suite="libero_goal", task_id=8, init_state_id="train/0", rollout_index=rollout, step=step
    )


def executed(noise, rollout=0, steps=60):
    disturbance = _Disturbance(noise, uniforms(0, rollout))
    return np.stack([disturbance.apply(LABEL, uniforms(step, rollout)) for step in range(steps)])


def test_no_noise_executes_the_label():
    assert (executed(DemonstrationNoise()) == LABEL).all()


def test_noise_depends_on_the_rollout_alone():
    noise = DemonstrationNoise(jitter=0.3, burst_probability=0.1, start_burst_probability=1.0)
    assert (executed(noise) == executed(noise)).all()
    assert (executed(noise) != executed(noise, rollout=1)).any()


def test_noise_stays_in_range_and_leaves_rotation_alone():
    noise = DemonstrationNoise(jitter=1.0, burst_probability=0.3)
    actions = np.concatenate([executed(noise, rollout) for rollout in range(5)])
    assert np.abs(actions[:, :3]).max() <= 1.0
    assert actions[:, :3].std() > 0.2
    assert (actions[:, 3:6] == 0).all()


def test_label_is_recorded_beside_what_was_done():
    done = LABEL * 0.5
    decision = unsampled(LABEL, done)
    assert (decision.policy_action == LABEL).all() and (decision.executed_policy_action == done).all()
    assert (decision.tokens < 0).all() and np.isnan(decision.token_logps).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.5}, "no student"),
        ({"student": "somewhere", "jitter": 0.1}, "an expert that drives"),
        ({"init_split": "official"}, "for testing only"),
        ({"jitter": float("nan")}, "jitter is nan"),
        ({"jitter": -1.0}, "jitter is -1.0"),
        ({"burst_probability": 2.0}, "burst_probability is 2.0"),
        ({"start_burst_probability": float("nan")}, "start_burst_probability is nan"),
        ({"image_size": 0}, "image_size is 0"),
        ({"num_workers": 0}, "num_workers is 0"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ExpertsConfig(run_dir=tmp_path, **changes)


def test_a_simulator_without_experts_is_refused_before_the_run_starts(tmp_path):
    config = ExpertsConfig(run_dir=tmp_path / "run", task_suite_name="simpler_bridge", task_ids=(0,))
    with pytest.raises(ConfigError, match="no scripted experts for simpler_bridge.*only libero has"):
        demonstrate(config)
    assert not config.run_dir.exists()


def test_a_task_without_an_expert_is_refused_before_the_run_starts(tmp_path):
    config = ExpertsConfig(run_dir=tmp_path / "run", task_suite_name="libero_goal", task_ids=(8, 0))
    with pytest.raises(ConfigError, match="scripted expert"):
        demonstrate(config)
    assert not config.run_dir.exists()
