"""Pairing rules, on headers alone."""

from __future__ import annotations

import dataclasses
import math

import pytest

from grape.config.pair import PairingSettings
from grape.errors import ConfigError, PairingError
from grape.preferences import ScoredEpisode, pair_episodes
from grape.trajectory import EpisodeInfo


def episode(
    score: float | None,
    status: str = "success",
    *,
    state: int = 0,
    rollout: int = 0,
    task_id: int = 3,
    **changes: object,
) -> ScoredEpisode:
    info = EpisodeInfo(
        simulator="libero",
        simulator_settings={"mujoco": "3.3.2", "render_profile": "fast"},
        suite="libero_object",
        task_id=task_id,
        task_name="pick",
        instruction="pick the milk",
        init_state_id=f"rollout/{state}",
        init_state_hash=f"hash of {task_id} {state}",
        rollout_index=rollout,
        policy="nano",
        checkpoint_hash="abc",
        policy_settings={"temperature": 1.0, "unnorm_key": "libero_object"},
        status=status,  # type: ignore[arg-type]
        num_steps=5,
    )
    return ScoredEpisode(info=dataclasses.replace(info, **changes), score=score)  # type: ignore[arg-type]


def group(*rollouts: tuple[float | None, str], **changes: object) -> list[ScoredEpisode]:
    return [episode(score, status, rollout=index, **changes) for index, (score, status) in enumerate(rollouts)]  # type: ignore[arg-type]


def rollouts_of(report: object) -> list[tuple[int, int]]:
    return [(pair.chosen.info.rollout_index, pair.rejected.info.rollout_index) for pair in report.pairs]  # type: ignore[attr-defined]


def reasons(report: object) -> dict[int, str]:
    return {item.episode.info.rollout_index: item.reason for item in report.leftovers}  # type: ignore[attr-defined]


FIVE = group((2.0, "success"), (5.0, "success"), (1.0, "failure"), (-1.0, "failure"), (3.0, "success"))


def test_best_against_worst_takes_one_pair_and_accounts_for_the_rest() -> None:
    report = pair_episodes(FIVE, PairingSettings())
    assert rollouts_of(report) == [(1, 3)]
    assert report.pairs[0].margin == 6.0
    assert set(reasons(report)) == {0, 2, 4}
    assert all(
        reason.startswith("other rollouts of its initial state were paired") for reason in reasons(report).values()
    )


def test_top_m_meets_each_of_bottom_m_and_a_limit_keeps_the_largest_margins() -> None:
    settings = PairingSettings(strategy="top_m_vs_bottom_m", m=2)
    assert rollouts_of(pair_episodes(FIVE, settings)) == [(1, 3), (1, 2), (4, 3), (4, 2)]
    limited = dataclasses.replace(settings, max_pairs_per_state=2)
    assert rollouts_of(pair_episodes(FIVE, limited)) == [(1, 3), (1, 2)]


def test_top_and_bottom_never_overlap() -> None:
    settings = PairingSettings(strategy="top_m_vs_bottom_m", m=9)
    pairs = rollouts_of(pair_episodes(FIVE, settings))
    assert {chosen for chosen, _ in pairs}.isdisjoint({rejected for _, rejected in pairs})


def test_each_success_meets_each_failure() -> None:
    pairs = rollouts_of(pair_episodes(FIVE, PairingSettings(strategy="success_vs_failure")))
    assert sorted(pairs) == [(0, 2), (0, 3), (1, 2), (1, 3), (4, 2), (4, 3)]


def test_tasks_and_states_never_meet_and_order_is_kept() -> None:
    scored = [
        *group((1.0, "failure"), (2.0, "success"), state=7),
        *group((1.0, "failure"), (2.0, "success"), state=2),
        *group((1.0, "failure"), (2.0, "success"), state=7, task_id=1),
    ]
    report = pair_episodes(scored, PairingSettings())
    assert [(pair.chosen.info.task_id, pair.chosen.info.init_state_id) for pair in report.pairs] == [
        (3, "rollout/7"),
        (3, "rollout/2"),
        (1, "rollout/7"),
    ]
    assert all(pair.chosen.info.init_state_hash == pair.rejected.info.init_state_hash for pair in report.pairs)
    assert len({pair.pair_id for pair in report.pairs}) == 3
    assert [pair.pair_id[:6] for pair in report.pairs] == ["000000", "000001", "000002"]


def test_equal_names_with_different_bits_are_not_the_same_state() -> None:
    scored = [episode(2.0, rollout=0), episode(1.0, "failure", rollout=1, init_state_hash="another")]
    report = pair_episodes(scored, PairingSettings())
    assert not report.pairs
    assert all("not bit-identical" in reason for reason in reasons(report).values())


def test_crashed_unscored_and_non_finite_episodes_are_left_over_with_their_reason() -> None:
    scored = group((9.0, "crashed"), (None, "success"), (math.nan, "success"), (2.0, "success"), (1.0, "failure"))
    report = pair_episodes(scored, PairingSettings())
    assert rollouts_of(report) == [(3, 4)]
    assert reasons(report) == {0: "crashed", 1: "not scored", 2: "score is not finite"}


def test_a_failure_is_chosen_only_where_asked_and_never_over_a_success_unless_asked() -> None:
    failures = group((2.0, "failure"), (1.0, "failure"))
    report = pair_episodes(failures, PairingSettings())
    assert not report.pairs and set(reasons(report).values()) == {"no rollout of its initial state succeeded"}
    assert rollouts_of(pair_episodes(failures, PairingSettings(require_chosen_success=False))) == [(0, 1)]

    contradicting = group((2.0, "failure"), (1.0, "success"))
    for settings in (PairingSettings(), PairingSettings(require_chosen_success=False)):
        report = pair_episodes(contradicting, settings)
        assert not report.pairs and all("ranks the success below" in reason for reason in reasons(report).values())
    asked = PairingSettings(require_chosen_success=False, prefer_failure_over_success=True)
    assert rollouts_of(pair_episodes(contradicting, asked)) == [(0, 1)]
    with pytest.raises(ConfigError, match="require_chosen_success False"):
        PairingSettings(prefer_failure_over_success=True)


def test_ties_and_small_margins_are_left_over() -> None:
    tie = pair_episodes(group((1.0, "success"), (1.0, "failure")), PairingSettings())
    assert not tie.pairs and all("tie" in reason for reason in reasons(tie).values())
    close = group((1.5, "success"), (1.0, "failure"))
    assert not pair_episodes(close, PairingSettings(min_margin=0.6)).pairs
    assert len(pair_episodes(close, PairingSettings(min_margin=0.5)).pairs) == 1


def test_all_successes_give_no_success_failure_pair_but_a_lone_rollout_is_named_as_such() -> None:
    settings = PairingSettings(strategy="success_vs_failure")
    report = pair_episodes(group((1.0, "success"), (2.0, "success")), settings)
    assert set(reasons(report).values()) == {"no rollout of its initial state failed"}
    assert reasons(pair_episodes([episode(1.0)], settings)) == {0: "only usable rollout of its initial state"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"checkpoint_hash": "def", "policy": "other"}, ("'abc'", "'def'", "policy nano", "policy other")),
        ({"policy_settings": {"temperature": 0.5, "unnorm_key": "libero_object"}}, ("temperature", "1.0", "0.5")),
        ({"policy_settings": {"temperature": 1.0, "unnorm_key": "else"}}, ("unnorm_key", "libero_object", "else")),
        ({"simulator_settings": {"mujoco": "3.5.0", "render_profile": "fast"}}, ("mujoco", "3.3.2", "3.5.0")),
        ({"instruction": "another"}, ("instruction", "pick the milk", "another")),
    ],
)
def test_mixing_is_refused_with_both_named(changes: dict[str, object], named: tuple[str, ...]) -> None:
    scored = [episode(2.0, rollout=0), episode(1.0, "failure", rollout=1, **changes)]
    with pytest.raises(PairingError) as caught:
        pair_episodes(scored, PairingSettings())
    assert all(part in str(caught.value) for part in (*named, "--r000", "--r001"))


def test_policies_and_temperatures_do_not_mix_across_states_either_but_unnorm_keys_may_across_tasks() -> None:
    first = group((2.0, "success"), (1.0, "failure"))
    cold = {"temperature": 0.5, "unnorm_key": "libero_object"}
    with pytest.raises(PairingError, match="temperature"):
        pair_episodes(
            [*first, *group((2.0, "success"), (1.0, "failure"), state=1, policy_settings=cold)], PairingSettings()
        )
    other_key = {"temperature": 1.0, "unnorm_key": "libero_goal"}
    other_task = group((2.0, "success"), (1.0, "failure"), task_id=4, policy_settings=other_key)
    assert len(pair_episodes([*first, *other_task], PairingSettings()).pairs) == 2


def test_episodes_from_before_a_setting_existed_were_made_with_its_default() -> None:
    named = {"temperature": 1.0, "unnorm_key": "libero_object", "prompt_style": "template", "image_resize": "lanczos"}
    earlier = group((2.0, "success"), (1.0, "failure"))
    today = group((2.0, "success"), (1.0, "failure"), state=1, policy_settings=named)
    assert len(pair_episodes([*earlier, *today], PairingSettings()).pairs) == 2


def test_every_episode_is_in_a_pair_or_left_over_exactly_once() -> None:
    scored = [
        *FIVE,
        *group((1.0, "success"), (None, "failure"), state=1),
        *group((1.0, "success"), (1.0, "success"), (3.0, "crashed"), state=2),
    ]
    for strategy in ("best_vs_worst", "top_m_vs_bottom_m", "success_vs_failure"):
        report = pair_episodes(scored, PairingSettings(strategy=strategy))  # type: ignore[arg-type]
        paired = {id(member) for pair in report.pairs for member in (pair.chosen, pair.rejected)}
        left = [id(item.episode) for item in report.leftovers]
        assert len(left) == len(set(left)) and paired.isdisjoint(left)
        assert paired | set(left) == {id(member) for member in scored}


def test_the_report_counts_what_happened() -> None:
    report = pair_episodes([*FIVE, *group((1.0, "crashed"), (1.0, "crashed"), state=1)], PairingSettings())
    text = report.text()
    assert "1 pairs from 7 episodes of 2 initial states" in text
    assert "libero_object task 3: 1 pairs" in text
    assert "5 episodes left over" in text and "2: crashed" in text
    assert report.to_json()["pairs"][0]["margin"] == 6.0
    assert len(report.to_json()["leftovers"]) == 5


def test_nothing_to_pair_is_an_error_that_names_the_next_step() -> None:
    with pytest.raises(PairingError, match="grape collect"):
        pair_episodes([], PairingSettings())


def staged(status: str, first_steps: list[int | None], *, num_steps: int, rollout: int) -> ScoredEpisode:
    one = episode(1.0 if status == "success" else 0.0, status, rollout=rollout, num_steps=num_steps)
    names = ("grasp", "carry", "place")
    reached = {index for index, step in enumerate(first_steps) if step is not None}
    stages = [  # a stage before one that was reached was reached, too, if only in passing
        {"name": name, "first_step": step, "reached": index <= max(reached)}
        for index, (name, step) in enumerate(zip(names, first_steps, strict=True))
    ]
    return dataclasses.replace(one, terms={"stages": stages})


@pytest.mark.parametrize(
    ("rejected", "wanted"),
    [
        ([0, None, None], 30),  # it never grasped; chosen did after 30 steps
        ([0, 22, None], 60),  # it dropped what it carried
        ([0, None, 41], 70),  # it passed the second stage between two rows of facts
        ([0, 22, 41], 70),  # it got to the last stage, so only chosen's end tells them apart
    ],
)
def test_a_cut_pair_ends_soon_after_chosen_is_where_rejected_never_gets(rejected, wanted) -> None:
    pair = [
        staged("success", [0, 30, 60], num_steps=70, rollout=0),
        staged("failure", rejected, num_steps=150, rollout=1),
    ]
    [cut] = pair_episodes(pair, PairingSettings(cut_at_parting=True, steps_after_parting=4)).pairs
    assert cut.num_steps == wanted + 4
    [whole] = pair_episodes(pair, PairingSettings()).pairs
    assert whole.num_steps is None


def test_scores_that_do_not_say_when_stages_began_cannot_cut() -> None:
    with pytest.raises(PairingError, match="grape score"):
        pair_episodes(FIVE, PairingSettings(cut_at_parting=True))


def test_a_cut_cannot_come_before_the_parting() -> None:
    with pytest.raises(ConfigError, match="steps_after_parting is -1"):
        PairingSettings(cut_at_parting=True, steps_after_parting=-1)
