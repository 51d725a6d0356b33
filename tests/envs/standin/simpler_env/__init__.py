"""Stands in for ``simpler_env``; see README.md. Needs numpy alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import mani_skill2_real2sim
import numpy as np

ENVIRONMENTS = [
    "widowx_carrot_on_plate",
    "google_robot_pick_horizontal_coke_can",
    "google_robot_pick_object",
    "google_robot_place_apple_in_closed_top_drawer",
]
CORNERS = np.array([[-0.235, -0.075], [-0.235, 0.075], [-0.085, -0.075], [-0.085, 0.075]])


def make(task_name):
    """Like the real one: a wrapped environment."""
    print("a library that prints where messages go")
    os.write(1, b"and one in C that does\n")
    return Wrapper(World(task_name))


class Pose:
    def __init__(self, p=(0, 0, 0), q=(1, 0, 0, 0)):
        self.p, self.q = np.array(p, np.float32), np.array(q, np.float32)


class Body:
    def __init__(self, number, name, pose):
        self.id, self.name, self.pose = number, name, pose


class Point:
    def __init__(self, impulse):
        self.impulse = np.array(impulse)


class Contact:
    def __init__(self, first, second, impulse):
        self.actor0, self.actor1, self.points = first, second, [Point(impulse)]


class Robot:
    def __init__(self):
        names = ("base_link", "left_finger_link", "right_finger_link", "link_gripper_tcp")
        self.links = [Body(number, name, Pose()) for number, name in enumerate(names, 1)]

    def get_links(self):
        return self.links


class Gripper:
    def __init__(self, is_relative):
        self.is_relative, self.qpos = is_relative, np.full(2, 0.0 if is_relative else 0.037)

    def set_action(self, value):
        self.qpos = self.qpos + 0.1 * value if self.is_relative else np.full(2, 0.037 if value > 0 else 0.015)

    @property
    def is_closed(self):
        return self.qpos[0] > 0.5 if self.is_relative else self.qpos[0] < 0.02


class Controller:
    def __init__(self, gripper):
        self.controllers = {"gripper": gripper}

    def get_state(self):
        return {"gripper": {"target_qpos": self.controllers["gripper"].qpos, "start_qpos": None}}


class Agent:
    def __init__(self, world, is_relative):
        self.world, self.robot, self.controller = world, Robot(), Controller(Gripper(is_relative))

    def check_grasp(self, body):
        near = np.linalg.norm(body.pose.p - self.world.tcp.pose.p) < 0.03
        return self.controller.controllers["gripper"].is_closed and near and body is self.world.objects[0]


class World:
    """One table, one hand, two objects; the hand carries what it has grasped."""

    scene_table_height = 0.87
    control_mode, control_freq, sim_freq = "none", 5, 500

    def __init__(self, name):
        self.name, self.is_google = name, name.startswith("google")
        self.scene_name = "stage"
        self.scene_root = Path(mani_skill2_real2sim.ASSET_DIR)
        self.prepackaged_config, self.urdf_version, self.urdf_loaded = True, "", ""
        self.drawer_ids = ["top"]
        if not self.is_google:
            self._xy_configs = [CORNERS[[i, j]] for i in range(4) for j in range(4) if i != j]
            self._quat_configs = [np.array([[0, 0, 0, 1], [1, 0, 0, 0]]), np.array([[1, 0, 0, 0], [1, 0, 0, 0]])]
        self._scene = self

    def _configure_agent(self):
        self.urdf_loaded = self.urdf_version

    def get_contacts(self):
        hand, (source, target) = self.agent.robot.links, self.objects
        table = Body(99, "arena", Pose())
        contacts = [Contact(source, table, [0, 0, 1.0]), Contact(hand[0], target, [0, 0, 0])]  # the second: merely near
        if self.agent.check_grasp(source):
            contacts.append(Contact(source, hand[1], [0, 1.0, 0]))
        return contacts

    def get_state(self):
        return np.concatenate([body.pose.p for body in self.objects] + [self.tcp.pose.p, self.tcp.pose.q])

    def get_language_instruction(self):
        if "drawer" in self.name:
            return "open top drawer" if self.num_steps < 3 else "place apple into top drawer"
        if self.name == "google_robot_pick_object":
            return f"pick {self.model}"
        return "pick coke can" if self.is_google else "put carrot on plate"

    def reset(self, seed=None, options=None):
        assert options["reconfigure"], "a scene that is not built anew remembers"
        random = np.random.RandomState(seed)
        where = options.get("obj_init_options", {})
        self.model = ["apple", "orange"][seed % 2]
        if self.is_google and self.prepackaged_config:
            self.urdf_version = ["", "recolor_cabinet_visual_matching_1"][random.randint(2)]
            self._configure_agent()
            xys, robot = [random.uniform(-0.3, -0.1, 2), (0.0, 0.0)], (0.35, 0.20)
        elif self.is_google:
            xys, robot = [where["init_xy"], (0.0, 0.0)], options["robot_init_options"]["init_xy"]
        else:
            xys, robot = self._xy_configs[where["episode_id"] // len(self._quat_configs)], (0.147, 0.028)
        self.num_steps = 0
        self.agent = Agent(self, self.is_google)
        self.tcp = Body(4, "tcp", Pose((*robot, 1.0)))
        self.objects = [Body(50 + i, f"object {i}", Pose((*xy, 0.88))) for i, xy in enumerate(xys)]
        self.obj = self.episode_source_obj = self.objects[0]
        self.episode_target_obj = self.objects[1]
        self.joint_idx, self.drawer_id, self.art_obj = 0, self.drawer_ids[0], self
        return self.observe(), {}

    def get_links(self):
        return [Body(70, "top_drawer", Pose((0.1, 0.2, 0.3)))]

    def get_qpos(self):
        return np.array([0.15])

    def step(self, action):
        assert isinstance(action, np.ndarray) and action.shape == (7,)
        print("noise")
        misbehave(action[0])
        grasped = self.agent.check_grasp(self.objects[0])
        self.tcp.pose = Pose(self.tcp.pose.p + action[:3], turn(action[3:6], self.tcp.pose.q))
        if grasped:
            self.objects[0].pose = Pose(self.objects[0].pose.p + action[:3], self.objects[0].pose.q)
        self.agent.controller.controllers["gripper"].set_action(action[6])
        self.num_steps += 1
        source, target = (body.pose.p for body in self.objects)
        success = np.linalg.norm(source[:2] - target[:2]) < 0.03
        return self.observe(), 0.0, success, False, {"success": success}

    def observe(self):
        camera, height = ("overhead_camera", 512) if self.is_google else ("3rd_view_camera", 480)
        image = np.zeros((height, 640, 3), np.uint8)
        image[:, :, 0] = self.num_steps
        image[0, 0, 1] = len(self.urdf_loaded)
        return {"image": {camera: {"rgb": image}}}


class Wrapper:
    """Only what gymnasium's wrappers pass on."""

    def __init__(self, world):
        self.unwrapped = world

    def reset(self, *, seed=None, options=None):
        return self.unwrapped.reset(seed, options)

    def step(self, action):
        return self.unwrapped.step(action)


def turn(vector, quaternion):
    """wxyz after a turn by a rotation vector about axes that do not move."""
    angle = float(np.linalg.norm(vector))
    axis = np.asarray(vector) / angle if angle > 0 else np.zeros(3)
    w, v = np.cos(angle / 2), np.sin(angle / 2) * axis
    w2, v2 = quaternion[0], quaternion[1:]
    return np.concatenate([[w * w2 - v @ v2], w * v2 + w2 * v + np.cross(v, v2)])


def misbehave(metres):
    """Steps that nobody takes: 30 m raises, 40 m hangs, 50 m dies."""
    if metres == 30:
        raise RuntimeError("the physics exploded")
    if metres == 40:
        time.sleep(3600)
    if metres == 50:
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
