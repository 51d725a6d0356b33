"""Stage constraints as plain data, and their JSON or YAML files.

Units: metres, radians, steps. A cost expression is satisfied when <= 0; what exceeds 0 accumulates over the
stage's steps. Expressions are in the language of ``expression.py`` and are compiled when a stage is made, so that
a constraint that exists is a constraint that parses.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grape.constraints.expression import Expression, compile_condition, compile_cost
from grape.constraints.functions import LOOKUPS, check_free_name
from grape.constraints.points import MAX_POINTS, Point, check_point_name
from grape.constraints.reading import check_label, read_data
from grape.constraints.units import check_threshold
from grape.errors import ConstraintError, did_you_mean, shorten

COSTS = ("collision", "grasp", "path", "sub_goal")
"""The four kinds of cost. The first three accumulate over a stage's steps; ``sub_goal`` is its smallest residual."""
CONDITIONS = ("done_when", "requires", "begins_when")
MAX_STAGES = 64


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a task."""

    name: str
    """Unique in the task, e.g. ``"grasp akita_black_bowl_1"``."""
    subtask: str = ""
    """Stages with the same label, which must be neighbours, run in order; subtasks may run in any order."""
    done_when: str
    """Condition: the stage is complete, the next one begins."""
    requires: str | None = None
    """Condition to stay in the stage; when it fails for ``patience_steps`` rows (the object was dropped), the
    subtask falls back to its latest earlier stage whose own condition holds. ``None``: nothing is required."""
    begins_when: str | None = None
    """Condition, on a subtask's first stage: the robot has turned to this subtask, whatever the order of the list."""
    sub_goal: str | None = None
    """Cost: how far the stage is from done, m; the smallest value over the stage's rows counts."""
    collision: str | None = None
    """Cost per step: unsafe contact, usually 1 or 0; the sum is a number of steps."""
    grasp: str | None = None
    """Cost per step: the object is not held as it should be, usually 1 or 0."""
    path: str | None = None
    """Cost per step: way travelled, m; the sum is a length."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Tolerated amount τ for some of the costs, in the unit of their sum; replaces the score configuration's τ."""

    def __post_init__(self) -> None:
        unknown = set(self.thresholds) - set(COSTS)
        if unknown:
            name = min(unknown)
            raise ConstraintError(
                f"stage {self.name!r}: no cost is called {shorten(name)!r}.{did_you_mean(shorten(name), COSTS)}"
            )
        try:
            for name in COSTS:
                expression = self.cost(name)
                if expression is not None and name in self.thresholds:
                    check_threshold(name, self.thresholds[name], expression.quantity)
            for name in CONDITIONS:
                self.condition(name)
        except ConstraintError as error:
            raise ConstraintError(f"stage {self.name!r}: {error}") from error

    def cost(self, name: str) -> Expression | None:
        """The compiled cost ``name``, one of ``COSTS``."""
        source = getattr(self, name)
        return None if source is None else compile_cost(source)

    def condition(self, name: str) -> Expression | None:
        """The compiled condition ``name``, one of ``CONDITIONS``."""
        source = getattr(self, name)
        return None if source is None else compile_condition(source)

    def expressions(self) -> list[Expression]:
        """Every expression that the stage states."""
        found = [self.cost(name) for name in COSTS] + [self.condition(name) for name in CONDITIONS]
        return [expression for expression in found if expression is not None]


@dataclass(frozen=True, kw_only=True)
class TaskConstraints:
    """The stages of one task, in their usual order."""

    instruction: str
    stages: tuple[Stage, ...]
    keypoint_names: tuple[str, ...] = ()
    """Names of the columns of the facts, in their order; empty where the order is only known with an episode."""
    points: Mapping[str, Point] = field(default_factory=dict)
    """Further points by name, fixed to an object or in the world; expressions use them as positions."""
    patience_steps: int = 3
    """Rows for which a requirement must fail before the stage falls back; contact facts flicker for one or two."""
    source: str = "file"
    """Who wrote them: ``"bddl"``, ``"shipped"``, ``"file"`` or the name of a model."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.stages) <= MAX_STAGES:
            raise ConstraintError(
                f"{self.instruction!r} has {len(self.stages)} stages; from 1 to {MAX_STAGES} are allowed"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ConstraintError(f"{self.instruction!r}: stage names repeat: {names}")
        labels = [stage.subtask for stage in self.stages]
        changes = sum(1 for before, after in zip(labels, labels[1:], strict=False) if before != after)
        if changes + 1 != len(set(labels)):
            raise ConstraintError(f"{self.instruction!r}: stages of one subtask must be neighbours, got {labels}")
        if self.patience_steps < 1:
            raise ConstraintError(f"patience_steps must be at least 1, got {self.patience_steps}")
        self._check_points()
        if self.keypoint_names:
            self.check_keypoints(self.keypoint_names)

    def _check_points(self) -> None:
        if len(self.points) > MAX_POINTS:
            raise ConstraintError(f"{len(self.points)} points, at most {MAX_POINTS} are allowed")
        for name, point in self.points.items():
            check_free_name(name)
            if point.of in self.points:
                raise ConstraintError(f"point {name!r} is fixed to {point.of!r}, another point; name an object instead")
        for stage in self.stages:
            for expression in stage.expressions():
                _refuse_facts_of_points(stage, expression, self.points)

    def check_keypoints(self, keypoint_names: tuple[str, ...]) -> None:
        """Raise ``ConstraintError`` for the first point or expression about a keypoint outside ``keypoint_names``."""
        for name, point in self.points.items():
            if name in keypoint_names:
                raise ConstraintError(f"point {name!r}: there is a keypoint of that name; choose another one")
            if point.of is not None and point.of not in keypoint_names:
                hint = did_you_mean(point.of, keypoint_names)
                raise ConstraintError(f"point {name!r} is fixed to an unknown keypoint {point.of!r}.{hint}")
        known = {*keypoint_names, *self.points}
        for stage in self.stages:
            for expression in stage.expressions():
                for name in sorted(expression.keypoints - known):
                    raise ConstraintError(
                        f"stage {stage.name!r}, {expression.source!r}: unknown keypoint {name!r}."
                        f"{did_you_mean(name, known)}"
                    )

    def about(self, instruction: str, keypoint_names: tuple[str, ...]) -> TaskConstraints:
        """The same stages of a task with another instruction and other objects, which take the places of these.

        Points keep their offsets: where an object has another shape, they are not at the same part of it.

        Raises:
            ConstraintError: The numbers of keypoints differ.
        """
        if len(keypoint_names) != len(self.keypoint_names):
            raise ConstraintError(
                f"{self.instruction!r} is about {self.keypoint_names}, {instruction!r} about {keypoint_names}: "
                "there have to be as many"
            )
        new = dict(zip(self.keypoint_names, keypoint_names, strict=True))
        names = re.compile(rf"\b({'|'.join(map(re.escape, new))})\b")  # at once: they may change places

        def renamed(stage: Stage) -> Stage:
            sources = {name: getattr(stage, name) for name in (*COSTS, *CONDITIONS)}
            changed: Any = {
                name: names.sub(lambda found: new[found[0]], text) for name, text in sources.items() if text
            }
            return dataclasses.replace(stage, **changed)

        stages = tuple(map(renamed, self.stages))
        points = {
            name: dataclasses.replace(point, of=new.get(point.of or "", point.of))
            for name, point in self.points.items()
        }
        return dataclasses.replace(
            self, instruction=instruction, keypoint_names=keypoint_names, stages=stages, points=points
        )

    @classmethod
    def from_dict(cls, data: Any) -> TaskConstraints:
        """From plain data, as a file holds it.

        Raises:
            ConstraintError: A field is missing, unknown or of the wrong type, or an expression does not compile.
        """
        fields = dict(_checked_fields(cls, data, "constraints"))
        stages = fields["stages"]
        if not isinstance(stages, (list, tuple)):
            raise ConstraintError(f"'stages' must be a list, got {type(stages).__name__}")
        fields["stages"] = tuple(Stage(**_checked_fields(Stage, stage, f"stage {i}")) for i, stage in enumerate(stages))
        fields["keypoint_names"] = tuple(fields.get("keypoint_names", ()))
        fields["points"] = _parse_points(fields.get("points", {}))
        return cls(**fields)


def load_constraints(path: Path) -> TaskConstraints:
    """Read constraints from ``.json`` or ``.yaml``.

    Raises:
        ConstraintError: The file cannot be read, parsed or compiled; the message names it.
    """
    data = read_data(path)
    try:
        return TaskConstraints.from_dict(data)
    except ConstraintError as error:
        raise ConstraintError(f"{path}: {error}") from error


def _refuse_facts_of_points(stage: Stage, expression: Expression, points: Mapping[str, Point]) -> None:
    """A point can be grasped or touched as little as a place; its object can."""
    if not points.keys() & expression.keypoints:
        return
    for node in ast.walk(ast.parse(expression.source.strip(), mode="eval")):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", None) not in LOOKUPS.keys() - {"keypoint"}:
            continue
        for argument in node.args:
            name = argument.id if isinstance(argument, ast.Name) else getattr(argument, "value", None)
            if isinstance(name, str) and name in points:
                of = points[name].of
                advice = "it is a place in the world" if of is None else f"ask about its object, {of!r}"
                raise ConstraintError(
                    f"stage {stage.name!r}: {ast.unparse(node)} asks about a point, which has a position only; {advice}"
                )


def _parse_points(data: Any) -> dict[str, Point]:
    if not isinstance(data, Mapping):
        raise ConstraintError(f"'points' must map names to points, got {type(data).__name__}")
    points = {}
    for name, declared in data.items():
        check_point_name(name)
        try:
            points[name] = Point(**_checked_fields(Point, declared, "it"))
        except ConstraintError as error:
            raise ConstraintError(f"point {name!r}: {error}") from error
    return points


_LABELS = ("name", "subtask", "instruction", "source")
_TEXT_FIELDS = (*_LABELS, *COSTS, *CONDITIONS)


def _checked_fields(owner: Any, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ConstraintError(f"{where} must be a mapping of fields, got {type(data).__name__}")
    fields = {spec.name: spec for spec in dataclasses.fields(owner)}
    for name, value in data.items():
        if name not in fields:
            raise ConstraintError(
                f"{where} has an unknown field {shorten(name)!r}.{did_you_mean(shorten(name), fields)}"
            )
        if name in _TEXT_FIELDS and not isinstance(value, str):
            raise ConstraintError(f"{where}: {name!r} must be text, got {type(value).__name__}")
        if name in _LABELS:
            check_label(value, f"{where}: {name!r}")
        if name == "patience_steps" and type(value) is not int:
            raise ConstraintError(f"{where}: 'patience_steps' must be a whole number, got {shorten(repr(value))}")
        if name == "keypoint_names" and not _is_list_of_text(value):
            raise ConstraintError(f"{where}: 'keypoint_names' must be a list of names")
        if name == "thresholds" and not _is_numbers(value):
            raise ConstraintError(
                f"{where}: 'thresholds' must map cost names to numbers >= 0 and <= 1e6, got {shorten(repr(value))}"
            )
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConstraintError(f"{where} lacks the field {name!r}")
    return dict(data)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_numbers(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(is_amount(number) for number in value.values())


def is_amount(value: Any) -> bool:
    """Whether a value can be a threshold: a number from 0 to 1e6."""
    return type(value) in (int, float) and 0 <= value <= 1e6
