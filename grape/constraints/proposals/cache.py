"""Every answer of a model in a file of its own, so that a run can be repeated offline and its cache given to others.

An entry is named after what was asked: picture, prompts, schema, model and settings. Where and how it was asked (URL,
key, streaming, patience) is no part of that, and not stored.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from grape.constraints.answers import ANSWER_SCHEMA
from grape.constraints.proposals.client import ModelSettings
from grape.constraints.proposals.completion import Completion
from grape.errors import ProposalError
from grape.files import write_json

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StoredAnswer:
    """A completion, when it came, and the file that holds it."""

    completion: Completion
    time: str
    """UTC, ISO 8601."""
    path: Path


class AnswerCache:
    """A folder of answers, one JSON file each.

    Args:
        folder: Need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, settings: ModelSettings, messages: Sequence[dict[str, Any]]) -> Path:
        """Where the answer to these messages is, or will be."""
        asked = json.dumps(_asked(settings, messages), sort_keys=True)
        return self.folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"

    def load(self, settings: ModelSettings, messages: Sequence[dict[str, Any]]) -> StoredAnswer | None:
        """The stored answer, or ``None`` where there is none.

        Raises:
            ProposalError: The entry is damaged, or about something else.
        """
        path = self.path(settings, messages)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ProposalError(f"{path} cannot be read ({error})") from error
        try:
            entry = json.loads(text)
            if entry["format_version"] != FORMAT_VERSION or entry["asked"] != _asked(settings, messages):
                raise ProposalError(f"{path} does not hold the answer to what its name says")
            if _digest(entry["answer"]) != entry["answer_sha256"]:
                raise ProposalError(f"{path} is damaged: its answer is not the one that was stored")
            return StoredAnswer(completion=Completion(**entry["answer"]), time=entry["time"], path=path)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProposalError(f"{path} is damaged ({type(error).__name__}: {error})") from error

    def store(
        self, settings: ModelSettings, messages: Sequence[dict[str, Any]], completion: Completion, time: str
    ) -> StoredAnswer:
        """Keep an answer; one that was there is replaced."""
        path = self.path(settings, messages)
        answer = dataclasses.asdict(completion)
        entry = {
            "format_version": FORMAT_VERSION,
            "time": time,
            "asked": _asked(settings, messages),
            "answer": answer,
            "answer_sha256": _digest(answer),
        }
        write_json(path, entry)
        return StoredAnswer(completion=completion, time=time, path=path)


def _asked(settings: ModelSettings, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What decides the answer, as plain data; a picture as the hash of its pixels."""
    return {
        "settings": dataclasses.asdict(settings),
        "schema_sha256": _digest(ANSWER_SCHEMA),
        "messages": [_without_pictures(one) for one in messages],
    }


def _without_pictures(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [_hashed(part) if part["type"] == "image_url" else part for part in content]}


def _hashed(part: dict[str, Any]) -> dict[str, str]:
    picture = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return {"type": "pixels_sha256", "pixels_sha256": pixels_digest(picture)}


@functools.lru_cache(maxsize=4)
def pixels_digest(picture: bytes) -> str:
    """SHA-256 of a picture's size and pixels: its file differs with the machine's zlib."""
    with Image.open(io.BytesIO(picture)) as image:
        pixels = image.convert("RGB")
    return hashlib.sha256(f"{pixels.width} x {pixels.height};".encode() + pixels.tobytes()).hexdigest()


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
