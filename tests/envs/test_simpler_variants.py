"""Variants of SIMPLER's tasks: what they change, what they keep, and that no two mix."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from grape.cli.score import ConstraintSource
from grape.config.pair import PairingSettings
from grape.constraints import shipped_constraints
from grape.envs.protocol import InitStateId
from grape.envs.simpler import SIMPLER_SUITES, VARIED_SUITE, simpler_task
from grape.envs.simpler.assets import BRIDGE, asset_root
from grape.envs.simpler.domain import published_poses
from grape.envs.simpler.experts import BridgeExpert
from grape.envs.simpler.placement import sampling_seed
from grape.envs.simpler.suites import VARIANTS
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE, Variation
from grape.envs.suites import find_simulator
from grape.envs.worker import EnvSpec
from grape.errors import PairingError, SimulatorError
from grape.preferences import ScoredEpisode, pair_episodes
from grape.rollouts.policy import choose_unnorm_key
from grape.trajectory import EpisodeInfo
from tests.envs.fresh_process import TRAIN, assert_a_fresh_process_agrees, fingerprint

CARROT, STACK, SPOON, EGGPLANT = range(4)
SUBJECT, LARGE = f"{SUITE}_subject", f"{SUITE}_physical_large"
PHYSICAL = [name for name, variant in VARIANTS.items() if variant.variation.axis == "physical"]
CUBE_KG, CUBE_M, TABLE_M = 0.027, 0.03, 0.87
"""3 cm at 1 kg per litre; the table's top."""


def test_each_variant_is_a_suite_of_the_same_four_tasks_with_something_changed():
    assert set(SIMPLER_SUITES) == {SUITE, *VARIED_SUITE} and set(VARIED_SUITE.values()) == {SUITE}
    assert {variant.variation.axis for variant in VARIANTS.values()} == {
        "subject", "physical", "semantic", "common sense",
    }  # fmt: skip
    definitions = {tuple(dataclasses.astuple(task) for task in tasks) for tasks in SIMPLER_SUITES.values()}
    assert len(definitions) == len(SIMPLER_SUITES)
    for name, variant in VARIANTS.items():
        tasks = SIMPLER_SUITES[f"{SUITE}_{name}"]
        assert [task.environment for task in tasks] == [task.environment for task in BRIDGE_TASKS]
        told_otherwise = [task.instruction != base.instruction for task, base in zip(tasks, BRIDGE_TASKS, strict=True)]
        others = [task.objects != base.objects for task, base in zip(tasks, BRIDGE_TASKS, strict=True)]
        factors = variant.variation != Variation(axis=variant.variation.axis)
        assert all(told_otherwise) == any(told_otherwise) == (variant.variation.axis != "physical")
        assert all(others) == any(others) == (variant.variation.axis == "subject")
        assert factors == (variant.variation.axis == "physical")


def test_a_state_has_the_same_places_in_every_variant():
    seeds = {sampling_seed(simpler_task(suite, STACK), InitStateId("train", 17), 0) for suite in SIMPLER_SUITES}
    assert len(seeds) == 1


def episode(suite: str, *, instruction: str = "i", rollout: int = 0, score: float = 0.0, **changes) -> ScoredEpisode:
    info = EpisodeInfo(
        simulator="simpler", suite=suite, task_id=STACK, task_name="t", instruction=instruction,
        init_state_id="train/0", init_state_hash="the same in both", rollout_index=rollout, policy="p",
        checkpoint_hash="c", status="success", num_steps=5, **changes,
    )  # fmt: skip
    return ScoredEpisode(info=info, score=score)


def test_episodes_of_two_variants_are_never_paired():
    mixed = [episode(SUITE, score=1.0), episode(f"{SUITE}_semantic", instruction="other", rollout=1)]
    report = pair_episodes(mixed, PairingSettings())
    assert not report.pairs and len(report.leftovers) == 2, "the physics and so the state's hash are the same in both"
    factors = [{"variation": {"axis": "physical", "scale": scale}} for scale in (0.8, 0.7)]  # of two versions
    changed = [episode(LARGE, rollout=i, score=i, simulator_settings=one) for i, one in enumerate(factors)]
    with pytest.raises(PairingError, match="simulator setting variation differs"):
        pair_episodes(changed, PairingSettings())


@pytest.mark.parametrize("suite", VARIED_SUITE)
@pytest.mark.parametrize("task_id", range(len(BRIDGE_TASKS)))
def test_the_stages_of_a_task_are_those_of_its_variants_about_their_objects(suite, task_id):
    task, base = simpler_task(suite, task_id), shipped_constraints(SUITE, task_id)
    info = dataclasses.replace(
        episode(suite, instruction=task.instruction).info, task_id=task_id, keypoint_names=task.keypoint_names
    )
    got = ConstraintSource(None).of(info)
    assert (got.instruction, got.keypoint_names, got.source) == (task.instruction, task.keypoint_names, "shipped")
    assert got.stages[0].done_when == f"grasped({task.keypoint_names[0]})"
    back = got.about(base.instruction, base.keypoint_names)
    assert back == base, "nothing but names has changed"
    if task.keypoint_names == base.keypoint_names:
        assert got.stages == base.stages


def test_a_policy_s_statistics_of_the_suite_serve_its_variants():
    known = {"bridge_orig": {}, SUITE: {}, "libero_object": {}}
    assert choose_unnorm_key(known, LARGE, alternatives=find_simulator(LARGE).statistics) == SUITE


def physics_of(env, model):
    """Mass, every coefficient of friction, height."""
    body = env.domain.objs[model]._bodies[0]
    materials = [shape.physical_material for shape in body.collision_shapes]
    frictions = [value for one in materials for value in (one.static_friction, one.dynamic_friction)]
    return float(body.mass), frictions, float(body.entity.pose.p[2])


@pytest.mark.parametrize("name", PHYSICAL)
def test_a_physical_variant_changes_what_it_says_and_nothing_else(make_simpler, name):
    variation = VARIANTS[name].variation
    env = make_simpler(STACK, suite=f"{SUITE}_{name}", camera_size=48)
    env.reset(TRAIN, render=False)
    green, yellow = (physics_of(env, model) for _, model in BRIDGE_TASKS[STACK].objects)
    # 1e-3: the mesh is a cube to the third digit; 1 mm: bodies at rest sink in a little
    assert green[0] == pytest.approx(CUBE_KG * variation.scale**3 * variation.mass, rel=1e-3)
    assert green[2] == pytest.approx(TABLE_M + variation.scale * CUBE_M / 2, abs=1e-3)
    assert yellow[0] == pytest.approx(CUBE_KG, rel=1e-3) and yellow[2] == pytest.approx(TABLE_M + CUBE_M / 2, abs=1e-3)
    for _, frictions, _ in (green, yellow):
        assert frictions == pytest.approx([0.5 * variation.friction] * len(frictions)) and frictions
    assert env.settings["variation"] == dataclasses.asdict(variation)
    begins = published_poses(env.domain, SIMPLER_SUITES[f"{SUITE}_{name}"][STACK]).positions[:, 0, 2]
    # 1e-6: float32; ManiSkill's cube begins 2.5 mm above the table
    np.testing.assert_allclose(begins, 0.887529 + (variation.scale - 1) * CUBE_M / 2, atol=1e-6)


@pytest.fixture(scope="module")
def base(make_simpler):
    return make_simpler(EGGPLANT, camera_size=48)


def test_the_published_task_is_the_same_beside_its_variants(base, make_simpler):
    base.reset(TRAIN, render=False)
    before = base.init_state_hash
    other = make_simpler(EGGPLANT, suite=SUBJECT, camera_size=48)
    other.reset(TRAIN, render=False)
    reworded = make_simpler(EGGPLANT, suite=f"{SUITE}_semantic", camera_size=48)
    reworded.reset(TRAIN, render=False)
    base.reset(TRAIN, render=False)
    assert base.init_state_hash == before == reworded.init_state_hash != other.init_state_hash
    assert base.task.instruction != reworded.task.instruction and "variation" not in base.settings
    with pytest.raises(SimulatorError, match="cannot be restored"):
        base.restore(reworded.snapshot())


@pytest.mark.parametrize(("suite", "task_id"), [(SUBJECT, EGGPLANT), (LARGE, STACK)])
def test_resets_and_snapshots_of_a_variant_are_exact(make_simpler, tmp_path, suite, task_id):
    env = make_simpler(task_id, suite=suite)
    first = fingerprint(env.reset(TRAIN)), env.init_state_hash
    expert = BridgeExpert(env.task)
    for _ in range(env.task.max_steps):
        env.step(expert.act(env.facts()), render=False)
        if env.facts()["grasped"][0] and env.facts()["keypoints"][0, 2] > TABLE_M + 0.08:
            break
    else:
        pytest.fail("the expert never lifted it")
    snapshot, actions = env.snapshot(), np.zeros((3, 7))
    actions[:, 0], actions[:, 6] = 0.02, (-1, 1, 1)  # carried on, and dropped

    def continued():
        return [fingerprint(env.step(action).observation) for action in actions], env.snapshot().digest()

    after = continued()
    assert (fingerprint(env.reset(TRAIN)), env.init_state_hash) == first
    env.restore(snapshot)
    assert continued() == after
    if suite == SUBJECT:  # another process takes 10 s, and has no other way to build what it restores
        assert_a_fresh_process_agrees(
            env, EnvSpec(simulator="simpler", suite=suite, task_id=task_id), snapshot, actions, tmp_path
        )


def test_an_unusual_object_is_seen_and_can_be_brought_to_its_place(make_simpler):
    env = make_simpler(EGGPLANT, suite=SUBJECT)
    image = env.reset(TRAIN).image.astype(int)
    assert list(env.domain.objs) == [model for _, model in SIMPLER_SUITES[SUBJECT][EGGPLANT].objects]
    background = np.asarray(Image.open(asset_root() / BRIDGE / "real_inpainting/bridge_sink.png").convert("RGB"))
    red, green, blue = np.moveaxis(image, 2, 0)
    orange = (red > 1.3 * green) & (red > 2 * blue)  # the carrot's; the arm is grey
    assert (orange & (image != background).any(axis=2)).sum() > 500
    expert = BridgeExpert(env.task)
    for _ in range(env.task.max_steps):
        success = env.step(expert.act(env.facts()), render=False).success
        if success and not env.facts()["grasped"].any():
            return
    pytest.fail("the expert did not bring it there")
