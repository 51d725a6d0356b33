"""One task of the original SIMPLER behind the ``Env`` protocol; the simulator runs in another interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from grape.envs.protocol import OFFICIAL_SPLIT, InitStateId, Observation, TaskSpec
from grape.envs.replay import ReplayEnv
from grape.envs.rotations import axis_angle
from grape.envs.simpler.actions import to_google_robot, to_original_simpler
from grape.envs.simpler.env import MAX_DROP_M, MAX_SHIFT_M
from grape.envs.simpler_env.gripper import StickyGripper
from grape.envs.simpler_env.interpreter import ForeignSimulator
from grape.envs.simpler_env.states import published_poses, state_request
from grape.envs.simpler_env.tasks import GOOGLE_SUITE, ROBOTS, original_task
from grape.errors import ConfigError, SimulatorError
from grape.scene import SceneView


class OriginalSimplerEnv(ReplayEnv):
    """See ``grape.envs.protocol.Env``. An action is a position delta (m), an axis-angle delta (rad) and the gripper.

    The gripper of the WidowX is +1 to open and -1 to close; the Google Robot's is an opening in [0, 1], which is
    turned into its relative command here (``StickyGripper``), because that depends on the actions before.
    """

    def __init__(self, task: TaskSpec, python: str) -> None:
        """Start the other interpreter and build the scene.

        Raises:
            MissingDependencyError: The interpreter cannot be run.
            ConfigError: It cannot serve the task; the message has the install commands.
            SimulatorError: The simulation cannot be built.
        """
        super().__init__(task)
        self._original, self._robot = original_task(task.suite, task.task_id), ROBOTS[task.suite]
        self._gripper = StickyGripper() if self._robot.is_gripper_relative else None
        self._instruction = ""
        self._arrays: dict[str, np.ndarray] = {}
        self.simulator = ForeignSimulator(python)
        request = {"task": task.name, "camera": self._robot.camera, "objects": list(self._original.objects)}
        self._description, _ = self.simulator.call({"request": "open", **request})
        self._poses = published_poses(self._description)
        self.settings = self._describe()

    def view(self) -> SceneView:
        """Refused: the other interpreter sends neither depth nor segmentation.

        Raises:
            SimulatorError: Always.
        """
        raise SimulatorError(
            f"{self.task.suite} gives no depth and segmentation; the four tasks of simpler_bridge do (ManiSkill 3)"
        )

    def facts(self) -> dict[str, np.ndarray]:
        """One row of each fact named in ``grape.trajectory.Trajectory`` that this simulator knows."""
        facts = {name.removeprefix("facts/"): a for name, a in self._arrays.items() if name.startswith("facts/")}
        fingers = facts.pop("finger_positions")
        if self._robot.measures_fingers_in_m:
            facts["gripper_opening"] = np.array(fingers.sum(), np.float32)
        return facts

    def to_simulator_action(self, policy_action: np.ndarray) -> np.ndarray:
        """Convert fixed-axes Euler deltas and a gripper in [0, 1] to what ``step`` takes."""
        return (to_google_robot if self.task.suite == GOOGLE_SUITE else to_original_simpler)(policy_action)

    def movable_positions_m(self) -> np.ndarray:
        """(num_objects, 3) m, world frame."""
        return self._arrays["facts/keypoints"].astype(np.float64)

    def close(self) -> None:
        """End the other interpreter; calling it twice is fine."""
        self._init_state = None
        self.simulator.close()

    def _try_state(self, init_state: InitStateId, attempt: int) -> bool:
        request, placed = state_request(self.task, self._original, self._poses, init_state, attempt)
        self._receive({"request": "reset", **request})
        self._check_identity()
        if self._gripper is not None:
            self._gripper.reset()
        return self._settled_well(placed, shift_allowed=init_state.split == OFFICIAL_SPLIT)

    def _settled_well(self, placed: np.ndarray | None, *, shift_allowed: bool) -> bool:
        """Whether every object lies on the table, and none slid from where it was put."""
        positions = self.movable_positions_m()
        if not np.isfinite(positions).all():
            return False
        fell = bool((positions[:, 2] < self._description["table_height_m"] - MAX_DROP_M).any())
        if placed is None:  # a drawer is no object on the table
            return True
        slid = bool((np.linalg.norm(positions[:, :2] - placed, axis=1) > MAX_SHIFT_M).any())
        return not fell and (shift_allowed or not slid)

    def _check_identity(self) -> None:
        """Refuse another task under this name, or another picture than the published one."""
        wanted = (self._robot.image_height, self._robot.image_width, 3)
        got = self._arrays["image"].shape
        is_known = "<" in self.task.instruction or self._instruction == self.task.instruction
        if got != wanted or not is_known:
            raise SimulatorError(
                f"the installed simpler_env's {self.task.name} has pictures of {got} and says {self._instruction!r}, "
                f"wanted {wanted} and {self.task.instruction!r}: it is another task"
            )

    def _act(self, action: np.ndarray) -> None:
        sent = action
        if self._gripper is not None:
            sent = np.append(action[:6], np.float32(self._gripper.command(float(action[6])))).astype(np.float32)
        before = self._instruction
        self._receive({"request": "step"}, {"action": sent})
        if self._gripper is not None and self._instruction != before:
            self._gripper.reset()  # as the published evaluation

    def _state_arrays(self) -> dict[str, np.ndarray]:
        return {name: values for name, values in self._arrays.items() if name.startswith("state/")}

    def _receive(self, request: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
        answer, self._arrays = self.simulator.call(request, arrays)
        self._success, self._instruction = answer["success"], answer["instruction"]

    def _observe(self, render: bool) -> Observation:
        image = self._arrays["image"] if render else np.zeros((0, 0, 3), np.uint8)
        rotation = axis_angle(self._arrays["facts/ee_quaternion"].astype(np.float64))
        state = [self._arrays["facts/ee_position"], rotation, self._arrays["facts/finger_positions"]]
        return Observation(image, np.concatenate(state).astype(np.float32), instruction=self._instruction)

    def _describe(self) -> dict[str, Any]:
        recorded = ("versions", "assets", "control_mode", "control_hz", "physics_hz")
        return {
            "simulator": self.task.suite,
            **{name: self._description[name] for name in recorded},
            "render_profile": "faithful",
            "camera_size": self._robot.image_height,
            "max_steps": self.task.max_steps,
        }


def check_settings(suite: str, render_profile: str, camera_size: int | None) -> None:
    """Refuse what the prepackaged environments do not offer.

    Raises:
        ConfigError: Another profile or picture size than the published one.
    """
    height = ROBOTS[suite].image_height
    if render_profile != "faithful" or camera_size not in (None, height):
        raise ConfigError(
            f"got render profile {render_profile!r} and camera_size={camera_size}, {suite} has only 'faithful' and "
            f"{height}: simpler_env.make chooses the rest"
        )
