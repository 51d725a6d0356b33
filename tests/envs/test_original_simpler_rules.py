"""What is known of the original SIMPLER without it: tasks, published states, gripper, actions, messages."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest

from grape.config.collect import CollectConfig
from grape.config.evaluate import EvaluateConfig
from grape.envs.protocol import InitStateId
from grape.envs.simpler.actions import to_google_robot, to_maniskill, to_original_simpler
from grape.envs.simpler.placement import PublishedPoses
from grape.envs.simpler_env import BRIDGE_SUITE, GOOGLE_SUITE, make_original_simpler_env, simpler_env_task, task_names
from grape.envs.simpler_env.gripper import StickyGripper
from grape.envs.simpler_env.interpreter import interpreter_versions
from grape.envs.simpler_env.messages import MessageError, read_message, write_message
from grape.envs.simpler_env.states import state_request
from grape.envs.simpler_env.tasks import original_task
from grape.envs.suites import SIMULATORS, find_simulator
from grape.errors import ConfigError, MissingDependencyError
from grape.rollouts.session import library_versions, plan_jobs

Rotation = pytest.importorskip("scipy.spatial.transform", reason="scipy is the reference for rotations").Rotation
GOOGLE = {name: task_id for task_id, name in enumerate(task_names(GOOGLE_SUITE))}
OPEN_DRAWERS = [f"google_robot_{verb}_{which}drawer" for verb in ("open", "close") for which in ("", "top_")]


def google_request(name: str, index: int) -> dict:
    task = simpler_env_task(GOOGLE_SUITE, GOOGLE[name])
    request, placed = state_request(
        task, original_task(GOOGLE_SUITE, GOOGLE[name]), None, InitStateId("official", index), attempt=0
    )
    assert placed is None
    return request


def evaluate(**changes) -> EvaluateConfig:
    defaults = {"pretrained_checkpoint": "p", "task_suite_name": GOOGLE_SUITE, "simpler_python": "python"}
    return EvaluateConfig(**defaults | changes)


def test_all_published_names_are_tasks() -> None:
    assert len(GOOGLE) == 21 and len(task_names(BRIDGE_SUITE)) == 4
    limits = {name: simpler_env_task(GOOGLE_SUITE, task_id).max_steps for name, task_id in GOOGLE.items()}
    assert limits["google_robot_pick_object"] == limits["google_robot_move_near"] == 80
    assert limits["google_robot_close_bottom_drawer"] == 113
    assert limits["google_robot_place_apple_in_closed_top_drawer"] == 200
    assert [simpler_env_task(BRIDGE_SUITE, task_id).max_steps for task_id in range(4)] == [60, 60, 60, 120]
    assert [simpler_env_task(BRIDGE_SUITE, task_id).num_official_states for task_id in range(4)] == [24] * 4


@pytest.mark.parametrize(
    ("name", "count"),
    [("google_robot_pick_coke_can", 300), ("google_robot_pick_standing_coke_can", 100),
     ("google_robot_move_near", 240), ("google_robot_open_drawer", 108), ("google_robot_close_top_drawer", 36),
     ("google_robot_place_apple_in_closed_top_drawer", 108), ("google_robot_pick_object", 0)],
)  # fmt: skip
def test_published_states_of_the_google_robot_are_all_different(name, count):
    assert simpler_env_task(GOOGLE_SUITE, GOOGLE[name]).num_official_states == count
    requests = [google_request(name, index) for index in range(count)]
    assert len({json.dumps({**request, "seed": 0}) for request in requests}) == count
    with pytest.raises(ConfigError, match=f"it has {count} official states"):
        google_request(name, count)


def test_published_states_are_in_the_scripts_order():
    # scripts/pick_coke_can_visual_matching.sh: colours, then x, then y in 5 steps each
    request = google_request("google_robot_pick_vertical_coke_can", 25 + 5 * 4 + 1)
    assert request["urdf_version"] == "recolor_tabletop_visual_matching_1"
    assert request["options"]["obj_init_options"]["orientation"] == "laid_vertically"
    np.testing.assert_allclose(request["options"]["obj_init_options"]["init_xy"], [-0.12, 0.09], atol=1e-12)
    assert request["options"]["robot_init_options"]["init_xy"] == [0.35, 0.20]
    assert request["attributes"] == {"prepackaged_config": False}
    # scripts/drawer_visual_matching.sh: colours, then A0 to C2; the fourth of the second colours is B0
    request = google_request("google_robot_open_middle_drawer", 9 + 3)
    assert request["overlay"] == "open_drawer_b0.png" and request["attributes"]["drawer_ids"] == ["middle"]
    assert request["options"]["robot_init_options"]["init_xy"] == [0.652, 0.009]
    assert request["urdf_version"] == "recolor_tabletop_visual_matching_1"
    # scripts/move_near_visual_matching.sh: colours, then ids 0 to 59
    request = google_request("google_robot_move_near_v1", 3 * 60 + 7)
    assert request["urdf_version"] == "recolor_cabinet_visual_matching_1"
    assert request["options"]["obj_init_options"] == {"episode_id": 7}
    w, x, y, z = request["options"]["robot_init_options"]["init_rot_quat"]
    wanted = Rotation.from_euler("z", -0.09) * Rotation.from_euler("z", np.pi)
    np.testing.assert_allclose(Rotation.from_quat([x, y, z, w]).as_matrix(), wanted.as_matrix(), atol=1e-12)


def test_further_states_are_drawn_only_where_they_cannot_be_test_states():
    for name in ("google_robot_move_near", *OPEN_DRAWERS):
        task_id = GOOGLE[name]
        with pytest.raises(ConfigError, match="only official states"):
            state_request(
                simpler_env_task(GOOGLE_SUITE, task_id), original_task(GOOGLE_SUITE, task_id), None,
                InitStateId("train", 0), attempt=0,
            )  # fmt: skip
    spec, task = simpler_env_task(BRIDGE_SUITE, 3), original_task(BRIDGE_SUITE, 3)
    poses = PublishedPoses(np.array([[[-0.1, 0.2], [-0.125, 0.025]]]), np.tile([1.0, 0, 0, 0], (3, 2, 1)))
    seen = set()
    for index in range(20):
        request, placed = state_request(spec, task, poses, InitStateId("train", index), attempt=0)
        assert placed.shape == (2, 2) and request["options"]["reconfigure"]
        np.testing.assert_array_equal(request["attributes"]["_xy_configs"], [placed])
        seen.add(json.dumps(request["attributes"]))
    assert len(seen) == 20


def test_the_gripper_of_the_google_robot_is_as_published():
    # by hand from the rule: before minus now; above 0.5 it is sent 15 times, and the next change counts again
    gripper = StickyGripper()
    openings = [1.0, 0.9, 0.2, *[0.2] * 5, 1.0, *[0.2] * 8, 0.2, 1.0, 0.95]
    wanted = [0.0, 0.1, *[0.7] * 15, 0.0, *[-0.8] * 2]
    np.testing.assert_allclose([gripper.command(opening) for opening in openings], wanted, atol=1e-12)
    gripper.reset()
    assert gripper.command(0.0) == 0.0  # nothing came before


def test_the_rotation_is_what_the_other_simulators_turn_by():
    angles = (0.2, -0.3, 0.25)
    action = np.array([0.01, -0.02, 0.03, *angles, 0.3])
    meant = Rotation.from_euler("xyz", angles).as_matrix()
    for convert in (to_original_simpler, to_google_robot):
        converted = convert(action)
        assert converted.dtype == np.float32
        # 1e-6: the angles are float32
        np.testing.assert_allclose(Rotation.from_rotvec(converted[3:6]).as_matrix(), meant, atol=1e-6)
        np.testing.assert_array_equal(converted[:3], to_maniskill(action)[:3])
    np.testing.assert_allclose(Rotation.from_euler("XYZ", to_maniskill(action)[3:6]).as_matrix(), meant, atol=1e-6)
    assert to_original_simpler(action)[6] == -1 and to_google_robot(action)[6] == np.float32(0.3)
    assert SIMULATORS[GOOGLE_SUITE].to_simulator_action is to_google_robot


def test_messages_come_back_as_they_were_sent():
    arrays = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2],  # not contiguous
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float64(0.1),
    }
    stream = io.BytesIO()
    write_message(stream, {"text": "é", "number": 0.1}, arrays)
    size = stream.tell()
    write_message(stream, {"second": None})
    stream.seek(0)
    values, back = read_message(stream)
    assert values == {"text": "é", "number": 0.1} and back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype and back[name].flags.writeable
    assert read_message(stream) == ({"second": None}, {})
    assert read_message(stream) is None
    whole = stream.getvalue()
    for end in (2, 10, size - 1, size + 2):
        with pytest.raises(MessageError):
            cut = io.BytesIO(whole[:end])
            read_message(cut)
            read_message(cut)


def test_what_is_no_message_is_refused():
    for data in (b"GLFW error: no display\n", b"\x05\x00\x00\x00hello"):
        with pytest.raises(MessageError):
            read_message(io.BytesIO(data))
    other = json.dumps({"version": 2, "values": {}, "arrays": []}).encode()
    with pytest.raises(MessageError, match="version 2, this one 1"):
        read_message(io.BytesIO(len(other).to_bytes(4, "little") + other))
    pickled = json.dumps({"version": 1, "values": {}, "arrays": [["a", "|O", [1]]]}).encode()
    with pytest.raises(MessageError, match="wanted one of"):
        read_message(io.BytesIO(len(pickled).to_bytes(4, "little") + pickled + bytes(8)))
    with pytest.raises(MessageError, match="is <c16"):
        write_message(io.BytesIO(), {}, {"a": np.zeros(1, complex)})


def test_the_interpreter_has_to_be_named():
    for call in (
        lambda: make_original_simpler_env(BRIDGE_SUITE, 0),
        lambda: library_versions(BRIDGE_SUITE),
    ):
        with pytest.raises(ConfigError, match=r"--simpler_python.*pip install -e \./ManiSkill2_real2sim"):
            call()
    with pytest.raises(ConfigError, match="runs in this interpreter"):
        plan_jobs(evaluate(task_suite_name="simpler_bridge", task_ids=(0,), num_trials_per_task=1))


def test_an_interpreter_that_cannot_serve_is_refused_with_the_install_commands(tmp_path):
    with pytest.raises(MissingDependencyError, match="lacks simpler_env, mani_skill2_real2sim.*pip install -e"):
        interpreter_versions(sys.executable)
    with pytest.raises(MissingDependencyError, match="cannot be run.*pip install -e"):
        interpreter_versions(str(tmp_path / "nothing"))
    with pytest.raises(MissingDependencyError, match="is no Python"):
        interpreter_versions("false")


def test_settings_that_cannot_be_honoured_are_refused():
    for settings in ({"render_profile": "fast"}, {"camera_size": 256}, {"max_steps": 0}):
        with pytest.raises(ConfigError):
            make_original_simpler_env(GOOGLE_SUITE, 0, python="python", **settings)
    with pytest.raises(ConfigError, match="wanted 0 to 20"):
        simpler_env_task(GOOGLE_SUITE, 21)


def test_jobs_know_their_interpreter_and_the_published_picture():
    [job] = plan_jobs(evaluate(task_ids=(0,), num_trials_per_task=1))
    assert (job.env.python, job.env.camera_size, job.max_steps) == ("python", 512, 80)
    assert job.consecutive_successes is None  # success at the last step
    assert find_simulator(GOOGLE_SUITE).statistics == ("fractal20220817_data",)
    [job] = plan_jobs(evaluate(task_suite_name=BRIDGE_SUITE, task_ids=(3,), num_trials_per_task=1))
    assert (job.env.camera_size, job.max_steps) == (480, 120)


def test_a_task_that_changes_its_words_is_evaluated_but_not_collected(tmp_path):
    task_id = GOOGLE["google_robot_place_apple_in_closed_top_drawer"]
    assert len(plan_jobs(evaluate(task_ids=(task_id,), num_trials_per_task=108))) == 108
    config = CollectConfig(
        pretrained_checkpoint="p", task_suite_name=GOOGLE_SUITE, simpler_python="python", task_ids=(task_id,),
        run_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="changes its instruction"):
        plan_jobs(config)
