"""One LIBERO task behind the ``Env`` protocol, following OpenVLA's evaluation."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from grape.envs.guards import checked_action, require_reset
from grape.envs.libero import snapshot as snapshots
from grape.envs.libero.actions import to_libero
from grape.envs.libero.facts import FactReader
from grape.envs.libero.init_states import (
    OFFICIAL_SEED,
    load_official_states,
    numpy_seed,
    official_state,
    sampling_seed,
)
from grape.envs.libero.package import import_simulator, package_versions
from grape.envs.libero.rendering import RENDER_PROFILES, AgentView, check_render_settings
from grape.envs.libero.tasks import bddl_path
from grape.envs.protocol import OFFICIAL_SPLIT, InitStateId, Observation, Snapshot, StepResult, TaskSpec
from grape.errors import SimulatorError
from grape.scene import SceneView

NUM_SETTLE_STEPS = 10
"""Steps of no-op after a reset: objects start about 7 cm above the table."""
SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
MAX_SAMPLING_ATTEMPTS = 20
MAX_DROP_M = 0.2
"""A sampled state is drawn again where an object falls further than this while it settles: it left the workspace."""
MAX_TILT_RAD = np.radians(5.0)
"""Likewise where an object ends up tilted, unless it is on the object that the task's definition puts it on: LIBERO's
sampler lets objects overlap. Official states: at most 2.5°; the bowl on the ramekin (libero_spatial/5) always 16.4°."""
MAX_SETTLED_SPEED_M_S = 0.01
"""Likewise where an object still moves after settling. Official states: below 0.001."""


class LiberoEnv:
    """See ``grape.envs.protocol.Env``.

    ``domain`` is LIBERO's own environment, for code that needs privileged access (scripted experts).
    """

    def __init__(self, task: TaskSpec, *, render_profile: str = "faithful", camera_size: int = 256) -> None:
        check_render_settings(render_profile, camera_size)
        self.task = task
        self.init_state_hash = ""
        self._init_state: InitStateId | None = None
        self._render_profile, self._camera_size = render_profile, camera_size
        self._succeeded = False  # in the last step
        self._view: AgentView | None = None
        self._official_states: np.ndarray | None = None
        self.domain: Any = _make_domain(task)
        self._fixture_poses = _compiled_fixture_poses(self.domain)
        self._facts = FactReader(self.domain, task)
        self.settings = self._describe()

    def reset(self, init_state: InitStateId, *, render: bool = True) -> Observation:
        """Start an episode and settle. A function of (task, init_state) alone, fixtures included.

        Raises:
            ConfigError: There is no such official state.
            SimulatorError: No valid state could be sampled, or LIBERO ships no official ones for this task.
        """
        num_attempts = 1 if init_state.split == OFFICIAL_SPLIT else MAX_SAMPLING_ATTEMPTS
        for attempt in range(num_attempts):
            if not self._place(init_state, attempt):
                continue
            settled_well = self._settle()
            if settled_well or init_state.split == OFFICIAL_SPLIT:
                break
        else:
            raise SimulatorError(
                f"{self.task.suite}/{self.task.task_id}: no valid state for {init_state} in {num_attempts} attempts; "
                "the task's regions may be too crowded, try another index"
            )
        snapshots.refresh_derived(self.domain.sim)
        self._init_state, self._succeeded = init_state, False
        self.init_state_hash = self.snapshot().digest()
        return self._observe(render)

    def step(self, action: Sequence[float] | np.ndarray, *, render: bool = True) -> StepResult:
        """Take one action: six numbers in [-1, 1] for the arm, then the gripper, -1 opens and +1 closes.

        Without ``render`` the observation has an empty picture.

        Raises:
            SimulatorError: Not reset yet, not 7 finite numbers, or the physics diverged.
        """
        require_reset(self._init_state, "step")
        self._succeeded = self._advance(checked_action(action).astype(np.float64))
        snapshots.refresh_derived(self.domain.sim)
        return StepResult(self._observe(render), self._succeeded)

    def render(self) -> Observation:
        """Observe the current state."""
        return self._observe(render=True)

    def view(self) -> SceneView:
        """What the agent view sees now, with depth and segmentation; changes nothing.

        Raises:
            SimulatorError: Not reset yet.
        """
        require_reset(self._init_state, "view")
        image = self.render().image
        assert self._view is not None  # made by render
        depth_m, geoms = self._view.depth_and_geoms()
        return SceneView(
            image=image,
            depth_m=depth_m,
            segmentation=np.append(self._facts.keypoint_of_geom(), np.int32(0))[geoms],  # geom -1 is none
            camera=self._view.camera(),
            keypoint_names=self.task.keypoint_names,
            keypoints_m=self._facts.keypoint_positions_m(),
        )

    def facts(self) -> dict[str, np.ndarray]:
        """One row of each fact named in ``grape.trajectory.Trajectory``."""
        facts = self._facts.read()
        if self._succeeded:  # LIBERO's verdict, whose contacts are one substep older than those that were just read
            facts["goal_satisfied"][:] = True
        return facts

    def snapshot(self) -> Snapshot:
        """Capture the current state exactly."""
        return Snapshot(
            simulator="libero",
            suite=self.task.suite,
            task_id=self.task.task_id,
            init_state=require_reset(self._init_state, "snapshot"),
            init_state_hash=self.init_state_hash,
            arrays=snapshots.capture(self.domain),
        )

    def restore(self, snapshot: Snapshot) -> Observation:
        """Go back to a captured state, also one captured in another process.

        Raises:
            SimulatorError: It was captured in another task.
        """
        got, wanted = (snapshot.suite, snapshot.task_id), (self.task.suite, self.task.task_id)
        if snapshot.simulator != "libero" or got != wanted:
            raise SimulatorError(f"snapshot of {snapshot.simulator} {got} cannot be restored in libero {wanted}")
        snapshots.apply(self.domain, snapshot.arrays)
        self._init_state, self.init_state_hash = snapshot.init_state, snapshot.init_state_hash
        self._succeeded = False
        return self._observe(render=True)

    def to_simulator_action(self, policy_action: np.ndarray) -> np.ndarray:
        """Binarise the gripper, which policies give in [0, 1] with 1 for open, to LIBERO's -1 (open) or +1 (close)."""
        return to_libero(policy_action)

    @property
    def movable_names(self) -> tuple[str, ...]:
        """Movable objects, in the order of ``movable_positions_m`` and of the first keypoints."""
        return tuple(self.domain.objects_dict)

    def movable_positions_m(self) -> np.ndarray:
        """(num_objects, 3) m, world frame."""
        return self.domain.sim.data._data.xpos[[self.domain.obj_body_id[name] for name in self.movable_names]]

    def close(self) -> None:
        """Free the simulator and its rendering context; calling it twice is fine."""
        if self._view is not None:
            self._view.close()
        self._view, self._init_state = None, None
        if self.domain is not None:
            self.domain.close()
            self.domain = None

    def _place(self, init_state: InitStateId, attempt: int) -> bool:
        """Put everything in its initial place; False where the sampler found no room."""
        from robosuite.utils.errors import RandomizationError

        official = init_state.split == OFFICIAL_SPLIT
        state = self._official_state(init_state.index) if official else None
        domain = self.domain
        self._init_state = None
        _apply_fixture_poses(domain, self._fixture_poses)
        with numpy_seed(OFFICIAL_SEED if official else sampling_seed(self.task, init_state, attempt)):
            try:
                domain.reset()
            except RandomizationError:
                return False
        # A reset without rebuilding the model forgets this one; with it, the result equals a rebuild's.
        domain.robots[0].gripper.current_action = np.zeros_like(domain.robots[0].gripper.current_action)
        if state is not None:
            domain.sim.set_state_from_flattened(state)
        domain.sim.forward()
        domain._check_success()
        domain._post_process()
        return True

    def _settle(self) -> bool:
        """Let the objects come down; False where one did not come to rest as it was placed, or the task is solved."""
        data = self.domain.sim.data._data
        bodies = [self.domain.obj_body_id[name] for name in self.movable_names]
        height_m, rotation = data.xpos[bodies, 2], data.xmat[bodies]
        for _ in range(NUM_SETTLE_STEPS):
            success = self._advance(np.array(SETTLE_ACTION))
        drop_m = height_m - data.xpos[bodies, 2]
        cosine = (np.sum(rotation * data.xmat[bodies], axis=1) - 1.0) / 2.0  # of the angle between two rotations
        speed_m_s = np.linalg.norm(data.cvel[bodies, 3:], axis=1)
        as_placed = (cosine >= np.cos(MAX_TILT_RAD)) | self._stacked_as_defined()
        at_rest = as_placed & (speed_m_s <= MAX_SETTLED_SPEED_M_S) & (drop_m <= MAX_DROP_M)
        return bool(at_rest.all()) and not success

    def _stacked_as_defined(self) -> np.ndarray:
        """(num_objects,) bool: the task's definition puts this object on another movable one, and there it is."""
        stacked = {
            placement[1]
            for placement in self.domain.parsed_problem["initial_state"]
            if placement[0] == "on" and placement[2] in self.movable_names and self.domain._eval_predicate(placement)
        }
        return np.array([name in stacked for name in self.movable_names])

    def _official_state(self, index: int) -> np.ndarray:
        if self._official_states is None:
            self._official_states = load_official_states(self.task.suite, self.task.name)
        return official_state(self._official_states, self.task, index)

    def _advance(self, action: np.ndarray) -> bool:
        import mujoco

        warnings = self.domain.sim.data._data.warning
        _, _, success, _ = self.domain.step(action)
        if any(warnings[kind].number for kind in (mujoco.mjtWarning.mjWARN_BADQACC, mujoco.mjtWarning.mjWARN_BADQPOS)):
            raise SimulatorError(f"{self.task.suite}/{self.task.task_id}: the physics diverged; this episode is lost")
        return bool(success)

    def _observe(self, render: bool) -> Observation:
        if not render:
            return Observation(image=np.zeros((0, 0, 3), np.uint8), state=self._facts.proprioception())
        if self._view is None:
            with snapshots.preserved_integration_state(self.domain.sim):
                self._view = AgentView(self.domain.sim, profile=self._render_profile, size=self._camera_size)
        return Observation(image=self._view.picture(), state=self._facts.proprioception())

    def _describe(self) -> dict[str, Any]:
        return {
            "simulator": "libero",
            "versions": package_versions() | {"python": platform.python_version()},
            "mujoco_gl": os.environ["MUJOCO_GL"],
            "render_profile": self._render_profile,
            **RENDER_PROFILES[self._render_profile],
            "camera_size": self._camera_size,
            "num_settle_steps": NUM_SETTLE_STEPS,
            "max_steps": self.task.max_steps,
        }


def _make_domain(task: TaskSpec) -> Any:
    """Build LIBERO's environment without camera observations and without rebuilding the model at each reset."""
    control_env = import_simulator().ControlEnv
    with numpy_seed(OFFICIAL_SEED):
        domain = control_env(
            bddl_file_name=str(bddl_path(task.suite, task.name)),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            hard_reset=False,
            ignore_done=True,  # robosuite would raise after 1000 steps; the step limit is the caller's
        ).env
    for observable in domain._observables.values():
        observable._enabled = False  # states and pictures are read from the simulation itself
    found = (*domain.objects_dict, *domain.fixtures_dict)
    assert task.keypoint_names[: len(found)] == found, (task.keypoint_names, found)
    assert task.goal_predicates == tuple(tuple(goal) for goal in domain.parsed_problem["goal_state"])
    return domain


def _compiled_fixture_poses(domain: Any) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Body id to (position, quaternion wxyz) of each fixture as the model defines it, before LIBERO moves it.

    LIBERO places objects relative to fixtures as if these stood where the model defines them, which is true only
    right after the model was built. So they have to be put back before each reset.
    """
    poses = {}
    for fixture in domain.fixtures_dict.values():
        element = domain.model.root.find(f".//body[@name='{fixture.root_body}']")
        position = np.array((element.get("pos") or "0 0 0").split(), dtype=np.float64)
        quaternion = np.array((element.get("quat") or "1 0 0 0").split(), dtype=np.float64)
        poses[domain.sim.model.body_name2id(fixture.root_body)] = (position, quaternion / np.linalg.norm(quaternion))
    return poses


def _apply_fixture_poses(domain: Any, poses: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    for body, (position, quaternion) in poses.items():
        domain.sim.model._model.body_pos[body] = position
        domain.sim.model._model.body_quat[body] = quaternion
