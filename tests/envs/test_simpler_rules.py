"""What SIMPLER's side knows without a simulator: rotations, initial states, assets."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from grape.envs.protocol import InitStateId
from grape.envs.rotations import (
    axis_angle,
    matrix_from_quaternion,
    matrix_from_rotating_xyz,
    matrix_from_static_xyz,
    quaternion_from_matrix,
    rotating_xyz_from_matrix,
    turned_about_z,
)
from grape.envs.simpler import make_simpler_env, package, simpler_task, task_names
from grape.envs.simpler.actions import to_maniskill, to_original_simpler
from grape.envs.simpler.assets import asset_digest, check_assets
from grape.envs.simpler.placement import PublishedPoses, place
from grape.envs.simpler.tasks import BRIDGE_TASKS, SUITE
from grape.errors import ConfigError, MissingDependencyError, SimulatorError
from tests.conftest import SIMPLER_ASSETS

Rotation = pytest.importorskip("scipy.spatial.transform", reason="scipy is the reference for rotations").Rotation

TABLE_TASK, SINK_TASK = BRIDGE_TASKS[0], BRIDGE_TASKS[3]
CARROT = simpler_task(SUITE, 0)
CORNERS = np.array([[-0.235, -0.075, 0.88], [-0.235, 0.075, 0.88], [-0.085, -0.075, 0.88], [-0.085, 0.075, 0.88]])
POSES = PublishedPoses(
    positions=np.array([[CORNERS[i], CORNERS[j]] for i in range(4) for j in range(4) if i != j]),
    quaternions=np.array([[[0.0, 0, 0, 1], [1, 0, 0, 0]], [[0.5**0.5, 0, 0, -(0.5**0.5)], [1, 0, 0, 0]]]),
)


@pytest.mark.parametrize("angles", [(0.2, -0.3, 0.25), (0, 0, 0), (-1.2, 0.9, 2.0), (0.0, 0.0, -3.0)])
def test_both_controllers_are_told_the_orientation_that_the_policy_meant(angles):
    meant = Rotation.from_euler("xyz", angles).as_matrix()  # scipy: lower case for fixed axes
    action = np.array([0.01, -0.02, 0.03, *angles, 1.0])
    maniskill, original = to_maniskill(action), to_original_simpler(action)
    # 1e-6: the angles are float32
    np.testing.assert_allclose(Rotation.from_euler("XYZ", maniskill[3:6]).as_matrix(), meant, atol=1e-6)
    np.testing.assert_allclose(Rotation.from_rotvec(original[3:6]).as_matrix(), meant, atol=1e-6)
    for converted in (maniskill, original):
        assert converted.dtype == np.float32
        np.testing.assert_array_equal(converted[:3], action[:3].astype(np.float32))


def test_passing_the_deltas_on_would_end_elsewhere():
    angles = (0.2, -0.3, 0.25)
    meant, misread = Rotation.from_euler("xyz", angles), Rotation.from_euler("XYZ", angles)
    assert (meant.inv() * misread).magnitude() > np.radians(2.0)


@pytest.mark.parametrize(("policy", "sent"), [(1.0, 1.0), (0.0, -1.0), (0.51, 1.0), (0.49, -1.0)])
def test_the_gripper_is_plus_one_for_open(policy, sent):
    action = np.array([0, 0, 0, 0, 0, 0, policy])
    assert to_maniskill(action)[6] == to_original_simpler(action)[6] == sent


def test_an_action_that_is_not_seven_numbers_is_refused():
    for action in (np.zeros(6), np.full(7, np.nan)):
        with pytest.raises(SimulatorError, match="7 finite numbers"):
            to_maniskill(action)


def test_rotations_agree_with_scipy():
    generator = np.random.default_rng(0)
    for _ in range(50):
        angles = generator.uniform(-3, 3, 3)
        static, rotating = Rotation.from_euler("xyz", angles), Rotation.from_euler("XYZ", angles)
        # 1e-12: all in float64
        np.testing.assert_allclose(matrix_from_static_xyz(angles), static.as_matrix(), atol=1e-12)
        np.testing.assert_allclose(matrix_from_rotating_xyz(angles), rotating.as_matrix(), atol=1e-12)
        vector = static.as_rotvec()
        np.testing.assert_allclose(axis_angle(quaternion_from_matrix(static.as_matrix())), vector, atol=1e-6)
        np.testing.assert_allclose(matrix_from_quaternion(static.as_quat()), static.as_matrix(), atol=1e-12)
        x, y, z, w = static.as_quat()
        turned = turned_about_z(np.array([w, x, y, z]), 0.7)
        wanted = (Rotation.from_euler("z", 0.7) * static).as_matrix()
        np.testing.assert_allclose(Rotation.from_quat(np.roll(turned, -1)).as_matrix(), wanted, atol=1e-12)


@pytest.mark.parametrize("second", [np.pi / 2, -np.pi / 2])
def test_euler_angles_survive_where_two_axes_coincide(second):
    matrix = matrix_from_rotating_xyz(np.array([0.4, second, -0.3]))
    back = matrix_from_rotating_xyz(rotating_xyz_from_matrix(matrix))
    np.testing.assert_allclose(back, matrix, atol=1e-7)  # cos(π/2) is 6e-17, not 0


def test_tasks_are_known_without_the_simulator():
    assert task_names(SUITE)[0] == "PutCarrotOnPlateInScene-v1" and len(task_names(SUITE)) == 4
    assert CARROT.instruction == "put carrot on plate" and CARROT.max_steps == 60
    assert simpler_task(SUITE, 3).max_steps == 120
    assert simpler_task(SUITE, 3).goal_predicates == (("in", "eggplant", "basket"),)
    with pytest.raises(ConfigError, match="Did you mean 'simpler_bridge'"):
        simpler_task("simpler_bride", 0)
    with pytest.raises(ConfigError, match="wanted 0 to 3"):
        simpler_task(SUITE, 4)


def test_settings_that_cannot_be_honoured_are_refused():
    for settings in ({"render_profile": "fast"}, {"camera_size": 100}, {"max_steps": 0}):
        with pytest.raises(ConfigError):
            make_simpler_env(SUITE, 0, **settings)


def test_published_ids_are_what_maniskill_means_by_them_and_never_wrap_round():
    seen = set()
    for index in range(24):
        positions, quaternions = place(CARROT, TABLE_TASK, POSES, InitStateId("official", index), attempt=0)
        np.testing.assert_array_equal(positions, POSES.positions[index // 2])
        np.testing.assert_array_equal(quaternions, POSES.quaternions[index % 2])
        seen.add(positions.tobytes() + quaternions.tobytes())
    assert len(seen) == 24
    with pytest.raises(ConfigError, match="official/0 to 23"):
        place(CARROT, TABLE_TASK, POSES, InitStateId("official", 24), attempt=0)


def test_sampled_states_are_all_different_and_lie_in_the_published_region():
    names = [InitStateId(split, index) for split in ("train", "validation", "test") for index in range(40)]
    drawn = [place(CARROT, TABLE_TASK, POSES, name, attempt=0) for name in names]
    assert len({positions.tobytes() for positions, _ in drawn}) == len(names)
    again = place(CARROT, TABLE_TASK, POSES, names[7], attempt=0)
    np.testing.assert_array_equal(again[0], drawn[7][0])
    assert not np.array_equal(place(CARROT, TABLE_TASK, POSES, names[7], attempt=1)[0], again[0])
    for positions, quaternions in drawn:
        assert (positions >= POSES.positions.min(axis=0)).all() and (positions <= POSES.positions.max(axis=0)).all()
        assert np.linalg.norm(positions[0, :2] - positions[1, :2]) >= TABLE_TASK.min_separation_m
        yaw = Rotation.from_quat(np.roll(quaternions[0], -1)).as_euler("zyx")[0] % (2 * np.pi)
        assert np.pi - 1e-9 <= yaw <= 1.5 * np.pi + 1e-9  # between the two published ones
        np.testing.assert_array_equal(quaternions[1], [1, 0, 0, 0])


@pytest.fixture
def assets(tmp_path):
    """A copy of the assets that a test may damage."""
    if not SIMPLER_ASSETS.is_dir():
        pytest.skip("SIMPLER's assets (../shared/simpler_assets) are not beside this checkout")
    return shutil.copytree(SIMPLER_ASSETS / "data", tmp_path / "data", copy_function=os.symlink)


@pytest.mark.parametrize(
    "file",
    [
        "tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb",
        "tasks/bridge_v2_real2sim_dataset/real_inpainting/bridge_real_eval_1.png",
        "tasks/bridge_v2_real2sim_dataset/custom/models/bridge_carrot_generated_modified/collision.obj",
        "tasks/bridge_v2_real2sim_dataset/custom/models/bridge_plate_objaverse_larger/plate_texture.png",
        "robots/widowx/wx250s.urdf",
        "robots/widowx/meshes_wx250s/WXSA-250-M-6-Wrist.stl",
    ],
)
def test_one_missing_asset_is_an_error_before_anything_is_built(assets, monkeypatch, file):
    check_assets(assets, TABLE_TASK)
    (assets / file).unlink()
    monkeypatch.setattr(package, "asset_root", lambda: assets)
    with pytest.raises(MissingDependencyError, match=rf"(?s){file.split('/')[-1]}.*grape assets simpler"):
        make_simpler_env(SUITE, 0)


def test_a_task_needs_its_own_assets_only(assets):
    (assets / "tasks/bridge_v2_real2sim_dataset/custom/models/sink/collision.obj").unlink()
    check_assets(assets, TABLE_TASK)
    with pytest.raises(MissingDependencyError, match="models/sink/collision.obj"):
        check_assets(assets, SINK_TASK)


def test_other_assets_have_another_digest(assets):
    before = asset_digest(SIMPLER_ASSETS / "data", TABLE_TASK)
    table = assets / "tasks/bridge_v2_real2sim_dataset/stages/bridge_table_1_v1.glb"
    table.unlink()
    table.write_bytes(b"another table")
    assert len(before) == 16 and asset_digest(assets, TABLE_TASK) != before
