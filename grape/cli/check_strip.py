"""The picture strip of ``grape constraints check``: one success and one failure, with stage, costs and keypoints."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from grape.config.score import GuidedCostConfig
from grape.constraints import COSTS, StageTrace, TaskConstraints, evaluate_stages
from grape.constraints.drawing import draw_keypoints
from grape.constraints.facts import FactTable
from grape.demo.pictures import strip_steps
from grape.envs.protocol import InitStateId
from grape.envs.spawn import call
from grape.envs.view import take_view
from grape.errors import GrapeError, RecordError
from grape.files import write_bytes_atomic
from grape.rewards import stage_costs
from grape.scene import SceneView
from grape.trajectory import EpisodeInfo, Trajectory, load_trajectory

NUM_FRAMES, NUM_COLUMNS = 8, 4
_SIDE, _TEXT_HEIGHT, _FONT_SIZE = 320, 54, 13


def write_strip(
    path: Path, episodes: Mapping[Path, EpisodeInfo], constraints: TaskConstraints, settings: GuidedCostConfig
) -> str:
    """Draw one success and one failure, of the same initial state where there is one, into one picture.

    Args:
        path: ``.webp`` or ``.png``.
        episodes: Finished episodes of one task.
        constraints: Their stages.
        settings: τ and β of the costs that are written beside the frames.

    Returns:
        What was drawn, and why keypoints are missing where they are.

    Raises:
        RecordError: The picture cannot be written, or an episode has no pictures.
        ConstraintError: The constraints cannot be evaluated on an episode.
    """
    chosen = choose_episodes(episodes)
    shown = sorted(set().union(*(one.keypoints for stage in constraints.stages for one in stage.expressions())))
    info = episodes[chosen[0]]
    names = [name for name in shown if name in info.keypoint_names or name in constraints.points]
    view, missing = _look(info)
    lines = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
    legend = f"{constraints.instruction} | " + (missing if view is None else ", ".join(lines))
    blocks = [_line(NUM_COLUMNS * _SIDE, legend)]
    for one in chosen:
        trajectory = load_trajectory(one)
        blocks += [_line(NUM_COLUMNS * _SIDE, f"{trajectory.info.status}: {trajectory.info.episode_id}")]
        blocks += _rows(frames(trajectory, constraints, settings, view, names))
    picture = Image.fromarray(np.concatenate(blocks))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP" if path.suffix == ".webp" else "PNG", quality=85)
    write_bytes_atomic(path, buffer.getvalue())
    drawn = " and ".join(f"{episodes[one].status} {episodes[one].episode_id}" for one in chosen)
    return f"wrote {path}: {drawn}; " + (missing if view is None else f"marked {', '.join(lines)}")


def choose_episodes(episodes: Mapping[Path, EpisodeInfo]) -> list[Path]:
    """A success and a failure from the same initial state if there are such, else the first of each kind there is."""
    by_status = {kind: [one for one in episodes if episodes[one].status == kind] for kind in ("success", "failure")}
    for won in by_status["success"]:
        for lost in by_status["failure"]:
            if episodes[won].init_state_hash == episodes[lost].init_state_hash:
                return [won, lost]
    return [found[0] for found in by_status.values() if found]


def frames(
    trajectory: Trajectory,
    constraints: TaskConstraints,
    settings: GuidedCostConfig,
    view: SceneView | None,
    names: Sequence[str],
) -> list[np.ndarray]:
    """Evenly spaced frames, each (H, W, 3) uint8 with its stage and what the stage has cost so far written below.

    Raises:
        RecordError: The episode has no pictures.
    """
    info = trajectory.info
    if info.num_steps == 0:
        raise RecordError(f"{info.episode_id} ended before its first step, so it has no picture; choose another run")
    thresholds = [stage.thresholds for stage in constraints.stages]
    drawn = []
    for step in strip_steps(info.num_steps, NUM_FRAMES):
        so_far = {name: values[: step + 1] for name, values in trajectory.facts.items()}
        trace = evaluate_stages(constraints, so_far, info.keypoint_names)
        image = trajectory.images[step]
        if view is not None:
            table = FactTable(so_far, info.keypoint_names, constraints.points)
            positions_m = [table.column("keypoints", name)[step] for name in names]
            pixels = _project(view, np.array(positions_m).reshape(-1, 3), image.shape)
            image = draw_keypoints(image, pixels, [""] * len(names))
        text = _caption(trace, stage_costs(trace.costs, settings, thresholds))
        drawn.append(_with_text(image, f"step {step}: {text}"))
    return drawn


def _look(info: EpisodeInfo) -> tuple[SceneView | None, str]:
    """The camera that saw the episodes; ``None`` and the reason where its simulator cannot be started here."""
    try:
        return call(take_view, info.suite, info.task_id, InitStateId.parse(info.init_state_id)), ""
    except GrapeError as error:
        return None, f"no keypoints drawn: {error}"


def _project(view: SceneView, points_m: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(K, 2) pixels in a stored picture, which is the view's resized; nan behind the camera."""
    pixels, depth = view.camera.project(points_m)
    height, width = view.image.shape[:2]
    scaled = pixels * [shape[1] / width, shape[0] / height]
    return np.where(depth[:, None] > 0, scaled, np.nan)


def _caption(trace: StageTrace, charged: np.ndarray) -> str:
    """The current stage, C_s of all stages so far, and what the stage accumulated."""
    stage = int(trace.stage[-1])
    if stage == len(trace.stage_names):
        return f"all done, C = {charged[trace.reached].sum():.2f}"
    costs = ", ".join(f"{name} {trace.costs[name][stage]:.3g}" for name in COSTS)
    return f"{trace.stage_names[stage]}\nC = {charged[trace.reached].sum():.2f}\n{costs}"


def _with_text(image: np.ndarray, text: str) -> np.ndarray:
    canvas = Image.new("RGB", (_SIDE, _SIDE + _TEXT_HEIGHT), "white")
    canvas.paste(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (0, 0))
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(canvas).multiline_text((4, _SIDE + 2), text, fill="black", font=font, spacing=2)
    return np.asarray(canvas)


def _line(width: int, text: str) -> np.ndarray:
    canvas = Image.new("RGB", (width, _FONT_SIZE + 12), "white")
    ImageDraw.Draw(canvas).text((4, 4), text, fill="black", font=ImageFont.load_default(_FONT_SIZE + 2))
    return np.asarray(canvas)


def _rows(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rows of ``NUM_COLUMNS`` pictures; the last one is filled with white."""
    padded = [*pictures, *[np.full_like(pictures[0], 255)] * (-len(pictures) % NUM_COLUMNS)]
    return [np.concatenate(padded[i : i + NUM_COLUMNS], axis=1) for i in range(0, len(padded), NUM_COLUMNS)]
