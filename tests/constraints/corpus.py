"""The hostile corpus, written by hand: what a model, or a file from elsewhere, may say and may not do.

One case a line in ``hostile/*.jsonl``: its kind, its text, and in ``says`` a part of the message that refuses it. A
long text is a list of pieces with their numbers of repetitions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from grape.constraints import FactTable

FOLDER = Path(__file__).with_name("hostile")
NAMES = ("bowl_1", "plate_1")
Case = dict[str, Any]


def cases(name: str) -> list[Case]:
    """All cases of one file, their texts written out."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [_written_out(json.loads(line)) for line in lines]


def _written_out(case: Case) -> Case:
    text = case.get("text")
    return case if not isinstance(text, list) else case | {"text": "".join(piece * count for piece, count in text)}


def labels(found: list[Case]) -> list[str]:
    """Short names for pytest."""
    return [f"{case['kind']} {index}" for index, case in enumerate(found)]


def write_file(folder: Path, case: Case) -> Path:
    """A case of ``files`` as a file."""
    path = folder / f"task.{case['suffix']}"
    path.write_bytes(bytes.fromhex(case["hex"]) if "hex" in case else case["text"].encode())
    return path


def three_rows() -> FactTable:
    """A bowl and a plate, three rows: the hand comes near, opens less and less, and holds the bowl in the last."""
    bowl = [[0.3, 0.4, 0.0], [0.3, 0.4, 0.0], [0.3, 0.4, 0.1]]
    half = math.sin(math.pi / 4)
    facts = {
        "ee_position": np.array([[0.0, 0.0, 0.5], [0.3, 0.0, 0.4], [0.3, 0.4, 0.0]]),
        "ee_quaternion": np.array([[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0, half, 0, half]]),
        "gripper_opening": np.array([0.08, 0.04, 0.0]),
        "keypoints": np.stack([np.array(bowl), np.tile([1.0, 0.4, 0.0], (3, 1))], axis=1),
        "grasped": np.array([[0, 0], [0, 0], [1, 0]], bool),
        "robot_contact": np.array([[0, 0], [0, 1], [1, 0]], bool),
        "finger_contact": np.array([[0, 0], [1, 0], [1, 0]], bool),
        "arm_contact": np.array([0, 1, 0], bool),
        "goal_satisfied": np.array([[0], [0], [1]], bool),
        "ee_force": np.array([0.0, 12.0, 3.0]),
        "joint_positions": np.array([[np.nan, 0.0], [np.nan, -0.1], [np.nan, -0.2]]),
    }
    return FactTable(facts, NAMES)
