"""What endpoints do wrong, over real HTTP: who is asked again, how long is waited, and where the key may never be."""

from __future__ import annotations

import logging

import pytest

from grape.constraints import load_constraints
from tests.constraints.proposals import answers_by_hand as answers
from tests.constraints.proposals.chat_server import ChatServer, Reply, completion, refusal, streamed
from tests.constraints.proposals.conftest import Shell

KEY = "sk-written-by-hand-0123456789"
GOOD = completion(answers.GOOD)
WHOLE = GOOD.pieces[0]


def test_429_waits_as_long_as_the_server_says(shell: Shell, server: ChatServer) -> None:
    server.play(refusal(429, "slow down", **{"Retry-After": "2"}), GOOD)
    assert shell.run()[0] == 0
    first, second = server.requests
    assert second.time_s - first.time_s >= 2  # the client's own backoff would have been 0.5 s
    assert load_constraints(shell.out).source == "by-hand"


def test_429_that_asks_for_more_than_the_client_waits(shell: Shell, server: ChatServer) -> None:
    server.play(refusal(429, "quota", **{"Retry-After": "86400"}))
    code, _, complaint = shell.run()
    assert code == 1 and "asks to wait 86400 s" in complaint and len(server.requests) == 1


def test_429_without_end(shell: Shell, server: ChatServer) -> None:
    server.play(refusal(429, "slow down", **{"Retry-After": "0.01"}))
    code, _, complaint = shell.run("--max_retries", "2")
    assert code == 1 and "429, 3 tries" in complaint and len(server.requests) == 3


@pytest.mark.parametrize("status", [500, 503])
def test_5xx_is_asked_again(shell: Shell, server: ChatServer, status: int) -> None:
    server.play(refusal(status, "oops", **{"Retry-After": "0.01"}), GOOD)
    assert shell.run()[0] == 0 and len(server.requests) == 2


def test_5xx_without_end(shell: Shell, server: ChatServer) -> None:
    server.play(refusal(500, "oops", **{"Retry-After": "0.01"}))
    code, _, complaint = shell.run("--max_retries", "1")
    assert code == 1 and "failed (500, 2 tries): " in complaint and "oops" in complaint and len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "next_step"),
    [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "--base_url"), (400, "pictures"), (413, "pictures")],
)
def test_what_asking_again_cannot_help_fails_at_once(shell: Shell, server: ChatServer, status, next_step) -> None:
    server.play(refusal(status, "no"))
    code, _, complaint = shell.run()
    assert code == 1 and str(status) in complaint and next_step in complaint and len(server.requests) == 1


SLOW = {
    "late": Reply(pieces=[WHOLE], pause_s=6),
    "in drops": Reply(pieces=[WHOLE[i : i + 1] for i in range(len(WHOLE))], pause_s=0.1),
}


@pytest.mark.parametrize("reply", SLOW.values(), ids=SLOW)
def test_a_slow_body_is_a_time_out_and_asked_again(shell: Shell, server: ChatServer, reply: Reply) -> None:
    server.play(reply)
    code, _, complaint = shell.run("--timeout_s", "0.5", "--max_retries", "0")
    assert code == 1 and "after 0.5 s; allow more with --timeout_s" in complaint and len(server.requests) == 1
    server.play(reply, GOOD)
    assert shell.run("--timeout_s", "3", "--max_retries", "1")[0] == 0 and len(server.requests) == 2


BROKEN = {
    "disconnect": Reply(pieces=[WHOLE[:100]], promised_bytes=len(WHOLE)),
    "nothing": Reply(pieces=[]),
    "cut": Reply(pieces=[WHOLE[:100]]),
    "invalid utf-8": Reply(pieces=[WHOLE.replace(b"grasp", b"gra\xffp", 1)]),
    "cut stream": streamed(answers.GOOD, finished=False),
    "cut event": Reply(pieces=[b'data: {"choices": [{"del']),
    "a page": Reply(pieces=[b"<html>It works!</html>"], content_type="text/html"),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
def test_a_broken_body_is_asked_again(shell: Shell, server: ChatServer, reply: Reply) -> None:
    server.play(reply, GOOD)
    assert shell.run("--max_retries", "1")[0] == 0 and len(server.requests) == 2
    before = {path.name: path.stat().st_mtime_ns for path in shell.out.parent.glob(f"{shell.out.stem}*")}
    server.play(reply)
    code, _, complaint = shell.run("--max_retries", "0", "--refresh", "--overwrite")
    assert code == 1 and "Traceback" not in complaint and len(server.requests) == 1
    after = {path.name: path.stat().st_mtime_ns for path in shell.out.parent.glob(f"{shell.out.stem}*")}
    assert after == before and len(before) == 4  # constraints, picture, prompt and origin of the answer before


def test_what_breaks_before_and_in_the_body_is_counted_together(shell: Shell, server: ChatServer) -> None:
    busy, cut = refusal(429, "slow down", **{"Retry-After": "0.01"}), BROKEN["cut"]
    server.play(cut, busy, cut, GOOD)
    code, _, complaint = shell.run("--max_retries", "2")
    assert code == 1 and "not whole JSON" in complaint and len(server.requests) == 3


def test_a_huge_body_is_not_read_to_its_end(shell: Shell, server: ChatServer) -> None:
    server.play(Reply(pieces=[b" " * 2**20] * 20))
    code, _, complaint = shell.run()
    assert code == 1 and "more than 16 MiB" in complaint and len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 429, 500])
def test_the_body_of_an_error_is_bounded_as_well(shell: Shell, server: ChatServer, status: int) -> None:
    server.play(Reply(pieces=[b" " * 2**20] * 20, status=status))
    code, _, complaint = shell.run("--max_retries", "0")
    assert code == 1 and "more than 16 MiB" in complaint and len(server.requests) == 1
    server.play(Reply(pieces=[b"x"] * 60, pause_s=0.1, status=status))
    code, _, complaint = shell.run("--max_retries", "0", "--timeout_s", "0.5")
    assert code == 1 and "after 0.5 s" in complaint and len(server.requests) == 1


def test_nobody_is_there(shell: Shell) -> None:
    code, _, complaint = shell.run("--base_url", "http://127.0.0.1:9/v1", "--max_retries", "0", ask=False)
    assert code == 1 and "cannot be reached" in complaint


def test_an_endpoint_without_schemas_is_asked_for_any_json_then_with_words_alone(shell, server: ChatServer) -> None:
    no_schema = refusal(400, "Unsupported value: 'response_format' of type json_schema")
    server.play(no_schema, refusal(400, "json_object is not supported by this model"), GOOD)
    assert shell.run()[0] == 0
    asked = [request.body.get("response_format", {}).get("type") for request in server.requests]
    assert asked == ["json_schema", "json_object", None]
    server.play(no_schema)
    assert shell.run("--structured", "json_schema", "--overwrite")[0] == 1 and len(server.requests) == 1


@pytest.mark.parametrize(("structured", "wanted"), [("json_object", {"type": "json_object"}), ("off", None)])
def test_how_json_is_asked_for_can_be_chosen(shell, server: ChatServer, structured, wanted) -> None:
    server.play(GOOD)
    assert shell.run("--structured", structured)[0] == 0
    assert server.requests[0].body.get("response_format") == wanted


ECHOES = {
    "good": [GOOD],
    "in the answer": [completion(f"{answers.NOT_JSON} {KEY}")],
    "refusal": [completion(None, refusal=f"bad key {KEY}")],
    "401": [refusal(401, f"Incorrect API key provided: {KEY}")],
    "400": [refusal(400, f"{KEY} \x1b[31m")],
    "429": [refusal(429, KEY, **{"Retry-After": "0.01"})],
    "escaped": [Reply(pieces=[b'{"error": "' + KEY.replace("s", "\\u0073").encode() + b'"}'])],
    "in the stream": [streamed(f"{answers.NOT_JSON} {KEY}")],
    "as the model": [Reply(pieces=[WHOLE.replace(b'"served"', f'"{KEY}"'.encode())])],
    "broken": [Reply(pieces=[KEY.encode()])],
    "where the message is cut": [Reply(pieces=[b'{"error": "' + b"x" * 285 + KEY.encode() + b'"}'])],
}


@pytest.mark.parametrize("replies", ECHOES.values(), ids=ECHOES)
def test_the_key_is_in_the_header_and_nowhere_else(shell, server, monkeypatch, caplog, replies) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")  # as from a file
    monkeypatch.setenv("GRAPE_TRACEBACK", "1")
    server.play(*replies)
    with caplog.at_level(logging.DEBUG):
        _, shown, complaint = shell.run("--max_retries", "1", "--stream")
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert all(KEY not in str(request.body) for request in server.requests)
    assert KEY[:12] not in shown + complaint + caplog.text and "\x1b" not in shown + complaint
    assert caplog.text  # the client's own log was on
    assert [name for name, data in shell.files().items() if KEY.encode() in data] == []


def test_a_key_that_is_none(shell: Shell, server: ChatServer, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-no\nnewline-inside")
    server.play(GOOD)
    code, _, complaint = shell.run()
    assert code == 1 and "set it again" in complaint and "inside" not in complaint and server.requests == []


def test_a_server_at_home_needs_no_key_and_the_url_may_come_from_the_environment(shell, server, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    server.play(GOOD)
    assert shell.run(ask=False)[0] == 0
    assert server.requests[0].headers["authorization"] == "Bearer no-key"
