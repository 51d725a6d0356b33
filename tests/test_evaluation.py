"""Statistics of evaluations against values derived by hand (the derivation stands beside each)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.errors import ConfigError
from grape.evaluation import (
    Z_95,
    StateOutcome,
    compare_states,
    mcnemar_exact,
    paired_difference,
    paired_difference_interval,
    states_from_episodes,
    states_from_json,
    states_to_json,
    success_rate,
    wilson_interval,
)
from grape.trajectory import EpisodeInfo


def state(index: int, *outcomes: bool | None, task_id: int = 0, digest: str = "h") -> StateOutcome:
    return StateOutcome(task_id=task_id, init_state_id=f"official/{index}", init_state_hash=digest, outcomes=outcomes)


def test_wilson_two_of_four() -> None:
    # z = 2, p = 1/2, n = 4: centre (1/2 + 4/8) / (1 + 4/4) = 1/2;
    # half width 2 * sqrt(1/16 + 4/64) / 2 = sqrt(1/8).
    low, high = wilson_interval(2, 4, z=2)
    assert low == pytest.approx(0.5 - math.sqrt(1 / 8), abs=1e-15)
    assert high == pytest.approx(0.5 + math.sqrt(1 / 8), abs=1e-15)


def test_wilson_at_the_edges() -> None:
    # p = 0: centre and half width are both z²/(2n) / (1 + z²/n), so the interval is [0, z² / (n + z²)].
    # With z = 2, n = 4: [0, 1/2], and mirrored for p = 1.
    assert wilson_interval(0, 4, z=2) == pytest.approx((0.0, 0.5), abs=1e-15)
    assert wilson_interval(4, 4, z=2) == pytest.approx((0.5, 1.0), abs=1e-15)
    # 0 of 50 at 95 %: 3.841459 / 53.841459 = 0.0713475, the smallest rate that 50 failures do not exclude.
    assert wilson_interval(0, 50)[1] == pytest.approx(0.0713475, abs=1e-7)


def test_wilson_without_trials_knows_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 4), (5, 4), (1, 0)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="between 0 and trials"):
        wilson_interval(successes, trials)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(counts: tuple[int, int]) -> None:
    # Definition of the score interval: a bound b inside (0, 1) satisfies (p - b)² = z² b (1 - b) / n.
    successes, trials = counts
    for bound in wilson_interval(successes, trials):
        if 0 < bound < 1:
            gap = (successes / trials - bound) ** 2
            assert gap == pytest.approx(Z_95**2 * bound * (1 - bound) / trials, abs=1e-12)  # rounding of a few ulps


def test_mcnemar_by_hand() -> None:
    # 5 against 1: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64.
    assert mcnemar_exact(5, 1) == 14 / 64
    assert mcnemar_exact(1, 5) == 14 / 64
    # 8 against 0: 2 * 1 / 2^8. 12 against 3: 2 * (1 + 15 + 105 + 455) / 2^15.
    assert mcnemar_exact(8, 0) == 2 / 256
    assert mcnemar_exact(12, 3) == 1152 / 32768
    # An even split, or no difference at all, is no evidence; twice the tail would exceed 1.
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(0, 0) == 1.0


def test_mcnemar_is_exact_where_floats_underflow() -> None:
    assert mcnemar_exact(2000, 0) == 0.0  # 2^-1999 is below the smallest float, and must not become an error
    assert 0 < mcnemar_exact(1000, 0) < 1e-300


def test_paired_interval_by_hand() -> None:
    # 5 better, 1 worse, 2 equal; with one pseudo-state on either side n = 10, 6 better, 2 worse.
    # mean = 4/10, variance = 8/10 - 16/100 = 0.64, half width at z = 2: 2 * sqrt(0.64 / 10).
    differences = [1.0] * 5 + [-1.0] + [0.0] * 2
    half_width = 2 * math.sqrt(0.064)
    assert paired_difference_interval(differences, z=2) == pytest.approx((0.4 - half_width, 0.4 + half_width))


def test_paired_interval_has_a_width_without_discordant_states() -> None:
    # n = 2 + 2, mean 0, variance 2/4: half width z * sqrt(1/8) = 0.353 z, cut at ±1 for large z.
    assert paired_difference_interval([0.0, 0.0], z=2) == pytest.approx((-math.sqrt(0.5), math.sqrt(0.5)))
    assert paired_difference_interval([0.0, 0.0], z=4) == (-1.0, 1.0)


def test_paired_difference_of_single_outcomes() -> None:
    # before 1 0 0 1, after 1 1 1 0: two better, one worse, difference (2 - 1) / 4.
    result = paired_difference([1, 0, 0, 1], [1, 1, 1, 0])
    assert (result.num_better, result.num_worse, result.difference) == (2, 1, 0.25)
    assert (result.rate_before, result.rate_after) == (0.5, 0.75)
    assert result.p_value == 1.0  # 2 * (1 + 3) / 8
    assert result.low < 0.25 < result.high


def test_the_state_is_the_unit() -> None:
    # Rates 1/2 and 1 average to 3/4 over 2 trials. Pooling the 2 + 4 episodes would give 5/6 over 6.
    rate = success_rate([state(0, True, False), state(1, True, True, True, True)])
    assert (rate.successes, rate.trials, rate.rate) == (1.5, 2, 0.75)
    assert (rate.low, rate.high) == wilson_interval(1.5, 2)


def test_crashes_are_no_failures() -> None:
    rate = success_rate([state(0, True), state(1, None), state(2, True, None)])
    assert (rate.successes, rate.trials, rate.rate, rate.num_crashed) == (2, 2, 1.0, 2)
    nothing = success_rate([state(0, None)])
    assert (nothing.trials, nothing.rate, nothing.low, nothing.high) == (0, None, 0.0, 1.0)


def test_comparison_drops_crashed_pairs_and_states_the_worst_case() -> None:
    before = [state(0, False), state(1, False), state(2, False), state(3, None), state(4, True)]
    after = [state(0, True), state(1, True), state(2, None), state(3, True), state(4, None)]
    result = compare_states(before, after)
    assert result.dropped == ((0, "official/2"), (0, "official/3"), (0, "official/4"))
    assert result.observed is not None
    assert (result.observed.num_states, result.observed.difference) == (2, 1.0)
    # Against the second policy: 2 stays a failure (tie), 3 would have succeeded before (tie), 4 fails now (worse).
    assert (result.worst_case.num_better, result.worst_case.num_worse) == (2, 1)
    assert result.worst_case.num_states == 5
    assert result.worst_case.difference == pytest.approx(1 / 5)


def test_comparison_when_everything_crashed() -> None:
    result = compare_states([state(0, None)], [state(0, True)])
    assert result.observed is None
    assert result.worst_case.difference == 0.0


def test_comparison_refuses_other_states_and_names_both() -> None:
    with pytest.raises(ConfigError, match=r"only before: task 0 official/1; only after: task 3 official/1"):
        compare_states([state(0, True), state(1, True)], [state(0, True), state(1, True, task_id=3)])
    with pytest.raises(ConfigError, match="0 states before, 1 after"):
        compare_states([], [state(0, True)])


def test_comparison_refuses_states_that_differ_in_the_simulator() -> None:
    with pytest.raises(ConfigError, match=r"task 0 official/0.*aaa before, bbb after"):
        compare_states([state(0, True, digest="aaa")], [state(0, True, digest="bbb")])
    # A state whose simulator crashed before its first step has no hash, and nothing to contradict.
    compare_states([state(0, None, digest="")], [state(0, True, digest="bbb")])


def test_pairs_are_matched_by_state_not_by_position() -> None:
    result = compare_states([state(0, True), state(1, False)], [state(1, False), state(0, True)])
    assert result.observed is not None
    assert (result.observed.num_better, result.observed.num_worse) == (0, 0)


def episode(state_id: str, status: str, rollout: int = 0, task_id: int = 0) -> EpisodeInfo:
    return EpisodeInfo(
        simulator="libero", suite="libero_spatial", task_id=task_id, task_name="t", instruction="i",
        init_state_id=state_id, init_state_hash="" if status == "crashed" else state_id, rollout_index=rollout,
        policy="p", checkpoint_hash="c", status=status, num_steps=0,  # type: ignore[arg-type]
    )  # fmt: skip


def test_episodes_are_grouped_by_state_in_numeric_order() -> None:
    states = states_from_episodes(
        [
            episode("official/10", "success"),
            episode("official/9", "failure", rollout=1),
            episode("official/9", "crashed", rollout=0),
            episode("official/9", "success", task_id=1),
        ]
    )
    assert [(s.task_id, s.init_state_id, s.outcomes) for s in states] == [
        (0, "official/9", (None, False)),
        (0, "official/10", (True,)),
        (1, "official/9", (True,)),
    ]
    assert states[0].init_state_hash == "official/9"  # of the rollout that did not crash


def test_states_survive_json() -> None:
    states = [state(0, True, None), state(1, False)]
    assert states_from_json(0, states_to_json(states)) == states
