"""Success rates with intervals, and the paired comparison of two policies.

Pure statistics on recorded outcomes. The initial state is the unit: where a state was rolled out
several times, its outcomes are averaged first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any

from grape.errors import ConfigError, RecordError
from grape.trajectory import EpisodeInfo

Z_95 = NormalDist().inv_cdf(0.975)
StateKey = tuple[Any, ...]
"""Task id and initial-state id; before them the suite where several are compared together."""


@dataclass(frozen=True, kw_only=True)
class StateOutcome:
    """All episodes from one initial state of one task."""

    task_id: int
    init_state_id: str
    init_state_hash: str
    """Equal hashes mean the same simulator state bit for bit; "" where every episode crashed before its first step."""
    outcomes: tuple[bool | None, ...]
    """One entry per rollout, in order; ``None`` is a crash of the simulator, which is neither success nor failure."""

    @property
    def key(self) -> StateKey:
        return self.task_id, self.init_state_id

    @property
    def rate(self) -> float | None:
        """Mean over the episodes that did not crash; ``None`` if there is none."""
        known = [outcome for outcome in self.outcomes if outcome is not None]
        return sum(known) / len(known) if known else None

    @property
    def num_crashed(self) -> int:
        return sum(outcome is None for outcome in self.outcomes)


@dataclass(frozen=True, kw_only=True)
class SuccessRate:
    """Success over initial states, with a Wilson 95 % interval."""

    successes: float
    """Sum of the states' success rates: a whole number when each state was rolled out once."""
    trials: int
    """Number of initial states with at least one episode that did not crash."""
    rate: float | None
    low: float
    high: float
    num_crashed: int
    """Crashed episodes; they count neither as success nor as failure."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Success of the second policy minus that of the first, over the same initial states."""

    num_states: int
    rate_before: float
    rate_after: float
    difference: float
    low: float
    high: float
    num_better: int
    """States on which the second policy has the higher success rate."""
    num_worse: int
    p_value: float
    """Two-sided, McNemar's exact test."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired comparison, the pairs that it had to leave out, and what those could change."""

    observed: PairedDifference | None
    """``None`` when every pair was dropped."""
    dropped: tuple[StateKey, ...]
    """States whose simulator crashed in one arm or in both."""
    worst_case: PairedDifference
    """The dropped pairs put back, each unknown outcome decided against the second policy."""


def wilson_interval(successes: float, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927) for a proportion.

    Args:
        successes: Between 0 and ``trials``. May be fractional, as a sum of per-state rates: the
            variance of values in [0, 1] with mean p is at most p(1 − p), so the interval is then conservative.
        trials: Number of independent units; 0 gives the whole of [0, 1].
        z: Normal quantile, default for 95 %.

    Raises:
        ValueError: ``successes`` is not between 0 and ``trials``.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and trials = {trials}, got {successes}")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    denominator = 1 + z**2 / trials
    center = (rate + z**2 / (2 * trials)) / denominator
    half_width = z * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / denominator
    low = 0.0 if successes == 0 else max(0.0, center - half_width)
    high = 1.0 if successes == trials else min(1.0, center + half_width)
    return low, high


def mcnemar_exact(num_better: int, num_worse: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947; binomial form).

    Under the null hypothesis each state on which the two policies differ falls on either side with
    probability 1/2. On per-state rates instead of single outcomes this is the exact sign test.
    """
    if num_better < 0 or num_worse < 0:
        raise ValueError(f"counts must not be negative, got {num_better} and {num_worse}")
    discordant = num_better + num_worse
    tail = sum(math.comb(discordant, k) for k in range(min(num_better, num_worse) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**discordant)))


def paired_difference_interval(differences: Sequence[float], z: float = Z_95) -> tuple[float, float]:
    """Adjusted Wald interval for a mean paired difference (Bonett & Price 2012, doi 10.3102/1076998611411915).

    One pseudo-state is added on either side (+1 and −1), which keeps the interval honest for few or
    no discordant states. For differences in {−1, 0, 1} it is the published interval; differences of
    per-state rates use the same formula.
    """
    if not all(-1 <= difference <= 1 for difference in differences):
        raise ValueError("differences of success rates must lie in [-1, 1]")
    count = len(differences) + 2
    mean = math.fsum(differences) / count
    variance = (math.fsum(difference**2 for difference in differences) + 2) / count - mean**2
    half_width = z * math.sqrt(variance / count)
    return max(-1.0, mean - half_width), min(1.0, mean + half_width)


def success_rate(states: Iterable[StateOutcome]) -> SuccessRate:
    """Average within states, then over states; crashed episodes are left out and counted."""
    states = list(states)
    rates = [state.rate for state in states if state.rate is not None]
    successes = math.fsum(rates)
    low, high = wilson_interval(successes, len(rates))
    return SuccessRate(
        successes=successes,
        trials=len(rates),
        rate=successes / len(rates) if rates else None,
        low=low,
        high=high,
        num_crashed=sum(state.num_crashed for state in states),
    )


def paired_difference(before: Sequence[float], after: Sequence[float]) -> PairedDifference:
    """Compare per-state success rates, paired by position."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if not differences:
        raise ValueError("a paired difference needs at least one state")
    num_better = sum(difference > 0 for difference in differences)
    num_worse = sum(difference < 0 for difference in differences)
    low, high = paired_difference_interval(differences)
    return PairedDifference(
        num_states=len(differences),
        rate_before=math.fsum(before) / len(before),
        rate_after=math.fsum(after) / len(after),
        difference=math.fsum(differences) / len(differences),
        low=low,
        high=high,
        num_better=num_better,
        num_worse=num_worse,
        p_value=mcnemar_exact(num_better, num_worse),
    )


def compare_states(before: Iterable[StateOutcome], after: Iterable[StateOutcome]) -> Comparison:
    """Pair two evaluations state by state.

    Raises:
        ConfigError: The two were not run on the same initial states; both sides are named.
    """
    return _compare({state.key: state for state in before}, {state.key: state for state in after})


def compare_suites(
    before: Mapping[str, Iterable[StateOutcome]], after: Mapping[str, Iterable[StateOutcome]]
) -> Comparison:
    """As ``compare_states``, over all states of several suites together."""
    first, second = (
        {(suite, *state.key): state for suite, states in arm.items() for state in states} for arm in (before, after)
    )
    return _compare(first, second)


def _compare(first: Mapping[StateKey, StateOutcome], second: Mapping[StateKey, StateOutcome]) -> Comparison:
    _require_same_states(first, second)
    rates = [(first[key].rate, second[key].rate) for key in first]
    dropped = tuple(key for key, (a, b) in zip(first, rates, strict=True) if a is None or b is None)
    known = [(a, b) for a, b in rates if a is not None and b is not None]
    return Comparison(
        observed=paired_difference([a for a, _ in known], [b for _, b in known]) if known else None,
        dropped=dropped,
        worst_case=paired_difference(
            [1.0 if a is None else a for a, _ in rates], [0.0 if b is None else b for _, b in rates]
        ),
    )


def _require_same_states(first: Mapping[StateKey, StateOutcome], second: Mapping[StateKey, StateOutcome]) -> None:
    if not first or not second:
        raise ConfigError(f"nothing to compare: {len(first)} states before, {len(second)} after")
    only_first, only_second = sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())
    if only_first or only_second:
        raise ConfigError(
            "the two evaluations ran on different initial states: "
            f"only before: {_name_states(only_first)}; only after: {_name_states(only_second)}; "
            "evaluate both on the same tasks, split and number of states"
        )
    for key, state in first.items():
        hashes = state.init_state_hash, second[key].init_state_hash
        if all(hashes) and hashes[0] != hashes[1]:
            raise ConfigError(
                f"{name_state(key)}: the simulator's initial states differ "
                f"({hashes[0][:12]} before, {hashes[1][:12]} after); evaluate both with the same simulator and settings"
            )


def name_state(key: StateKey) -> str:
    """``[suite] task 0 official/3``."""
    return " ".join(map(str, (*key[:-2], "task", *key[-2:])))


def _name_states(keys: Sequence[StateKey]) -> str:
    return (", ".join(map(name_state, keys[:3])) or "(none)") + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


SUCCESS_RULES: dict[str, Callable[[EpisodeInfo], bool]] = {
    "last_step": lambda episode: episode.status == "success",
    "once": lambda episode: (episode.longest_success_run or 0) >= 1,
    "three_in_a_row": lambda episode: (episode.longest_success_run or 0) >= 3,
}
"""What may be called success of an episode that ran to its step limit: the goal is reached at the last step (SIMPLER's
figure), at any step, or at three steps in a row (where GRAPE's evaluator stops)."""


def success_by_rule(episodes: Sequence[EpisodeInfo]) -> dict[str, SuccessRate] | None:
    """Success of the same episodes by each rule; ``None`` where they ended with the first success, as in LIBERO."""
    if any(episode.longest_success_run is None for episode in episodes):
        return None
    return {name: success_rate(states_from_episodes(episodes, rule)) for name, rule in SUCCESS_RULES.items()}


def states_from_episodes(
    episodes: Iterable[EpisodeInfo], is_success: Callable[[EpisodeInfo], bool] = SUCCESS_RULES["last_step"]
) -> list[StateOutcome]:
    """Group episodes of one policy by task and initial state, in order of task, split and index."""
    groups: dict[StateKey, list[EpisodeInfo]] = defaultdict(list)
    for episode in episodes:
        groups[episode.task_id, episode.init_state_id].append(episode)
    states = []
    for task_id, state_id in sorted(groups, key=_state_order):
        group = sorted(groups[task_id, state_id], key=lambda episode: episode.rollout_index)
        states.append(
            StateOutcome(
                task_id=task_id,
                init_state_id=state_id,
                init_state_hash=next((episode.init_state_hash for episode in group if episode.init_state_hash), ""),
                outcomes=tuple(None if episode.status == "crashed" else is_success(episode) for episode in group),
            )
        )
    return states


def _state_order(key: StateKey) -> tuple[int, str, int]:
    split, _, index = key[1].rpartition("/")
    return key[0], split, int(index)


def states_to_json(states: Iterable[StateOutcome]) -> list[dict[str, Any]]:
    """States of one task, as they stand in an evaluation's JSON."""
    return [
        {"id": state.init_state_id, "hash": state.init_state_hash, "outcomes": list(state.outcomes)} for state in states
    ]


def states_from_json(task_id: int, entries: Iterable[Mapping[str, Any]]) -> list[StateOutcome]:
    """Inverse of ``states_to_json``.

    Raises:
        RecordError: An entry is no state, a state is there twice, or an outcome is not true, false or null.
    """
    states: dict[str, StateOutcome] = {}
    for entry in entries:
        try:
            name, digest, outcomes = str(entry["id"]), str(entry["hash"]), list(entry["outcomes"])
        except (KeyError, TypeError) as error:
            raise RecordError(f"task {task_id}: {entry!r} is no state with id, hash and outcomes") from error
        wrong = [outcome for outcome in outcomes if outcome is not None and not isinstance(outcome, bool)]
        if wrong or not outcomes:
            raise RecordError(f"task {task_id}, state {name}: outcomes are {outcomes}, wanted true, false or null")
        if name in states:
            raise RecordError(f"task {task_id} has the state {name} twice")
        states[name] = StateOutcome(
            task_id=task_id, init_state_id=name, init_state_hash=digest, outcomes=tuple(outcomes)
        )
    return list(states.values())
