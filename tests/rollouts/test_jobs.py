"""Order of jobs, random numbers, and settings that are refused."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import numpy as np
import pytest

from grape.config.collect import CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.envs.pool import EnvSpec
from grape.envs.protocol import InitStateId, TaskSpec
from grape.envs.suites import find_simulator
from grape.errors import CheckpointError, ConfigError
from grape.rollouts.jobs import JobQueue, RolloutJob
from grape.rollouts.policy import choose_unnorm_key
from grape.rollouts.randomness import step_uniforms


def job(task_id: int, index: int = 0, rollout: int = 0) -> RolloutJob:
    task = TaskSpec(
        suite="libero_spatial", task_id=task_id, name=f"task_{task_id}", instruction="do it",
        max_steps=5, goal_predicates=(("on", "a_1", "b_1"),), keypoint_names=("a_1", "b_1"),
    )  # fmt: skip
    env = EnvSpec(suite="libero_spatial", task_id=task_id)
    return RolloutJob(task=task, env=env, init_state=InitStateId("rollout", index), rollout_index=rollout, max_steps=5)


def test_the_episode_id_names_task_state_and_rollout() -> None:
    assert job(3, 17, 2).episode_id == "libero_spatial--03--rollout-17--r002"


def test_workers_keep_their_task_and_none_idles() -> None:
    queue = JobQueue([job(task, index) for task in range(3) for index in range(4)])
    taken: dict[int, list[int]] = {0: [], 1: []}
    for worker in itertools.cycle((0, 1)):
        next_job = queue.take(worker)
        if next_job is None:
            break
        taken[worker].append(next_job.task.task_id)
    # Each opens its own task, then both share the third: 4 simulators instead of 12.
    assert taken == {0: [0, 0, 0, 0, 2, 2], 1: [1, 1, 1, 1, 2, 2]}
    assert len(queue) == 0 and queue.take(0) is None


def test_every_job_is_handed_out_once() -> None:
    jobs = [job(task, index) for task in range(4) for index in range(3)]
    queue = JobQueue(jobs)
    order = np.random.default_rng(0).integers(0, 3, size=200)
    taken = [next_job for worker in order if (next_job := queue.take(int(worker)))]
    assert sorted(one.episode_id for one in taken) == sorted(one.episode_id for one in jobs)


BASE: dict[str, Any] = {
    "seed": 1, "suite": "libero_spatial", "task_id": 2, "init_state_id": "rollout/3", "rollout_index": 4, "step": 5,
}  # fmt: skip


def test_uniforms_depend_on_each_of_their_six_coordinates() -> None:
    base = step_uniforms(**BASE)
    assert base.shape == (7,) and base.min() >= 0 and base.max() < 1
    np.testing.assert_array_equal(base, step_uniforms(**BASE))
    others = {"suite": "libero_object", "init_state_id": "rollout/4"}
    for name, value in BASE.items():
        other = others[name] if isinstance(value, str) else value + 1
        assert not np.array_equal(base, step_uniforms(**{**BASE, name: other})), name


def test_uniforms_are_the_documented_numbers() -> None:
    # From the definition: PCG64 seeded with (seed, crc32 of suite, task, crc32 of state, rollout, step). Stored runs
    # are resumed across releases, so other numbers are a breaking change.
    entropy = [1, zlib.crc32(b"libero_spatial"), 2, zlib.crc32(b"rollout/3"), 4, 5]
    wanted = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).random(7)
    np.testing.assert_array_equal(step_uniforms(**BASE), wanted)


def collect(**changes: Any) -> CollectConfig:
    return CollectConfig(**{"pretrained_checkpoint": "p", "run_dir": "r", **changes})


def evaluate(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"pretrained_checkpoint": "p", **changes})


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (collect, {"init_split": "official"}, "test states.*--allow_official_states True"),
        (collect, {"temperature": 0.0}, "greedy rollouts from one state are copies"),
        (collect, {"temperature": -1.0}, "temperature is -1.0"),
        (collect, {"temperature": float("nan")}, "temperature is nan"),
        (collect, {"top_p": 0.0}, "top_p is 0.0"),
        (collect, {"num_rollouts": 0}, "num_rollouts is 0"),
        (collect, {"seed": -1}, "seed is -1"),
        (collect, {"num_states": 0}, "num_states is 0"),
        (collect, {"first_state": -1}, "first_state is -1"),
        (collect, {"init_split": "train/3"}, "must be a name without '/'"),
        (collect, {"task_ids": (1, 1)}, "names a task twice: 1 1"),
        (collect, {"num_workers": 0}, "num_workers is 0"),
        (collect, {"max_steps": 0}, "max_steps is 0"),
        (collect, {"step_timeout_s": 0.0}, "step_timeout_s is 0.0"),
        (evaluate, {"model_family": "octo"}, "'octo'; only 'openvla'"),
        (evaluate, {"load_in_8bit": True}, "load_in_8bit.*not supported.*--dtype bfloat16"),
        (evaluate, {"load_in_4bit": True}, "not supported"),
        (evaluate, {"num_steps_wait": 5}, "num_steps_wait is 5.*only 10"),
        (evaluate, {"num_rollouts": 2}, "at temperature 0"),
        (evaluate, {"resume": True}, "--resume needs --run_dir"),
    ],
)
def test_settings_that_cannot_be_honoured(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_published_defaults() -> None:
    config = evaluate()
    assert (config.num_trials_per_task, config.init_split, config.temperature, config.seed) == (50, "official", 0.0, 7)


def test_statistics_are_found_by_suite() -> None:
    stats: dict[str, Any] = {"libero_spatial": {}, "libero_object_no_noops": {}}
    assert choose_unnorm_key(stats, "libero_spatial") == "libero_spatial"
    assert choose_unnorm_key(stats, "libero_object") == "libero_object_no_noops"
    assert choose_unnorm_key(stats, "libero_spatial", "libero_object_no_noops") == "libero_object_no_noops"
    with pytest.raises(CheckpointError, match="libero_goal.*Known: libero_object_no_noops, libero_spatial"):
        choose_unnorm_key(stats, "libero_goal")
    with pytest.raises(CheckpointError, match="Did you mean 'libero_spatial'"):
        choose_unnorm_key(stats, "libero_goal", "libero_spatail")
    with pytest.raises(CheckpointError, match="statistics"):
        choose_unnorm_key({}, "libero_goal")


def test_statistics_of_bridge_data_serve_simpler(caplog: pytest.LogCaptureFixture) -> None:
    alternatives = find_simulator("simpler_bridge").statistics
    stats: dict[str, Any] = {"bridge_orig": {}, "libero_spatial": {}}
    assert choose_unnorm_key(stats, "simpler_bridge", alternatives=alternatives) == "bridge_orig"
    stats["simpler_bridge"] = {}
    assert choose_unnorm_key(stats, "simpler_bridge", alternatives=alternatives) == "simpler_bridge"
    assert not caplog.text
    with pytest.raises(CheckpointError, match="unnorm_key 'simpler_bridge'"):
        choose_unnorm_key({"libero_goal": {}, "libero_spatial": {}}, "simpler_bridge", alternatives=alternatives)


@pytest.mark.parametrize(
    ("known", "adapter_keys", "key", "warning"),
    [
        ({"my_data"}, (), "my_data", "no action statistics of libero_goal; the only ones, my_data"),
        ({"libero_goal"}, (), "libero_goal", ""),
        ({"libero_goal_no_noops"}, (), "libero_goal_no_noops", ""),
        ({"libero_goal", "my_data"}, ("my_data",), "libero_goal", "the adapter brought its own: my_data"),
        ({"libero_goal", "my_data"}, ("libero_goal",), "libero_goal", ""),
    ],
)
def test_statistics_of_another_name_are_not_taken_silently(
    known: set[str], adapter_keys: tuple[str, ...], key: str, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    stats = dict.fromkeys(known)
    assert choose_unnorm_key(stats, "libero_goal", adapter_keys=adapter_keys) == key
    assert (warning in caplog.text) if warning else not caplog.text
    caplog.clear()
    assert choose_unnorm_key(stats, "libero_goal", key, adapter_keys=adapter_keys) == key
    assert not caplog.text, "what is named is meant"
