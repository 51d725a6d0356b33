"""What an episode did, counted from its recorded facts alone: no stage, no score and no preset comes into it.

Axis legend: T steps, T + 1 rows of facts, K keypoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grape.errors import ConstraintError, RecordError
from grape.rollouts.store import RolloutStore
from grape.trajectory import EpisodeInfo, load_trajectory

State = tuple[Any, ...]
"""Suite, task, name and hash of an initial state: equal ones are the same state bit for bit. Before them the run where
several are compared together."""
PLACING = ("on", "in")
NUM_RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Counts:
    """One episode."""

    success: float
    """1 or 0."""
    collision_steps: float
    """Steps after which the robot touches what it should not."""
    collided: float
    """1 if there is any such step, else 0."""
    path_m: float
    """Way of the end-effector over the whole episode, m."""
    num_steps: float


MEASURES = tuple(Counts.__dataclass_fields__)


def count_episode(info: EpisodeInfo, facts: Mapping[str, np.ndarray]) -> Counts:
    """Count one finished episode.

    Args:
        info: Its header; every goal predicate must be a placing one.
        facts: As in ``grape.trajectory.Trajectory``.
    """
    collisions = unsafe_steps(info, facts)
    steps_m = np.diff(np.asarray(facts["ee_position"], np.float64), axis=0)
    return Counts(
        success=float(info.status == "success"),
        collision_steps=float(collisions.sum()),
        collided=float(collisions.any()),
        path_m=float(np.linalg.norm(steps_m, axis=1).sum()),
        num_steps=float(info.num_steps),
    )


def unsafe_steps(info: EpisodeInfo, facts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether the robot touches what it should not after each step, (T,) bool.

    That is: any part of it touches an object that no goal predicate names; or, while nothing is grasped, a part other
    than the fingers touches anything, or a finger the table. While something is grasped the palm may rest on it.

    Raises:
        ConstraintError: A goal is not about placing: of a drawer the arm may well touch something.
    """
    for predicate in info.goal_predicates:
        if predicate[0].lower() not in PLACING:
            raise ConstraintError(
                f"collisions are counted for goals {' and '.join(PLACING)}, not {' '.join(predicate)}"
            )
    named = {argument for predicate in info.goal_predicates for argument in predicate[1:]}
    foreign = np.array([not any(_belong(name, other) for other in named) for name in info.keypoint_names], bool)
    holding = np.asarray(facts["grasped"], bool).any(axis=1)
    arm = np.asarray(facts["arm_contact"], bool) & ~holding
    other = np.asarray(facts["robot_contact"], bool)[:, foreign].any(axis=1)
    return (arm | other)[1:]


def _belong(name: str, other: str) -> bool:
    """Whether one is the other, or a region of it (``plate_1`` and ``plate_1_top``)."""
    return name == other or name.startswith(f"{other}_") or other.startswith(f"{name}_")


def count_run(run: Path) -> dict[str, tuple[State, Counts]]:
    """Every finished episode of a run folder, by its id."""
    store, counts = RolloutStore(run), {}
    for info in store.infos():
        if info.status != "crashed":
            facts = load_trajectory(store.episodes_dir / f"{info.episode_id}.npz", images=False).facts
            counts[info.episode_id] = (state_of(info), count_episode(info, facts))
    return counts


def state_of(info: EpisodeInfo) -> State:
    """The initial state of an episode."""
    return info.suite, info.task_id, info.init_state_id, info.init_state_hash


def mean_by_state(episodes: Iterable[tuple[State, Counts]]) -> dict[State, dict[str, float]]:
    """Each state's mean of each measure over the episodes that are given for it."""
    of_state: dict[State, list[dict[str, float]]] = {}
    for state, counts in episodes:
        of_state.setdefault(state, []).append(asdict(counts))
    return {
        state: {name: float(np.mean([one[name] for one in group])) for name in MEASURES}
        for state, group in of_state.items()
    }


def compare_states(before: Mapping[State, float], after: Mapping[State, float], seed: int = 0) -> dict[str, Any]:
    """Paired difference of one measure over the states that both have.

    Returns:
        Means, ``difference`` (after minus before) with its 95 % percentile interval from a bootstrap over states, and
        on how many states it is lower and higher.

    Raises:
        RecordError: There is no common state.
    """
    states = [state for state in before if state in after]
    if not states:
        raise RecordError("no initial state is in both; compare what was collected from the same states")
    first, second = (np.array([values[state] for state in states]) for values in (before, after))
    low, high = bootstrap_interval(second - first, seed)
    return {
        "num_states": len(states),
        "before": float(first.mean()),
        "after": float(second.mean()),
        "difference": float((second - first).mean()),
        "low": low,
        "high": high,
        # means of the same numbers in another order differ in their last bits
        "num_lower": int((second < first - 1e-9).sum()),
        "num_higher": int((second > first + 1e-9).sum()),
    }


def bootstrap_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of (N,) values, resampled with a fixed seed."""
    array = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(len(array), size=(NUM_RESAMPLES, len(array)))
    low, high = np.percentile(array[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
