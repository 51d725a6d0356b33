"""SIMPLER's scripted experts: rules on hand-made facts, and real episodes of every task."""

from __future__ import annotations

import numpy as np
import pytest

from grape.envs.pick_and_place import SPEED_LEVELS
from grape.envs.protocol import InitStateId
from grape.envs.simpler import simpler_task
from grape.envs.simpler.actions import policy_gripper, to_maniskill
from grape.envs.simpler.experts import FULL_DEFLECTION_M, FULL_TURN_RAD, LOWEST_GRIP_M, BridgeExpert
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE

Rotation = pytest.importorskip("scipy.spatial.transform", reason="scipy is the reference for rotations").Rotation

CARROT, CUBE, SPOON, EGGPLANT = range(4)
START = Rotation.from_matrix([[0.0, 0, -1], [0, -1, 0], [-1, 0, 0]])
"""The hand at the start: its x axis points down, its y axis, along which the fingers open, to the world's -y."""
OPEN, CLOSE = 1.0, -1.0


def facts_of(*, hand, item, target=(0.1, 0.1, 0.9), yaw_deg=0.0, hand_yaw_deg=0.0, opening=0.074, grasped=False):
    return {
        "ee_position": np.array(hand, float),
        "ee_quaternion": (Rotation.from_euler("z", hand_yaw_deg, degrees=True) * START).as_quat(),
        "keypoints": np.array([item, target], float),
        "keypoint_quaternions": np.stack([Rotation.from_euler("z", yaw_deg, degrees=True).as_quat(), [0, 0, 0, 1]]),
        "gripper_opening": np.float64(opening),
        "grasped": np.array([grasped, False]),
        "finger_contact": np.array([grasped, False]),
    }


def act(task_id, **facts):
    return BridgeExpert(simpler_task(SUITE, task_id)).act(facts_of(**facts))


def test_it_approaches_open_from_above_and_in_the_base_s_axes():
    action = act(CARROT, hand=(0, 0, 1.0), item=(0.1, -0.2, 0.9))
    # the base looks in the direction of the world's -x: what is towards +x and -y there is -x and +y here
    assert action[0] == -np.float32(FULL_DEFLECTION_M) and action[1] == np.float32(FULL_DEFLECTION_M)
    assert -FULL_DEFLECTION_M < action[2] < 0 and action[6] == OPEN
    assert (action[3:5] == 0).all()


@pytest.mark.parametrize(
    ("task_id", "yaw_deg", "hand_yaw_deg", "wanted"),
    [(CARROT, 0, 0, 0), (CARROT, 180, 0, 0), (CARROT, 90, 0, 1), (CARROT, -90, 0, 1), (CARROT, 90, 90, 0),
     (CARROT, 45, 90, -1), (SPOON, -45, 0, -1), (EGGPLANT, 100, -30, 1), (EGGPLANT, -60, 100, -1), (CUBE, 90, 0, 0),
     (CUBE, 30, 0, 1), (CUBE, 60, 0, -1)],
)  # fmt: skip
def test_the_fingers_turn_across_the_object(task_id, yaw_deg, hand_yaw_deg, wanted):
    turn = act(task_id, hand=(0, 0, 1), item=(0, 0, 0.9), yaw_deg=yaw_deg, hand_yaw_deg=hand_yaw_deg)[5]
    assert np.sign(turn) == wanted and abs(turn) <= np.float32(FULL_TURN_RAD)


def test_it_waits_above_until_it_is_turned():
    above = {"hand": (0, 0, 0.96), "item": (0, 0, 0.888), "yaw_deg": 90}
    assert act(CARROT, **above)[2] > -0.004 and act(CARROT, **above, hand_yaw_deg=90)[2] < -0.02
    at_grip = {"hand": (0, 0, 0.888), "item": (0, 0, 0.888), "yaw_deg": 90}
    assert act(CARROT, **at_grip)[6] == OPEN and act(CARROT, **at_grip, hand_yaw_deg=90)[6] == CLOSE


def test_the_spoon_is_held_by_its_handle_wherever_it_points():
    for yaw_deg, handle in ((0, (0.01, 0)), (90, (0, 0.01))):
        hand = (*handle, 0.8884)
        action = act(SPOON, hand=hand, item=(0, 0, 0.8804), yaw_deg=yaw_deg, hand_yaw_deg=yaw_deg)
        assert action[:6] == pytest.approx(0) and action[6] == CLOSE


def test_it_does_not_press_on_the_table_for_a_small_object():
    action = act(CUBE, hand=(0, 0, LOWEST_GRIP_M), item=(0, 0, 0.882))
    assert action[:6] == pytest.approx(0) and action[6] == CLOSE


def test_what_is_held_is_lifted_before_it_is_carried():
    action = act(CUBE, hand=(0, 0, 0.885), item=(0, 0, 0.885), target=(0.1, 0, 0.885), opening=0.051, grasped=True)
    assert action[:2] == pytest.approx(0) and action[2] == np.float32(FULL_DEFLECTION_M) and action[6] == CLOSE
    high = act(CUBE, hand=(0, 0, 0.975), item=(0, 0, 0.975), target=(0.1, 0, 0.885), opening=0.051, grasped=True)
    assert high[0] == -np.float32(FULL_DEFLECTION_M) and high[6] == CLOSE


def test_it_releases_above_the_target_rises_and_rests():
    on_target = {"item": (0.1, 0, 0.916), "target": (0.1, 0, 0.885)}
    assert act(CUBE, hand=(0.1, 0, 0.916), **on_target, opening=0.051, grasped=True)[6] == OPEN
    rising = act(CUBE, hand=(0.1, 0, 0.916), **on_target)
    assert rising[2] == np.float32(FULL_DEFLECTION_M) and rising[6] == OPEN
    assert act(CUBE, hand=(0.1, 0, 1.035), **on_target) == pytest.approx([0, 0, 0, 0, 0, 0, OPEN])


def test_what_was_dropped_beside_the_target_is_fetched_again():
    action = act(CUBE, hand=(0, 0, 1.0), item=(0.14, 0, 0.885), target=(0.1, 0, 0.885))
    assert action[0] < 0 and action[6] == OPEN


def test_a_careless_one_closes_beside_the_object_and_carries_nothing():
    careless = BridgeExpert(simpler_task(SUITE, CARROT), careless_m=0.04)
    item = (0.0, 0.0, 0.888)
    assert careless.act(facts_of(hand=item, item=item))[6] == OPEN
    beside = (0.0, 0.04, 0.888)
    assert careless.act(facts_of(hand=beside, item=item))[6] == CLOSE
    closed = careless.act(facts_of(hand=beside, item=item, opening=0.030))
    assert closed[2] > 0 and closed[6] == CLOSE, "closed on nothing is 30 mm here"


def test_a_label_in_the_policy_s_convention_is_sent_as_the_expert_meant_it():
    action = act(EGGPLANT, hand=(0.05, 0.02, 1.0), item=(0, 0, 0.9), yaw_deg=40)
    label = action.copy()
    label[6] = policy_gripper(action[6])
    assert label[6] == 1.0
    # 1e-7: the angles go through a matrix; a turn about the vertical alone is the same in every Euler convention
    np.testing.assert_allclose(to_maniskill(label), action, atol=1e-7)


@pytest.mark.parametrize("task_id", range(len(BRIDGE_TASKS)))
def test_it_solves_every_task_and_leaves_it_solved(make_simpler, task_id):
    env = make_simpler(task_id, camera_size=48)
    env.reset(InitStateId("train", 0), render=False)
    expert, actions = BridgeExpert(env.task), []
    for _ in range(env.task.max_steps):
        actions.append(expert.act(env.facts()))
        success = env.step(actions[-1], render=False).success
    end = env.facts()
    assert success and not end["robot_contact"].any(), "solved at the last step, with nobody's hand on it"
    moves = np.abs(np.stack(actions))
    assert set(np.unique(moves[:, :3])) <= set((SPEED_LEVELS * FULL_DEFLECTION_M).astype(np.float32))
    still = (moves[:, :6] == 0).all(axis=1) & (np.diff(moves[:, 6], prepend=OPEN) == 0)
    first_release = np.flatnonzero(np.diff([action[6] for action in actions]) > 0)[0]
    assert still[:first_release].sum() <= 3, "it rests while the fingers close, and nowhere else before the release"
