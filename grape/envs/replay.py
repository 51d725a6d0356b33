"""Simulators whose state cannot be written exactly: an episode is kept as its initial state and the actions since."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from grape.envs.guards import checked_action, require_reset
from grape.envs.protocol import OFFICIAL_SPLIT, InitStateId, Observation, Snapshot, StepResult, TaskSpec
from grape.errors import SimulatorError
from grape.trajectory import ACTION_DIM

MAX_SAMPLING_ATTEMPTS = 20


class ReplayEnv(ABC):
    """What such simulators share of ``grape.envs.protocol.Env``; the abstract methods are where they differ."""

    settings: dict[str, Any]

    def __init__(self, task: TaskSpec) -> None:
        self.task = task
        self.init_state_hash = ""
        self._init_state: InitStateId | None = None
        self._actions: list[np.ndarray] = []
        self._success = False

    def reset(self, init_state: InitStateId, *, render: bool = True) -> Observation:
        """Start an episode and settle. A function of (task, init_state) alone: the scene is built anew.

        Raises:
            ConfigError: There is no such state.
            SimulatorError: No valid state could be sampled.
        """
        self._begin(init_state)
        return self._observe(render)

    def step(self, action: Sequence[float] | np.ndarray, *, render: bool = True) -> StepResult:
        """Take one action as ``to_simulator_action`` gives it. Without ``render`` the picture is empty.

        Raises:
            SimulatorError: Not reset yet, not 7 finite numbers, or the simulation failed.
        """
        require_reset(self._init_state, "step")
        self._advance(checked_action(action))
        return StepResult(self._observe(render), self._success)

    def render(self) -> Observation:
        """Observe the current state."""
        return self._observe(render=True)

    def snapshot(self) -> Snapshot:
        """Capture the current state: how it came about, and what it is.

        PhysX cannot be put into a state exactly: poses are rounded on their way in, and the solver's contacts cannot
        be written at all. Setting the state continues a few millimetres apart; repeating the actions is exact.
        """
        actions = np.array(self._actions, dtype=np.float32).reshape(-1, ACTION_DIM)
        return Snapshot(
            simulator=self.settings["simulator"],
            suite=self.task.suite,
            task_id=self.task.task_id,
            init_state=require_reset(self._init_state, "snapshot"),
            init_state_hash=self.init_state_hash,
            arrays={"actions": actions, **self._state_arrays()},
        )

    def restore(self, snapshot: Snapshot) -> Observation:
        """Go back to a captured state, also one captured in another process, by repeating its actions from the reset.

        Raises:
            SimulatorError: It was captured in another task, or the actions lead elsewhere (other versions or assets).
        """
        simulator = self.settings["simulator"]
        got, wanted = (snapshot.suite, snapshot.task_id), (self.task.suite, self.task.task_id)
        if snapshot.simulator != simulator or got != wanted:
            raise SimulatorError(f"snapshot of {snapshot.simulator} {got} cannot be restored in {simulator} {wanted}")
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

    @property
    def movable_names(self) -> tuple[str, ...]:
        """Movable objects, in the order of ``movable_positions_m`` and of the keypoints."""
        return self.task.keypoint_names

    @abstractmethod
    def movable_positions_m(self) -> np.ndarray:
        """(num_objects, 3) m, world frame."""

    @abstractmethod
    def _try_state(self, init_state: InitStateId, attempt: int) -> bool:
        """Build the scene for one draw of a state, settle, and say whether it is valid."""

    @abstractmethod
    def _act(self, action: np.ndarray) -> None:
        """Advance the simulation by one checked action, and note success."""

    @abstractmethod
    def _observe(self, render: bool) -> Observation: ...

    @abstractmethod
    def _state_arrays(self) -> dict[str, np.ndarray]:
        """What tells two states apart, for the digest of a snapshot."""

    def _begin(self, init_state: InitStateId) -> None:
        self._init_state = None
        num_attempts = 1 if init_state.split == OFFICIAL_SPLIT else MAX_SAMPLING_ATTEMPTS
        if not any(self._try_state(init_state, attempt) for attempt in range(num_attempts)):
            raise SimulatorError(
                f"{self.task.suite}/{self.task.task_id}: no valid state for {init_state} in {num_attempts} attempts: "
                "objects fell or slid away while settling"
            )
        self._actions = []
        self._init_state = init_state
        self.init_state_hash = self.snapshot().digest()

    def _advance(self, action: np.ndarray) -> None:
        self._act(action)
        self._actions.append(action)
        if not np.isfinite(self.movable_positions_m()).all():
            raise SimulatorError(f"{self.task.suite}/{self.task.task_id}: the physics diverged; this episode is lost")
