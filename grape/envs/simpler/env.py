"""One SIMPLER task on ManiSkill 3 behind the ``Env`` protocol, one environment on the CPU."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from grape.envs.guards import checked_action, require_reset
from grape.envs.protocol import ACTION_DIM, OFFICIAL_SPLIT, InitStateId, Observation, Snapshot, StepResult, TaskSpec
from grape.envs.simpler import domain as domains
from grape.envs.simpler.actions import to_maniskill
from grape.envs.simpler.assets import asset_digest, asset_root
from grape.envs.simpler.facts import FactReader
from grape.envs.simpler.package import package_versions, rendering_device
from grape.envs.simpler.placement import place
from grape.envs.simpler.suites import bridge_task
from grape.errors import ConfigError, SimulatorError

MAX_SAMPLING_ATTEMPTS = 20
MAX_DROP_M = 0.2
"""A state is invalid where an object falls further than this while it settles: it left the table. The basket's
stand-in falls 6 cm, everything else less than 2 cm."""
MAX_SHIFT_M = 0.06
"""A sampled state is drawn again where an object slides or rolls further than this, horizontally, while it settles."""
CAMERA_SIZES = range(48, 2161, domains.CAMERA_HEIGHT // math.gcd(domains.CAMERA_HEIGHT, domains.CAMERA_WIDTH))
"""Heights of the picture, pixels, whose width is a whole number."""


class SimplerEnv:
    """See ``grape.envs.protocol.Env``.

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
        self.task = task
        self.init_state_hash = ""
        self._bridge = bridge_task(task.suite, task.task_id)
        self._init_state: InitStateId | None = None
        self._actions: list[np.ndarray] = []
        self._success = False
        self._camera_size = camera_size
        self.domain: Any = domains.make_domain(self._bridge, camera_height=camera_size)
        self._poses = domains.published_poses(self.domain, self._bridge)
        self._facts = FactReader(self.domain)
        self.settings = self._describe()

    def reset(self, init_state: InitStateId, *, render: bool = True) -> Observation:
        """Start an episode and settle. A function of (task, init_state) alone.

        Raises:
            ConfigError: There is no such official state.
            SimulatorError: No valid state could be sampled.
        """
        self._begin(init_state)
        return self._observe(render)

    def step(self, action: Sequence[float] | np.ndarray, *, render: bool = True) -> StepResult:
        """Take one action of 1/5 s: position delta (m), Euler ``XYZ`` delta (rad), gripper, +1 opens and -1 closes.

        Without ``render`` the observation has an empty picture.

        Raises:
            SimulatorError: Not reset yet, not 7 finite numbers, or the physics diverged.
        """
        require_reset(self._init_state, "step")
        self._advance(checked_action(action))
        return StepResult(self._observe(render), self._success)

    def render(self) -> Observation:
        """Observe the current state."""
        return self._observe(render=True)

    def facts(self) -> dict[str, np.ndarray]:
        """One row of each fact named in ``grape.trajectory.Trajectory`` that this simulator knows."""
        return self._facts.read(self._success)

    def snapshot(self) -> Snapshot:
        """Capture the current state: how it came about, and what it is.

        PhysX cannot be put into a state exactly: poses are rounded on their way in, and the solver's contacts cannot
        be written at all. Setting the state continues a few millimetres apart; repeating the actions is exact.
        """
        actions = np.array(self._actions, dtype=np.float32).reshape(-1, ACTION_DIM)
        return Snapshot(
            simulator="simpler",
            suite=self.task.suite,
            task_id=self.task.task_id,
            init_state=require_reset(self._init_state, "snapshot"),
            init_state_hash=self.init_state_hash,
            arrays={"actions": actions, **domains.state_arrays(self.domain)},
        )

    def restore(self, snapshot: Snapshot) -> Observation:
        """Go back to a captured state, also one captured in another process, by repeating its actions from the reset.

        Raises:
            SimulatorError: It was captured in another task, or the actions lead elsewhere (other versions or assets).
        """
        got, wanted = (snapshot.suite, snapshot.task_id), (self.task.suite, self.task.task_id)
        if snapshot.simulator != "simpler" or got != wanted:
            raise SimulatorError(f"snapshot of {snapshot.simulator} {got} cannot be restored in simpler {wanted}")
        self._begin(snapshot.init_state)
        for action in snapshot.arrays["actions"]:
            self._advance(action)
        if self.snapshot().digest() != snapshot.digest():
            self._init_state = None
            raise SimulatorError(
                f"{snapshot.init_state}: {len(snapshot.arrays['actions'])} actions led to another state than in the "
                "snapshot; it comes from other versions, other assets or another kind of machine"
            )
        return self._observe(render=True)

    def to_simulator_action(self, policy_action: np.ndarray) -> np.ndarray:
        """Convert fixed-axes Euler deltas and a gripper in [0, 1] to what ManiSkill's controller reads."""
        return to_maniskill(policy_action)

    @property
    def movable_names(self) -> tuple[str, ...]:
        """Movable objects, in the order of ``movable_positions_m`` and of the keypoints."""
        return self.task.keypoint_names

    def movable_positions_m(self) -> np.ndarray:
        """(num_objects, 3) m, world frame."""
        return self._facts.object_positions_m()

    def close(self) -> None:
        """Free the simulator; calling it twice is fine."""
        self._init_state = None
        if self.domain is not None:
            self.domain.close()
            self.domain = None

    def _begin(self, init_state: InitStateId) -> None:
        self._init_state = None
        official = init_state.split == OFFICIAL_SPLIT
        num_attempts = 1 if official else MAX_SAMPLING_ATTEMPTS
        for attempt in range(num_attempts):
            positions, quaternions = place(self.task, self._bridge, self._poses, init_state, attempt)
            self._success = domains.begin_episode(self.domain, positions, quaternions)
            self._facts = FactReader(self.domain)
            if self._settled_well(positions, shift_allowed=official):
                break
        else:
            raise SimulatorError(
                f"{self.task.suite}/{self.task.task_id}: no valid state for {init_state} in {num_attempts} attempts: "
                "objects fell or slid away while settling"
            )
        self._actions = []
        self._init_state = init_state
        self.init_state_hash = self.snapshot().digest()

    def _settled_well(self, placed: np.ndarray, *, shift_allowed: bool) -> bool:
        """Whether everything is where it was put, and nothing is solved already."""
        moved = self.movable_positions_m() - placed
        fell = bool((moved[:, 2] < -MAX_DROP_M).any()) or not np.isfinite(moved).all()
        slid = bool((np.linalg.norm(moved[:, :2], axis=1) > MAX_SHIFT_M).any())
        return not fell and (shift_allowed or not (slid or self._success))

    def _advance(self, action: np.ndarray) -> None:
        _, _, _, _, info = self.domain.step(action)
        self._success = bool(info["success"][0])
        self._actions.append(action)
        if not np.isfinite(self.movable_positions_m()).all():
            raise SimulatorError(f"{self.task.suite}/{self.task.task_id}: the physics diverged; this episode is lost")

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
