"""LIBERO's scripted experts: rules on hand-made facts, and one real episode."""

from __future__ import annotations

import numpy as np
import pytest

from grape.envs.libero import libero_task, make_libero_env
from grape.envs.libero.experts import PickAndPlaceExpert, category
from grape.envs.pick_and_place import SPEED_LEVELS, quantise
from grape.envs.protocol import InitStateId
from grape.errors import ConfigError

BOWL_TO_PLATE = ("libero_goal", 8)


def facts_of(task, *, hand, bowl, plate, opening=0.08, grasped=False, touching=False):
    count = len(task.keypoint_names)
    keypoints = np.zeros((count, 3))
    bowl_index = task.keypoint_names.index("akita_black_bowl_1")
    keypoints[bowl_index] = bowl
    keypoints[task.keypoint_names.index("plate_1")] = plate
    held, contact = np.zeros(count, bool), np.zeros(count, bool)
    held[bowl_index], contact[bowl_index] = grasped, touching
    return {
        "ee_position": np.array(hand, float),
        "keypoints": keypoints,
        "gripper_opening": np.float64(opening),
        "grasped": held,
        "finger_contact": contact,
    }


@pytest.fixture(scope="module")
def task():
    return libero_task(*BOWL_TO_PLATE)


def test_speeds_snap_to_levels():
    assert quantise(np.array([0.04, -0.2, 3.0])) == pytest.approx([0.0, -0.25, 1.0])
    assert set(np.abs(quantise(np.linspace(-2, 2, 401)))) == set(SPEED_LEVELS)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("akita_black_bowl_1", "akita_black_bowl"), ("flat_stove_1_cook_region", "flat_stove"), ("plate_1", "plate")],
)
def test_category(name, wanted):
    assert category(name) == wanted


def test_approaches_open_and_from_above(task):
    action = PickAndPlaceExpert(task).act(facts_of(task, hand=(-0.2, 0.05, 1.0), bowl=(0, 0, 0.9), plate=(0.3, 0, 0.9)))
    assert action[0] == 1.0 and action[6] == -1.0
    assert action[2] > -0.5, "20 cm away it must not go down at full speed"


def test_closes_at_the_rim_and_lifts_what_it_holds(task):
    expert = PickAndPlaceExpert(task)
    at_rim = {"hand": (0.0, 0.052, 0.935), "bowl": (0, 0, 0.9), "plate": (0.3, 0, 0.9)}
    assert expert.act(facts_of(task, **at_rim))[6] == 1.0
    for holding in ({"grasped": True}, {"touching": True}):
        action = expert.act(facts_of(task, **at_rim, opening=0.005, **holding))
        assert action[2] == 1.0 and action[6] == 1.0
        assert action[:2] == pytest.approx([0.0, 0.0]), "it must lift before it carries"


def test_releases_above_the_target(task):
    held = facts_of(
        task, hand=(0.3, 0.052, 0.945), bowl=(0.3, 0, 0.91), plate=(0.3, 0, 0.9), opening=0.005, grasped=True
    )
    assert PickAndPlaceExpert(task).act(held)[6] == -1.0


def test_a_careless_one_misses_and_carries_nothing(task):
    careful, careless = PickAndPlaceExpert(task), PickAndPlaceExpert(task, careless_m=0.05)
    beside_rim = facts_of(task, hand=(0.0, 0.102, 0.935), bowl=(0, 0, 0.9), plate=(0.3, 0, 0.9))
    assert careful.act(beside_rim)[6] == -1.0 and careless.act(beside_rim)[6] == 1.0
    empty = facts_of(task, hand=(0.0, 0.102, 0.935), bowl=(0, 0, 0.9), plate=(0.3, 0, 0.9), opening=0.003)
    assert careful.act(empty)[6] == -1.0, "it holds nothing, so it opens and goes to the rim"
    assert careless.act(empty)[2] > 0 and careless.act(empty)[6] == 1.0, "it takes closed fingers for a grasp"
    at_target = facts_of(task, hand=(0.3, 0.052, 0.935), bowl=(0, 0, 0.9), plate=(0.3, 0, 0.9), opening=0.003)
    assert careless.act(at_target)[6] == -1.0


def test_other_goals_are_refused():
    with pytest.raises(ConfigError, match="scripted expert"):
        PickAndPlaceExpert(libero_task("libero_goal", 7))  # turn on the stove


def test_solves_a_real_task_unless_it_is_careless():
    env, solved = make_libero_env(*BOWL_TO_PLATE), {}
    try:
        for careless_m in (0.0, 0.05):
            env.reset(InitStateId("train", 0), render=False)
            expert = PickAndPlaceExpert(env.task, careless_m=careless_m)
            solved[careless_m] = any(env.step(expert.act(env.facts()), render=False).success for _ in range(150))
    finally:
        env.close()
    assert solved == {0.0: True, 0.05: False}
