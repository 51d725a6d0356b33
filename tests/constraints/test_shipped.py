"""Stages that come with the toolkit: one file for each of SIMPLER's tasks, acted out by hand. Real episodes are in
tests/envs/test_simpler_constraints.py."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from grape.cli.score import ConstraintSource
from grape.constraints import evaluate_stages, shipped_constraints
from grape.constraints.shipped import FOLDER
from grape.envs.simpler import simpler_task
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
from grape.errors import ConstraintError
from grape.trajectory import EpisodeInfo

TASKS = [simpler_task(SUITE, task_id) for task_id in range(len(BRIDGE_TASKS))]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def stages_of(task):
    return shipped_constraints(task.suite, task.task_id)


def test_every_simpler_task_has_its_file_and_no_file_is_left_over():
    assert {path.name for path in FOLDER.iterdir()} == {f"{task.suite}_{task.task_id}.json" for task in TASKS}
    assert shipped_constraints("libero_goal", 0) is None


@every_task
def test_a_file_is_about_its_task(task):
    constraints = stages_of(task)
    assert constraints.instruction == task.instruction and constraints.keypoint_names == task.keypoint_names
    assert [stage.name for stage in constraints.stages] == ["reach and grasp", "carry", "place"]
    expressions = [one.source for stage in constraints.stages for one in stage.expressions()]
    assert set(re.findall(r"goal\((\d+)\)", " ".join(expressions))) == {"0"}


@every_task
def test_stages_in_order_by_hand(make_scene, task):
    scene = make_scene(task.keypoint_names, 1)
    item, target = task.keypoint_names
    scene.grasp(item)
    rows_to_grasp = scene.facts()["grasped"][:, 0].argmax()
    scene.move(scene.ee + [0, 0, 0.1])
    scene.move(scene.position(target) + [0, 0, 0.12])
    scene.goals[0] = True  # SIMPLER's verdict asks for no release
    scene.move(scene.position(target) + [0, 0, 0.03])
    held = evaluate_stages(stages_of(task), scene.facts())
    assert held.completed.tolist() == [True, True, False] and held.stage[rows_to_grasp] == 1
    scene.release()
    placed = evaluate_stages(stages_of(task), scene.facts())
    assert placed.completed.all() and placed.stage[-1] == 3 and (np.diff(placed.stage) >= 0).all()
    assert all(placed.costs["sub_goal"] == 0) and placed.costs["grasp"].tolist() == [rows_to_grasp - 1, 0, 0]


@every_task
def test_what_drags_along_the_table_is_not_carried_over_its_target(make_scene, task):
    scene = make_scene(task.keypoint_names, 1)
    item, target = task.keypoint_names
    scene.grasp(item)
    scene.move(scene.position(target) - [0, 0, 0.001])
    assert evaluate_stages(stages_of(task), scene.facts()).completed.tolist() == [True, False, False]


def episode_of(task, keypoint_names=None) -> EpisodeInfo:
    return EpisodeInfo(
        simulator="simpler", suite=task.suite, task_id=task.task_id, task_name=task.name, instruction=task.instruction,
        init_state_id="train/0", init_state_hash="", policy="p", checkpoint_hash="c", status="success", num_steps=1,
        keypoint_names=keypoint_names or task.keypoint_names, goal_predicates=task.goal_predicates,
    )  # fmt: skip


def test_scoring_takes_the_user_s_file_then_the_shipped_one(tmp_path):
    task = TASKS[0]
    assert ConstraintSource(None).of(episode_of(task)) == stages_of(task)
    assert ConstraintSource(tmp_path).of(episode_of(task)).source == "shipped"
    shutil.copy(FOLDER / f"{SUITE}_1.json", tmp_path / f"{SUITE}_0.json")
    with pytest.raises(ConstraintError, match="green_cube"):  # the user's file is of another task
        ConstraintSource(tmp_path).of(episode_of(task))
    with pytest.raises(ConstraintError, match="carrot"):
        ConstraintSource(None).of(episode_of(task, keypoint_names=("celery", "plate")))
