"""The original SIMPLER in an interpreter of its own, served through a pipe; run as a script, never imported by grape.

Standalone: standard library, numpy and what ``simpler_env`` brings; Python 3.8 or newer. One process serves one
environment. Requests (``values["request"]``) come on standard input, each gets one reply on what was standard output:

- ``open``: ``task`` (a name for ``simpler_env.make``), ``camera``, ``objects``; replies with a description.
- ``reset``: ``seed``, ``options`` for ``env.reset``, and what is set before it: ``attributes``, ``urdf_version``,
  ``overlay`` (file name of a background). Replies with an observation.
- ``step``: array ``action`` (7,). Replies with an observation.

A reply has ``ok``; without it ``error``, ``where``, and ``refused`` where no other request could fare better.

It is started as ``python -I foreign.py PARENT``, with the process id of whoever asks.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

_DIE_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of Linux."""


def main() -> None:
    """Serve requests until standard input ends."""
    end_with_parent(int(sys.argv[1]))
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what SAPIEN prints must not come between messages
    messages = load("messages")
    messages.write_message(replies, {"ok": True})
    environment = Environment()
    while True:
        message = messages.read_message(requests)
        if message is None:
            break
        try:
            values, arrays = environment.answer(*message)
        except Exception as error:  # process boundary: the other side decides what it costs
            values, arrays = describe_error(error), {}
        messages.write_message(replies, values, arrays)
    os._exit(0)  # freeing a simulator that goes with its process would only cost time


def load(name: str) -> Any:
    """A module beside this file, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, str(Path(__file__).with_name(f"{name}.py")))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def end_with_parent(parent: int) -> None:
    """Be killed as soon as the process that asked for this one is gone, however deep in a step this one is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def describe_error(error: Exception) -> dict[str, Any]:
    """An error as a reply."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "ok": False,
        "error": f"{type(error).__name__}: {error}",
        "where": f"{os.path.basename(last.filename)}:{last.lineno}",
        "refused": isinstance(error, (ImportError, FileNotFoundError, Unusable)),
    }


class Unusable(Exception):
    """This installation cannot serve the task."""


class Environment:
    """The environment under way, if any."""

    def __init__(self) -> None:
        self._env: Any = None
        self._camera, self._success = "", False
        self._objects: list[str] = []

    def answer(self, values: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Do what a request asks for."""
        request = values["request"]
        if request == "open":
            return self._open(values), {}
        if request == "reset":
            return self._reset(values)
        assert request == "step", request
        image, self._success = self._step(arrays["action"])
        return self._observation(image)

    def _open(self, values: dict[str, Any]) -> dict[str, Any]:
        import simpler_env

        if values["task"] not in simpler_env.ENVIRONMENTS:
            raise Unusable(f"this simpler_env has no {values['task']}, only {', '.join(simpler_env.ENVIRONMENTS)}")
        self._camera, self._objects = values["camera"], values["objects"]
        self._env = simpler_env.make(values["task"])
        domain = self._env.unwrapped
        if "dummy" not in domain.scene_name:  # without it, objects fall for ever behind a plausible background
            stage = Path(domain.scene_root) / "stages" / f"{domain.scene_name}.glb"
            if not stage.is_file():
                raise FileNotFoundError(f"{stage}: set MS2_ASSET_DIR to ManiSkill2_real2sim's folder data")
        return {
            "ok": True,
            "versions": load("probe").versions(),
            "assets": digest_of_installation(),
            "control_mode": domain.control_mode,
            "control_hz": domain.control_freq,
            "physics_hz": domain.sim_freq,
            "xy_configs": as_lists(getattr(domain, "_xy_configs", None)),
            "quat_configs": as_lists(getattr(domain, "_quat_configs", None)),
            "table_height_m": float(domain.scene_table_height),
        }

    def _reset(self, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        domain = self._env.unwrapped
        for name, value in values["attributes"].items():
            if not hasattr(domain, name):
                raise Unusable(f"{type(domain).__name__} has no {name}: this mani_skill2_real2sim is another one")
            setattr(domain, name, value)
        if values["urdf_version"] is not None:  # as prepackaged environments do it
            domain.urdf_version = values["urdf_version"]
            domain._configure_agent()
        if values["overlay"] is not None:
            domain.rgb_overlay_img = background(values["overlay"])
        observation, _ = self._env.reset(seed=values["seed"], options=values["options"])
        self._success = False
        return self._observation(self._picture(observation))

    def _step(self, action: Any) -> tuple[Any, bool]:
        observation, _, _, _, info = self._env.step(action)
        return self._picture(observation), bool(info["success"])

    def _picture(self, observation: Any) -> Any:
        return observation["image"][self._camera]["rgb"]

    def _observation(self, image: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        domain = self._env.unwrapped
        facts = read_facts(domain, self._objects, self._success)
        arrays = {"image": np.ascontiguousarray(image, dtype=np.uint8)}
        for name, value in facts.items():
            arrays[f"facts/{name}"] = value
        for name, value in read_state(domain).items():
            arrays[f"state/{name}"] = value
        values = {"ok": True, "success": self._success, "instruction": str(domain.get_language_instruction())}
        return values, arrays


def background(name: str) -> Any:
    """A picture of a real scene, (H, W, 3) RGB in [0, 1], as the environments hold it."""
    import cv2
    from mani_skill2_real2sim import ASSET_DIR

    path = Path(ASSET_DIR) / "real_inpainting" / name
    picture = cv2.imread(str(path))
    if picture is None:
        raise FileNotFoundError(f"{path}: set MS2_ASSET_DIR to ManiSkill2_real2sim's folder data")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) / 255


def read_facts(domain: Any, names: list[str], success: bool) -> dict[str, Any]:
    """One row of each fact of ``grape.trajectory.Trajectory``; nothing that advances the simulator's counters."""
    objects = [find_object(domain, name) for name in names]
    poses = [item.pose for item in objects]
    opening = [domain.art_obj.get_qpos()[domain.joint_idx] if name == "drawer" else np.nan for name in names]
    facts = {
        "ee_position": np.asarray(domain.tcp.pose.p, np.float32),
        "ee_quaternion": np.roll(np.asarray(domain.tcp.pose.q, np.float32), -1),
        "finger_positions": np.asarray(domain.agent.controller.controllers["gripper"].qpos, np.float32),
        "keypoints": np.array([pose.p for pose in poses], np.float32),
        "keypoint_quaternions": np.array([np.roll(pose.q, -1) for pose in poses], np.float32),
        "grasped": np.array([bool(domain.agent.check_grasp(item)) for item in objects]),
        "goal_satisfied": np.array([success]),
    }
    if "drawer" in names:
        facts["joint_positions"] = np.array(opening, np.float32)
    facts.update(read_contacts(domain, objects))
    return facts


def find_object(domain: Any, name: str) -> Any:
    """An attribute of the environment, or the drawer that the task is about."""
    if name != "drawer":
        return getattr(domain, name)
    wanted = f"{domain.drawer_id}_drawer"
    return next(link for link in domain.art_obj.get_links() if link.name == wanted)


def read_contacts(domain: Any, objects: list[Any]) -> dict[str, Any]:
    """What the robot presses against, now."""
    links = {link.id: link.name for link in domain.agent.robot.get_links()}
    position_of = {item.id: position for position, item in enumerate(objects)}
    by_robot, by_finger = np.zeros((2, len(objects)), dtype=bool)
    arm_contact = False
    for contact in domain._scene.get_contacts():
        first, second = contact.actor0.id, contact.actor1.id
        if (first in links) == (second in links):
            continue  # of the robot with itself, or not of the robot at all
        if not any(np.any(point.impulse) for point in contact.points):
            continue  # merely near
        link, other = (first, second) if first in links else (second, first)
        is_finger, position = "finger" in links[link], position_of.get(other)
        if position is not None:
            by_robot[position] = True
            by_finger[position] |= is_finger
        arm_contact |= not is_finger or position is None
    return {"robot_contact": by_robot, "finger_contact": by_finger, "arm_contact": np.array(arm_contact)}


def read_state(domain: Any) -> dict[str, Any]:
    """What the physics and the controllers depend on and can be read, by name."""
    arrays = {"simulation": np.asarray(domain.get_state(), np.float64)}
    for part, values in domain.agent.controller.get_state().items():
        for name, value in values.items():
            if value is not None:
                arrays[f"{part}/{name}"] = np.asarray(value, np.float64)
    return arrays


def digest_of_installation() -> str:
    """First 16 hex digits of a SHA-256 over the two packages' code and the names and sizes of the assets.

    Both packages are installed from a repository, and their versions stay the same from commit to commit.
    """
    import mani_skill2_real2sim
    import simpler_env

    digest = hashlib.sha256()
    for package in (simpler_env, mani_skill2_real2sim):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()};".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    root = Path(mani_skill2_real2sim.ASSET_DIR)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}:{path.stat().st_size};".encode())
    return digest.hexdigest()[:16]


def as_lists(value: Any) -> Any:
    """Arrays within lists as JSON; ``None`` where there are none."""
    return None if value is None else np.array(value, np.float64).tolist()


if __name__ == "__main__":
    main()
