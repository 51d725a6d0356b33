"""The words about a result say what the numbers allow, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grape.demo.result import (
    compare_arms,
    comparison_in_words,
    fewest_changes,
    first_changed_state,
    rate_in_words,
    summary_lines,
)
from grape.errors import ConfigError
from grape.evaluation import StateOutcome


def states(outcomes: str, task_id: int = 0) -> list[StateOutcome]:
    """``"+-!"``: a success, a failure, a crash."""
    known = {"+": True, "-": False, "!": None}
    return [
        StateOutcome(task_id=task_id, init_state_id=f"heldout/{index}", init_state_hash="", outcomes=(known[mark],))
        for index, mark in enumerate(outcomes)
    ]


def test_suites_are_compared_together_although_they_number_tasks_alike() -> None:
    before = {"libero_object": states("---"), "libero_spatial": states("-+-")}
    after = {"libero_object": states("+++"), "libero_spatial": states("++-")}
    test = compare_arms(before, after)
    assert test["dropped"] == []
    assert (test["observed"]["num_better"], test["observed"]["num_worse"]) == (4, 0)
    assert test["observed"]["p_value"] == pytest.approx(2 / 2**4)  # McNemar's exact test by hand: 2·(1/2)⁴
    assert test["observed"]["difference"] == pytest.approx(4 / 6)


def test_a_crash_drops_its_pair_and_the_worst_case_counts_it_against_the_change() -> None:
    test = compare_arms({"suite": states("-+!")}, {"suite": states("++-")})
    assert test["dropped"] == ["suite task 0 heldout/2"]
    assert test["observed"]["num_states"] == 2
    assert (test["worst_case"]["num_better"], test["worst_case"]["num_worse"]) == (1, 1)
    assert "worst case it is +0.0 points" in comparison_in_words(test, 0.05)


def test_other_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="different initial states"):
        compare_arms({"suite": states("--")}, {"suite": states("---")})


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("------", "++++++", "significant improvement: +100.0 points"),
        ("-----", "+++++", "no significant change: +100.0 points"),  # p = 0.0625
        ("++++++", "------", "significant loss: -100.0 points"),
        ("+-", "+-", "no significant change: +0.0 points"),
    ],
)
def test_verdicts(before: str, after: str, words: str) -> None:
    test = compare_arms({"suite": states(before)}, {"suite": states(after)})
    assert comparison_in_words(test, 0.05).startswith(words)


def test_a_repeated_look_is_told_from_a_first_one(repository: Path) -> None:
    result = json.loads((repository / "experiments" / "demo" / "result.json").read_text())
    first, second = (summary_lines({**result, "look": look}) for look in (1, 2))
    assert [line for line in second if line not in first] == [
        "These test states have been looked at before: this is look 2, not a first one."
    ]


def test_nothing_is_said_about_crashes_alone() -> None:
    test = compare_arms({"suite": states("!")}, {"suite": states("!")})
    assert "nothing can be said" in comparison_in_words(test, 0.05)


def test_fewest_changes() -> None:
    assert fewest_changes(0.05) == 6  # 2/2⁵ = 0.0625, 2/2⁶ = 0.031
    assert fewest_changes(0.01) == 8  # 2/2⁷ = 0.0156, 2/2⁸ = 0.0078


def test_rate_in_words() -> None:
    # Wilson's interval for 12 of 20, by hand: centre (0.6 + 1.92/20)/(1 + 3.84/20) = 0.584, half-width 0.197
    rate = {"successes": 12.0, "trials": 20, "rate": 0.6, "low": 0.387, "high": 0.781}
    assert rate_in_words(rate) == "12/20 (60 %, 95 % interval 39 to 78 %)"
    assert "no episode" in rate_in_words({"trials": 0})


def test_videos_show_a_changed_state_if_there_is_one() -> None:
    row: dict[str, Any] = {"suite": "s", "task_id": 2, "init_states": ["h/0", "h/1", "h/2"]}
    result = {"tasks": [row | {"before": [True, None, False], "after": [True, True, True]}]}
    assert first_changed_state(result) == ("s", 2, "h/2")
    result = {"tasks": [row | {"before": [None, None, None], "after": [True, True, True]}]}
    assert first_changed_state(result) is None
