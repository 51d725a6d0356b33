"""From a model's answer to stage constraints: nothing in the text is trusted, and every problem is named.

The message of an error is written so that it can be sent back to the model as it is.
"""

from __future__ import annotations

from typing import Any

from grape.constraints.reading import parse_json
from grape.constraints.stages import COSTS, Stage, TaskConstraints

MAX_PROBLEMS = 10


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
        text: The answer, as it came: JSON of the form ``ANSWER_SCHEMA``, bare or in one fenced block.
        instruction: The task in words.
        keypoint_names: What the answer may refer to.
        num_goals: How many goal predicates the simulator judges; ``None`` (or 0) where there is no such verdict, and
            ``goal(i)`` may not be used.
        source: Name of the model.

    Raises:
        ConstraintError: With up to ``MAX_PROBLEMS`` problems, one per line, each naming stage and field, what is
            wrong and what is allowed.
    """
    data = parse_json(text)
    stages = tuple(
        Stage(**{name: value for name, value in stage.items() if value is not None}) for stage in data["stages"]
    )
    return TaskConstraints(instruction=instruction, stages=stages, keypoint_names=keypoint_names, source=source)
