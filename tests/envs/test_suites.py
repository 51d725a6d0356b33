"""The table of simulators: which suite is whose, and how many published states a task has. No simulator is started."""

from __future__ import annotations

import numpy as np
import pytest

from grape.cli.main import EXIT_ERROR, main
from grape.config.collect import CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.envs import spawn
from grape.envs.protocol import TaskSpec
from grape.envs.suites import SIMULATORS, find_simulator, suite_task
from grape.errors import ConfigError
from grape.rollouts.session import library_versions, plan_jobs


def evaluate(**changes) -> EvaluateConfig:
    return EvaluateConfig(**{"pretrained_checkpoint": "p", "task_suite_name": "simpler_bridge"} | changes)


def collect(**changes) -> CollectConfig:
    return CollectConfig(
        **{"pretrained_checkpoint": "p", "task_suite_name": "simpler_bridge", "run_dir": "r"} | changes
    )


def test_each_suite_belongs_to_one_simulator():
    assert find_simulator("libero_object_swap").name == "libero"
    assert find_simulator("simpler_bridge").name == "simpler"
    names = [suite for simulator in SIMULATORS.values() for suite in simulator.suites]
    assert len(names) == len(set(names))
    assert all(name == simulator.name for name, simulator in SIMULATORS.items())
    with pytest.raises(ConfigError, match="Did you mean 'simpler_bridge'"):
        find_simulator("simpler_brige")


def test_every_simulator_says_what_its_tasks_are():
    assert [suite_task("simpler_bridge", task_id).num_official_states for task_id in range(4)] == [24, 24, 24, 64]
    assert suite_task("simpler_bridge", 3).max_steps == 120
    for simulator in SIMULATORS.values():
        action = simulator.to_simulator_action(np.array([0.01, 0, 0, 0, 0, 0, 1.0], np.float32))
        assert action.shape == (7,) and action.dtype == np.float32 and action[0] == np.float32(0.01)
    assert SIMULATORS["libero"].to_simulator_action(np.array([0, 0, 0, 0, 0, 0, 0.9]))[-1] == -1  # -1 opens in LIBERO
    assert SIMULATORS["simpler"].to_simulator_action(np.array([0, 0, 0, 0, 0, 0, 0.9]))[-1] == 1  # +1 opens in SIMPLER


@pytest.mark.parametrize(
    ("task_ids", "first", "count", "allowed"),
    [((0, 1, 2), 0, 24, True), ((0,), 23, 1, True), ((3,), 0, 64, True), ((0,), 0, 25, False), ((0,), 24, 1, False),
     ((3,), 0, 65, False), ((0, 3), 0, 64, False), ((), 0, 50, False)],
)  # fmt: skip
def test_official_states_are_those_of_each_task_and_never_wrap_round(task_ids, first, count, allowed):
    config = evaluate(task_ids=task_ids, first_state=first, num_trials_per_task=count)
    if not allowed:
        with pytest.raises(ConfigError, match="official states and none is used twice"):
            plan_jobs(config)
        return
    jobs = plan_jobs(config)
    assert len({job.episode_id for job in jobs}) == len(jobs) == len(task_ids) * count


def test_distances_of_states_that_do_not_exist_are_refused_at_once(tmp_path, capsys, monkeypatch):
    states = ["--test", "official/0-24", "--used", "train/0-1", "--out", str(tmp_path / "d.json")]
    monkeypatch.setattr(spawn, "call", None)  # nothing is measured before all tasks are checked
    assert main(["states", "--task_suite_name", "simpler_bridge", "--task_ids", "3", "0", *states]) == EXIT_ERROR
    assert "it has 24 official states" in capsys.readouterr().err


def test_a_task_that_does_not_know_leaves_the_check_to_the_simulator():
    TaskSpec(
        suite="s", task_id=0, name="n", instruction="i", max_steps=1, goal_predicates=(), keypoint_names=()
    ).check_states("official", 0, 1000)


def test_jobs_are_as_the_simulator_has_them():
    [job] = plan_jobs(collect(task_ids=(3,), num_states=1, num_rollouts=1))
    assert (job.env.simulator, job.env.camera_size, job.max_steps) == ("simpler", 480, 120)
    assert job.consecutive_successes == 6  # GRAPE's collector
    [job] = plan_jobs(evaluate(task_ids=(0,), num_trials_per_task=1, camera_size=96, max_steps=7))
    assert (job.env.camera_size, job.max_steps, job.consecutive_successes) == (96, 7, None)
    assert len(plan_jobs(collect(init_split="rollout", num_states=100, num_rollouts=1))) == 400  # sampled: no bound
    with pytest.raises(ConfigError, match="simpler has only: faithful"):
        plan_jobs(collect(render_profile="fast"))


def test_libero_is_as_it_was():
    pytest.importorskip("libero", reason='LIBERO is not installed: pip install "grape-vla[libero]"')
    [job] = plan_jobs(evaluate(task_suite_name="libero_spatial", task_ids=(0,), num_trials_per_task=1))
    assert (job.env.simulator, job.env.camera_size, job.max_steps) == ("libero", 256, 220)
    assert job.consecutive_successes == 1
    with pytest.raises(ConfigError, match="it has 50 official states"):
        suite_task("libero_spatial", 0).check_states("official", 10, 41)


def test_versions_are_those_of_the_suite_s_simulator():
    assert "mujoco" not in library_versions("simpler_bridge")
    assert not library_versions("libero_spatial").keys() & {"mani-skill", "sapien"}
