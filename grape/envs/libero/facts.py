"""Privileged facts about the scene, from which costs are computed.

Axis legend: K keypoints, G goal predicates, N contacts, C geoms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grape.envs.protocol import TaskSpec
from grape.envs.rotations import axis_angle, quaternion_from_matrix
from grape.errors import SimulatorError

_ROBOT_PREFIXES = ("robot0_", "gripper0_", "mount0_")


class FactReader:
    """Reads one row of facts; all names are resolved to indices once."""

    def __init__(self, domain: Any, task: TaskSpec) -> None:
        self._domain = domain
        self._goals = task.goal_predicates
        model = domain.sim.model._model
        bodies = [self._carrying_body(name) for name in task.keypoint_names]
        self._is_site = np.array([name not in domain.obj_body_id for name in task.keypoint_names], dtype=bool)
        self._index = np.array(
            [
                domain.sim.model.site_name2id(name) if is_site else domain.obj_body_id[name]
                for name, is_site in zip(task.keypoint_names, self._is_site, strict=True)
            ],
            dtype=np.int64,
        )
        things = np.any([_geoms_below(model, body) for body in domain.obj_body_id.values()], axis=0)
        geoms = [_geoms_below(model, body) & things for body in bodies]  # a region of the table or floor has none
        self._keypoint_geoms = np.stack(geoms, axis=1)  # (C, K)
        self._joint_address = [self._single_joint_address(name) for name in task.keypoint_names]
        self._setup_robot(model)

    def _setup_robot(self, model: Any) -> None:
        domain, robot = self._domain, self._domain.robots[0]
        body_names = [domain.sim.model.body_id2name(body) or "" for body in range(model.nbody)]
        is_robot_body = np.array([name.startswith(_ROBOT_PREFIXES) for name in body_names])
        self._robot_geoms = is_robot_body[model.geom_bodyid]  # (C,)
        groups = {name: _geom_mask(domain, model.ngeom, geoms) for name, geoms in robot.gripper.important_geoms.items()}
        self._left_pad, self._right_pad = groups["left_fingerpad"], groups["right_fingerpad"]
        self._finger_geoms = groups["left_finger"] | groups["right_finger"]
        is_fixed = model.body_weldid[model.geom_bodyid] == 0
        self._workspace_geoms = is_fixed & ~self._robot_geoms & ~self._keypoint_geoms.any(axis=1)
        self._grip_site = robot.eef_site_id
        self._hand_body = domain.sim.model.body_name2id(robot.robot_model.eef_name)
        self._finger_address = list(robot._ref_gripper_joint_pos_indexes)

    def read(self) -> dict[str, np.ndarray]:
        """One row of each fact; see ``grape.trajectory.Trajectory`` for the meaning."""
        data = self._domain.sim.data._data
        left, right = (data.qpos[address] for address in self._finger_address)
        joints = [np.nan if address is None else data.qpos[address] for address in self._joint_address]
        goals = [self._domain._eval_predicate(list(predicate)) for predicate in self._goals]
        return self._contact_facts(data) | {
            "ee_position": data.site_xpos[self._grip_site].astype(np.float32),
            "ee_quaternion": np.roll(data.xquat[self._hand_body], -1).astype(np.float32),
            "gripper_opening": np.float32(left - right),
            "keypoints": self.keypoint_positions_m().astype(np.float32),
            "keypoint_quaternions": self._keypoint_quaternions(data).astype(np.float32),
            "goal_satisfied": np.array(goals, dtype=bool),
            "ee_force": np.float32(np.linalg.norm(self._domain.robots[0].ee_force)),
            "joint_positions": np.array(joints, dtype=np.float32),
        }

    def proprioception(self) -> np.ndarray:
        """(8,) float32: end-effector position (m), axis-angle (rad), finger positions (m), as OpenVLA records it."""
        data = self._domain.sim.data._data
        quaternion = np.roll(data.xquat[self._hand_body], -1)
        fingers = [data.qpos[address] for address in self._finger_address]
        return np.concatenate([data.site_xpos[self._grip_site], axis_angle(quaternion), fingers]).astype(np.float32)

    def keypoint_positions_m(self) -> np.ndarray:
        """(K, 3) m, world frame: each object's origin, which for a bowl is where it stands, or a region's centre."""
        data = self._domain.sim.data._data
        positions = np.empty((len(self._index), 3))
        positions[self._is_site] = data.site_xpos[self._index[self._is_site]]
        positions[~self._is_site] = data.xpos[self._index[~self._is_site]]
        return positions

    def keypoint_of_geom(self) -> np.ndarray:
        """(C,) int32: k + 1 where a geom belongs to keypoint k, 0 where to none.

        A drawer belongs to the cabinet and carries a region: the keypoint with fewer geoms has it. The first one has it
        where they are as many, as with regions of the whole object.
        """
        labels = np.zeros(len(self._keypoint_geoms), np.int32)
        for keypoint in reversed(np.argsort(self._keypoint_geoms.sum(axis=0), kind="stable")):
            labels[self._keypoint_geoms[:, keypoint]] = keypoint + 1
        return labels

    def _keypoint_quaternions(self, data: Any) -> np.ndarray:
        """(K, 4) xyzw."""
        quaternions = np.roll(data.xquat[np.where(self._is_site, 0, self._index)], -1, axis=1)
        for keypoint in np.flatnonzero(self._is_site):
            quaternions[keypoint] = quaternion_from_matrix(data.site_xmat[self._index[keypoint]].reshape(3, 3))
        return quaternions

    def _contact_facts(self, data: Any) -> dict[str, np.ndarray]:
        pairs = np.asarray(data.contact.geom, dtype=np.int64).reshape(-1, 2)
        first = np.concatenate([pairs[:, 0], pairs[:, 1]])  # each contact seen from both of its sides
        second = np.concatenate([pairs[:, 1], pairs[:, 0]])
        touched = self._keypoint_geoms[second]  # (2 N, K)
        by_finger = self._finger_geoms[first]
        by_arm = self._robot_geoms[first] & ~by_finger
        arm_contact = (by_arm & ~self._robot_geoms[second]) | (by_finger & self._workspace_geoms[second])
        by_both_pads = touched[self._left_pad[first]].any(axis=0) & touched[self._right_pad[first]].any(axis=0)
        return {
            "grasped": by_both_pads,
            "robot_contact": touched[self._robot_geoms[first]].any(axis=0),
            "finger_contact": touched[by_finger].any(axis=0),
            "arm_contact": np.bool_(arm_contact.any()),
        }

    def _carrying_body(self, name: str) -> int:
        """The body whose contacts count as the keypoint's: the object, or the part (a drawer) that has the region."""
        domain = self._domain
        if name in domain.obj_body_id:
            return domain.obj_body_id[name]
        if name not in domain.object_sites_dict:
            raise SimulatorError(f"the goal names {name!r}, which LIBERO's scene does not have")
        return int(domain.sim.model._model.site_bodyid[domain.sim.model.site_name2id(name)])

    def _single_joint_address(self, name: str) -> int | None:
        """Where the one hinge or slide that moves this fixture or region is; none for objects that move freely."""
        domain = self._domain
        if name in domain.objects_dict:
            return None
        owner = domain.fixtures_dict.get(name) or domain.object_sites_dict[name]
        joints = list(getattr(owner, "joints", None) or [])
        return int(domain.sim.model.get_joint_qpos_addr(joints[0])) if len(joints) == 1 else None


def _geoms_below(model: Any, root: int) -> np.ndarray:
    """(C,) bool: geoms of a body and of all bodies attached below it; none for the world, which carries everything."""
    if root == 0:
        return np.zeros(model.ngeom, dtype=bool)
    inside = np.zeros(model.nbody, dtype=bool)
    inside[root] = True
    for body in range(root + 1, model.nbody):  # parents come before children
        inside[body] = inside[model.body_parentid[body]]
    return inside[model.geom_bodyid]


def _geom_mask(domain: Any, num_geoms: int, names: list[str]) -> np.ndarray:
    mask = np.zeros(num_geoms, dtype=bool)
    mask[[domain.sim.model.geom_name2id(name) for name in names]] = True
    return mask
