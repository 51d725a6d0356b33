"""Views of real scenes: the camera's geometry against ray casting and known sizes, and that looking changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from grape.constraints import FactTable, Point, offset_in_frame
from grape.envs.protocol import InitStateId
from grape.envs.spawn import call
from grape.envs.view import take_view
from grape.errors import SimulatorError
from tests.envs.fresh_process import OFFICIAL, TRAIN, fingerprint

SUITE, DRAWER_TASK = "libero_goal", 3  # open the top drawer and put the bowl inside
DRAWER = "wooden_cabinet_1_top_region"
STACK = 1
CUBE_M = 0.03


@pytest.fixture(scope="module")
def kitchen(make_env):
    env = make_env(SUITE, DRAWER_TASK, camera_size=128)
    env.reset(OFFICIAL, render=False)
    return env


@pytest.fixture(scope="module")
def table(make_simpler):
    env = make_simpler(STACK)
    env.reset(OFFICIAL, render=False)
    return env


@pytest.fixture(params=["kitchen", "table"])
def env(request):
    return request.getfixturevalue(request.param)


def mask_pixels(view, keypoint: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) centres of a keypoint's pixels, and (N, 3) m what they show."""
    rows, columns = np.nonzero(view.segmentation == keypoint + 1)
    pixels = np.stack([columns, rows], axis=1) + 0.5
    return pixels, view.camera.lift(pixels, view.depth_m[rows, columns])


def test_looking_changes_neither_the_state_nor_what_comes_next(env):
    action = [0.01, 0.02, -0.02, 0.1, 0, 0, -1]
    env.reset(TRAIN, render=False)
    env.step(action, render=False)
    wanted = fingerprint(env.step(action).observation), env.snapshot().digest()
    env.reset(TRAIN, render=False)
    env.step(action, render=False)
    before, picture = env.snapshot().digest(), env.render().image
    view = env.view()
    np.testing.assert_array_equal(view.image, picture)
    assert env.snapshot().digest() == before
    np.testing.assert_array_equal(env.render().image, picture)
    assert (fingerprint(env.step(action).observation), env.snapshot().digest()) == wanted


def test_movable_objects_are_seen_where_they_are(env):
    env.reset(OFFICIAL, render=False)
    view = env.view()
    pixels, depth_m = view.camera.project(view.keypoints_m)
    np.testing.assert_allclose(view.keypoints_m, env.facts()["keypoints"], atol=1e-6)  # float32
    assert (depth_m > 0).all()
    for keypoint, name in enumerate(env.movable_names):
        seen, points_m = mask_pixels(view, keypoint)
        # an object's origin is inside it or under it, and none of these is hidden: one pixel for the rounding
        assert np.linalg.norm(seen - pixels[keypoint], axis=1).min() < 1.5, name
        # the largest radius is the bottle's: 16 cm from its foot, where its origin is, to its mouth
        assert np.linalg.norm(points_m - view.keypoints_m[keypoint], axis=1).max() < 0.165, name


def test_depth_and_segmentation_are_what_mujocos_ray_casting_hits(kitchen):
    """Rays are cast by the physics, not by the renderer, along what the camera says about each pixel."""
    import mujoco

    kitchen.reset(OFFICIAL, render=False)
    view = kitchen.view()
    model, data = kitchen.domain.sim.model._model, kitchen.domain.sim.data._data
    labels = kitchen._facts.keypoint_of_geom()
    visible_groups = np.array([0, 1, 0, 0, 0, 0], np.uint8)
    rows, columns = np.random.default_rng(0).integers(0, 128, (2, 400))
    ends = view.camera.lift(np.stack([columns, rows], axis=1) + 0.5, np.ones(400))  # in depth 1 m
    origin, hit = view.camera.camera_to_world[:3, 3].copy(), np.zeros(1, np.int32)
    agree_in_depth, agree_in_label = [], []
    for row, column, end in zip(rows, columns, ends, strict=True):
        # the distance comes in lengths of the vector: it ends in depth 1 m, so this is the depth
        depth_m = mujoco.mj_ray(model, data, origin, end - origin, visible_groups, 1, -1, hit)
        agree_in_depth.append(abs(depth_m - view.depth_m[row, column]) < 0.001)
        agree_in_label.append(labels[hit[0]] == view.segmentation[row, column])
    # at edges a ray passes on one side, and the renderer's sample lies on the other
    assert np.mean(agree_in_depth) > 0.97 and np.mean(agree_in_label) > 0.97
    assert len(np.unique(view.segmentation[rows, columns])) > 5


def test_the_drawer_s_mask_is_the_drawer_s_and_a_point_on_its_handle_moves_with_it(kitchen):
    kitchen.reset(OFFICIAL, render=False)
    keypoint = kitchen.task.keypoint_names.index(DRAWER)
    view, facts = kitchen.view(), kitchen.facts()
    _, points_m = mask_pixels(view, keypoint)
    rows, columns = np.nonzero(view.segmentation == keypoint + 1)
    inside = np.array(
        [
            (view.segmentation[r - 1 : r + 2, c - 1 : c + 2] == keypoint + 1).all()
            for r, c in zip(rows, columns, strict=True)
        ]
    )
    handle_m = points_m[inside][points_m[inside, 1].argmax()]  # the cabinet opens along y
    offset_m = offset_in_frame(handle_m, facts["keypoints"][keypoint], facts["keypoint_quaternions"][keypoint])

    address = kitchen._facts._joint_address[keypoint]
    kitchen.domain.sim.data._data.qpos[address] -= 0.1  # m: opens
    kitchen.domain.sim.forward()
    later = {name: values[None] for name, values in kitchen.facts().items()}
    points = {"handle": Point(of=DRAWER, offset_m=tuple(offset_m.tolist()))}
    followed_m = FactTable(later, kitchen.task.keypoint_names, points).column("keypoints", "handle")[0]
    # float32 facts; the cabinet is turned by up to 3 degrees about the vertical, so the length is compared
    assert np.linalg.norm(followed_m - handle_m) == pytest.approx(0.1, abs=1e-5)
    opened = kitchen.view()
    [[column, row]], [depth_m] = opened.camera.project(followed_m[None])
    assert opened.segmentation[int(row), int(column)] == keypoint + 1
    assert opened.depth_m[int(row), int(column)] == pytest.approx(depth_m, abs=0.01)  # a pixel of the bent handle: 5 mm


def test_recorded_orientations_are_those_of_bodies_and_sites(kitchen):
    from grape.envs.rotations import matrix_from_quaternion

    kitchen.reset(TRAIN, render=False)
    domain, quaternions = kitchen.domain, kitchen.facts()["keypoint_quaternions"]
    for name, quaternion in zip(kitchen.task.keypoint_names, quaternions, strict=True):
        data = domain.sim.data
        wanted = data.get_site_xmat(name) if name == DRAWER else data.body_xmat[domain.obj_body_id[name]].reshape(3, 3)
        np.testing.assert_allclose(matrix_from_quaternion(quaternion), wanted, atol=1e-6, err_msg=name)  # float32


def test_simplers_cubes_are_lifted_to_cubes_of_3_cm(table):
    table.reset(OFFICIAL, render=False)
    view, facts = table.view(), table.facts()
    for keypoint in range(2):
        _, points_m = mask_pixels(view, keypoint)
        at = facts["keypoints"][keypoint], facts["keypoint_quaternions"][keypoint]
        in_cube_m = np.abs(offset_in_frame(points_m, *at))
        # ManiSkill's depth is in whole mm, and a pixel is 1 mm wide at 0.6 m
        np.testing.assert_allclose(in_cube_m.max(axis=1), CUBE_M / 2, atol=0.0025)  # each point is on a face
        assert (in_cube_m.max(axis=0) > CUBE_M / 2 - 0.0025).all()  # and three faces are seen


@pytest.mark.parametrize(("suite", "task_id", "size"), [(SUITE, DRAWER_TASK, 256), ("simpler_bridge", 0, 480)])
def test_a_view_is_taken_in_a_process_of_its_own(request, suite, task_id, size):
    if suite == "simpler_bridge":
        request.getfixturevalue("simpler")
    else:
        pytest.importorskip("libero", reason='LIBERO is not installed: pip install "grape-vla[libero]"')
    view = call(take_view, suite, task_id, InitStateId("official", 0))
    assert view.image.shape[0] == size and view.image.std() > 10
    assert set(np.unique(view.segmentation)) <= set(range(len(view.keypoint_names) + 1))
    assert (view.segmentation > 0).mean() > 0.02


def test_a_view_before_the_reset_is_refused(make_env):
    with pytest.raises(SimulatorError, match="view before reset"):
        make_env(SUITE, DRAWER_TASK).view()
