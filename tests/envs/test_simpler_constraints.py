"""The shipped stages on real episodes: the expert's, and ones that are sabotaged in one stage."""

from __future__ import annotations

import numpy as np
import pytest

from grape.config.score import PRESETS
from grape.constraints import FactTable, evaluate_stages, shipped_constraints
from grape.envs.protocol import InitStateId
from grape.envs.simpler.experts import BridgeExpert
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
from grape.rewards import external_reward, stage_costs

NUM_STEPS = 40
"""Enough for the expert to finish."""
GRASP, CARRY, PLACE, DONE = range(4)
OPEN, CLOSE = 1.0, -1.0
DEFAULT = PRESETS["default"]


class NeverGrasps:
    """The expert with its fingers open."""

    def __init__(self, task) -> None:
        self.expert = BridgeExpert(task)

    def act(self, facts):
        action = self.expert.act(facts)
        action[6] = OPEN
        return action


class Drops(NeverGrasps):
    """Opens the fingers as soon as the object is lifted, and stays there."""

    def __init__(self, task) -> None:
        super().__init__(task)
        self.dropped, self.start = False, None

    def act(self, facts):
        height = facts["keypoints"][0, 2]
        self.start = height if self.start is None else self.start
        self.dropped |= bool(facts["grasped"][0] and height > self.start + 0.03)
        return np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32) if self.dropped else self.expert.act(facts)


class WrongPlace(NeverGrasps):
    """Puts the object a quarter of the way; half-way, a carrot leans on the plate, which ManiSkill calls a success."""

    def __init__(self, task) -> None:
        super().__init__(task)
        self.place = None

    def act(self, facts):
        if self.place is None:
            item, target = facts["keypoints"]
            self.place = item + (target - item) / 4
        facts = {**facts, "keypoints": np.stack([facts["keypoints"][0], self.place])}
        return self.expert.act(facts)


class NeverReleases(NeverGrasps):
    """Stops where the expert would release."""

    def __init__(self, task) -> None:
        super().__init__(task)
        self.arrived = False

    def act(self, facts):
        action = self.expert.act(facts)
        self.arrived |= bool(facts["grasped"][0] and action[6] == OPEN)
        return np.array([0, 0, 0, 0, 0, 0, CLOSE], np.float32) if self.arrived else action


def run(env, actor):
    """Facts, stages, C_s and R_ext of one episode."""
    env.reset(InitStateId("train", 3), render=False)
    rows = [env.facts()]
    for _ in range(NUM_STEPS):
        env.step(actor.act(rows[-1]), render=False)
        rows.append(env.facts())
    facts = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    constraints = shipped_constraints(SUITE, env.task.task_id)
    trace = evaluate_stages(constraints, facts, env.task.keypoint_names)
    costs = stage_costs(trace.costs, DEFAULT, [stage.thresholds for stage in constraints.stages])
    return facts, trace, costs, external_reward(costs, trace.reached, DEFAULT)


@pytest.fixture(scope="module", params=range(len(BRIDGE_TASKS)), ids=lambda task_id: BRIDGE_TASKS[task_id].class_name)
def env(make_simpler, request):
    return make_simpler(request.param, camera_size=48)


@pytest.fixture(scope="module")
def expert(env):
    return run(env, BridgeExpert(env.task))


def test_the_expert_goes_through_the_stages_in_order_and_their_costs_fall(env, expert):
    facts, trace, costs, reward = expert
    table = FactTable(facts, env.task.keypoint_names)
    assert trace.completed.all() and list(dict.fromkeys(trace.stage.tolist())) == [GRASP, CARRY, PLACE, DONE]
    for stage in (GRASP, CARRY, PLACE):
        rows = np.flatnonzero(trace.stage == stage)
        cost = shipped_constraints(SUITE, env.task.task_id).stages[stage].cost("sub_goal").evaluate(table)
        residual = np.maximum(cost[np.append(rows[1:], rows[-1] + 1)], 0)  # the last row has done it
        assert residual[0] > 0.05 and residual[-1] == 0
        assert (np.diff(residual) < 0.005).all(), (
            "it never strays by more than 5 mm a step"
        )  # overshoot, grasp settling
    assert (trace.costs["sub_goal"] == 0).all() and trace.costs["grasp"][CARRY] == 0
    assert costs == pytest.approx(0) and reward == pytest.approx(3)


@pytest.mark.parametrize(
    ("sabotage", "stage"), [(NeverGrasps, GRASP), (Drops, CARRY), (WrongPlace, CARRY), (NeverReleases, PLACE)]
)
def test_sabotage_costs_in_its_own_stage(env, expert, sabotage, stage):
    _, good, good_costs, good_reward = expert
    _, trace, costs, reward = run(env, sabotage(env.task))
    assert trace.completed.tolist() == [True] * stage + [False] * (PLACE + 1 - stage)
    assert costs[stage] > good_costs[stage] + 0.2
    assert (costs[:stage] <= good_costs[:stage] + 0.15).all(), "what came before went well"
    assert trace.costs["sub_goal"][stage] > 0.05
    assert reward < good_reward - 0.15
    if sabotage is Drops:
        assert trace.stage[-1] == GRASP and trace.costs["grasp"][GRASP] > good.costs["grasp"][GRASP]
    if stage == GRASP:
        assert trace.costs["grasp"][GRASP] == NUM_STEPS
