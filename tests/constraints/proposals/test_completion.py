"""Whatever bytes an endpoint sends: a completion, or one of our errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grape.constraints.proposals.completion import BrokenBodyError, Completion, read_completion
from grape.errors import ProposalError
from tests.constraints.proposals.chat_server import USAGE, completion, streamed

WORDS = st.sampled_from(
    ["choices", "message", "content", "delta", "finish_reason", "usage", "prompt_tokens", "error", "refusal", "model"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


def outcome(body: bytes) -> Completion | None:
    try:
        return read_completion(body)
    except ProposalError as error:
        assert str(error)
        return None


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    outcome(body)
    outcome(b"data: " + body)


@given(VALUES, st.booleans())
def test_any_json(value: Any, as_event: bool) -> None:
    choice = {"choices": [{"message": value, "delta": value, "finish_reason": "stop"}], "usage": value}
    for data in (value, {"choices": value}, choice):
        body = json.dumps(data).encode()
        found = outcome(b"data: " + body + b"\n\n" if as_event else body)
        assert found is None or found.text.strip()


@given(st.text(min_size=1).filter(str.strip), st.sampled_from(["\n", "\r\n"]))
def test_every_text_comes_through_both_ways(text: str, newline: str) -> None:
    wanted = Completion(text=text, model="served", input_tokens=1200, output_tokens=300)
    assert read_completion(b"".join(completion(text).pieces)) == wanted
    assert read_completion(b"".join(streamed(text, newline=newline).pieces)) == wanted


def test_halves_of_surrogate_pairs_do_not_survive() -> None:
    found = read_completion(b"".join(completion("a\ud800b").pieces))
    assert found.text == "a?b" and found.text.encode()


def test_a_stream_may_lack_the_token_count_but_not_the_end() -> None:
    pieces = list(streamed("some words").pieces)
    without_usage = [piece for piece in pieces if b"usage" not in piece]
    assert read_completion(b"".join(without_usage)).input_tokens is None
    with pytest.raises(BrokenBodyError, match="ended before"):
        read_completion(b"".join(piece for piece in pieces if b'"stop"' not in piece))


@pytest.mark.parametrize("count", [-1, 1.5, "12", None, True, [1], 10**400])
def test_a_token_count_that_is_none(count: object) -> None:
    data = json.loads(b"".join(completion("text").pieces)) | {"usage": {**USAGE, "prompt_tokens": count}}
    assert read_completion(json.dumps(data).encode()).input_tokens is None
