"""Noise of scripted demonstrations: reproducible, bounded, and never in the label."""

from __future__ import annotations

import numpy as np
import pytest

from grape.cli.experts import demonstrate, success_table
from grape.config.experts import ExpertsConfig
from grape.errors import ConfigError
from grape.rollouts.randomness import step_uniforms
from grape.rollouts.scripted import EXPERTS, DemonstrationNoise, _Disturbance, unsampled
from grape.trajectory import EpisodeInfo

LABEL = np.array([0.5, 0, -1, 0, 0, 0, 1], np.float32)


def uniforms(step, rollout=0):
    return step_uniforms(
        seed=0, suite="libero_goal", task_id=8, init_state_id="train/0", rollout_index=rollout, step=step
    )


def executed(noise, rollout=0, steps=60, simulator="libero", label=LABEL):
    disturbance = _Disturbance(noise, EXPERTS[simulator], uniforms(0, rollout))
    return np.stack([disturbance.apply(label, uniforms(step, rollout)) for step in range(steps)])


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


def test_noise_is_in_the_simulator_s_own_unit_and_time():
    full = EXPERTS["simpler"].full_deflection
    label = LABEL * [full, full, full, 1, 1, 1, 1]
    noise = DemonstrationNoise(jitter=1.0, start_burst_probability=1.0)
    metres = np.stack([executed(noise, rollout, 7, "simpler", label) for rollout in range(40)])
    assert 0.3 * full < metres[:, :, :3].std() < full and np.abs(metres[:, :, :3]).max() <= full
    # LIBERO's burst of at least 3 steps at 20 Hz would be most of a table's width at 5 Hz
    repeated = (np.diff(metres[:, :, 0], axis=1) == 0).cumprod(axis=1).sum(axis=1) + 1
    assert repeated.max() <= 6 and len(set(repeated.tolist())) > 3


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
        ({"init_split": "official"}, "for testing only.*--measure_only"),
        ({"measure_only": True, "student": "somewhere"}, "grape eval"),
        ({"jitter": float("nan")}, "jitter is nan"),
        ({"jitter": -1.0}, "jitter is -1.0"),
        ({"careless_m": -0.01}, "careless_m is -0.01"),
        ({"burst_probability": 2.0}, "burst_probability is 2.0"),
        ({"start_burst_probability": float("nan")}, "start_burst_probability is nan"),
        ({"image_size": 0}, "image_size is 0"),
        ({"num_workers": 0}, "num_workers is 0"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ExpertsConfig(run_dir=tmp_path, **changes)


def test_a_simulator_without_experts_is_refused_before_the_run_starts(tmp_path, monkeypatch):
    monkeypatch.delitem(EXPERTS, "simpler")
    config = ExpertsConfig(run_dir=tmp_path / "run", task_suite_name="simpler_bridge", task_ids=(0,))
    with pytest.raises(ConfigError, match="no scripted experts for simpler_bridge.*only libero has"):
        demonstrate(config)
    assert not config.run_dir.exists()


def test_a_task_without_an_expert_is_refused_before_the_run_starts(tmp_path):
    config = ExpertsConfig(run_dir=tmp_path / "run", task_suite_name="libero_goal", task_ids=(8, 0))
    with pytest.raises(ConfigError, match="scripted expert"):
        demonstrate(config)
    assert not config.run_dir.exists()


def outcome(state, status, longest):
    return EpisodeInfo(
        simulator="simpler", suite="simpler_bridge", task_id=0, task_name="t", instruction="put it there",
        init_state_id=f"official/{state}", init_state_hash="h", policy="scripted", checkpoint_hash="c", status=status,
        longest_success_run=longest, num_steps=60,
    )  # fmt: skip


def test_the_table_counts_by_each_rule_of_evaluation_where_episodes_ran_to_their_end():
    episodes = [outcome(0, "success", 30), outcome(1, "failure", 4), outcome(2, "failure", 1), outcome(3, "crashed", 0)]
    head, _, row = success_table(episodes, by_rule=True).splitlines()
    assert [cell.strip() for cell in head.split("|")[4:-1:2]] == ["last step", "once", "three in a row"]
    assert [cell.strip() for cell in row.split("|")[4:-1:2]] == ["1/3", "3/3", "2/3"]
    assert success_table(episodes).splitlines()[2] == (
        "| simpler_bridge | 0 | put it there | 1/3 | 6% to 79% |"  # Wilson's interval of 1/3 is 0.0615 to 0.7923
    )
