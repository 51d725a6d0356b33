"""Distances between initial states, by hand and through ``grape states``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from grape.cli.main import EXIT_USAGE, main
from grape.envs.initial_states import nearest_state_distance_m
from grape.errors import ConfigError


def test_nearest_state_distance_by_hand():
    still = [0.0, 0.0, 0.0]
    test = np.array([[still, still]])
    used = np.array([[[3.0, 4.0, 0.0], still], [[0.1, 0.0, 0.0], [0.0, 0.2, 0.0]]])
    # first used state: objects moved 5 m and 0 m, so 5 m; second: 0.1 m and 0.2 m, so 0.2 m; the nearest is 0.2 m
    assert nearest_state_distance_m(test, used) == pytest.approx([0.2])
    assert nearest_state_distance_m(test, used[:1]) == pytest.approx([5.0])
    assert nearest_state_distance_m(test, used[:0]) == [np.inf]
    with pytest.raises(ConfigError, match="same objects"):
        nearest_state_distance_m(test, used[:, :1])


def test_no_used_state_is_refused(tmp_path):
    out = tmp_path / "distances.json"
    task = ["--task_suite_name", "libero_spatial", "--task_ids", "0", "--out", str(out)]
    assert main(["states", *task, "--test", "train/0-1", "--used"]) == EXIT_USAGE
    assert not out.exists()


def test_a_state_that_was_used_is_at_distance_zero(tmp_path):
    pytest.importorskip("libero", reason='LIBERO is not installed: pip install "grape-vla[libero]"')
    out = tmp_path / "distances.json"
    states = ["--test", "train/0-1", "--used", "validation/0", "train/1"]
    task = ["--task_suite_name", "libero_spatial", "--task_ids", "0", "--out", str(out)]
    assert main(["states", *task, *states]) == 0
    [measured] = json.loads(out.read_text())["tasks"]
    assert measured["num_used"] == 2 and "akita_black_bowl_1" in measured["spread_m"]
    assert measured["distance_m"]["train/1"] == 0.0  # to itself: a state is the same to the bit each time
    assert 1e-4 < measured["distance_m"]["train/0"] < 0.2  # another draw from the same regions
