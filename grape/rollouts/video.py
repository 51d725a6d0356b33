"""Stored pictures as an mp4."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np

from grape.errors import RecordError
from grape.optional import require
from grape.trajectory import EpisodeInfo, Trajectory

LIBERO_CONTROL_HZ = 20
"""Of episodes whose simulator does not tell its own."""


def write_video(path: Path, images: np.ndarray, *, fps: float = LIBERO_CONTROL_HZ) -> None:
    """Write uint8 (T, H, W, 3) pictures as H.264 mp4; the file appears whole or not at all.

    Raises:
        RecordError: There are no pictures, or the file cannot be written.
    """
    if len(images) == 0:
        raise RecordError(f"no pictures to write to {path}: the episode ended before its first step")
    imageio = require("imageio.v2", extra="libero")
    require("imageio_ffmpeg", extra="libero")
    even = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]  # H.264's chroma needs even sides
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem}.{secrets.token_hex(8)}.tmp.mp4"  # not mkstemp's, which is private
    try:
        with imageio.get_writer(temporary, fps=fps, codec="libx264", macro_block_size=None, quality=8) as writer:
            for image in even:
                writer.append_data(image)
        os.replace(temporary, path)
    except OSError as error:
        raise RecordError(f"the video {path} could not be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def video_path(folder: Path, info: EpisodeInfo) -> Path:
    """Where an episode's video is: ``folder/<episode_id>--<status>.mp4``."""
    return folder / f"{info.episode_id}--{info.status}.mp4"


def write_episode_video(folder: Path, trajectory: Trajectory) -> Path:
    """Write what the policy saw in one episode, see ``video_path``."""
    path = video_path(folder, trajectory.info)
    write_video(path, trajectory.images, fps=trajectory.info.simulator_settings.get("control_hz", LIBERO_CONTROL_HZ))
    return path
