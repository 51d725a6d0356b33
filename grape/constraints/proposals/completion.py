"""One chat completion out of the bytes that an endpoint sent: JSON, or server-sent events where it streams.

The official client sends the request and judges the status; the body is read here, because it has to be bounded in
size and time, stored as it came, and because not every server keeps to one of the two forms.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grape.errors import ProposalError

MAX_TOKENS = 10**9
"""Of one question or answer; a larger count is none."""


class BrokenBodyError(ProposalError):
    """The body ended early or is no text; asking again may help."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a model answered."""

    text: str
    model: str
    """As the endpoint names the model that served; may be empty."""
    input_tokens: int | None
    output_tokens: int | None


def read_completion(body: bytes) -> Completion:
    """The answer in a body.

    Raises:
        BrokenBodyError: The body is cut off, or not UTF-8.
        ProposalError: It is no chat completion, or one without an answer: a refusal, no choice, no text, cut at the
            token limit, an error instead.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenBodyError(f"the endpoint's answer is not UTF-8 ({error.reason} at byte {error.start})") from None
    if text.lstrip().startswith(("{", "[")):  # also from servers that do not stream although they were asked to
        return _completion(_parse(text))
    events = list(_events(text))
    if not events:
        raise BrokenBodyError(f"the endpoint's answer is neither JSON nor a stream of events: {text[:80]!r}")
    return _completion(_joined(events))


def _events(text: str) -> Iterator[Any]:
    # not splitlines(): JSON may hold further line separators of Unicode as they are
    for line in re.split(r"\r\n|\r|\n", text):
        if line.startswith("data:") and line[5:].strip() not in ("", "[DONE]"):
            yield _parse(line[5:])


def _joined(events: list[Any]) -> dict[str, Any]:
    """A whole completion from its parts."""
    texts: dict[str, str] = {"content": "", "refusal": ""}
    whole: dict[str, Any] = {}
    reason = None
    for event in events:
        if not isinstance(event, dict) or event.get("error"):
            return {"error": event.get("error") if isinstance(event, dict) else event}
        whole.update({name: event[name] for name in ("model", "usage") if event.get(name)})
        choice = _first(event.get("choices"))
        delta = choice.get("delta")
        for name in texts:
            part = delta.get(name) if isinstance(delta, dict) else None
            texts[name] += part if isinstance(part, str) else ""
        reason = choice.get("finish_reason") or reason
    if reason is None:
        raise BrokenBodyError("the endpoint's stream ended before the answer did")
    return {**whole, "choices": [{"message": texts, "finish_reason": reason}]}


def _completion(data: Any) -> Completion:
    if not isinstance(data, dict):
        raise ProposalError(f"the endpoint sent {type(data).__name__}, wanted a chat completion; check the base URL")
    if data.get("error"):
        raise ProposalError(f"the endpoint sent an error instead of an answer: {str(data['error'])[:300]}")
    choice = _first(data.get("choices"))
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ProposalError(f"the endpoint sent no choice (its fields: {', '.join(map(repr, data))[:200]})")
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        why = str(message.get("refusal") or "stopped by a content filter")
        raise ProposalError(f"the model refused: {why[:300]}; word the task differently, or ask another model")
    if choice.get("finish_reason") == "length":
        raise ProposalError("the answer was cut at the model's token limit; serve the model with a longer context")
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        raise ProposalError(
            f"the model answered without text (content: {str(text)[:40]!r}, finish_reason: "
            f"{str(choice.get('finish_reason'))[:40]!r}); ask again, or take another model"
        )
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    assert isinstance(usage, dict)
    return Completion(
        text=_encodable(text),
        model=_encodable(str(data.get("model") or "")),
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
    )


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenBodyError(f"the endpoint's answer is not whole JSON ({error})") from None


def _first(choices: Any) -> dict[str, Any]:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can hold and no file or request can."""
    return text.encode("utf-8", "replace").decode()
