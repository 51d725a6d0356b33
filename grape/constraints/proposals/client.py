"""The one place that talks to a vision-language model: the official ``openai`` client, and any endpoint that it fits.

The key goes into the request's header and nowhere else: not into a message, a file or a log, also if the endpoint
sends it back.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from grape.constraints.proposals.completion import BrokenBodyError, Completion, read_completion
from grape.errors import ConfigError, ProposalError
from grape.optional import require

Structured = Literal["auto", "json_schema", "json_object", "off"]
MAX_BODY_BYTES = 16 * 2**20
"""Of one answer; a streamed one takes some 300 bytes per token."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
NO_KEY = "no-key"
"""Sent where there is no key: servers at home ask for none, but the client wants one."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What decides an answer besides the messages."""

    model: str
    structured: Structured = "auto"
    """How JSON is asked for. ``auto``: a JSON schema; where the endpoint refuses that, any JSON; then just words."""
    temperature: float | None = None
    """``None``: the endpoint's own."""
    seed: int | None = None
    """``None``: none is sent."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, and how patiently."""

    base_url: str | None
    """``None``: OpenAI's own."""
    api_key: str | None = field(repr=False)
    stream: bool = False
    timeout_s: float = 180.0
    """For one whole answer."""
    max_retries: int = 4

    @classmethod
    def find(cls, base_url: str | None, **settings: Any) -> Endpoint | None:
        """From a flag, OPENAI_BASE_URL and OPENAI_API_KEY; ``None`` where none of them is set.

        Raises:
            ConfigError: The URL or the key cannot be one.
        """
        url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = os.environ.get("OPENAI_API_KEY", "").strip() or None
        if url is None and key is None:
            return None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError("OPENAI_API_KEY holds characters that no key has; set it again")
        if url is not None:
            try:
                parts = urlsplit(url)
                usable = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
                (parts.hostname or "").encode("idna"), parts.port  # both raise where they cannot be one
            except ValueError:
                usable = False
            if not usable:
                raise ConfigError("base_url is no address: want http:// or https://, a host and usually /v1")
            if "@" in parts.netloc or parts.query or parts.fragment:
                raise ConfigError("base_url holds a user, a query or a fragment; the key belongs into OPENAI_API_KEY")
        return cls(base_url=url, api_key=key, **settings)

    def without_key(self, text: str) -> str:
        """``text`` with the key blotted out and without control characters, fit for a terminal."""
        text = self.blot(text)
        return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)

    def blot(self, text: str) -> str:
        """``text`` with the key blotted out; nothing shorter than 8 characters, which are words, such as EMPTY."""
        key = self.api_key
        return text.replace(key, "[key]") if key is not None and len(key) >= 8 else text


def ask(
    endpoint: Endpoint, settings: ModelSettings, messages: list[dict[str, Any]], schema: Mapping[str, Any]
) -> Completion:
    """Ask once; waiting and asking again after time-outs, 429 (as long as it says), 5xx and broken connections.

    Raises:
        ProposalError: No answer came; the message says why and what to do.
        MissingDependencyError: ``openai`` is not installed.
    """
    openai = require("openai", extra="vlm")
    formats = _response_formats(settings.structured, schema)
    connection = openai.DefaultHttpxClient(timeout=endpoint.timeout_s)
    # the client's HTTP library has had two names
    http = importlib.import_module(type(connection.base_url).__module__.partition(".")[0])
    connection.event_hooks = {"response": [_bounded(http, endpoint.timeout_s)]}
    client = openai.OpenAI(
        api_key=endpoint.api_key or NO_KEY,
        base_url=endpoint.base_url,
        timeout=endpoint.timeout_s,
        http_client=connection,
    )
    with client:
        for position, response_format in enumerate(formats):
            request = {"model": settings.model, "messages": messages, **_options(endpoint, settings, response_format)}
            try:
                completion = _answer(client, http, endpoint, request)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if position + 1 < len(formats) and _is_about_format(str(error)):
                    continue
                raise ProposalError(_explain(error, endpoint, settings.model)) from None
            except openai.APIError as error:
                raise ProposalError(_explain(error, endpoint, settings.model)) from None
            except ProposalError as error:
                raise ProposalError(endpoint.without_key(str(error))) from None
            return replace(
                completion, text=endpoint.blot(completion.text), model=endpoint.without_key(completion.model)
            )
    raise AssertionError("the last format either answers or raises")


def _options(endpoint: Endpoint, settings: ModelSettings, response_format: dict[str, Any] | None) -> dict[str, Any]:
    """What of a request is said only where it was asked for: endpoints refuse options that they do not know."""
    options = {"response_format": response_format, "temperature": settings.temperature, "seed": settings.seed}
    if endpoint.stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in options.items() if value is not None}


def _bounded(http: Any, timeout_s: float) -> Callable[[Any], None]:
    """A hook that bounds every body in size and time, those of errors too, which the client reads to their end."""

    class Bounded(http.SyncByteStream):  # type: ignore[misc, name-defined]
        """A body as it arrives."""

        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def __iter__(self) -> Iterator[bytes]:
            num_bytes, begin = 0, time.monotonic()
            for chunk in self._stream:
                num_bytes += len(chunk)
                _check_size(num_bytes)
                if time.monotonic() - begin > timeout_s:  # the client's own limit is for each piece
                    raise _too_slow(timeout_s)
                yield chunk

        def close(self) -> None:
            self._stream.close()

    def bound(response: Any) -> None:
        response.stream = Bounded(response.stream)

    return bound


def _answer(client: Any, http: Any, endpoint: Endpoint, request: dict[str, Any]) -> Completion:
    """One answer. The client retries until the body begins; what breaks in the body is retried here, of one budget."""
    remaining = endpoint.max_retries
    while True:
        patient = client.with_options(max_retries=remaining)
        try:
            with patient.chat.completions.with_streaming_response.create(**request) as response:
                remaining -= response.retries_taken
                body = _read_body(response)
            # before messages quote its beginning, which may end within the key
            return read_completion(endpoint.blot(body.decode("latin-1")).encode("latin-1"))
        except (http.HTTPError, BrokenBodyError) as error:  # the library's own, once the body has begun
            if remaining == 0:
                if isinstance(error, BrokenBodyError):
                    raise
                if isinstance(error, http.TimeoutException):
                    raise _too_slow(endpoint.timeout_s) from None
                raise BrokenBodyError(f"the connection broke in the answer ({type(error).__name__})") from None
        time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (endpoint.max_retries - remaining)))
        remaining -= 1


def _read_body(response: Any) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        _check_size(len(body))  # again, as it may have come compressed
    return bytes(body)


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise ProposalError(f"the endpoint's answer has more than {MAX_BODY_BYTES // 2**20} MiB; it is not read on")


def _too_slow(timeout_s: float) -> BrokenBodyError:
    return BrokenBodyError(f"the answer was not complete after {timeout_s:g} s; allow more with --timeout_s")


def _response_formats(structured: Structured, schema: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    by_schema = {"type": "json_schema", "json_schema": {"name": "stage_constraints", "strict": True, "schema": schema}}
    any_json = {"type": "json_object"}
    formats: dict[Structured, list[dict[str, Any] | None]] = {
        "auto": [by_schema, any_json, None],
        "json_schema": [by_schema],
        "json_object": [any_json],
        "off": [None],
    }
    return formats[structured]


def _is_about_format(message: str) -> bool:
    return (
        re.search(r"response_?format|json_?schema|json_?object|json mode|structured|guided", message, re.I) is not None
    )


def _explain(error: Any, endpoint: Endpoint, model: str) -> str:
    """One line for an error of the client: what came, and the next step."""
    place = endpoint.base_url or "OpenAI"
    status = getattr(error, "status_code", None)
    said = endpoint.without_key(str(error))[:300]
    tries = f"{endpoint.max_retries + 1} tries" if endpoint.max_retries else "1 try"
    if status in (401, 403):
        return f"{place} refused the key ({status}): {said}; set OPENAI_API_KEY to a key of this endpoint"
    if status == 404:
        return (
            f"{place} knows no model {model!r}, or is no such endpoint (404): {said}; check --model, and --base_url, "
            "which usually ends in /v1"
        )
    if status == 429:
        wait = error.response.headers.get("retry-after")
        asked = f"; it asks to wait {wait[:40]} s" if wait else ""
        return f"{place} refused for too many requests or an empty account (429, {tries}){asked}: {said}"
    if status is not None and status >= 500:
        return f"{place} failed ({status}, {tries}): {said}; try again later"
    if status is not None:
        return f"{place} refused the request ({status}): {said}; check that the model takes pictures, and --structured"
    if type(error).__name__ == "APITimeoutError":
        return f"{place} did not answer within {endpoint.timeout_s:g} s ({tries}); allow more with --timeout_s"
    return f"{place} cannot be reached ({tries}): {said}; check --base_url, and that the server runs"
