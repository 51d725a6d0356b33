"""What docs/keypoints.md says was measured is what the committed distances give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_the_table_follows_from_the_distances(repository: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra train")
    from experiments.keypoints.measure import SCENES, found_again, table

    result = json.loads((repository / "experiments" / "keypoints" / "result.json").read_text())
    assert {(scene["suite"], scene["task_id"]) for scene in result["scenes"]} == set(SCENES)
    text, numbers = table(result["scenes"])
    assert numbers == result["summary"]
    assert text in (repository / "docs" / "keypoints.md").read_text()

    def row(state: str, x_cm: float) -> dict[str, object]:
        place = {"suite": "libero_goal", "task_id": 8, "init_state": state, "mask": "bowl"}
        return place | {"offset_cm": [x_cm, 0.0, 0.0]}

    # 1 is nearest to 2, 5 to 2, and 2 to 1; never to one of its own state.
    assert sorted(found_again([row("a", 1.0), row("a", 5.0), row("b", 2.0)])) == [1.0, 1.0, 3.0]
