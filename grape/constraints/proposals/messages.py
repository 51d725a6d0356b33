"""What a model is told: the prompts of ``prompts/<version>/`` with the scene, the language and the objective filled in.

The tables of names and functions are made from the language's own, so that a prompt cannot promise what does not exist.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from string import Template
from typing import Any

from grape.constraints.expression import MAX_CHARACTERS, MAX_NODES
from grape.constraints.functions import FUNCTIONS, LOOKUPS, NAMES, SPECIAL_FORMS
from grape.constraints.proposals.scene import Scene

PROMPT_VERSION = "v1"
FOLDER = Path(__file__).with_name("prompts") / PROMPT_VERSION
EXAMPLES = ("libero", "simpler")
LARGEST_QUOTE = 20_000
"""Characters of an unusable answer that are sent back."""
_SPECIAL_ARGUMENTS = {"where": "condition, value, value", "start": "value", "previous": "value"}


def first_messages(scene: Scene, objective: str) -> list[dict[str, Any]]:
    """The conversation up to the model's first answer, as the chat-completions protocol has it."""
    task = _template("task.txt").substitute(
        scene=json.dumps(scene.description(), indent=1), objective=_text(f"objective_{objective}.txt").strip()
    )
    picture = base64.b64encode(scene.picture_png).decode()
    content = [
        {"type": "text", "text": task},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    return [{"role": "system", "content": system_prompt()}, {"role": "user", "content": content}]


def repair_messages(messages: list[dict[str, Any]], answer: str, problems: str) -> list[dict[str, Any]]:
    """The conversation up to the second answer: the first one, and what is wrong with it."""
    return [
        *messages,
        {"role": "assistant", "content": answer[:LARGEST_QUOTE]},
        {"role": "user", "content": _template("repair.txt").substitute(problems=problems)},
    ]


def readable(messages: list[dict[str, Any]]) -> str:
    """The texts that are sent, for a user to look at; pictures are named only."""
    parts = []
    for message in messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part.get("text", "[the picture]") for part in content]
        parts.append(f"=== {message['role']} ===\n" + "\n".join(texts))
    return "\n\n".join(parts) + "\n"


def system_prompt() -> str:
    """The role, the form of an answer, the language with all its words, and the examples."""
    return _template("system.txt").substitute(
        names=_table(dict.fromkeys(NAMES, "")),
        functions=_table(signatures()),
        examples="\n\n".join(_example(name) for name in EXAMPLES),
        max_characters=MAX_CHARACTERS,
        max_nodes=MAX_NODES,
    )


def signatures() -> dict[str, str]:
    """Every function of the language with the kinds of its arguments and of its value."""
    found = {}
    for name, lookup in LOOKUPS.items():
        argument = "number" if lookup.argument == "goal" else "keypoint"
        found[name] = f"({argument}{', …' if lookup.variadic else ''}) -> {lookup.result}"
    for name, function in FUNCTIONS.items():
        found[name] = f"({', '.join(function.arguments)}{', …' if function.variadic else ''}) -> {function.result}"
    found |= {name: f"({_SPECIAL_ARGUMENTS[name]}) -> the same kind" for name in SPECIAL_FORMS}
    return found


def worked_example(name: str) -> dict[str, Any]:
    """A scene, an objective and an answer to them, written by hand."""
    return json.loads(_text(f"example_{name}.json"))


def _example(name: str) -> str:
    example = worked_example(name)
    return (
        f"Objective {example['objective']}, scene:\n{json.dumps(example['scene'])}\n"
        f"Answer:\n{json.dumps(example['answer'], indent=1)}"
    )


def _table(forms: dict[str, str]) -> str:
    words = dict(line.split(": ", 1) for line in _text("words.txt").splitlines())
    return "\n".join(f"- {name}{form}: {words[name]}" for name, form in forms.items())


def _template(name: str) -> Template:
    return Template(_text(name))


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
