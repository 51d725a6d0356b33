"""How far keypoints from pictures are from the objects' true positions, in simulated scenes.

Four ways to find them, on the same views:

* ``features``: clusters of the policy tower's features and of positions, inside each mask;
* ``untrained``: the same with a tower of random weights;
* ``positions``: the same without features, clusters of positions alone;
* ``centroids``: the mean of what is seen of each mask, one keypoint per object.

Prints a Markdown table, and writes it with every single distance as JSON.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from grape.constraints.drawing import draw_keypoints
from grape.constraints.keypoint_sources import (
    CentroidKeypoints,
    FeatureKeypoints,
    Keypoint,
    KeypointSource,
    true_distance_m,
)
from grape.constraints.masked_picture import MaskedPicture
from grape.envs import spawn
from grape.envs.protocol import InitStateId
from grape.envs.suites import find_simulator
from grape.files import write_bytes_atomic
from grape.models import load_policy, new_policy
from grape.models.features import patch_features
from grape.optional import installed_versions
from grape.scene import SceneView

CHECKPOINTS = {"libero": "experiments/demo/nano-libero", "simpler": "experiments/demo/nano-simpler"}
SCENES = (("libero_goal", 8), ("libero_goal", 3), ("libero_object", 0), ("libero_spatial", 0))
SCENES += tuple(("simpler_bridge", task_id) for task_id in range(4))
"""The LIBERO policy was trained in libero_goal's scene, the other two LIBERO scenes are new to it."""
FIXTURES = ("wooden_cabinet", "flat_stove", "wine_rack")
"""Furniture, whose origin lies anywhere in it, and its parts; what else there is can be moved."""
CM_PER_M = 100.0


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Compare keypoint sources with true positions."""

    out: Path
    """JSON to write."""
    picture: Path | None = None
    """Picture to write: one LIBERO scene and one SIMPLER scene with the keypoints of features."""
    num_states: int = 3
    """Initial states of the validation split for each task."""


def take_views(suite: str, task_id: int, states: Sequence[InitStateId]) -> list[SceneView]:
    """One view of each state, from one simulator."""
    env = find_simulator(suite).make_env(suite, task_id)
    try:
        views = []
        for state in states:
            env.reset(state)
            views.append(env.view())
        return views
    finally:
        env.close()


def make_sources() -> dict[str, dict[str, KeypointSource]]:
    """Simulator to the ways to find keypoints."""
    untrained = FeatureKeypoints(functools.partial(patch_features, new_policy("nano", seed=0)))
    others: dict[str, KeypointSource] = {
        "untrained": untrained,
        "positions": FeatureKeypoints(lambda image: np.ones((1, 1, 1))),
        "centroids": CentroidKeypoints(),
    }
    return {
        simulator: {"features": FeatureKeypoints(functools.partial(patch_features, load_policy(folder)))} | others
        for simulator, folder in CHECKPOINTS.items()
    }


def describe(keypoints: Sequence[Keypoint], picture: MaskedPicture) -> list[dict[str, Any]]:
    """Of each keypoint its mask, and how far and in which direction it is from its object's true position."""
    rows = []
    for keypoint in keypoints:
        distance_m = true_distance_m(keypoint, picture)
        if distance_m is None:
            continue
        offset_m = np.array(keypoint.position_m) - picture.true_positions_m[keypoint.mask]
        rows.append(
            {
                "mask": keypoint.mask,
                "distance_cm": round(distance_m * CM_PER_M, 2),
                "offset_cm": np.round(offset_m * CM_PER_M, 2).tolist(),
            }
        )
    return rows


def group_of(suite: str, mask: str) -> str:
    """In which part of the table an object stands."""
    return f"{find_simulator(suite).name.upper()}, {'fixtures' if mask.startswith(FIXTURES) else 'objects'}"


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Distances of all keypoints, sideways and upwards, and to the same object's keypoints in another state."""
    offsets = np.array([row["offset_cm"] for row in rows])
    distances, sideways = np.array([row["distance_cm"] for row in rows]), np.linalg.norm(offsets[:, :2], axis=1)
    numbers = {
        "median_cm": np.median(distances),
        "p90_cm": np.quantile(distances, 0.9),
        "sideways_median_cm": np.median(sideways),
        "sideways_p90_cm": np.quantile(sideways, 0.9),
        "above_median_cm": np.median(offsets[:, 2]),
        "again_median_cm": np.median(found_again(rows)),
    }
    return {"n": len(rows)} | {name: round(float(value), 2) for name, value in numbers.items()}


def found_again(rows: Sequence[dict[str, Any]]) -> list[float]:
    """For each keypoint, how far the nearest one of the same object in another state of its task is, cm.

    Both relative to the object's true position, in world axes: an object that was turned counts against it.
    """
    offsets: dict[tuple[str, int, str], dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        offsets[row["suite"], row["task_id"], row["mask"]][row["init_state"]].append(np.array(row["offset_cm"]))
    return [
        float(np.linalg.norm(np.stack(there) - offset, axis=1).min())
        for states in offsets.values()
        for here in states
        for other, there in states.items()
        if other != here
        for offset in states[here]
    ]


def table(scenes: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Markdown, and the same numbers."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for scene in scenes:
        place = {name: scene[name] for name in ("suite", "task_id", "init_state")}
        for source, rows in scene["sources"].items():
            for row in rows:
                groups[group_of(scene["suite"], row["mask"])][source].append(row | place)
    numbers = {
        group: {source: summarize(rows) for source, rows in sources.items()} for group, sources in groups.items()
    }
    lines = ["| | source | n | median | 90 % | sideways: median | 90 % | above: median | found again |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for group, sources in numbers.items():
        for source, row in sources.items():
            cells = (str(value) if name == "n" else f"{value:.1f}" for name, value in row.items())
            lines.append(f"| {group} | {source} | {' | '.join(cells)} |")
    return "\n".join(lines), numbers


def main(config: MeasureConfig) -> None:
    """Look at every scene, find keypoints in every way, compare."""
    sources = make_sources()
    found: list[dict[str, Any]] = []
    drawn: dict[str, tuple[np.ndarray, list[Keypoint]]] = {}
    states = [InitStateId("validation", index) for index in range(config.num_states)]
    for suite, task_id in SCENES:
        ways = sources[find_simulator(suite).name]
        for state, view in zip(states, spawn.call(take_views, suite, task_id, states), strict=True):
            picture = MaskedPicture.from_view(view)
            keypoints = {name: source.keypoints(picture) for name, source in ways.items()}
            rows = {name: describe(points, picture) for name, points in keypoints.items()}
            found.append({"suite": suite, "task_id": task_id, "init_state": str(state), "sources": rows})
            drawn.setdefault(suite, (picture.image, keypoints["features"]))
    text, numbers = table(found)
    versions = installed_versions(("numpy", "torch", "mujoco", "mani-skill", "sapien"))
    content = {"versions": versions, "checkpoints": CHECKPOINTS, "summary": numbers, "scenes": found}
    write_bytes_atomic(config.out, (json.dumps(content, separators=(",", ":")) + "\n").encode())
    if config.picture is not None:
        write_picture(config.picture, [drawn[suite] for suite in ("libero_goal", "simpler_bridge")])
    print(text)


def write_picture(path: Path, pictures: Sequence[tuple[np.ndarray, Sequence[Keypoint]]]) -> None:
    """Side by side, of the same height."""
    drawn = [
        Image.fromarray(draw_keypoints(image, np.array([point.pixel for point in points]), [""] * len(points)))
        for image, points in pictures
    ]
    height = min(image.height for image in drawn)
    drawn = [image.resize((round(image.width * height / image.height), height)) for image in drawn]
    joined = Image.new("RGB", (sum(image.width for image in drawn), height))
    left = 0
    for image in drawn:
        joined.paste(image, (left, 0))
        left += image.width
    joined.save(path, format="WEBP", quality=75)


if __name__ == "__main__":
    main(tyro.cli(MeasureConfig, config=(tyro.conf.FlagConversionOff,), use_underscores=True))
