"""Asking a model for a task's stages: at most two turns, every answer stored, nothing used that was not checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from grape.constraints.answers import ANSWER_SCHEMA, parse_answer
from grape.constraints.proposals.cache import AnswerCache, StoredAnswer
from grape.constraints.proposals.client import Endpoint, ModelSettings, ask
from grape.constraints.proposals.messages import first_messages, repair_messages
from grape.constraints.proposals.scene import Scene
from grape.constraints.stages import TaskConstraints
from grape.errors import ConstraintError, ProposalError


class MissingAnswerError(ProposalError):
    """The answer is not in the cache, and there is nobody to ask."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question and its answer."""

    answer: StoredAnswer
    from_cache: bool


class UnusableAnswersError(ProposalError):
    """Both answers came and neither can be used; ``turns`` says what they took."""

    def __init__(self, message: str, turns: Sequence[Turn]) -> None:
        super().__init__(message)
        self.turns = tuple(turns)


def count_tokens(turns: Sequence[Turn]) -> tuple[int, int] | None:
    """Tokens in and out of what was asked now; ``None`` where the endpoint gave no count."""
    total_in, total_out = 0, 0
    for completion in (turn.answer.completion for turn in turns if not turn.from_cache):
        if completion.input_tokens is None or completion.output_tokens is None:
            return None
        total_in, total_out = total_in + completion.input_tokens, total_out + completion.output_tokens
    return total_in, total_out


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Checked constraints and the one or two answers behind them."""

    constraints: TaskConstraints
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Who is asked, and what is remembered."""

    settings: ModelSettings
    endpoint: Endpoint | None
    """``None``: the cache alone."""
    cache: AnswerCache
    refresh: bool = False
    """Ask anew what is in the cache, and replace it."""
    say: Callable[[str], object] = print

    def answer(self, messages: list[dict[str, Any]]) -> Turn:
        """From the cache, else from the endpoint; a damaged entry is reported and asked anew.

        Raises:
            MissingAnswerError: Neither has it.
            ProposalError: The endpoint gave none.
        """
        path = self.cache.path(self.settings, messages)
        damage = ""
        try:
            stored = None if self.refresh else self.cache.load(self.settings, messages)
        except ProposalError as error:
            stored, damage = None, f"{error}; "
        if stored is not None:
            return Turn(answer=stored, from_cache=True)
        if self.endpoint is None:
            raise MissingAnswerError(
                f"{damage}the answer of {self.settings.model!r} is not in the cache (no {path.name} in "
                f"{self.cache.folder}), and nothing is asked; name the cache folder that has it with --cache_dir, or "
                "ask an endpoint: leave --offline out, and set --base_url or OPENAI_API_KEY"
            )
        if damage:
            self.say(f"{damage}it is asked anew")
        completion = ask(self.endpoint, self.settings, messages, ANSWER_SCHEMA)
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Turn(answer=self.cache.store(self.settings, messages, completion, time), from_cache=False)


def propose(scene: Scene, objective: str, asking: Asking) -> Proposal:
    """Ask for a task's stages and check them; an answer that cannot be used is sent back once, with its problems.

    Raises:
        ProposalError: No answer.
        UnusableAnswersError: Two that cannot be used; the message says where their texts are.
    """
    messages = first_messages(scene, objective)
    turns: list[Turn] = []
    problems = ""
    for _ in range(2):
        turns.append(asking.answer(messages))
        text = turns[-1].answer.completion.text
        try:
            constraints = parse_answer(
                text,
                instruction=scene.task,
                keypoint_names=scene.keypoint_names,
                num_goals=len(scene.goals),
                source=asking.settings.model,
            )
            return Proposal(constraints=constraints, turns=tuple(turns))
        except ConstraintError as error:
            problems = str(error)
            messages = repair_messages(messages, text, problems)
    files = " and ".join(str(turn.answer.path) for turn in turns)
    raise UnusableAnswersError(
        f"{asking.settings.model!r} answered twice, and neither can be used. Of the second answer: {problems}\n"
        f"The raw answers are in {files}; --refresh asks again, or take another model",
        turns,
    )
