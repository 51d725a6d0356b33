"""Refusals: episodes that must not meet in one preference data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from grape.config.inputs import INPUTS_BEFORE
from grape.errors import PairingError
from grape.preferences.records import ScoredEpisode

_PER_TASK_SETTINGS = ("unnorm_key",)
"""Policy settings that may differ between tasks of one data set, but not within a task."""


def check_same_policy(episodes: Sequence[ScoredEpisode]) -> None:
    """Refuse episodes of different policies, checkpoints, temperatures or other policy settings.

    Args:
        episodes: All episodes that are to be paired.

    Raises:
        PairingError: Two episodes differ; both are named, with the two values.
    """
    first_of_task: dict[tuple[str, int], ScoredEpisode] = {}
    for episode in episodes:
        first = episodes[0]
        first_in_task = first_of_task.setdefault((episode.info.suite, episode.info.task_id), episode)
        _refuse_difference("checkpoint", first, episode, _checkpoint(first), _checkpoint(episode))
        for name in _setting_names(first, episode):
            reference = first_in_task if name in _PER_TASK_SETTINGS else first
            _refuse_difference(
                name,
                reference,
                episode,
                reference.info.policy_settings.get(name, INPUTS_BEFORE.get(name)),
                episode.info.policy_settings.get(name, INPUTS_BEFORE.get(name)),
            )


def check_same_simulator(group: Iterable[ScoredEpisode]) -> None:
    """Refuse episodes of one initial state whose simulator or its settings differ (pictures would tell them apart).

    Raises:
        PairingError: Two episodes differ; both are named, with the two values.
    """
    episodes = list(group)
    for episode in episodes[1:]:
        first = episodes[0]
        _refuse_difference("simulator", first, episode, first.info.simulator, episode.info.simulator)
        _refuse_difference("instruction", first, episode, first.info.instruction, episode.info.instruction)
        mine, theirs = first.info.simulator_settings, episode.info.simulator_settings
        for name in sorted(mine.keys() | theirs.keys()):
            _refuse_difference(f"simulator setting {name}", first, episode, mine.get(name), theirs.get(name))


def _checkpoint(episode: ScoredEpisode) -> str:
    """Content decides, not the path: a moved checkpoint is the same policy. Without a hash the name has to do."""
    return episode.info.checkpoint_hash or f"policy {episode.info.policy}"


def _setting_names(first: ScoredEpisode, second: ScoredEpisode) -> list[str]:
    return sorted(first.info.policy_settings.keys() | second.info.policy_settings.keys())


def _refuse_difference(name: str, first: ScoredEpisode, second: ScoredEpisode, got_first: Any, got_second: Any) -> None:
    if got_first != got_second:
        raise PairingError(
            f"{name} differs: {got_first!r} in {first.label} (policy {first.info.policy}) but {got_second!r} in "
            f"{second.label} (policy {second.info.policy}); pair each kind on its own, into its own --out"
        )
