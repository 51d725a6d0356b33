"""From a model's answer to stage constraints: nothing in the text is trusted, and every problem is named.

The message of an error is written so that it can be sent back to the model as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grape.constraints.expression import Expression, compile_condition, compile_cost
from grape.constraints.ordering import Outline, ordering_problems
from grape.constraints.reading import check_label, checked_text, parse_json
from grape.constraints.stages import COSTS, MAX_STAGES, Stage, TaskConstraints, is_amount
from grape.constraints.units import check_threshold
from grape.errors import ConstraintError, did_you_mean, shorten

MAX_PROBLEMS = 10
MAX_NAME_CHARACTERS = 120
_CONDITIONS = ("done_when", "requires")


def _nullable(kind: str, description: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": description}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_STAGE_FIELDS = {
    "name": {"type": "string", "description": "Short and unique, e.g. 'grasp bowl'."},
    "done_when": {"type": "string", "description": "Condition: the stage is complete and the next one begins."},
    "requires": _nullable("string", "Condition to stay in the stage, e.g. that the object is still held."),
    "collision": _nullable("string", "Cost per step, 1 for unsafe contact, else 0."),
    "grasp": _nullable("string", "Cost per step, 1 while the object is not held as it should be, else 0."),
    "path": _nullable("string", "Cost per step: way travelled, m."),
    "sub_goal": _nullable("string", "Cost: how far the stage is from done, m; 0 when it is done."),
    "thresholds": {
        "anyOf": [
            _object({name: _nullable("number", f"Tolerated sum of {name} over the stage.") for name in COSTS}),
            {"type": "null"},
        ]
    },
}
ANSWER_SCHEMA: dict[str, Any] = _object({"stages": {"type": "array", "items": _object(_STAGE_FIELDS)}})
"""JSON schema of an answer, for structured output in strict mode: all properties required, optional ones nullable.

A stage is flat and has the fields of a constraint file, so that stored files serve as worked examples.
"""


def parse_answer(
    text: str,
    *,
    instruction: str,
    keypoint_names: tuple[str, ...],
    num_goals: int | None,
    source: str,
) -> TaskConstraints:
    """Check a model's answer and return the constraints that it states.

    Args:
        text: The answer as it came: strict JSON of the form ``ANSWER_SCHEMA``, bare or in one fenced block, which may
            have prose around it. Of an answer that begins with ``<think>``, what follows ``</think>`` is read.
            Fields that may be null may be left out.
        instruction: The task in words.
        keypoint_names: What the answer may refer to.
        num_goals: How many goal predicates the simulator judges; ``None`` (or 0) where there is no such verdict, and
            ``goal(i)`` may not be used.
        source: Name of the model.

    Raises:
        ConstraintError: With up to ``MAX_PROBLEMS`` problems, one per line, each naming stage and field, what is
            wrong and what is allowed.
    """
    reader = _Reader(keypoint_names, num_goals or 0)
    try:
        entries = _entries(parse_json(_unwrapped(text)))
    except ConstraintError as error:
        raise ConstraintError(f"the answer {error}") from error
    outlines = [reader.outline(index, entry) for index, entry in enumerate(entries)]
    reader.check_names(outlines)
    problems = [*reader.problems, *reader.unknown_keypoints(), *ordering_problems(outlines, num_goals)]
    if problems:
        raise ConstraintError(_listed(problems))
    stages = tuple(Stage(**_without_nulls(entry)) for entry in entries)
    return TaskConstraints(instruction=instruction, stages=stages, keypoint_names=keypoint_names, source=source)


def _unwrapped(text: str) -> str:
    """The JSON of an answer, without what chat models put around it."""
    text = checked_text(text).strip()
    if text.startswith("<think>"):
        text = text.partition("</think>")[2].strip()
    if not text:
        raise ConstraintError("is empty; answer with one JSON object that holds the list 'stages'")
    if text[0] in "{[":
        return text
    lines = text.split("\n")
    fences = [index for index, line in enumerate(lines) if line.lstrip().startswith("```")]
    if len(fences) == 2:
        return "\n".join(lines[fences[0] + 1 : fences[1]])
    if fences:
        raise ConstraintError(f"has {len(fences)} fence lines (```); put one JSON object into one fenced block")
    raise ConstraintError(
        f"is not json (it begins {shorten(text, 40)!a}); answer with one JSON object and nothing else"
    )


def _entries(data: Any) -> list[Any]:
    if not isinstance(data, dict):
        raise ConstraintError(f"must be one JSON object that holds the list 'stages', got {_kind(data)}")
    for name in data:
        if name != "stages":
            raise ConstraintError(f"has the field {shorten(ascii(name))}; 'stages' is the only one")
    stages = data.get("stages")
    if not isinstance(stages, list):
        raise ConstraintError(f"must hold the list 'stages', got {_kind(stages)}")
    if not 1 <= len(stages) <= MAX_STAGES:
        raise ConstraintError(f"has {len(stages)} stages; from 1 to {MAX_STAGES} are allowed")
    return stages


class _Reader:
    """Checks one stage after the other and remembers all that is wrong."""

    def __init__(self, keypoint_names: tuple[str, ...], num_goals: int) -> None:
        self.keypoint_names = keypoint_names
        self.num_goals = num_goals
        self.problems: list[str] = []
        self._unknown: dict[str, list[str]] = {}

    def outline(self, index: int, entry: Any) -> Outline:
        """What can be said about the order of one stage, after checking all of it."""
        label = f"stage {index + 1}"
        if not isinstance(entry, dict):
            self.problems.append(f"{label} must be an object with the fields {', '.join(_STAGE_FIELDS)}")
            return Outline(label=label, name="", done_when=None)
        name = self._name(label, entry)
        label = f"{label} {name!r}" if name else label
        # in the answer's own order, not a set's: the problems are part of the repair turn's name in the cache
        for field in (name for name in entry if name not in _STAGE_FIELDS):
            known = self._suggestion(field, _STAGE_FIELDS)
            self.problems.append(f"{label} has an unknown field {shorten(ascii(field))}.{known}")
        valid = {field: self._expression(label, field, entry.get(field)) for field in (*_CONDITIONS, *COSTS)}
        if entry.get("done_when") is None:
            self.problems.append(f"{label} lacks 'done_when', the condition that ends it")
        self._thresholds(label, entry.get("thresholds"), valid)
        done, required = (expression.source if expression else None for expression in map(valid.get, _CONDITIONS))
        return Outline(label=label, name=name, done_when=done, requires=required)

    def check_names(self, outlines: list[Outline]) -> None:
        """Names are unique."""
        names = [stage.name for stage in outlines if stage.name]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.problems.append(f"{names.count(name)} stages are called {name!r}; every name must be unique")

    def unknown_keypoints(self) -> list[str]:
        """One problem for each name, however often it was used."""
        return [
            f"{', '.join(places[:3])}: unknown keypoint {shorten(name)!r}."
            f"{did_you_mean(shorten(name), self.keypoint_names) if number < MAX_PROBLEMS else ''}"
            for number, (name, places) in enumerate(self._unknown.items())
        ]

    def _suggestion(self, got: str, known: Iterable[str]) -> str:
        """Nothing for a problem that is not shown: an answer may hold thousands, and comparing names takes time."""
        return did_you_mean(shorten(got), known) if len(self.problems) < MAX_PROBLEMS else ""

    def _name(self, label: str, entry: dict[str, Any]) -> str:
        name = entry.get("name")
        try:
            if not isinstance(name, str) or not name.strip():
                raise ConstraintError(f"must be text that is not empty, got {_kind(name)}")
            check_label(name, "it", MAX_NAME_CHARACTERS)
        except ConstraintError as error:
            self.problems.append(f"{label}, name: {error}")
            return ""
        return name

    def _expression(self, label: str, field: str, source: Any) -> Expression | None:
        if source is None:
            return None
        where = f"{label}, {field}"
        if not isinstance(source, str):
            self.problems.append(f"{where}: must be an expression as text, or null, got {_kind(source)}")
            return None
        try:
            expression = (compile_condition if field in _CONDITIONS else compile_cost)(source)
        except ConstraintError as error:
            self.problems.append(f"{where}: {error}")
            return None
        for name in sorted(expression.keypoints - set(self.keypoint_names)):
            self._unknown.setdefault(name, []).append(where)
        for index in sorted(expression.goals):
            if index >= self.num_goals:
                known = f"goals are numbered from 0 to {self.num_goals - 1}" if self.num_goals else "there are no goals"
                self.problems.append(f"{where}: goal({index}) does not exist; {known} in this task")
        return expression

    def _thresholds(self, label: str, thresholds: Any, costs: dict[str, Expression | None]) -> None:
        if thresholds is None:
            return
        where = f"{label}, thresholds"
        if not isinstance(thresholds, dict):
            self.problems.append(f"{where}: must be an object with some of {', '.join(COSTS)}, got {_kind(thresholds)}")
            return
        for name, value in thresholds.items():
            cost = costs.get(name)
            if name not in COSTS:
                known = self._suggestion(name, COSTS)
                self.problems.append(f"{where}: no cost is called {shorten(ascii(name))}.{known}")
            elif value is not None and not is_amount(value):
                self.problems.append(f"{where}: {name} must be a number from 0 to 1e6, or null, got {_kind(value)}")
            elif value is not None and cost is not None:
                try:
                    check_threshold(name, value, cost.quantity)
                except ConstraintError as error:
                    self.problems.append(f"{where}: {error}")


def _without_nulls(entry: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in entry.items() if value is not None}
    if "thresholds" in fields:
        fields["thresholds"] = _without_nulls(fields["thresholds"])
    return fields


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", type(None): "nothing"}
    return kinds.get(type(value)) or shorten(ascii(value))


def _listed(problems: list[str]) -> str:
    shown = [f"- {problem}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"- and {len(problems) - MAX_PROBLEMS} more")
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"the answer has {count}:", *shown])
