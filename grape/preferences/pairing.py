"""Pair scored episodes of the same task and the same initial state."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

from grape.config.pair import PairingSettings
from grape.errors import PairingError
from grape.preferences.consistency import check_same_policy, check_same_simulator
from grape.preferences.records import Leftover, PairingReport, PlannedPair, ScoredEpisode

_Match = tuple[ScoredEpisode, ScoredEpisode]


def pair_episodes(scored: Sequence[ScoredEpisode], settings: PairingSettings) -> PairingReport:
    """Choose pairs of episodes that start from bit-identical states.

    Args:
        scored: Episodes in their original order; pairs keep that order, by their initial state's first episode.
        settings: Strategy, margin and what may be chosen.

    Returns:
        Pairs, and each other episode with the reason why it is in none.

    Raises:
        PairingError: Nothing to pair, one file twice, or policies, checkpoints, temperatures or simulators mix.
    """
    if not scored:
        raise PairingError("there is no episode to pair; collect rollouts with: grape collect")
    _refuse_duplicates(scored)
    leftovers, usable = _sort_out(scored)
    check_same_policy(usable)
    groups = _group_by_state(usable)
    pairs: list[PlannedPair] = []
    for group in groups:
        check_same_simulator(group)
        matches, group_leftovers = _match_group(group, settings)
        leftovers += group_leftovers
        for chosen, rejected in matches:
            info = chosen.info
            name = f"{len(pairs):06d}--{info.suite}--{info.task_id:02d}--{info.init_state_id.replace('/', '-')}"
            cut = parting_step(chosen, rejected) + settings.steps_after_parting if settings.cut_at_parting else None
            pairs.append(PlannedPair(pair_id=name, chosen=chosen, rejected=rejected, num_steps=cut))
    num_states = len({_state_key(episode) for episode in scored})
    return PairingReport(
        pairs=tuple(pairs),
        leftovers=_explain_lone_states(leftovers, usable),
        settings=settings,
        num_episodes=len(scored),
        num_states=num_states,
    )


def parting_step(chosen: ScoredEpisode, rejected: ScoredEpisode) -> int:
    """Number of steps after which chosen is in a stage that rejected never gets to; all of chosen's if there is none.

    Raises:
        PairingError: The scores do not say when stages began.
    """
    reached_by_rejected = {stage["name"] for stage in _stages(rejected) if stage["reached"]}
    ahead = [stage["first_step"] for stage in _stages(chosen) if stage["name"] not in reached_by_rejected]
    # a stage that was passed between two rows of facts has no first step; a later one or chosen's end is as good
    return min((step for step in ahead if step is not None), default=chosen.info.num_steps)


def _stages(episode: ScoredEpisode) -> list[dict[str, Any]]:
    stages = episode.terms.get("stages", [])
    if not stages or any("first_step" not in stage for stage in stages):
        raise PairingError(
            f"the scores of {episode.label} do not say when its stages began, which cut_at_parting needs; score the "
            "run again with: grape score"
        )
    return stages


def _refuse_duplicates(scored: Sequence[ScoredEpisode]) -> None:
    seen: set[str] = set()
    for episode in scored:
        if episode.path is not None and str(episode.path) in seen:
            raise PairingError(f"{episode.path} was given twice; name each run once")
        seen.add(str(episode.path))


def _sort_out(scored: Sequence[ScoredEpisode]) -> tuple[list[Leftover], list[ScoredEpisode]]:
    """Split into episodes that can never be in a pair, and the others."""
    leftovers: list[Leftover] = []
    usable: list[ScoredEpisode] = []
    for episode in scored:
        if episode.info.status == "crashed":
            leftovers.append(Leftover(episode=episode, reason="crashed", detail=episode.info.error or ""))
        elif episode.info.num_steps == 0:
            leftovers.append(Leftover(episode=episode, reason="has no steps"))
        elif episode.score is None:
            leftovers.append(Leftover(episode=episode, reason="not scored", detail="run: grape score"))
        elif not math.isfinite(episode.score):
            leftovers.append(Leftover(episode=episode, reason="score is not finite", detail=str(episode.score)))
        else:
            usable.append(episode)
    return leftovers, usable


def _state_key(episode: ScoredEpisode) -> tuple[str, str, int, str, str]:
    info = episode.info
    return info.simulator, info.suite, info.task_id, info.init_state_id, info.init_state_hash


def _group_by_state(episodes: Sequence[ScoredEpisode]) -> list[list[ScoredEpisode]]:
    groups: dict[tuple[str, str, int, str, str], list[ScoredEpisode]] = collections.defaultdict(list)
    for episode in episodes:
        groups[_state_key(episode)].append(episode)
    return list(groups.values())


def _match_group(group: list[ScoredEpisode], settings: PairingSettings) -> tuple[list[_Match], list[Leftover]]:
    """Pairs of one initial state, largest margin first, and the group's leftovers."""
    if len(group) < 2:
        return [], [Leftover(episode=group[0], reason="only usable rollout of its initial state")]
    candidates = _candidates(group, settings)
    accepted = [match for match in candidates if _margin(match) > 0 and _margin(match) >= settings.min_margin]
    accepted.sort(key=_margin, reverse=True)  # stable: equal margins stay in original order
    kept = accepted[: settings.max_pairs_per_state]
    used = {id(episode) for match in kept for episode in match}
    reason = _group_reason(group, candidates, accepted, settings)
    return kept, [Leftover(episode=episode, reason=reason) for episode in group if id(episode) not in used]


def _candidates(group: list[ScoredEpisode], settings: PairingSettings) -> list[_Match]:
    ranked = sorted(group, key=_score, reverse=True)
    if not settings.prefer_failure_over_success:
        ranked.sort(key=lambda episode: episode.success, reverse=True)  # stable: by outcome, then by score
    if settings.strategy == "success_vs_failure":
        successes = [episode for episode in ranked if episode.success]
        failures = [episode for episode in ranked if not episode.success]
        return [(chosen, rejected) for chosen in successes for rejected in failures]
    num_top = 1 if settings.strategy == "best_vs_worst" else min(settings.m, len(ranked) // 2)
    eligible = [episode for episode in ranked if episode.success or not settings.require_chosen_success]
    top = eligible[:num_top]
    top_ids = {id(episode) for episode in top}
    bottom = [episode for episode in reversed(ranked) if id(episode) not in top_ids][:num_top]
    return [(chosen, rejected) for chosen in top for rejected in bottom]


def _group_reason(
    group: list[ScoredEpisode], candidates: list[_Match], accepted: list[_Match], settings: PairingSettings
) -> str:
    """Why episodes of this group that are in no pair were left over."""
    if accepted:
        return "other rollouts of its initial state were paired (not among the best or worst, or above the limit)"
    if len({_score(episode) for episode in group}) == 1:
        return "all rollouts of its initial state have the same score (a tie)"
    if not candidates and any(episode.success for episode in group):
        return "no rollout of its initial state failed"
    if not candidates:
        return "no rollout of its initial state succeeded"
    if max(map(_margin, candidates)) < 0:
        return "the score ranks the success below the other rollouts of its initial state"
    if max(map(_margin, candidates)) == 0:
        return "best and worst rollout of its initial state have the same score (a tie)"
    return f"margin of its initial state is below {settings.min_margin:g}"


def _explain_lone_states(leftovers: list[Leftover], usable: Sequence[ScoredEpisode]) -> tuple[Leftover, ...]:
    """Tell a lone rollout from one whose namesake state differs in some bit."""
    hashes: dict[tuple[str, str, int, str], set[str]] = collections.defaultdict(set)
    for episode in usable:
        *name, state_hash = _state_key(episode)
        hashes[tuple(name)].add(state_hash)  # type: ignore[index]
    explained = []
    for item in leftovers:
        *name, state_hash = _state_key(item.episode)
        others = hashes[tuple(name)] - {state_hash}  # type: ignore[index]
        if others and item.reason.startswith("only usable"):
            item = Leftover(
                episode=item.episode,
                reason="its initial state is not bit-identical to that of the others with the same name",
                detail=f"{item.episode.info.init_state_id}: hash {state_hash[:12]}, others {sorted(others)[0][:12]}",
            )
        explained.append(item)
    return tuple(explained)


def _score(episode: ScoredEpisode) -> float:
    assert episode.score is not None, "episodes without a score were sorted out"
    return episode.score


def _margin(match: _Match) -> float:
    return _score(match[0]) - _score(match[1])
