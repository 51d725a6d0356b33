"""What a model is shown of a task: a picture with numbered keypoints, their list, and the goals that it may ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from grape.constraints.drawing import draw_keypoints
from grape.constraints.functions import check_free_name
from grape.constraints.picture_files import read_picture
from grape.constraints.reading import check_label, parse_json
from grape.errors import ConfigError, ConstraintError
from grape.scene import SceneView
from grape.trajectory import encode_png

MAX_SIDE_PIXELS = 1536
"""Of the picture that is sent; larger ones are scaled down, which models do anyway."""
MAX_KEYPOINTS = 99


@dataclass(frozen=True, kw_only=True)
class SceneKeypoint:
    """A keypoint as far as it is known."""

    name: str
    pixel: tuple[float, float] | None = None
    """(column, row); ``None`` where it is unknown or outside the picture."""
    position_m: tuple[float, float, float] | None = None
    """World frame."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A task, its picture and what can be referred to."""

    task: str
    picture_png: bytes
    """With the markers, exactly as it is sent."""
    keypoints: tuple[SceneKeypoint, ...]
    """Pixels are those of ``picture_png``."""
    goals: tuple[str, ...] = ()
    """What the simulator judges, one text for each ``goal(i)``."""
    max_steps: int | None = None

    def __post_init__(self) -> None:
        names = self.keypoint_names
        if not 1 <= len(names) <= MAX_KEYPOINTS or len(set(names)) != len(names):
            raise ConfigError(f"got the keypoints {names}; want 1 to {MAX_KEYPOINTS} different names")
        if not self.task.strip():
            raise ConfigError("the task is empty; say it in a few words")
        try:
            for name in names:
                check_free_name(name)
            check_label(self.task, "the task")
        except ConstraintError as error:
            raise ConfigError(f"constraints could not be written: {error}") from error

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """In the order of the numbers on the picture."""
        return tuple(keypoint.name for keypoint in self.keypoints)

    def description(self) -> dict[str, Any]:
        """The scene as plain data, for the prompt."""
        return {
            "task": self.task,
            "keypoints": [_line(number, keypoint) for number, keypoint in enumerate(self.keypoints, start=1)],
            "goals": [f"goal({index}): {text}" for index, text in enumerate(self.goals)],
            "steps_in_an_attempt": self.max_steps,
        }


def scene_of_view(
    view: SceneView, task: str, goal_predicates: Sequence[Sequence[str]] = (), max_steps: int | None = None
) -> Scene:
    """A simulator's scene; every keypoint in the picture gets a marker, also where something stands before it."""
    pixels, depth_m = view.camera.project(view.keypoints_m)
    keypoints = [
        SceneKeypoint(
            name=name,
            pixel=_inside((float(pixel[0]), float(pixel[1])), view.image.shape) if depth > 0 else None,
            position_m=(float(position[0]), float(position[1]), float(position[2])),
        )
        for name, pixel, depth, position in zip(view.keypoint_names, pixels, depth_m, view.keypoints_m, strict=True)
    ]
    picture_png, marked = _marked(view.image, keypoints)
    goals = tuple(" ".join(predicate) for predicate in goal_predicates)
    return Scene(task=task, picture_png=picture_png, keypoints=marked, goals=goals, max_steps=max_steps)


def scene_of_picture(
    path: Path,
    task: str,
    keypoints: Sequence[SceneKeypoint],
    goal_predicates: Sequence[Sequence[str]] = (),
    max_steps: int | None = None,
) -> Scene:
    """The scene of a picture file; nothing of the file is sent but its pixels.

    Raises:
        RecordError: There is no such picture.
        ConfigError: Keypoints are outside it.
    """
    image = read_picture(path)
    for keypoint in keypoints:
        if keypoint.pixel is not None and _inside(keypoint.pixel, image.shape) is None:
            raise ConfigError(
                f"keypoint {keypoint.name!r} is at pixel {keypoint.pixel}, outside of {path} with "
                f"{image.shape[1]} x {image.shape[0]} pixels; are these the keypoints of another picture?"
            )
    picture_png, marked = _marked(image, keypoints)
    goals = tuple(" ".join(predicate) for predicate in goal_predicates)
    return Scene(task=task, picture_png=picture_png, keypoints=marked, goals=goals, max_steps=max_steps)


def read_keypoints(path: Path) -> tuple[SceneKeypoint, ...]:
    """Keypoints from a file of ``grape constraints keypoints``: a list of ``name``, ``pixel`` and ``position_m``.

    Raises:
        ConfigError: The file is missing or something else.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        entries = data["keypoints"] if isinstance(data, dict) else data
        return tuple(
            SceneKeypoint(name=entry["name"], pixel=_numbers(entry, "pixel"), position_m=_numbers(entry, "position_m"))
            for entry in entries
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no list of keypoints ({type(error).__name__}: {error}); "
            "make it with: grape constraints keypoints"
        ) from error


def _numbers(entry: dict[str, Any], name: str) -> Any:
    """Two or three numbers, or ``None`` where they are missing or not finite."""
    values = entry.get(name)
    if values is None or not all(value is not None and math.isfinite(value) for value in values):
        return None
    if len(values) != {"pixel": 2, "position_m": 3}[name]:
        raise ValueError(f"{name} of {entry['name']!r} has {len(values)} numbers")
    return tuple(float(value) for value in values)


def _inside(pixel: tuple[float, float], shape: tuple[int, ...]) -> tuple[float, float] | None:
    return pixel if 0 <= pixel[0] < shape[1] and 0 <= pixel[1] < shape[0] else None


def _marked(image: np.ndarray, keypoints: Sequence[SceneKeypoint]) -> tuple[bytes, tuple[SceneKeypoint, ...]]:
    """The picture with markers, and the keypoints with their pixels in it: drawing and sending change its size."""
    pixels = np.array([keypoint.pixel or (np.nan, np.nan) for keypoint in keypoints]).reshape(-1, 2)
    marked = Image.fromarray(draw_keypoints(image, pixels, [keypoint.name for keypoint in keypoints]))
    marked.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
    scale = marked.width / image.shape[1]
    scaled = (
        replace(one, pixel=None if one.pixel is None else (one.pixel[0] * scale, one.pixel[1] * scale))
        for one in keypoints
    )
    return encode_png(np.asarray(marked)), tuple(scaled)


def _line(number: int, keypoint: SceneKeypoint) -> dict[str, Any]:
    position = keypoint.position_m
    return {
        "number": number,
        "name": keypoint.name,
        "pixel": None if keypoint.pixel is None else [round(value) for value in keypoint.pixel],
        "position_m": None if position is None else [round(value, 3) for value in position],
    }
