"""What a simulator has to offer, whatever the simulator is.

Axis legend: H height, W width, K keypoints, G goal predicates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from grape.config.collect import OFFICIAL_SPLIT
from grape.errors import ConfigError
from grape.scene import SceneView

_SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task of a suite; plain data, known without starting the simulator."""

    suite: str
    task_id: int
    """Position in the suite's own order, from 0."""
    name: str
    instruction: str
    """What the policy is told."""
    max_steps: int
    """Actions after which an episode counts as failed; settling steps not included."""
    goal_predicates: tuple[tuple[str, ...], ...]
    """Conjunction of goals, e.g. ``(("on", "akita_black_bowl_1", "plate_1"),)``."""
    keypoint_names: tuple[str, ...]
    """Movable objects, then fixtures, then the goal's regions, in a stable order."""
    num_official_states: int | None = None
    """How many different initial states the benchmark publishes; ``None`` leaves the check to the simulator."""

    changes_instruction: bool = False
    """The simulator changes the instruction in the course of an episode. Such episodes can be evaluated, but not
    collected: a stored one has a single instruction."""

    def with_max_steps(self, max_steps: int | None) -> TaskSpec:
        """The same task with another step limit; ``None`` keeps its own.

        Raises:
            ConfigError: The limit is below 1.
        """
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"got max_steps={max_steps}, wanted at least 1")
        return self if max_steps is None else replace(self, max_steps=max_steps)

    def check_states(self, split: str, first: int, count: int) -> None:
        """Refuse official states that do not exist: indices never wrap round, so that none is used twice.

        Raises:
            ConfigError: There are fewer.
        """
        if split != OFFICIAL_SPLIT or self.num_official_states is None:
            return
        if first + count > self.num_official_states:
            raise ConfigError(
                f"got official/{first} to official/{first + count - 1} of {self.suite}/{self.task_id} ({self.name}), "
                f"but it has {self.num_official_states} official states and none is used twice; ask for fewer, or take "
                "states from another split"
            )


@dataclass(frozen=True, order=True)
class InitStateId:
    """Name of one initial state of a task, e.g. ``official/3`` or ``train/17``."""

    split: str
    index: int

    def __post_init__(self) -> None:
        if not _SPLIT_NAME.fullmatch(self.split) or self.index < 0:
            raise ConfigError(
                f"got initial state {self.split!r}/{self.index!r}, wanted a split name in lower case and an index "
                "from 0, such as official/3 or train/17"
            )

    def __str__(self) -> str:
        return f"{self.split}/{self.index}"

    @classmethod
    def parse(cls, text: str) -> InitStateId:
        """Read ``"train/17"``.

        Raises:
            ConfigError: The text is not of the form ``split/index``.
        """
        split, _, index = text.partition("/")
        if not index.isdecimal():
            raise ConfigError(f"got initial state {text!r}, wanted split/index, such as official/3 or train/17")
        return cls(split, int(index))


@dataclass(frozen=True)
class Observation:
    """What a policy may see."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB, upright; (0, 0, 3) where rendering was skipped."""
    state: np.ndarray
    """(8,) float32: end-effector position (m, world), axis-angle (rad), the two finger positions (m)."""
    instruction: str | None = None
    """What the policy is told now, where the simulator has the word; ``None`` for the task's own."""


@dataclass(frozen=True)
class StepResult:
    """What one action led to."""

    observation: Observation
    success: bool
    """All goal predicates hold now."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A simulator's whole state between two steps; picklable, valid in any process with the same task and versions."""

    simulator: str
    suite: str
    task_id: int
    init_state: InitStateId
    init_state_hash: str
    arrays: dict[str, np.ndarray]

    def digest(self) -> str:
        """SHA-256 over all arrays: equal means equal bit for bit."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            values = np.ascontiguousarray(self.arrays[name])
            digest.update(f"{name}:{values.dtype.str}:{values.shape};".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()


class Env(Protocol):
    """One simulated task. Not thread-safe; one instance per process is the normal use."""

    task: TaskSpec
    settings: dict[str, Any]
    """Versions and everything else that changes pictures or physics; recorded with each episode."""
    init_state_hash: str
    """After ``reset``: digest of the settled state."""

    def reset(self, init_state: InitStateId, *, render: bool = True) -> Observation:
        """Start an episode; a function of (task, init_state) alone, whatever ran before."""
        ...

    def step(self, action: Sequence[float] | np.ndarray, *, render: bool = True) -> StepResult:
        """Take one action as the simulator understands it (see ``to_simulator_action``)."""
        ...

    def render(self) -> Observation:
        """Observe the current state."""
        ...

    def view(self) -> SceneView:
        """What the camera sees now, with depth and segmentation; changes nothing."""
        ...

    def facts(self) -> dict[str, np.ndarray]:
        """One row of each fact named in ``grape.trajectory.Trajectory``."""
        ...

    def snapshot(self) -> Snapshot:
        """Capture the current state exactly."""
        ...

    def restore(self, snapshot: Snapshot) -> Observation:
        """Go back to a captured state; what follows is bit-identical to what followed then."""
        ...

    def to_simulator_action(self, policy_action: np.ndarray) -> np.ndarray:
        """Convert a policy's unnormalised action to what ``step`` takes."""
        ...

    @property
    def movable_names(self) -> tuple[str, ...]:
        """Movable objects, in the order of ``movable_positions_m`` and of the first keypoints."""
        ...

    def movable_positions_m(self) -> np.ndarray:
        """(num_objects, 3) m, world frame."""
        ...

    def close(self) -> None:
        """Free the simulator and its rendering context."""
        ...
