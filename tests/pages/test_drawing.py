from __future__ import annotations

import numpy as np
import pytest

from recame.pages.drawing import GAP, overlay, side_by_side


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 4095), (np.float32, 1)])
def test_pieces_stand_in_a_row_with_white_between_them(dtype: type, white: float) -> None:
    pixels = np.arange(2 * 6 * 3, dtype=dtype).reshape(2, 6, 3, 1)
    row = side_by_side(pixels, 3, white)
    assert row.dtype == dtype
    assert row.shape == (2, 2, 3 * 3 + 2 * GAP, 1)
    for piece in range(3):
        first = piece * (3 + GAP)
        np.testing.assert_array_equal(
            row[:, :, first : first + 3], pixels[:, 2 * piece : 2 * piece + 2]
        )
    assert (row[:, :, 3 : 3 + GAP] == white).all()
    # One image of a colour, without a leading axis.
    assert side_by_side(pixels.reshape(6, 2, 3), 2, white).shape == (3, 2 * 2 + GAP, 3)


def test_an_image_in_one_piece_stays_as_it_is() -> None:
    pixels = np.zeros((6, 3, 1), np.uint8)
    assert side_by_side(pixels, 1, 255) is pixels


def test_a_map_tints_the_piece_that_it_speaks_of() -> None:
    heat = np.zeros((3 * 16, 16), np.float32)
    heat[16:32] = 1
    drawn = overlay(np.full((3 * 16, 16, 1), 0.5, np.float32), heat, "#ff0000", 48, pieces=3)
    side = 28  # 48 x 48 pixels in all
    assert drawn.shape == (side, 3 * side + 2 * GAP, 3)
    first, second, third = (
        drawn[:, at : at + side].astype(int) for at in (0, side + GAP, 2 * (side + GAP))
    )
    assert (first == first[..., :1]).all()
    assert (third == first).all()
    assert (second[..., 0] - second[..., 1] > 100).all()
    assert (drawn[:, side : side + GAP] == 255).all()
