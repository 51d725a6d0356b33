"""AUC and tau with intervals over initial states, against values by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from grape.rewards.quality import clustered_auc, clustered_tau, resample_states
from grape.rewards.ranking import auc


def test_auc_and_its_interval_by_hand() -> None:
    # state a: success 3, failure 1; state b: success 2, failure 4. Wins: 3>1, 2>1; losses: 3<4, 2<4. AUC = 2 / 4.
    values, success = np.array([3.0, 1.0, 2.0, 4.0]), np.array([True, False, True, False])
    resamples = resample_states("aabb", num_resamples=4000, seed=0)
    got = clustered_auc(values, success, resamples)
    assert got.value == 0.5
    # a alone gives 1, b alone 0, both 1/2, with probabilities 1/4, 1/4, 1/2: so the 95 % interval is all of [0, 1]
    assert set(got.draws.tolist()) == {0.0, 0.5, 1.0} and (got.low, got.high) == (0.0, 1.0)
    # 4000 draws: the standard error of a share of 1/2 is 0.008, five of them are allowed
    assert np.mean(got.draws == 0.5) == pytest.approx(0.5, abs=0.04)


def test_what_states_have_in_common_widens_the_interval() -> None:
    random = np.random.default_rng(0)
    state = np.arange(240) // 20  # twenty episodes of a state are all but one and the same
    values = random.normal(size=12)[state] + 0.01 * random.normal(size=240)
    success = np.where(state % 2, np.arange(240) % 2 == 0, True)
    clustered, alone = (
        clustered_auc(values, success, resample_states(groups, num_resamples=2000, seed=1))
        for groups in (state.tolist(), range(240))
    )
    assert clustered.value == alone.value == auc(values, success)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


def test_interval_agrees_with_resampling_episode_by_episode() -> None:
    random = np.random.default_rng(2)
    groups = random.integers(0, 8, 60)
    success = random.random(60) < 0.4
    values = random.integers(0, 6, 60) + 1.0 * success
    resamples = resample_states(groups.tolist(), num_resamples=50, seed=3)
    got = clustered_auc(values, success, resamples)
    for counts, draw in zip(resamples.counts, got.draws, strict=True):
        chosen = np.repeat(np.arange(60), counts[resamples.state].astype(int))
        assert draw == pytest.approx(auc(values[chosen], success[chosen]))


def test_tau_agrees_with_scipy_among_the_chosen() -> None:
    random = np.random.default_rng(4)
    first, second = random.integers(0, 5, 40).astype(float), random.integers(0, 4, 40).astype(float)
    among = random.random(40) < 0.6
    got = clustered_tau(first, second, resample_states(range(40), num_resamples=200, seed=0), among)
    assert got.value == pytest.approx(stats.kendalltau(first[among], second[among]).statistic)
    assert got.low < got.value < got.high


def test_a_difference_keeps_what_both_sides_share() -> None:
    random = np.random.default_rng(5)
    success = np.tile([True, False], 40)
    values = random.normal(size=80) + success
    resamples = resample_states(np.arange(80) // 4, num_resamples=500, seed=0)
    one = clustered_auc(values, success, resamples)
    same = one.minus(clustered_auc(values * 2, success, resamples))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    reverse = one.minus(clustered_auc(-values, success, resamples))
    assert reverse.value == pytest.approx(2 * one.value - 1)
    assert reverse.low == pytest.approx(2 * one.low - 1)


def test_what_is_not_defined_is_none() -> None:
    values = np.arange(4.0)
    resamples = resample_states("abcd", num_resamples=100, seed=0)
    only_successes = clustered_auc(values, np.ones(4, bool), resamples)
    assert only_successes.as_dict() == {"value": None, "low": None, "high": None}
    assert only_successes.minus(only_successes).value is None
    assert clustered_tau(values, np.ones(4), resamples, np.ones(4, bool)).value is None
    one_state = clustered_auc(values, values > 1, resample_states("aaaa", num_resamples=100, seed=0))
    assert one_state.as_dict() == {"value": 1.0, "low": None, "high": None}


def test_resamples_are_a_function_of_the_seed() -> None:
    first, again, other = (resample_states("abcab", num_resamples=20, seed=seed) for seed in (0, 0, 1))
    assert (first.counts == again.counts).all() and (first.counts != other.counts).any()
    assert (first.counts.sum(axis=1) == 3).all() and first.state.tolist() == [0, 1, 2, 0, 1]
