"""A real HTTP server on loopback that speaks the chat-completions protocol and plays what a test hands it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one request gets."""

    pieces: Sequence[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    pause_s: float = 0.0
    """Before each piece of the body."""
    promised_bytes: int | None = None
    """Content-Length, where it is not the truth: the connection ends before."""


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    time_s: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """Every text in the messages, in order."""
        found = []
        for message in self.body["messages"]:
            content = message["content"]
            parts = [{"text": content}] if isinstance(content, str) else content
            found += [part["text"] for part in parts if "text" in part]
        return found

    @property
    def pictures(self) -> list[str]:
        """The URL of every picture."""
        contents = [message["content"] for message in self.body["messages"] if isinstance(message["content"], list)]
        return [part["image_url"]["url"] for parts in contents for part in parts if part["type"] == "image_url"]


class ChatServer:
    """Plays ``script`` reply by reply, the last one again and again; keeps every request."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.script: list[Reply] = []
        self.requests: list[Received] = []
        self._lock = threading.Lock()

    def play(self, *replies: Reply) -> ChatServer:
        self.script, self.requests = list(replies), []
        return self

    def receive(self, request: Received) -> Reply:
        with self._lock:
            self.requests.append(request)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@contextlib.contextmanager
def serving() -> Iterator[ChatServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = chat.receive(Received(time.monotonic(), self.path, dict(self.headers), body))
            with contextlib.suppress(ConnectionError):  # clients give up on slow and endless bodies
                self.send(reply)

        def send(self, reply: Reply) -> None:
            length = sum(map(len, reply.pieces)) if reply.promised_bytes is None else reply.promised_bytes
            self.send_response(reply.status)
            for name, value in {"Content-Type": reply.content_type, **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            for piece in reply.pieces:
                time.sleep(reply.pause_s)
                self.wfile.write(piece)
                self.wfile.flush()
            if reply.promised_bytes is not None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    chat = ChatServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()


USAGE = {"prompt_tokens": 1200, "completion_tokens": 300, "total_tokens": 1500}


def completion(text: str | None, *, finish_reason: str = "stop", **message: Any) -> Reply:
    """A whole completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    return as_json({"id": "1", "object": "chat.completion", "model": "served", "choices": [choice], "usage": USAGE})


def streamed(text: str, *, finished: bool = True, newline: str = "\n") -> Reply:
    """The same as events, a few characters each."""
    parts = [text[i : i + 7] for i in range(0, len(text), 7)]
    events: list[dict[str, Any]] = [
        {"model": "served", "choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]}
        for part in parts
    ]
    if finished:
        events.append({"model": "served", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        events.append({"model": "served", "choices": [], "usage": USAGE})
    lines = [f": keep-alive{newline}{newline}", *(f"data: {json.dumps(event)}{newline * 2}" for event in events)]
    lines += [f"data: [DONE]{newline * 2}"] if finished else []
    return Reply(pieces=[line.encode() for line in lines], content_type="text/event-stream")


def refusal(status: int, message: str, **headers: str) -> Reply:
    """An error as OpenAI words them."""
    return as_json({"error": {"message": message, "type": "error", "param": None, "code": None}}, status, headers)


def as_json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(pieces=[json.dumps(data).encode()], status=status, headers=headers or {})
