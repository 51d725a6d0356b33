"""When an episode ends, what it then counts as, and how successes are counted: hand-made sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from grape.cli.compare import compare_results
from grape.cli.evaluate import build_result, format_table
from grape.envs.pool import EnvSpec, WorkerEvent
from grape.envs.protocol import InitStateId, Observation, TaskSpec
from grape.errors import ConfigError
from grape.rollouts.episode import EpisodeRecorder
from grape.rollouts.jobs import RolloutJob
from grape.rollouts.scripted import unsampled
from grape.trajectory import EpisodeInfo, Trajectory


class NoPolicy:
    name, checkpoint_hash, settings = "p", "c" * 64, {}


def play(goal_reached: str, consecutive_successes: int | None, index: int = 0) -> Trajectory:
    """An episode whose goal is reached (+) or not (-) after each action; its step limit is their number."""
    task = TaskSpec(
        suite="simpler_bridge", task_id=0, name="t", instruction="do it",
        max_steps=len(goal_reached), goal_predicates=(("on", "a", "b"),), keypoint_names=("a", "b"),
    )  # fmt: skip
    job = RolloutJob(
        task=task,
        env=EnvSpec(simulator="simpler", suite="simpler_bridge", task_id=0),
        init_state=InitStateId("official", index),
        max_steps=task.max_steps,
        consecutive_successes=consecutive_successes,
    )
    episode = EpisodeRecorder(job)

    def see(success: bool) -> None:
        observation = Observation(np.zeros((2, 2, 3), np.uint8), np.zeros(8, np.float32))
        facts = {"goal_satisfied": np.array([success])}
        episode.observe(
            WorkerEvent(
                worker=0,
                kind="observation",
                observation=observation,
                success=success,
                facts=facts,
                init_state_hash=f"hash-{index}",
                settings={"assets": "aa", "rendering_device": "llvmpipe"},
            )  # fmt: skip
        )

    see(False)
    for mark in goal_reached:
        assert not episode.is_over
        episode.decide(unsampled(np.zeros(7, np.float32)), np.zeros(7, np.float32))
        see(mark == "+")
        if episode.is_over:
            break
    return episode.finish(NoPolicy(), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("goal_reached", "rule", "num_steps", "status", "longest"),
    [
        ("--+--", 1, 3, "success", None),  # LIBERO
        ("-----", 1, 5, "failure", None),
        ("-++++++--", 6, 7, "success", 6),  # GRAPE's collector
        ("+++++-++++", 6, 10, "failure", 5),  # ends on four: not a success, as there
        ("++++++", 6, 6, "success", 6),
        ("-+++-", None, 5, "failure", 3),  # SIMPLER's evaluation: the last step counts
        ("-+--+", None, 5, "success", 1),
        ("+++++++", None, 7, "success", 7),
    ],
)
def test_an_episode_ends_by_its_rule(
    goal_reached: str, rule: int | None, num_steps: int, status: str, longest: int | None
) -> None:
    episode = play(goal_reached, rule)
    assert (episode.info.num_steps, episode.info.status) == (num_steps, status)
    assert episode.info.longest_success_run == longest
    marks = "".join("+" if reached else "-" for reached in episode.facts["goal_satisfied"][1:, 0])
    assert marks == goal_reached[:num_steps], "each step's verdict is in the record"


def result(*episodes: str, rule: int | None = None, change: dict[str, Any] | None = None) -> dict[str, Any]:
    infos: list[EpisodeInfo] = [play(marks, rule, index).info for index, marks in enumerate(episodes)]
    for info in infos:
        info.simulator_settings.update(change or {})
    settings = {"suite": "simpler_bridge", "init_split": "official", "temperature": 0.0}
    run = {"settings": settings, "details": {}, "versions": {"mani-skill": "3.0.1"}}
    return build_result(run, infos, wall_time_s=1.0)


def test_simpler_s_result_has_three_counts_with_intervals() -> None:
    got = result("--+", "+++--", "-+-", "---")
    [task] = got["tasks"]
    assert task["success"] == task["success_by_rule"]["last_step"]
    counts = {rule: (rate["successes"], rate["trials"]) for rule, rate in task["success_by_rule"].items()}
    assert counts == {"last_step": (1, 4), "once": (3, 4), "three_in_a_row": (1, 4)}
    # 3 of 4 at 95 %, z² = 3.8415: centre (0.75 + z²/8) / (1 + z²/4) = 0.6275, half-width
    # z sqrt(0.75 · 0.25 / 4 + z²/64) / (1 + z²/4) = 0.3269.
    assert (task["success_by_rule"]["once"]["low"], task["success_by_rule"]["once"]["high"]) == pytest.approx(
        (0.3006, 0.9544), abs=1e-4
    )
    assert got["total_by_rule"] == task["success_by_rule"]
    text = format_table(got)
    assert "3/4" in text and "goal reached: three in a row" in text


def test_libero_s_result_has_one_count() -> None:
    got = result("--+", "---", rule=1)
    assert "total_by_rule" not in got and "success_by_rule" not in got["tasks"][0]
    assert got["total"]["successes"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"assets": "bb"}, "assets of task 0: 'aa' before, 'bb' after"),
        ({"rendering_device": "GPU"}, "rendering_device"),
        ({"variation": {"scale": 0.8}}, "variation: None before, {'scale': 0.8} after"),
    ],
)
def test_compare_refuses_other_assets_and_renderers(change: dict[str, Any], message: str) -> None:
    compare_results(result("+-", "++"), result("--", "-+"))
    with pytest.raises(ConfigError, match=message):
        compare_results(result("+"), result("+", change=change))


def test_compare_refuses_other_instructions() -> None:
    reworded = result("+")
    reworded["tasks"][0]["instruction"] = "the same in other words"
    with pytest.raises(ConfigError, match="instruction of task 0: .* after"):
        compare_results(result("+"), reworded)


def test_compare_refuses_other_simulators_and_rules_of_ending() -> None:
    other = result("+")
    other["versions"] = {"mani-skill": "3.1"}
    with pytest.raises(ConfigError, match="differ in mani-skill"):
        compare_results(result("+"), other)
    before, after = result("+"), result("+")
    after["settings"]["consecutive_successes"] = None
    with pytest.raises(ConfigError, match="differ in consecutive_successes: 1 before, None after"):
        compare_results(before, after)  # what does not say it is of the time when all ended with the first success
