"""How pictures and instructions become what a policy reads: the same in collection, training and evaluation."""

from __future__ import annotations

from typing import Literal

PromptStyle = Literal["template", "bare"]
"""``template``: OpenVLA's question around the instruction. ``bare``: the instruction alone."""
ImageResize = Literal["lanczos", "area"]
"""``lanczos``: JPEG round trip, then Lanczos, as OpenVLA's LIBERO data. ``area``: the mean over each pixel's area."""
INPUTS_BEFORE: dict[str, str] = {"prompt_style": "template", "image_resize": "lanczos"}
"""What episodes and runs that do not name these settings were made with."""

CROP_KEY = "evaluate_with_center_crop"
"""In our checkpoints' config.json and adapters' training.json: the crop that a policy was trained for."""
