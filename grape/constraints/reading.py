"""Text to plain data: JSON, or YAML reduced to what JSON can say. The limits of a constraint file are here.

What comes out are mappings with text as keys, lists, text, finite numbers, true, false and null, at most
``MAX_NESTING`` deep. Keys that repeat, NaN, infinity, and YAML's anchors, aliases, tags and merge keys are refused.
"""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

from grape.errors import ConstraintError, shorten
from grape.optional import require

MAX_BYTES = 131_072
"""The largest file or answer; stages derived for LIBERO need less than a tenth of it."""
MAX_NESTING = 16
MAX_INTEGER = 10**15
MAX_LABEL_CHARACTERS = 500
"""Of a name or an instruction."""


def read_data(path: Path) -> Any:
    """Plain data from a ``.json`` file, or from YAML under any other name; a leading byte-order mark is skipped.

    Raises:
        ConstraintError: The file cannot be read, is too large or says what is not plain data; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConstraintError(f"{path}: cannot be read ({error})") from error
    try:
        _check_size(len(content))
        return (parse_json if path.suffix == ".json" else parse_yaml)(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConstraintError(f"{path}: cannot be read ({error}); save it as UTF-8") from error
    except ConstraintError as error:
        raise ConstraintError(f"{path}: {error}") from error


def parse_json(text: str) -> Any:
    """Plain data from strict JSON.

    Raises:
        ConstraintError: The text is too long, is not JSON, or says what is not plain data.
    """
    text = checked_text(text)
    try:
        data = json.loads(text, object_pairs_hook=_mapping)
    except ConstraintError:
        raise
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        hint = "; it ends too early, was it cut off?" if cut else ""
        raise ConstraintError(f"is not json ({error}){hint}") from error
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"is not json ({error})") from error
    _check_plain(data)
    return data


def parse_yaml(text: str) -> Any:
    """Plain data from YAML that says no more than JSON could.

    Raises:
        ConstraintError: The text is too long, is not YAML, or says what is not plain data.
    """
    yaml = require("yaml", extra="train")
    text = checked_text(text)
    try:
        data = _plain_loader()(text).get_single_data()
    except ConstraintError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise ConstraintError(f"is not yaml ({error})") from error
    _check_plain(data)
    return data


def checked_text(text: str) -> str:
    """The text less a leading byte-order mark; raises ``ConstraintError`` where it is larger than is read."""
    _check_size(len(text.encode("utf-8", "surrogatepass")))
    return text.removeprefix("\ufeff")


def check_label(text: str, what: str, limit: int = MAX_LABEL_CHARACTERS) -> None:
    """Raise ``ConstraintError`` unless a name or instruction can be shown to people: short, on one line, printable."""
    if len(text) > limit:
        raise ConstraintError(f"{what} has {len(text)} characters, at most {limit} are allowed")
    if not text.isprintable():
        raise ConstraintError(f"{what} must be printable text on one line, got {shorten(ascii(text))}")


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise ConstraintError(f"is larger than {MAX_BYTES} bytes, the most that is read")


def _mapping(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise ConstraintError(f"has the key {shorten(ascii(name))}, which is not text; write it in quotes")
        if name in data:
            raise ConstraintError(f"says {shorten(ascii(name))} twice in one mapping; say it once")
        data[name] = value
    return data


def _check_plain(data: Any, where: str = "", depth: int = 0) -> None:
    if depth > MAX_NESTING:
        raise ConstraintError(f"is nested deeper than {MAX_NESTING} levels")
    if isinstance(data, dict):
        for name, value in data.items():
            _check_plain(value, f"{where} {shorten(ascii(name))}", depth + 1)
    elif isinstance(data, list):
        for index, value in enumerate(data):
            _check_plain(value, f"{where}[{index}]", depth + 1)
    elif isinstance(data, float) and not math.isfinite(data):
        raise ConstraintError(f"has {data} at{where}; every number must be finite")
    elif isinstance(data, int) and abs(data) > MAX_INTEGER:
        raise ConstraintError(f"has a number beyond {MAX_INTEGER:g} at{where}")


_YAML_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,15})", "-+0123456789"),
    "float": (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
}
"""JSON's values, in YAML 1.2's core notation (but decimal): ``12:30``, ``yes`` and ``2024-01-01`` stay text."""


@functools.cache
def _plain_loader() -> Any:
    yaml = require("yaml", extra="train")

    class PlainLoader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """PyYAML's safe loader less all that can make a small file large, or a value other than it looks."""

        yaml_implicit_resolvers: dict[str, Any] = {}
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if getattr(event, "anchor", None) is not None:
                raise ConstraintError(f"has the anchor or alias {shorten(event.anchor)!r}; write the value out")
            if getattr(event, "tag", None) is not None:
                raise ConstraintError(f"is not yaml without tags (got {shorten(event.tag)!r})")
            self.depth += 1
            if self.depth > MAX_NESTING:  # before PyYAML's own scanner, which takes quadratic time, comes far
                raise ConstraintError(f"is nested deeper than {MAX_NESTING} levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            return _mapping(
                [
                    (self.construct_object(name, deep=True), self.construct_object(value, deep))
                    for name, value in node.value
                ]
            )

    for tag, (pattern, first) in _YAML_SCALARS.items():
        expression = re.compile(rf"(?:{pattern})\Z")
        PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", expression, [c.replace("\0", "") for c in first])
    return PlainLoader
