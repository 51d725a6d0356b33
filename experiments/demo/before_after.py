"""Look at what changed: an animated picture of test states that failed before and succeeded after.

    python experiments/demo/before_after.py --run_dir runs/demo-full --out before_after.webp

Columns are tasks (the first state that changed for the better in each), the upper row is before, the lower one after.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import tyro
from PIL import Image

from grape.demo.evidence import Video, example_videos
from grape.demo.pipeline import AFTER, BEFORE, Layout
from grape.demo.plan import parse_plan
from grape.errors import ConfigError, GrapeError, RecordError

CHANGE = [(BEFORE, "failure"), (AFTER, "success")]


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """Put videos of a demo's run beside each other."""

    run_dir: Path
    """Folder of a finished ``grape demo``."""
    out: Path
    """Picture to write, .webp or .gif."""
    stride: int = 3
    """Every so many pictures of the videos are shown."""
    side: int = 168
    """Of one panel, pixels."""
    quality: int = 60
    """Of a .webp, 0 to 100."""

    def __post_init__(self) -> None:
        if self.out.suffix not in (".webp", ".gif"):
            raise ConfigError(f"out is {self.out}; its name must end in .webp or .gif")
        if self.stride < 1 or self.side < 16:
            raise ConfigError(f"stride is {self.stride} (at least 1), side {self.side} (at least 16)")


def changed_states(run_dir: Path) -> list[list[Video]]:
    """Of each task that has one, the videos before and after of the first state that changed for the better.

    Raises:
        RecordError: There is no finished demo, or no such state.
    """
    path = run_dir / "result.json"
    try:
        result = json.loads(path.read_text())
        layout = Layout(run_dir=run_dir, plan=parse_plan(result["plan"], str(path)))
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"{run_dir} holds no finished demo ({error}); finish it first") from error
    arms = {"arms": [arm for arm, _ in CHANGE]}
    found = [example_videos(layout, result | arms | {"tasks": [row]}) for row in result["tasks"]]
    found = [videos for videos in found if [(video.arm, video.status) for video in videos] == CHANGE]
    if not found:
        raise RecordError(f"{run_dir} has no videos of a state that failed before and succeeded after: nothing to show")
    return found


def read_panel(path: Path, config: BeforeAfter) -> tuple[list[np.ndarray], float]:
    """Thinned-out pictures (S, S, 3) of a video, the last one kept, and how many the video shows per second."""
    with imageio.get_reader(path, "ffmpeg") as reader:
        fps = reader.get_meta_data()["fps"]
        frames = [np.asarray(frame) for frame in reader.iter_data()]
    shown = [*frames[: -1 : config.stride], *frames[-1:]]
    return [np.asarray(Image.fromarray(frame).resize((config.side, config.side))) for frame in shown], fps


def main(config: BeforeAfter) -> None:
    """Read result.json and the videos, write the picture."""
    found = changed_states(config.run_dir)
    panels = [[read_panel(video.path, config) for video in videos] for videos in found]
    length = max(len(frames) for column in panels for frames, _ in column)
    pictures = [
        np.concatenate(
            [np.concatenate([frames[min(t, len(frames) - 1)] for frames, _ in column]) for column in panels], axis=1
        )
        for t in range(length)
    ]
    first, *rest = map(Image.fromarray, pictures)
    _, fps = panels[0][0]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    first.save(
        config.out,
        save_all=True,
        append_images=rest,
        duration=round(1000 * config.stride / fps),
        loop=0,
        quality=config.quality,
    )
    print(f"wrote {config.out}: {', '.join(f'{v.suite} {v.task_id} {v.state}' for v, _ in found)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(BeforeAfter))
    except GrapeError as problem:
        sys.exit(f"before_after.py: {problem}")
