"""How well a number tells successes from failures, with intervals: pure statistics, for ``grape constraints check``.

Episodes from one initial state are alike, so intervals are percentile intervals of a bootstrap over initial states:
as many states as there are, drawn with replacement, each with all of its episodes. The seed is fixed by the caller.
A perfect separation stays perfect in every resample, so [1, 1] says that no inversion was seen, not that none exists.

Axis legend: N episodes of one task, S initial states, B resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic and its interval; ``None`` where it is not defined."""

    value: float | None
    low: float | None
    high: float | None
    draws: np.ndarray
    """(B,) its value in each resample; nan where that resample does not define it."""

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two statistics of the same resamples, which keeps what they have in common."""
        if self.value is None or other.value is None:
            return _estimate(None, np.full_like(self.draws, np.nan))
        return _estimate(self.value - other.value, self.draws - other.draws)

    def as_dict(self) -> dict[str, float | None]:
        """For JSON: ``value``, ``low``, ``high``."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True)
class StateResamples:
    """Which initial state each episode is from, and how often each state was drawn."""

    state: np.ndarray
    """(N,) number of the initial state, from 0."""
    counts: np.ndarray
    """(B, S)."""


def resample_states(groups: Sequence[Hashable], *, num_resamples: int, seed: int) -> StateResamples:
    """Draw initial states with replacement.

    Args:
        groups: (N,) initial state of each episode.
        num_resamples: B.
        seed: Equal seeds and groups give equal resamples.
    """
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    num_states = len(number)
    random = np.random.default_rng(seed)
    chances = np.full(num_states, 1 / num_states)
    counts = random.multinomial(num_states, chances, size=num_resamples).astype(np.float64)
    return StateResamples(state=np.array([number[group] for group in groups]), counts=counts)


def clustered_auc(values: np.ndarray, success: np.ndarray, resamples: StateResamples) -> Estimate:
    """Probability that a random success has a higher value than a random failure; ties count half.

    Args:
        values: (N,) higher is better.
        success: (N,) bool.
        resamples: Of the same N episodes.

    Returns:
        Undefined where there is only one class; no interval where there is only one initial state.
    """
    opposite = (success[:, None] & ~success[None, :]).astype(np.float64)
    wins = opposite * (np.sign(values[:, None] - values[None, :]) + 1) / 2
    return _ratio(wins, [opposite], resamples)


def clustered_tau(first: np.ndarray, second: np.ndarray, resamples: StateResamples, among: np.ndarray) -> Estimate:
    """Kendall's τ_b over all pairs of the episodes ``among`` (N,) bool, of (N,) ``first`` with (N,) ``second``.

    Returns:
        From -1 to 1; undefined where one side is tied in every pair.
    """
    pairs = (among[:, None] & among[None, :]).astype(np.float64)
    a = pairs * np.sign(first[:, None] - first[None, :])
    b = pairs * np.sign(second[:, None] - second[None, :])
    return _ratio(a * b, [np.abs(a), np.abs(b)], resamples)


def _ratio(numerator: np.ndarray, denominators: list[np.ndarray], resamples: StateResamples) -> Estimate:
    """Sum over pairs of ``numerator`` by the geometric mean of the sums of ``denominators``, each (N, N)."""
    num_states = resamples.counts.shape[1]
    member = np.eye(num_states)[resamples.state]  # (N, S)
    counts = np.concatenate([np.ones((1, num_states)), resamples.counts])  # the data themselves come first

    def total(pairs: np.ndarray) -> np.ndarray:
        of_states = member.T @ pairs @ member
        return np.asarray(((counts @ of_states) * counts).sum(axis=1))

    below = np.prod([total(pairs) for pairs in denominators], axis=0) ** (1 / len(denominators))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(below > 0, total(numerator) / below, np.nan)
    return _estimate(
        None if np.isnan(ratio[0]) else float(ratio[0]), ratio[1:] if num_states > 1 else ratio[1:] * np.nan
    )


def _estimate(value: float | None, draws: np.ndarray) -> Estimate:
    known = draws[np.isfinite(draws)]
    if value is None or not len(known):
        return Estimate(value=value, low=None, high=None, draws=draws)
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(value=value, low=float(low), high=float(high), draws=draws)
