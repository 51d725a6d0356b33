"""Answers as a model might give them. All of them were written by hand for the tests; no model wrote any."""

from __future__ import annotations

import json

TASK = "put the bowl on the plate"
NAMES = ("bowl", "plate", "cup")

GOOD = json.dumps(
    {
        "stages": [
            {
                "name": "grasp the bowl",
                "done_when": "grasped(bowl)",
                "requires": None,
                "collision": "where(other_contact(bowl), 1, 0)",
                "grasp": "where(grasped(bowl), 0, 1)",
                "path": "norm(ee - previous(ee))",
                "sub_goal": "where(grasped(bowl), 0, 0.05 + distance(ee, bowl))",
                "thresholds": {"collision": 2, "grasp": None, "path": 0.6, "sub_goal": None},
            },
            {
                "name": "place it",
                "done_when": "not finger_contact(bowl) and horizontal_distance(bowl, plate) <= 0.06",
                "requires": "grasped(bowl) or horizontal_distance(bowl, plate) <= 0.12",
                "collision": "where(other_contact(bowl, plate), 1, 0)",
                "grasp": None,
                "path": "norm(ee - previous(ee))",
                "sub_goal": "max(0, horizontal_distance(bowl, plate) - 0.06)",
                "thresholds": None,
            },
        ]
    },
    indent=1,
)
FENCED = f"```json\n{GOOD}\n```"
UNKNOWN_KEYPOINT = GOOD.replace("grasped(bowl)", "grasped(bowel)")
NOT_JSON = "Sure! First grasp the bowl, then put it on the plate."
CODE = GOOD.replace("grasped(bowl)", "__import__('os').system('touch /tmp/owned') == 0")
