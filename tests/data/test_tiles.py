from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recame.contracts import Array, PreprocessSpec
from recame.data.decode import decode_image, match_pixels
from recame.data.resize import scaled
from recame.data.stored_views import stored_view
from recame.data.tiles import CELL, _features, places, unusualness
from recame.data.transforms import Augment, dihedral_view
from recame.errors import CheckpointError, ConfigError
from recame.models import PACKAGED_BACKBONE, build_backbone
from recame.pieces import apart, together


def spec_of(tiles: int, side: int = 32, **changes: object) -> PreprocessSpec:
    values = {"channels": 1, "bit_depth": 8, "scale": 255.0, "mean": (0.5,), "std": (0.5,)}
    height = side * (tiles + 1)
    return PreprocessSpec(height=height, width=side, tiles=tiles, **{**values, **changes})  # type: ignore[arg-type]


def pads(height: int, width: int, odd: tuple[int, int] | None, seed: int = 0) -> Array:
    """Round pads in rows, of which one is missing about (y, x); (H, W) uint8."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    middle = ((y // 16) * 16 + 8, (x // 16) * 16 + 8)
    drawn = np.hypot(y - middle[0], x - middle[1]) < 5
    if odd is not None:
        drawn &= ~((y // 16 == odd[0] // 16) & (x // 16 == odd[1] // 16))
    noisy = np.where(drawn, 190, 70) + rng.normal(0, 4, (height, width))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def holds(place: Array, odd: tuple[int, int], side: int) -> bool:
    """Whether most of what is missing, 10 pixels wide, lies on the tile."""
    return all(first - 2 <= at < first + side + 2 for first, at in zip(place, odd, strict=True))


def test_the_finder_is_the_packaged_network_s_beginning() -> None:
    pixels = pads(64, 96, (24, 40))
    network = build_backbone(PACKAGED_BACKBONE, pretrained="package", num_stages=3).eval()
    inner = np.pad(pixels, 32, mode="reflect")
    unit = torch.from_numpy((inner.astype(np.float32) - 127) / 128)
    with torch.no_grad():
        expected = network(unit.expand(1, 3, -1, -1))[0, :, 4:-4, 4:-4].permute(1, 2, 0).numpy()
    found = _features(pixels[..., None])
    assert found.shape == expected.shape == (64 // CELL, 96 // CELL, 40)
    difference = np.abs(found - expected) / expected.std()  # weights of 16 bits
    assert difference.max() < 0.05
    assert difference.mean() < 0.005


@pytest.mark.parametrize(("height", "width"), [(256, 256), (160, 640), (400, 200)])
def test_the_first_tile_lies_about_what_is_missing(height: int, width: int) -> None:
    for odd in ((24, 24), (height - 25, width // 2), (height // 2, width - 25)):
        pixels = pads(height, width, odd)
        found = places(pixels[..., None], spec_of(3))
        assert found.shape == (3, 2)
        assert holds(found[0], odd, 32), (odd, found)
        assert (found >= 0).all()
        assert (found[:, 0] <= height - 32).all()
        assert (found[:, 1] <= width - 32).all()


def test_blocks_of_a_long_image_are_searched_alike() -> None:
    odd = (72, 3000)
    found = places(pads(128, 4096, odd)[..., None], spec_of(2))
    assert holds(found[0], odd, 32)


def test_colour_and_depth_change_no_place() -> None:
    grey = pads(192, 192, (88, 120))
    expected = places(grey[..., None], spec_of(2)).tolist()
    colour = np.repeat(grey[..., None], 3, 2)
    three = spec_of(2, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert places(colour, three).tolist() == expected
    deep = grey[..., None].astype(np.uint16) * 16
    assert places(deep, spec_of(2, bit_depth=16, scale=16 * 255.0)).tolist() == expected


def test_the_border_is_no_more_unusual_than_the_rest() -> None:
    """Its mirrored surroundings are like those of no other place."""
    rng, at_border = np.random.default_rng(3), []
    for seed in range(4):
        y, x = np.mgrid[:320, :320]
        pattern = 120 + 50 * np.sin((x + 0.6 * y) / 5 + seed) * np.sin((y - 0.3 * x) / 7)
        pixels = np.clip(pattern + rng.normal(0, 3, (320, 320)), 0, 255).astype(np.uint8)
        found = places(pixels[..., None], spec_of(4))
        at_border += [bool(((place <= 4) | (place >= 320 - 36)).any()) for place in found]
    assert np.mean(at_border) < 0.6  # all of them, undamped; by chance a quarter


def test_tiles_do_not_overlap_by_more_than_half() -> None:
    found = places(pads(256, 256, (120, 120))[..., None], spec_of(6))
    for one in range(6):
        for other in range(one):
            assert np.abs(found[one] - found[other]).max() >= 16


def test_an_image_smaller_than_its_tiles_is_seen_whole() -> None:
    pixels = pads(20, 24, None)
    spec = spec_of(3)
    seen = match_pixels(pixels, spec)
    assert seen.shape == (128, 32, 1)
    for piece in seen[32:].reshape(3, 32, 32):
        np.testing.assert_array_equal(piece[:20, :24], pixels)
        assert (piece[20:, :24] == pixels[-1]).all()


def test_a_plain_image_has_tiles_too() -> None:
    flat = np.full((300, 300), 90, np.uint8)
    assert (unusualness(flat[..., None], 255.0) == unusualness(flat[..., None], 255.0)).all()
    assert (match_pixels(flat, spec_of(4)) == 90).all()


def test_what_is_seen_is_the_whole_and_cut_pixels(tmp_path: Path) -> None:
    pixels, spec = pads(256, 320, (88, 200)), spec_of(2)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    seen = decode_image(tmp_path / "a.png", spec, max_pixels=10**6)
    assert seen.shape == (96, 32, 1)
    np.testing.assert_array_equal(seen[:32], scaled(pixels[..., None], 32, 32))
    for piece, (top, left) in zip(
        seen[32:].reshape(2, 32, 32), places(pixels[..., None], spec), strict=True
    ):
        np.testing.assert_array_equal(piece, pixels[top : top + 32, left : left + 32])


def test_a_specification_with_tiles_is_kept_and_checked() -> None:
    spec = spec_of(4)
    assert (spec.pieces, spec.piece_size, spec.height) == (5, (32, 32), 160)
    assert spec.to_dict()["schema"] == 4
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    whole = spec_of(0)
    assert whole.to_dict()["schema"] == 1
    assert whole.piece_size == (32, 32)
    same_size = PreprocessSpec(160, 32, 1, 8, 255.0, (0.5,), (0.5,))
    assert spec.decode_fingerprint() != same_size.decode_fingerprint()
    with pytest.raises(CheckpointError, match="height=161"):
        PreprocessSpec(161, 32, 1, 8, 255.0, (0.5,), (0.5,), tiles=4)


def test_pieces_come_apart_and_together() -> None:
    images = torch.rand(2, 3, 12, 5)
    rows = apart(images, 3)
    assert rows.shape == (6, 3, 4, 5)
    torch.testing.assert_close(rows[4], images[1, :, 4:8])
    torch.testing.assert_close(together(rows, 3), images)
    last = images.contiguous(memory_format=torch.channels_last)
    assert apart(last, 3).data_ptr() == last.data_ptr()


@pytest.mark.parametrize("view", range(8))
def test_views_turn_each_piece(view: int) -> None:
    images = torch.rand(2, 1, 12, 4)
    turned = dihedral_view(images, view, 3)
    for number in range(3):
        part = slice(4 * number, 4 * number + 4)
        torch.testing.assert_close(turned[:, :, part], dihedral_view(images[:, :, part], view))
    stored = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(
        stored_view(stored, view, 3), turned.permute(0, 2, 3, 1).contiguous().numpy()
    )
    with pytest.raises(ConfigError, match="cannot be rotated"):
        dihedral_view(torch.rand(1, 1, 9, 4), 4, 3)


def test_each_piece_is_augmented_by_itself() -> None:
    images = torch.rand(8, 1, 24, 8)
    augment = Augment(horizontal_flip=True, vertical_flip=True, quarter_turns=True, pieces=3)
    changed = augment(images, torch.Generator().manual_seed(0))
    drawn = []
    for before, after in zip(apart(images, 3), apart(changed, 3), strict=True):
        equal = [view for view in range(8) if torch.equal(dihedral_view(before, view), after)]
        assert len(equal) == 1
        drawn += equal
    own = np.array(drawn).reshape(8, 3)
    assert (own != own[:, :1]).any()  # an image's pieces are turned differently
    assert len(set(drawn)) == 8
