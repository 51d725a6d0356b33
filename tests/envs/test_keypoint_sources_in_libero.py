"""Keypoints from a real LIBERO picture against the simulator's true positions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from grape.cli.constraints_keypoints import main

pytest.importorskip("libero", reason="needs the extra libero")
pytest.importorskip("torch", reason="needs the extra train")

RADIUS_M = {"akita_black_bowl_1": 0.08, "cream_cheese_1": 0.05, "plate_1": 0.10}
"""Half an object's length, roughly, with the few cm by which its surface is above its origin."""


def test_keypoints_lie_on_their_objects(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = ["--suite", "libero_goal", "--task_id", "8", "--init_state", "validation/0"]
    tower = ["--pretrained_checkpoint", str(repository / "experiments/demo/nano-libero"), "--device", "cpu"]
    found = {}
    for source, flags in (("features", tower), ("simulator", [])):
        out = tmp_path / source
        assert main([*scene, *flags, "--source", source, "--out", str(out)]) == 0
        found[source] = json.loads((out / "keypoints.json").read_text())["keypoints"]
    known = {keypoint["name"]: np.array(keypoint["position_m"]) for keypoint in found["simulator"]}
    for name, radius_m in RADIUS_M.items():
        parts = [np.array(part["position_m"]) for part in found["features"] if part["mask"] == name]
        assert parts, f"{name} is in the middle of the picture"
        assert max(np.linalg.norm(part - known[name]) for part in parts) < radius_m
    assert "distance to the true position of the keypoint's object: median" in capsys.readouterr().out
