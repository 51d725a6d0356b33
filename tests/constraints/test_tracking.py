"""Stages along hand-made episodes: one that works, and the ways in which it can go wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from grape.config.score import PRESETS
from grape.constraints import Stage, StageTrace, TaskConstraints, derive_constraints, evaluate_stages
from grape.errors import ConstraintError
from grape.rewards import external_reward, stage_costs

GRASP, LIFT, CARRY, PLACE, DONE = range(5)
CONFIG = PRESETS["default"]


@pytest.fixture
def constraints(kitchen) -> TaskConstraints:
    return derive_constraints([("On", "bowl_1", "plate_1")], kitchen.names, "put the bowl on the plate")


def r_ext(trace: StageTrace) -> float:
    return external_reward(stage_costs(trace.costs, CONFIG), trace.reached, CONFIG)


def test_a_successful_episode_goes_through_every_stage_in_order(kitchen, constraints) -> None:
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    trace = evaluate_stages(constraints, kitchen.facts())
    assert list(dict.fromkeys(trace.stage.tolist())) == [GRASP, LIFT, CARRY, PLACE, DONE]
    assert trace.completed.all() and trace.reached.all()
    assert trace.costs["sub_goal"].tolist() == [0.0] * 4
    assert trace.costs["collision"].tolist() == [0.0] * 4
    assert trace.num_steps.sum() == np.count_nonzero(trace.stage[:-1] < DONE)


def test_stages_switch_on_the_row_in_which_the_fact_holds(kitchen, constraints) -> None:
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    facts = kitchen.facts()
    trace = evaluate_stages(constraints, facts)
    assert np.argmax(trace.stage == LIFT) == np.argmax(facts["grasped"][:, 0])
    height = facts["keypoints"][:, 0, 2]
    assert np.argmax(trace.stage == CARRY) == np.argmax(height - height[0] >= 0.03)
    away = np.linalg.norm(facts["keypoints"][:, 0, :2] - facts["keypoints"][:, 1, :2], axis=1)
    assert np.argmax(trace.stage == PLACE) == np.argmax(away <= 0.08)
    assert np.argmax(trace.stage == DONE) == np.argmax(facts["goal_satisfied"][:, 0])


def test_costs_are_those_of_the_stage_by_hand(kitchen, constraints) -> None:
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    facts = kitchen.facts()
    facts["arm_contact"][4] = True  # seen after step 3, while the bowl is not yet grasped
    facts["robot_contact"][-6, 2] = True  # the cup is touched while the bowl is placed
    trace = evaluate_stages(constraints, facts)
    assert trace.costs["collision"].tolist() == [1.0, 0.0, 0.0, 1.0]
    until_grasp = int(np.argmax(facts["grasped"][:, 0]))
    assert trace.costs["grasp"].tolist() == [until_grasp - 1, 0.0, 0.0, 0.0]  # the step that grasps is no miss
    way = np.linalg.norm(np.diff(facts["ee_position"], axis=0), axis=1)
    assert trace.costs["path"][GRASP] == pytest.approx(way[:until_grasp].sum())
    assert trace.costs["path"].sum() == pytest.approx(way[trace.stage[:-1] < DONE].sum())


def test_never_grasped_stays_in_the_first_stage(kitchen, constraints) -> None:
    kitchen.move(kitchen.position("bowl_1") - [0.1, 0, 0])
    kitchen.record(20)
    trace = evaluate_stages(constraints, kitchen.facts())
    assert set(trace.stage.tolist()) == {GRASP}
    assert trace.reached.tolist() == [True, False, False, False]
    assert not trace.completed.any()
    assert trace.costs["sub_goal"][GRASP] == pytest.approx(0.05 + 0.1)
    assert trace.costs["sub_goal"][1:].tolist() == [0.0] * 3  # what was not reached has no cost of its own


def test_dropping_the_object_leads_back_to_grasping(kitchen, constraints) -> None:
    kitchen.grasp("bowl_1")
    kitchen.move(kitchen.ee + [0, 0, 0.2])
    kitchen.move(kitchen.ee + [0.1, 0, 0])
    kitchen.drop()
    kitchen.record(10)
    trace = evaluate_stages(constraints, kitchen.facts())
    assert trace.stage[-1] == GRASP
    assert trace.reached.tolist() == [True, True, True, False]
    assert trace.completed.tolist() == [True, True, False, False]  # what was once done stays done


def test_a_second_attempt_counts_on_top_of_the_first(kitchen, constraints) -> None:
    kitchen.grasp("bowl_1")
    kitchen.move(kitchen.ee + [0, 0, 0.2])
    kitchen.drop()
    kitchen.record(5)
    first = evaluate_stages(constraints, kitchen.facts()).costs["path"][GRASP]
    kitchen.move(np.array([0.0, 0.0, 0.3]))
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    trace = evaluate_stages(constraints, kitchen.facts())
    assert trace.completed.all()
    assert trace.stage[-1] == DONE
    assert trace.costs["path"][GRASP] > first + 0.3


def test_a_flickering_contact_is_not_a_drop(kitchen, constraints) -> None:
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    facts = kitchen.facts()
    in_hand = np.flatnonzero(facts["grasped"][:, 0])
    lost = in_hand[len(in_hand) // 2]
    before = evaluate_stages(constraints, facts)
    facts["grasped"][lost : lost + 2, 0] = facts["finger_contact"][lost : lost + 2, 0] = False
    after = evaluate_stages(constraints, facts)
    assert (np.diff(after.stage) >= 0).all()
    assert after.costs["grasp"].sum() == before.costs["grasp"].sum() + 2
    facts["grasped"][lost : lost + 3, 0] = facts["finger_contact"][lost : lost + 3, 0] = (
        False  # three rows are the documented patience
    )
    assert (np.diff(evaluate_stages(constraints, facts).stage) < 0).any()


def test_what_one_finger_holds_by_the_rim_is_held_once_it_is_lifted(kitchen, constraints) -> None:
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    facts = kitchen.facts()
    facts["grasped"][:] = False  # the second pad never touches it
    trace = evaluate_stages(constraints, facts)
    assert list(dict.fromkeys(trace.stage.tolist())) == [GRASP, CARRY, PLACE, DONE]  # held and lifted at once
    height = facts["keypoints"][:, 0, 2]
    assert np.argmax(trace.stage == CARRY) == np.argmax(height - height[0] >= 0.03)
    facts["finger_contact"][:] = False
    assert set(evaluate_stages(constraints, facts).stage.tolist()) == {GRASP, DONE}


def test_an_object_dropped_beside_the_target_leaves_the_last_stage(kitchen, constraints) -> None:
    kitchen.grasp("bowl_1")
    kitchen.move(kitchen.ee + [0, 0, 0.2])
    kitchen.move(kitchen.position("plate_1") + [0, 0, 0.2])
    kitchen.move(kitchen.ee + [0, 0.2, 0])
    kitchen.drop()
    trace = evaluate_stages(constraints, kitchen.facts())
    assert trace.reached.all()
    assert trace.completed.tolist() == [True, True, True, False]
    assert trace.stage[-1] == GRASP


def test_released_on_the_target_without_success_stays_in_the_last_stage(kitchen, constraints) -> None:
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    facts = kitchen.facts()
    facts["goal_satisfied"][:] = False
    trace = evaluate_stages(constraints, facts)
    assert trace.stage[-1] == PLACE
    assert trace.costs["sub_goal"][PLACE] == pytest.approx(0.05 + 0.05)  # 5 cm above the plate's keypoint


def test_a_goal_reached_without_its_stages_completes_them(kitchen, constraints) -> None:
    kitchen.touched.add("bowl_1")
    kitchen.record(3)
    kitchen.goals[0] = True  # pushed there
    kitchen.record(2)
    trace = evaluate_stages(constraints, kitchen.facts())
    assert trace.completed.all() and trace.reached.all()
    assert trace.stage[-1] == DONE


def test_a_goal_that_is_lost_again_is_open_again(kitchen, constraints) -> None:
    kitchen.pick_and_place("bowl_1", "plate_1", goal=0)
    kitchen.goals[0] = False
    kitchen.keypoints[0] = [1.0, 0, 0]
    kitchen.record(8)
    assert evaluate_stages(constraints, kitchen.facts()).stage[-1] == GRASP


def test_failures_rank_by_how_far_they_came(make_scene) -> None:
    """never approached < approached < grasped < carried and dropped < released 5 cm too high < success."""
    names = ["bowl_1", "plate_1", "cup_1"]
    constraints = derive_constraints([("on", "bowl_1", "plate_1")], names, "put the bowl on the plate")

    def run(act: Callable) -> float:
        scene = make_scene(names, 1)
        act(scene)
        scene.record(60 - len(scene.facts()["ee_position"]) if len(scene.facts()["ee_position"]) < 60 else 1)
        return r_ext(evaluate_stages(constraints, scene.facts()))

    def frozen(scene) -> None:
        scene.record(5)

    def approached(scene) -> None:
        scene.move(scene.position("bowl_1") + [0, 0, 0.03])

    def grasped(scene) -> None:
        scene.grasp("bowl_1")

    def dropped(scene) -> None:
        grasped(scene)
        scene.move(scene.ee + [0, 0, 0.2])
        scene.move(scene.ee + [0.1, 0, 0])
        scene.drop()

    def nearly(scene) -> None:
        scene.pick_and_place("bowl_1", "plate_1", goal=0)
        scene._rows["goal_satisfied"] = [np.zeros(1, bool) for _ in scene._rows["goal_satisfied"]]
        scene.goals[:] = False

    def success(scene) -> None:
        scene.pick_and_place("bowl_1", "plate_1", goal=0)

    values = [run(act) for act in (frozen, approached, grasped, dropped, nearly, success)]
    assert values == sorted(values)
    assert len(set(values)) == len(values)


def two_goals(names: list[str]) -> TaskConstraints:
    return derive_constraints([("on", "bowl_1", "plate_1"), ("on", "cup_1", "plate_2")], names, "set the table")


def test_subtasks_may_be_done_in_any_order(make_scene) -> None:
    names = ["bowl_1", "plate_1", "cup_1", "plate_2"]
    scene = make_scene(names, 2)
    scene.pick_and_place("cup_1", "plate_2", goal=1)
    scene.pick_and_place("bowl_1", "plate_1", goal=0)
    trace = evaluate_stages(two_goals(names), scene.facts())
    assert trace.completed.all()
    # until the cup is grasped, nothing says that the bowl is not meant
    assert list(dict.fromkeys(trace.stage.tolist())) == [0, 5, 6, 7, 1, 2, 3, 8]


def test_half_of_two_goals(make_scene) -> None:
    names = ["bowl_1", "plate_1", "cup_1", "plate_2"]
    scene = make_scene(names, 2)
    scene.pick_and_place("bowl_1", "plate_1", goal=0)
    scene.record(5)
    trace = evaluate_stages(two_goals(names), scene.facts())
    assert trace.completed.tolist() == [True] * 4 + [False] * 4
    assert trace.reached.tolist() == [True] * 5 + [False] * 3
    assert trace.stage[-1] == 4


def test_an_episode_of_no_steps_has_a_stage_and_no_cost(kitchen, constraints) -> None:
    trace = evaluate_stages(constraints, kitchen.facts())
    assert trace.stage.tolist() == [GRASP]
    assert trace.costs["path"].tolist() == [0.0] * 4
    assert trace.costs["sub_goal"][GRASP] > 0


def test_an_error_names_task_and_expression(kitchen) -> None:
    constraints = TaskConstraints(
        instruction="divide", stages=(Stage(name="one", done_when="goal(0)", path="1 / (gripper_opening - 0.08)"),)
    )
    with pytest.raises(ConstraintError, match=r"'divide'.*1 / \(gripper_opening - 0.08\) is inf at row 0"):
        evaluate_stages(constraints, kitchen.facts(), kitchen.names)
