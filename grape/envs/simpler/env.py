"""One SIMPLER task on ManiSkill 3 behind the ``Env`` protocol, one environment on the CPU."""

from __future__ import annotations

import dataclasses
import math
import platform
from typing import Any

import numpy as np

from grape.envs.guards import require_reset
from grape.envs.protocol import OFFICIAL_SPLIT, InitStateId, Observation, TaskSpec
from grape.envs.replay import ReplayEnv
from grape.envs.simpler import domain as domains
from grape.envs.simpler.actions import to_maniskill
from grape.envs.simpler.assets import asset_digest, asset_root
from grape.envs.simpler.facts import FactReader
from grape.envs.simpler.package import package_versions, rendering_device
from grape.envs.simpler.placement import place
from grape.envs.simpler.suites import bridge_task
from grape.errors import ConfigError
from grape.scene import SceneView

MAX_DROP_M = 0.2
"""A state is invalid where an object falls further than this while it settles: it left the table. The basket's
stand-in falls 6 cm, everything else less than 2 cm."""
MAX_SHIFT_M = 0.06
"""A sampled state is drawn again where an object slides or rolls further than this, horizontally, while it settles."""
CAMERA_SIZES = range(48, 2161, domains.CAMERA_HEIGHT // math.gcd(domains.CAMERA_HEIGHT, domains.CAMERA_WIDTH))
"""Heights of the picture, pixels, whose width is a whole number."""


class SimplerEnv(ReplayEnv):
    """See ``grape.envs.protocol.Env``. An action is a position delta (m), an Euler ``XYZ`` delta (rad) and the gripper,
    +1 to open and -1 to close, for 1/5 s.

    ``domain`` is ManiSkill's own environment, for code that needs privileged access (scripted experts).
    """

    def __init__(
        self, task: TaskSpec, *, render_profile: str = "faithful", camera_size: int = domains.CAMERA_HEIGHT
    ) -> None:
        if render_profile != "faithful":
            raise ConfigError(f"got render profile {render_profile!r}, SIMPLER has only 'faithful'")
        if camera_size not in CAMERA_SIZES:
            raise ConfigError(
                f"got camera_size={camera_size}, wanted a multiple of 3 from 48 to 2160 (480 is SIMPLER's)"
            )
        super().__init__(task)
        self._bridge = bridge_task(task.suite, task.task_id)
        self._camera_size = camera_size
        self.domain: Any = domains.make_domain(self._bridge, camera_height=camera_size)
        self._poses = domains.published_poses(self.domain, self._bridge)
        self._facts = FactReader(self.domain)
        self.settings = self._describe()

    def view(self) -> SceneView:
        """What the camera sees now, the photograph behind it, with the simulation's depth and segmentation.

        Raises:
            SimulatorError: Not reset yet.
        """
        require_reset(self._init_state, "view")
        image, depth_m, numbers = domains.look(self.domain)
        return SceneView(
            image=image,
            depth_m=depth_m,
            segmentation=self._facts.segmentation(numbers),
            camera=domains.camera(self.domain),
            keypoint_names=self.task.keypoint_names,
            keypoints_m=self.movable_positions_m(),
        )

    def facts(self) -> dict[str, np.ndarray]:
        """One row of each fact named in ``grape.trajectory.Trajectory`` that this simulator knows."""
        return self._facts.read(self._success)

    def to_simulator_action(self, policy_action: np.ndarray) -> np.ndarray:
        """Convert fixed-axes Euler deltas and a gripper in [0, 1] to what ManiSkill's controller reads."""
        return to_maniskill(policy_action)

    def movable_positions_m(self) -> np.ndarray:
        """(num_objects, 3) m, world frame."""
        return self._facts.object_positions_m()

    def close(self) -> None:
        """Free the simulator; calling it twice is fine."""
        self._init_state = None
        if self.domain is not None:
            self.domain.close()
            self.domain = None

    def _try_state(self, init_state: InitStateId, attempt: int) -> bool:
        positions, quaternions = place(self.task, self._bridge, self._poses, init_state, attempt)
        self._success = domains.begin_episode(self.domain, positions, quaternions)
        self._facts = FactReader(self.domain)
        return self._settled_well(positions, shift_allowed=init_state.split == OFFICIAL_SPLIT)

    def _settled_well(self, placed: np.ndarray, *, shift_allowed: bool) -> bool:
        """Whether everything is where it was put, and nothing is solved already."""
        moved = self.movable_positions_m() - placed
        fell = bool((moved[:, 2] < -MAX_DROP_M).any()) or not np.isfinite(moved).all()
        slid = bool((np.linalg.norm(moved[:, :2], axis=1) > MAX_SHIFT_M).any())
        return not fell and (shift_allowed or not (slid or self._success))

    def _act(self, action: np.ndarray) -> None:
        _, _, _, _, info = self.domain.step(action)
        self._success = bool(info["success"][0])

    def _state_arrays(self) -> dict[str, np.ndarray]:
        return domains.state_arrays(self.domain)

    def _observe(self, render: bool) -> Observation:
        image = domains.picture(self.domain) if render else np.zeros((0, 0, 3), np.uint8)
        return Observation(image=image, state=self._facts.proprioception())

    def _describe(self) -> dict[str, Any]:
        variation = self._bridge.variation
        return {
            "simulator": "simpler",
            **({} if variation is None else {"variation": dataclasses.asdict(variation)}),
            "versions": package_versions() | {"python": platform.python_version()},
            "assets": asset_digest(asset_root(), self._bridge),
            "sim_backend": "physx_cpu",
            "render_backend": "sapien_cpu",
            "rendering_device": rendering_device(),
            "render_profile": "faithful",
            "camera_size": self._camera_size,
            "control_hz": self.domain.control_freq,
            "physics_hz": self.domain.sim_freq,
            "max_steps": self.task.max_steps,
        }
