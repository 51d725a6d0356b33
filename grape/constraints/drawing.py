"""Keypoints drawn on a picture, for a vision-language model and for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_HEIGHT = 400
"""Pixels: smaller pictures are enlarged by a whole factor, because labels need room."""
MAX_WIDTH = 4000
"""Pixels: what would become wider is enlarged less."""
COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#9a6324",
    "#f032e6",
    "#808000",
    "#000075",
)
"""Of the first keypoint, the second, …; they begin again where there are more."""
_FONT_SIZE, _RADIUS, _PADDING = 15, 6, 3
_MAX_SHIFT = 8
"""How many of its own heights a label may be moved, up or down, to keep clear of others."""

Box = tuple[float, float, float, float]


def draw_keypoints(image: np.ndarray, pixels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Mark keypoints with a disc, a number (from 1, in the order of ``names``) and a name.

    Args:
        image: (H, W, 3) uint8.
        pixels: (K, 2) column and row, as ``Camera.project`` gives them; what is outside of the picture, or not finite,
            is not drawn.
        names: K names; an empty one leaves the number alone.

    Returns:
        (H', W', 3) uint8, a copy; ``image`` enlarged by a whole factor where it is lower than ``MIN_HEIGHT``, up to
        ``MAX_WIDTH``.
    """
    height, width = image.shape[:2]
    scale = max(1, min(-(-MIN_HEIGHT // height), MAX_WIDTH // width))
    picture = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_FONT_SIZE)
    shown = [
        (number, float(column) * scale, float(row) * scale, name)
        for number, ((column, row), name) in enumerate(zip(pixels, names, strict=True), start=1)
        if 0 <= column < width and 0 <= row < height  # false for nan, too
    ]
    discs = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for _, x, y, _ in shown]
    taken: list[Box] = list(discs)
    labels = []
    for number, x, y, name in shown:
        text = f"{number}: {name}" if name else f"{number}"
        box = _free_box(x, y, canvas.textbbox((0, 0), text, font=font)[2:], picture.size, taken)
        taken.append(box)
        labels.append((box, text))
    for (number, x, y, _), disc, (box, text) in zip(shown, discs, labels, strict=True):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        canvas.line((x, y, min(max(x, box[0]), box[2]), (box[1] + box[3]) / 2), fill=colour, width=2)
        canvas.rectangle(box, fill=colour, outline="white")
        canvas.text((box[0] + _PADDING, box[1] + _PADDING), text, fill="white", font=font)
        canvas.ellipse(disc, fill=colour, outline="white", width=2)
    return np.asarray(picture)


def _free_box(x: float, y: float, text_size: Sequence[float], size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Where a label covers the least of what is there: right or left of its point, else further up or down."""
    width, height = (length + 2 * _PADDING for length in text_size)
    shifts = sorted(range(-_MAX_SHIFT, _MAX_SHIFT + 1), key=abs)
    candidates = []
    for shift in shifts:
        for left in (x + 2 * _RADIUS, x - 2 * _RADIUS - width):
            left, top = min(max(left, 0), size[0] - width), y - height / 2 + shift * (height + 1)
            top = min(max(top, 0), size[1] - height)
            candidates.append((left, top, left + width, top + height))
    return min(candidates, key=lambda box: sum(_overlap(box, other) for other in taken))  # the first of the best


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
