"""Privileged facts about the scene, from which costs are computed.

Axis legend: K keypoints (the moved object, then its target), G goal predicates (one).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grape.envs.rotations import axis_angle

_FINGERS = ("left_finger_link", "right_finger_link")


class FactReader:
    """Reads one row of facts after each step; names are resolved to one scene's numbers, so each reset needs a new one.

    ManiSkill's own ``info`` is of no use for stages: ``is_src_obj_grasped`` sticks for the whole episode, and
    ``moved_correct_obj`` is always false. There is no force sensor, and nothing here has a joint of its own, so
    ``ee_force`` and ``joint_positions`` are left out.
    """

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self._objects = list(domain.objs.values())
        self._tool = domain.agent.controller.controllers["arm"].ee_link
        links = domain.agent.robot.links_map
        self._robot = {_number(link) for link in links.values()}
        self._fingers = {_number(links[name]) for name in _FINGERS}
        self._keypoint_of = {_number(item): position for position, item in enumerate(self._objects)}

    def read(self, success: bool) -> dict[str, np.ndarray]:
        """One row of each fact; see ``grape.trajectory.Trajectory`` for the meaning.

        Args:
            success: ManiSkill's verdict on the current state. It is passed in because asking again would advance
                ManiSkill's counters.
        """
        pose = self._tool.pose
        keypoints = np.stack([item.pose.p[0].numpy() for item in self._objects])
        orientations = np.stack([np.roll(item.pose.q[0].numpy(), -1) for item in self._objects])
        grasped = [bool(self._domain.agent.is_grasping(item)[0]) for item in self._objects]
        return self._contact_facts() | {
            "ee_position": pose.p[0].numpy().astype(np.float32),
            "ee_quaternion": np.roll(pose.q[0].numpy(), -1).astype(np.float32),
            "gripper_opening": np.float32(self._finger_positions().sum()),
            "keypoints": keypoints.astype(np.float32),
            "keypoint_quaternions": orientations.astype(np.float32),
            "grasped": np.array(grasped, dtype=bool),
            "goal_satisfied": np.array([success], dtype=bool),
        }

    def proprioception(self) -> np.ndarray:
        """(8,) float32: tool position (m, world), axis-angle (rad), finger positions (m)."""
        pose = self._tool.pose
        rotation = axis_angle(np.roll(pose.q[0].numpy().astype(np.float64), -1))
        return np.concatenate([pose.p[0].numpy(), rotation, self._finger_positions()]).astype(np.float32)

    def object_positions_m(self) -> np.ndarray:
        """(K, 3) m, world frame."""
        return np.stack([item.pose.p[0].numpy() for item in self._objects]).astype(np.float64)

    def segmentation(self, numbers: np.ndarray) -> np.ndarray:
        """(H, W) int32: k + 1 where keypoint k is seen, from the numbers of things, (H, W)."""
        segmentation = np.zeros(numbers.shape, np.int32)
        for number, keypoint in self._keypoint_of.items():
            segmentation[numbers == number] = keypoint + 1
        return segmentation

    def _finger_positions(self) -> np.ndarray:
        return self._domain.agent.robot.get_qpos()[0, -2:].numpy()

    def _contact_facts(self) -> dict[str, np.ndarray]:
        by_robot, by_finger = (np.zeros(len(self._objects), dtype=bool) for _ in range(2))
        arm_contact = False
        for contact in self._domain.scene.get_contacts():
            first, second = (body.entity.per_scene_id for body in contact.bodies)
            if (first in self._robot) == (second in self._robot) or not _presses(contact):
                continue  # of the robot with itself, or not of the robot at all
            link, other = (first, second) if first in self._robot else (second, first)
            keypoint = self._keypoint_of.get(other)
            if keypoint is not None:
                by_robot[keypoint] = True
                by_finger[keypoint] |= link in self._fingers
            arm_contact |= link not in self._fingers or keypoint is None
        return {"robot_contact": by_robot, "finger_contact": by_finger, "arm_contact": np.array(arm_contact)}


def _number(body: Any) -> int:
    return int(body._bodies[0].entity.per_scene_id)


def _presses(contact: Any) -> bool:
    """SAPIEN also reports pairs that are merely near; they have no impulse."""
    return any(np.any(point.impulse) for point in contact.points)
