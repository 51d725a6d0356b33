"""Look at what changed: an animated picture of test states that failed before and succeeded after.

    python experiments/demo/before_after.py --run_dir runs/demo-full --out before_after.webp

Columns are tasks (the first state that changed for the better in each), the upper row is before, the lower one after.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import tyro
from PIL import Image

from grape.errors import ConfigError, GrapeError, RecordError
from grape.rollouts.video import LIBERO_CONTROL_HZ

ARMS = ("before", "after")


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


def changed_for_the_better(tasks: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(suite, beginning of the episode's id) of each task's first state that failed before and succeeded after."""
    found = []
    for task in tasks:
        outcomes = zip(task["init_states"], task["before"], task["after"], strict=True)
        state = next((name for name, before, after in outcomes if before is False and after is True), None)
        if state is not None:
            found.append((task["suite"], f"{task['suite']}--{task['task_id']:02d}--{state.replace('/', '-')}--"))
    return found


def read_panel(folder: Path, start: str, config: BeforeAfter) -> list[np.ndarray]:
    """Thinned-out pictures (S, S, 3) of the video whose name begins so; the last one is kept."""
    paths = sorted(folder.glob(f"{start}*.mp4"))
    if not paths:
        raise RecordError(f"{folder} has no video {start}*.mp4; it belongs to a run of grape demo")
    frames = [np.asarray(frame) for frame in imageio.get_reader(paths[0], "ffmpeg").iter_data()]
    shown = [*frames[: -1 : config.stride], *frames[-1:]]
    return [np.asarray(Image.fromarray(frame).resize((config.side, config.side))) for frame in shown]


def main(config: BeforeAfter) -> None:
    """Read result.json and the videos, write the picture."""
    try:
        tasks = json.loads((config.run_dir / "result.json").read_text())["tasks"]
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"{config.run_dir} holds no finished demo ({error}); finish it first") from error
    found = changed_for_the_better(tasks)
    if not found:
        raise RecordError(f"in {config.run_dir} no state failed before and succeeded after; there is nothing to show")
    rows = [
        [read_panel(config.run_dir / "evaluate" / arm / suite / "videos", start, config) for suite, start in found]
        for arm in ARMS
    ]
    length = max(len(panel) for row in rows for panel in row)
    pictures = [
        np.concatenate([np.concatenate([panel[min(t, len(panel) - 1)] for panel in row], axis=1) for row in rows])
        for t in range(length)
    ]
    first, *rest = map(Image.fromarray, pictures)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    milliseconds = round(1000 * config.stride / LIBERO_CONTROL_HZ)
    first.save(
        config.out,
        save_all=True,
        append_images=rest,
        duration=milliseconds,
        loop=0,
        quality=config.quality,
    )
    print(f"wrote {config.out}: {', '.join(start.rstrip('-') for _, start in found)}")


if __name__ == "__main__":
    try:
        main(tyro.cli(BeforeAfter))
    except GrapeError as problem:
        sys.exit(f"before_after.py: {problem}")
