"""The picture of experiments/demo/before_after.py, from stored episodes and real videos."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grape.demo.pipeline import Layout
from grape.demo.plan import parse_plan
from grape.errors import ConfigError, RecordError
from grape.rollouts.video import video_path, write_video
from tests.demo.test_evidence import store_run
from tests.demo.test_plan import changed

SUITE = "libero_spatial"
TASK = {"suite": SUITE, "task_id": 2, "init_states": ["rollout/0", "rollout/1"]}


@pytest.fixture(name="script")
def fixture_script(repository: Path) -> dict[str, Any]:
    return runpy.run_path(str(repository / "experiments" / "demo" / "before_after.py"))


def write_result(run_dir: Path, before: list[bool | None], after: list[bool | None]) -> None:
    result = {"plan": changed(), "arms": {}, "tasks": [TASK | {"before": before, "after": after}]}
    (run_dir / "result.json").write_text(json.dumps(result))


def test_the_first_state_that_changed_for_the_better_is_shown(script: dict[str, Any], tmp_path: Path) -> None:
    write_result(tmp_path, [True, False], [True, True])
    layout = Layout(run_dir=tmp_path, plan=parse_plan(changed(), "here"))
    for arm, status, level, length in (("before", "failure", 40, 9), ("after", "success", 180, 4)):
        _, info = store_run(layout.evaluation(arm, SUITE), "success", status)  # type: ignore[arg-type]
        levels = level + 8 * np.arange(length)  # equal pictures would be stored as one
        pictures = np.broadcast_to(levels[:, None, None, None], (length, 32, 32, 3)).astype(np.uint8)
        write_video(video_path(layout.evaluation(arm, SUITE) / "videos", info), pictures, fps=5)
    script["main"](script["BeforeAfter"](run_dir=tmp_path, out=tmp_path / "out.webp", side=32))
    with Image.open(tmp_path / "out.webp") as picture:
        assert picture.n_frames == 4 and picture.size == (32, 64)  # three of nine pictures, and the last
        shown = np.asarray(picture.convert("RGB"), float)
        picture.seek(1)
        picture.load()
        assert picture.info["duration"] == 600  # every third of five a second
    assert shown[:32].mean() == pytest.approx(40, abs=12) and shown[32:].mean() == pytest.approx(180, abs=12)


def test_what_cannot_be_shown_is_said(script: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.webp or \.gif"):
        script["BeforeAfter"](run_dir=tmp_path, out=tmp_path / "out.txt")
    config = script["BeforeAfter"](run_dir=tmp_path, out=tmp_path / "out.webp")
    with pytest.raises(RecordError, match="no finished demo"):
        script["main"](config)
    write_result(tmp_path, [None, None], [True, True])
    with pytest.raises(RecordError, match="nothing to show"):
        script["main"](config)
