"""Keypoints on a picture: in their places, all labels to be seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor

from grape.constraints.drawing import COLOURS, draw_keypoints

GREY = np.full((200, 300, 3), 128, np.uint8)


def shown(picture: np.ndarray, number: int) -> np.ndarray:
    """(H, W) bool: pixels in the colour of one keypoint."""
    return (picture == ImageColor.getrgb(COLOURS[number - 1])).all(axis=-1)


def test_markers_are_where_the_points_are_in_an_enlarged_copy() -> None:
    pixels = np.array([[40.5, 60.5], [250.5, 150.5]])
    drawn = draw_keypoints(GREY, pixels, ["bowl_1", "plate_1"])
    assert drawn.shape == (400, 600, 3) and drawn.dtype == np.uint8
    assert (GREY == 128).all()
    for number, (column, row) in enumerate(pixels, start=1):
        assert shown(drawn, number)[int(2 * row), int(2 * column)]
    assert draw_keypoints(np.zeros((480, 640, 3), np.uint8), pixels, ["", ""]).shape == (480, 640, 3)
    assert draw_keypoints(np.zeros((1, 1500, 3), np.uint8), pixels, ["", ""]).shape == (2, 3000, 3)
    assert draw_keypoints(np.zeros((1, 5000, 3), np.uint8), pixels, ["", ""]).shape == (1, 5000, 3)


def test_what_is_outside_is_not_drawn() -> None:
    pixels = np.array([[-1.0, 50.0], [300.0, 50.0], [np.nan, np.nan], [10.0, np.inf]])
    assert (draw_keypoints(GREY, pixels, list("abcd")) == 128).all()


@pytest.mark.parametrize("corner", [(150.0, 100.0), (1.0, 1.0), (299.0, 199.0)])
def test_labels_of_neighbours_do_not_cover_each_other(corner: tuple[float, float]) -> None:
    names = [f"akita_black_bowl_{number}" for number in range(1, 7)]
    pixels = np.array(corner) + np.random.default_rng(0).uniform(-1, 1, (6, 2))
    pixels = np.clip(pixels, 0, [299.5, 199.5])
    together = draw_keypoints(GREY, pixels, names)
    for index in range(6):
        alone = np.full_like(pixels, np.nan)
        alone[index] = pixels[index]
        wanted = shown(draw_keypoints(GREY, alone, names), index + 1).sum()
        # discs and lines do overlap, on 1 to 2 % of a label's area each
        assert shown(together, index + 1).sum() > 0.85 * wanted, names[index]
