"""experiments/objectives: what is counted, against numbers by hand; and that its plan is one that grape takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.objectives.compare import compare_variants, headroom, with_run
from experiments.objectives.counts import Counts, State, compare_states, count_episode, mean_by_state
from experiments.objectives.pairs import PAIRINGS, SUCCESS_VS_SUCCESS, join, make_pairs
from experiments.objectives.run import Experiment, RunObjectives, compare_arms, mean_of_arm
from grape.cli.demo import check_command
from grape.config.pair import PairingSettings
from grape.errors import ConstraintError, RecordError
from grape.trajectory import EpisodeInfo
from tests.preferences.test_pairing import group

NAMES = ("bowl_1", "plate_1", "plate_1_top", "bottle_1")


def info(goal: tuple[str, ...] = ("on", "bowl_1", "plate_1_top")) -> EpisodeInfo:
    return EpisodeInfo(
        simulator="libero", suite="libero_goal", task_id=8, task_name="bowl", instruction="bowl on plate",
        init_state_id="rollout/0", init_state_hash="a", rollout_index=0, policy="nano", checkpoint_hash="abc",
        status="success", num_steps=4, keypoint_names=NAMES, goal_predicates=(goal,),
    )  # fmt: skip


def facts() -> dict[str, np.ndarray]:
    nothing = np.zeros((5, len(NAMES)), bool)
    return {
        "ee_position": np.array([[0, 0, 0], [3, 4, 0], [3, 4, 0], [3, 4, 1], [3, 4, 0.5]]) / 10,
        "grasped": nothing.copy(),
        "robot_contact": nothing.copy(),
        "arm_contact": np.zeros(5, bool),
    }


def counts(success: float = 1, collision_steps: float = 0, path_m: float = 1, num_steps: float = 10) -> Counts:
    return Counts(
        success=success,
        collision_steps=collision_steps,
        collided=float(collision_steps > 0),
        path_m=path_m,
        num_steps=num_steps,
    )


def state(index: int) -> State:
    return "libero_goal", 8, f"rollout/{index}", f"hash{index}"


def test_path_and_length_by_hand() -> None:
    counted = count_episode(info(), facts())
    assert counted.path_m == pytest.approx(0.5 + 0 + 0.1 + 0.05)
    assert (counted.num_steps, counted.success, counted.collision_steps, counted.collided) == (4, 1, 0, 0)


def test_collisions_by_hand() -> None:
    one = facts()
    one["arm_contact"][:] = [True, True, True, False, False]  # row 0 is before the first step
    one["grasped"][2, 0] = True  # the palm on what it holds is no collision
    one["robot_contact"][1:, :3] = True  # the goal names bowl and plate_1_top, which is a region of plate_1
    one["robot_contact"][4, 3] = True  # the bottle is none of its business
    counted = count_episode(info(), one)
    assert (counted.collision_steps, counted.collided) == (2, 1)  # after steps 1 and 4


def test_a_drawer_is_refused() -> None:
    with pytest.raises(ConstraintError, match="open cabinet_1"):
        count_episode(info(("open", "cabinet_1")), facts())


def test_means_are_taken_within_a_state_first() -> None:
    means = mean_by_state([(state(0), counts(path_m=1)), (state(0), counts(path_m=3)), (state(1), counts(path_m=5))])
    assert {key[2]: one["path_m"] for key, one in means.items()} == {"rollout/0": 2, "rollout/1": 5}


def test_a_difference_by_hand() -> None:
    before = {state(0): 1.0, state(1): 2.0, state(2): 9.0}
    same = compare_states(before, {state(0): 0.5, state(1): 1.5, state(5): 7.0})  # states 2 and 5 have no partner
    assert (same["num_states"], same["num_lower"], same["num_higher"]) == (2, 2, 0)
    assert (same["difference"], same["low"], same["high"]) == (-0.5, -0.5, -0.5)
    # of the differences 0 and 1 a resample has mean 0, 0.5 or 1 with probability 1/4, 1/2, 1/4
    mixed = compare_states({state(0): 1.0, state(1): 1.0}, {state(0): 1.0, state(1): 2.0})
    assert (mixed["difference"], mixed["low"], mixed["high"]) == (0.5, 0, 1)
    assert (mixed["num_lower"], mixed["num_higher"]) == (0, 1)
    with pytest.raises(RecordError, match="no initial state is in both"):
        compare_states({state(0): 1.0}, {state(1): 1.0})


def test_the_interval_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(5).normal(size=400)
    got = compare_states(
        {state(i): 0.0 for i in range(400)}, {state(i): float(value) for i, value in enumerate(values)}
    )
    half = 1.96 * values.std() / 20
    # percentiles of 10,000 resamples are known to about 2 % of the standard error of 0.05
    assert got["low"] == pytest.approx(values.mean() - half, abs=0.005)
    assert got["high"] == pytest.approx(values.mean() + half, abs=0.005)


def test_headroom_is_the_least_among_the_successes_of_each_state() -> None:
    room = headroom(
        [
            (state(0), counts(collision_steps=4, path_m=1.0)),
            (state(0), counts(collision_steps=0, path_m=2.0)),
            (state(0), counts(success=0, path_m=0.1)),
            (state(1), counts(collision_steps=2, path_m=3.0)),
            (state(2), counts(success=0)),
        ]
    )
    assert room["num_states"] == 2
    assert room["collision_steps"] == {"mean": 2.0, "least": 1.0, "num_states_that_differ": 1}
    assert room["path_m"] == {"mean": 2.25, "least": 2.0, "num_states_that_differ": 1}


def test_pairs_between_successes_leave_failures_out() -> None:
    episodes = group((2.0, "success"), (5.0, "success"), (1.0, "failure"), (3.0, "success"))
    against_success = make_pairs(episodes, SUCCESS_VS_SUCCESS, PairingSettings())
    against_failure = make_pairs(episodes, "success_vs_failure", PAIRINGS["success_vs_failure"])
    assert [(p.chosen.score, p.rejected.score) for p in against_success.pairs] == [(5.0, 2.0)]
    assert [(p.chosen.score, p.rejected.score) for p in against_failure.pairs] == [(5.0, 1.0), (3.0, 1.0)]
    joined = join([against_failure, against_success]).pairs
    assert [pair.pair_id[:8] for pair in joined] == ["000000--", "000001--", "000002--"]
    assert [pair.rejected.success for pair in joined] == [False, False, True]


def test_objectives_are_compared_over_the_same_states_of_each_run() -> None:
    """Two runs from one state; in the second, efficiency chooses what task completion rejects."""
    first = group((2.0, "success"), (5.0, "success"), (1.0, "failure"))
    second = group((5.0, "success"), (2.0, "success"), (1.0, "failure"))
    counted = {one.info.episode_id: (state(0), counts(path_m=i)) for i, one in enumerate(first)}
    runs = [with_run(counted, "0"), with_run(counted, "1")]
    one, other = (make_pairs(episodes, "best_vs_worst", PairingSettings()) for episodes in (first, second))
    got = compare_variants({"task_completion": [one, one], "efficiency": [one, other]}, runs)["efficiency"]
    assert (got["num_pairs"], got["num_pairs_unlike_baseline"]) == (2, 1)
    path = got["chosen"]["path_m"]
    assert (path["num_states"], path["before"], path["after"], path["num_lower"]) == (2, 1.0, 0.5, 1)
    assert got["rejected"]["path_m"]["difference"] == 0


def test_arms_are_compared_also_where_both_succeed() -> None:
    base = {0: counts(path_m=2.0), 1: counts(success=0, path_m=9.0)}
    other = {0: counts(path_m=1.0), 1: counts(path_m=2.0)}
    arms = {"base": base, "task_completion": base, "safety": other, "efficiency": base}
    episodes = {arm: [(state(i), one) for i, one in of_arm.items()] for arm, of_arm in arms.items()}
    result = compare_arms({arm: mean_by_state(of_arm) for arm, of_arm in episodes.items()})["differences"]
    assert set(result) == {
        "task_completion - base", "safety - base", "efficiency - base", "safety - task_completion",
        "efficiency - task_completion",
    }  # fmt: skip
    assert result["safety - base"]["all"]["path_m"]["difference"] == -4
    assert result["safety - base"]["both_succeed"]["path_m"]["difference"] == -1
    assert result["safety - base"]["both_succeed"]["path_m"]["num_states"] == 1
    means = mean_of_arm(episodes["base"])
    assert (means["num_episodes"], means["success"], means["path_m_of_successes"]) == (2, 0.5, 2.0)


def test_every_command_of_the_plan_is_one_that_grape_takes(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)  # the plan names the policy from there
    experiment = Experiment(RunObjectives(run_dir=tmp_path, num_steps=3))
    stages = experiment.stages()
    assert [stage.name for stage in stages[:6]] == [
        "collect", "score", "pair", "train-task_completion", "train-safety", "train-efficiency",
    ]  # fmt: skip
    for stage in stages:
        for name, *arguments in stage.commands():
            check_command(name, arguments)
    for settings in experiment.plan["pairs"].values():
        PairingSettings(**settings)


def test_all_objectives_train_for_as_many_steps_as_the_fewest_pairs_give(tmp_path: Path) -> None:
    experiment = Experiment(RunObjectives(run_dir=tmp_path))
    for objective, num_pairs in {"task_completion": 20, "safety": 17, "efficiency": 19}.items():
        folder = experiment.pairs(objective)
        folder.mkdir(parents=True)
        (folder / "pairing.json").write_text(json.dumps({"pairs": [{}] * num_pairs}))
    assert experiment.num_steps() == 2 * 17 // 4  # epochs, pairs, pairs a step
