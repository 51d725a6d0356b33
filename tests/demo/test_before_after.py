"""The picture of experiments/demo/before_after.py, from real videos."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grape.errors import RecordError
from grape.rollouts.video import write_video

TASKS = [
    {"suite": "s", "task_id": 1, "init_states": ["v/0", "v/1"], "before": [True, False], "after": [False, True]},
    {"suite": "s", "task_id": 2, "init_states": ["v/0", "v/1"], "before": [None, True], "after": [True, True]},
]


@pytest.fixture(name="script")
def fixture_script(repository: Path) -> dict[str, Any]:
    return runpy.run_path(str(repository / "experiments" / "demo" / "before_after.py"))


def test_the_first_state_that_changed_for_the_better_is_shown(script: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"tasks": TASKS}))
    for arm, level, length in (("before", 40, 9), ("after", 200, 4)):
        levels = level + 8 * np.arange(length)  # equal pictures would be stored as one
        pictures = np.broadcast_to(levels[:, None, None, None], (length, 32, 32, 3)).astype(np.uint8)
        write_video(tmp_path / "evaluate" / arm / "s" / "videos" / "s--01--v-1--r000--success.mp4", pictures)
    script["main"](script["BeforeAfter"](run_dir=tmp_path, out=tmp_path / "out.webp", side=32))
    with Image.open(tmp_path / "out.webp") as picture:
        assert picture.n_frames == 4 and picture.size == (32, 64)  # three of nine pictures, and the last
        shown = np.asarray(picture.convert("RGB"), float)
    assert shown[:32].mean() == pytest.approx(40, abs=12) and shown[32:].mean() == pytest.approx(200, abs=12)


def test_what_cannot_be_shown_is_said(script: dict[str, Any], tmp_path: Path) -> None:
    config = script["BeforeAfter"](run_dir=tmp_path, out=tmp_path / "out.webp")
    with pytest.raises(RecordError, match="no finished demo"):
        script["main"](config)
    (tmp_path / "result.json").write_text(json.dumps({"tasks": TASKS[1:]}))
    with pytest.raises(RecordError, match="nothing to show"):
        script["main"](config)
    (tmp_path / "result.json").write_text(json.dumps({"tasks": TASKS}))
    with pytest.raises(RecordError, match="no video"):
        script["main"](config)
