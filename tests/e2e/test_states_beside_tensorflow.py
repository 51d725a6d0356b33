"""`grape demo` measures states in a process that has read RLDS, so with TensorFlow loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grape.cli.main import main


@pytest.mark.usefixtures("simpler")
def test_states_of_simpler_are_measured_beside_tensorflow(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason='needs tensorflow (pip install "grape-vla[rlds]")')
    out = tmp_path / "distances.json"
    states = ["--test", "train/0-1", "--used", "train/1", "--out", str(out)]
    assert main(["states", "--task_suite_name", "simpler_bridge", "--task_ids", "0", *states]) == 0
    [task] = json.loads(out.read_text())["tasks"]
    assert task["distance_m"]["train/1"] == 0.0 < task["distance_m"]["train/0"]
