"""Stages out of order, as far as that can be told without an episode.

Five rules, each of which names a list of stages that cannot work as it stands:

1. names that count the stages count upwards;
2. what a stage requires must not be what only it or a later stage brings about. This is asked of contacts, grasps
   and goals alone, since a distance may be small from the start;
3. a stage must not be over in the row in which it begins, because all that it waits for ended the stage before it;
4. no stage but the last waits for all goals: nothing is left to do once they hold;
5. the last stage is done when a goal holds, where a simulator judges goals: it settles the task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from grape.constraints.expression import conjuncts

_NUMBER = re.compile(r"\W*(?:stage|step|phase)?\W*(\d{1,4})\b", re.IGNORECASE)
_BROUGHT_ABOUT = re.compile(r"(?:grasped|finger_contact|robot_contact|goal)\(\w+\)")
_GOAL = re.compile(r"(?<!not )goal\(\d+\)")


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What the order of a stage follows from. A condition that did not compile is ``None``."""

    label: str
    """For messages, e.g. ``"stage 2 'lift'"``."""
    name: str
    done_when: str | None
    requires: str | None = None


def ordering_problems(stages: Sequence[Outline], num_goals: int | None) -> list[str]:
    """One sentence for each breach of a rule, empty when there is none.

    Args:
        stages: In the order in which they are written.
        num_goals: Goal predicates that the simulator judges; ``None`` or 0 where it judges none.
    """
    done = [None if stage.done_when is None else conjuncts(stage.done_when) for stage in stages]
    return [
        *_counted_downwards(stages),
        *_required_too_early(stages, done),
        *_over_at_once(stages, done),
        *_goals_out_of_place(stages, done, num_goals or 0),
    ]


def _counted_downwards(stages: Sequence[Outline]) -> list[str]:
    found = [_NUMBER.match(stage.name) for stage in stages]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < len(stages) or numbers == sorted(set(numbers)):
        return []
    return [f"the stages are numbered {', '.join(map(str, numbers))}; list them in the order in which they happen"]


def _required_too_early(stages: Sequence[Outline], done: Sequence[frozenset[str] | None]) -> list[str]:
    problems = []
    brought_about: set[str] = set()
    for index, stage in enumerate(stages):
        for fact in sorted(conjuncts(stage.requires) if stage.requires else ()):
            later = [i for i in range(index, len(stages)) if fact in (done[i] or ())]
            if not _BROUGHT_ABOUT.fullmatch(fact) or fact in brought_about or not later:
                continue
            by = "itself" if later[0] == index else stages[later[0]].label
            problems.append(
                f"{stage.label} requires {fact}, which only {by} brings about; "
                "change their order, or leave the requirement out"
            )
        if done[index] is None:
            break  # what it brings about is unknown
        brought_about |= done[index] or set()
    return problems


def _over_at_once(stages: Sequence[Outline], done: Sequence[frozenset[str] | None]) -> list[str]:
    return [
        f"{stages[i].label} is over when it begins: all of its done_when already ended {stages[i - 1].label}; "
        "put it first, or wait for something new"
        for i in range(1, len(stages))
        if done[i] is not None and done[i] <= (done[i - 1] or frozenset())  # type: ignore[operator]
    ]


def _goals_out_of_place(stages: Sequence[Outline], done: Sequence[frozenset[str] | None], num_goals: int) -> list[str]:
    if not num_goals or not stages:
        return []
    goals = {f"goal({index})" for index in range(num_goals)}
    problems = [
        f"{stage.label} waits for {' and '.join(sorted(goals))}, which is the whole task, but stages follow; "
        "make it the last one"
        for stage, parts in zip(stages[:-1], done[:-1], strict=True)
        if parts is not None and goals <= parts
    ]
    last = done[-1]
    if last is not None and not any(_GOAL.search(part) for part in last):
        problems.append(
            f"{stages[-1].label} is the last one, but its done_when does not ask whether the task is achieved; "
            f"join {' and '.join(sorted(goals))} to it"
        )
    return problems
