"""Every task of the installed LIBERO gets stages from its goal, and they work on an episode that achieves it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from grape.config.score import PRESETS
from grape.constraints import TaskConstraints, derive_constraints, evaluate_stages
from grape.errors import ConstraintError
from grape.rewards import external_reward, stage_costs

pytest.importorskip("libero", reason="LIBERO is not installed; pip install 'grape-vla[libero]'")

from grape.envs.libero.tasks import LIBERO_SUITES, libero_task, task_names  # noqa: E402

SIZES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
CONFIG = PRESETS["default"]


def act_out(scene, goals, order) -> None:
    """Achieve the goals one after the other."""
    for index in order:
        verb, *arguments = goals[index]
        if verb in ("on", "in"):
            scene.pick_and_place(arguments[0], arguments[1], goal=index)
        else:
            scene.move(scene.position(arguments[0]))
            scene.touched = {arguments[0]}
            scene.record(3)
            scene.keypoints[scene.index(arguments[0])] += [0.1, 0, 0]
            scene.goals[index] = True
            scene.record()
            scene.touched = set()
            scene.record()


def r_ext(constraints: TaskConstraints, facts) -> float:
    trace = evaluate_stages(constraints, facts)
    return external_reward(stage_costs(trace.costs, CONFIG), trace.reached, CONFIG)


@pytest.mark.parametrize("suite", SIZES)
def test_every_task_has_stages_that_follow_its_goal(make_scene, suite: str) -> None:
    assert len(task_names(suite)) == SIZES[suite]
    for task_id in range(SIZES[suite]):
        task = libero_task(suite, task_id)
        constraints = derive_constraints(task.goal_predicates, task.keypoint_names, task.instruction)
        expressions = [one.source for stage in constraints.stages for one in stage.expressions()]
        goals = {int(index) for index in re.findall(r"goal\((\d+)\)", " ".join(expressions))}
        assert goals == set(range(len(task.goal_predicates))), task.name

        idle = make_scene(task.keypoint_names, len(task.goal_predicates))
        idle.record(30)
        trace = evaluate_stages(constraints, idle.facts())
        assert not trace.completed.any() and trace.reached.tolist() == [True] + [False] * (len(constraints.stages) - 1)

        listed = list(range(len(task.goal_predicates)))
        for order in (listed, listed[::-1]):
            scene = make_scene(task.keypoint_names, len(task.goal_predicates))
            act_out(scene, task.goal_predicates, order)
            trace = evaluate_stages(constraints, scene.facts())
            assert trace.completed.all(), task.name
            assert trace.stage[-1] == len(constraints.stages)
            assert r_ext(constraints, scene.facts()) > r_ext(constraints, idle.facts()) + 0.5


@pytest.mark.parametrize("suite", sorted(set(LIBERO_SUITES) - set(SIZES)))
def test_every_perturbed_task_has_stages(suite: str) -> None:
    for task_id in range(len(task_names(suite))):
        task = libero_task(suite, task_id)
        assert derive_constraints(task.goal_predicates, task.keypoint_names, task.instruction).stages


def test_a_placing_goal_is_grasp_lift_carry_place() -> None:
    constraints = derive_constraints(
        [("In", "soup_1", "basket_1_contain_region")], ["soup_1", "basket_1"], "soup in basket"
    )
    assert [stage.name.split(":")[0] for stage in constraints.stages] == ["grasp", "lift", "carry", "place"]
    # the region has no keypoint of its own here: the basket stands in, and may be touched while placing
    assert 'keypoint("basket_1")' in str(constraints.stages[2].sub_goal)
    assert "basket_1" in str(constraints.stages[3].collision)
    assert "basket_1" not in str(constraints.stages[2].collision)


def test_a_region_of_a_table_without_keypoint_has_no_place_to_carry_to() -> None:
    constraints = derive_constraints([("on", "plate_1", "main_table_front_region")], ["plate_1", "main_table"], "x")
    assert [stage.name.split(":")[0] for stage in constraints.stages] == ["grasp", "lift", "place"]


def test_drawers_are_opened_first_and_closed_last() -> None:
    goals = [("close", "cabinet_1_top_region"), ("in", "bowl_1", "cabinet_1_top_region"), ("open", "microwave_1")]
    constraints = derive_constraints(goals, ["bowl_1", "cabinet_1", "cabinet_1_top_region", "microwave_1"], "x")
    order = list(dict.fromkeys(stage.subtask.split()[0] for stage in constraints.stages))
    assert order == ["open", "in", "close"]
    # goals keep the index that they have in the facts
    assert constraints.stages[-1].done_when == "goal(0)"


def test_an_unknown_predicate_is_scored_by_its_own_verdict(make_scene) -> None:
    constraints = derive_constraints([("folded", "towel_1")], ["towel_1"], "fold the towel")
    scene = make_scene(["towel_1"], 1)
    scene.record(2)
    before = evaluate_stages(constraints, scene.facts())
    scene.goals[0] = True
    scene.record()
    after = evaluate_stages(constraints, scene.facts())
    assert (before.completed.tolist(), after.completed.tolist()) == ([False], [True])


def test_up_is_grasp_and_lift(make_scene) -> None:
    constraints = derive_constraints([("up", "mug_1")], ["mug_1"], "lift the mug")
    scene = make_scene(["mug_1"], 1)
    scene.grasp("mug_1")
    scene.move(scene.ee + [0, 0, 0.1])
    scene.goals[0] = True
    scene.record()
    trace = evaluate_stages(constraints, scene.facts())
    assert list(dict.fromkeys(trace.stage.tolist())) == [0, 1, 2]


@pytest.mark.parametrize(
    ("goals", "names", "message"),
    [
        ([], ["a_1"], "no goal predicates"),
        ([("on", "boul_1", "plate_1")], ["bowl_1", "plate_1"], "'boul_1' has no keypoint. Did you mean 'bowl_1'"),
    ],
)
def test_a_goal_that_cannot_be_followed_is_refused(goals, names, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        derive_constraints(goals, names, "x")


def test_the_palm_on_the_held_object_is_no_collision(make_scene) -> None:
    constraints = derive_constraints([("on", "bowl_1", "plate_1")], ["bowl_1", "plate_1"], "x")
    scene = make_scene(["bowl_1", "plate_1"], 1)
    scene.arm_contact = True
    scene.record(2)  # nothing is held: the arm touches something that it should not
    scene.held = "bowl_1"
    scene.record(5)
    assert evaluate_stages(constraints, scene.facts()).costs["collision"].tolist() == [2.0, 0.0, 0.0, 0.0]


def test_collision_counts_what_the_task_does_not_touch(make_scene) -> None:
    names = ["bowl_1", "plate_1", "cup_1"]
    constraints = derive_constraints([("on", "bowl_1", "plate_1")], names, "x")
    scene = make_scene(names, 1)
    for touched, expected in (("cup_1", 4.0), ("bowl_1", 4.0), ("plate_1", 8.0)):  # plate: not while grasping
        scene.touched = {touched}
        scene.record(4)
        assert evaluate_stages(constraints, scene.facts()).costs["collision"][0] == expected
    assert np.isfinite(r_ext(constraints, scene.facts()))
