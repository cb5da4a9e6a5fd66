"""Floating-point TIFF: a declared range makes integers of it, and without one it is refused."""

import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recame.config import Config, DataConfig
from recame.contracts import PreprocessSpec
from recame.data.cache import build_cache
from recame.data.dataset import load_inspection_set
from recame.data.decode import Reader, decode_image, decode_with_facts, losses
from recame.data.image_file import read_image, stored_form
from recame.data.proposal import propose_spec, tell_losses
from recame.errors import CheckpointError, DataError

LIMIT = 10_000_000


def spec(size, channels=1, bit_depth=16, float_range=(0.0, 1.0)):
    return PreprocessSpec(
        *size,
        channels,
        bit_depth,
        2.0**bit_depth - 1,
        (0.5,) * channels,
        (0.5,) * channels,
        float_range=float_range,
    )


def tiff(array):
    stored = array[..., ::-1] if array.ndim == 3 else array
    return cv2.imencode(".tif", np.ascontiguousarray(stored))[1].tobytes()


def plain_tiff(array, orientation=1, order="<", kind=3):
    """An uncompressed TIFF written by hand: any float, any orientation."""
    height, width = array.shape
    data = array.tobytes()
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, array.dtype.itemsize * 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (274, 3, orientation),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, kind),
    ]
    table = struct.pack(f"{order}H", len(entries))
    for tag, form, value in entries:
        packed = (
            struct.pack(f"{order}HH", value, 0) if form == 3 else struct.pack(order + "I", value)
        )
        table += struct.pack(f"{order}HHI", tag, form, 1) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + table + struct.pack(f"{order}I", 0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@settings(deadline=None)
@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([8, 16]),
    st.integers(0, 99),
)
def test_values_map_linearly(low, span, kind, bits, seed):
    high = low + span
    values = np.random.default_rng(seed).uniform(low - span / 4, high + span / 4, (7, 9))
    values = values.astype(kind)
    made = spec((7, 9), 1, bits, (low, high))
    pixels, facts = decode_with_facts(tiff(values), made, max_pixels=LIMIT)
    top = 2**bits - 1
    exact = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * top
    assert pixels.dtype == made.dtype
    np.testing.assert_allclose(pixels[..., 0], exact, rtol=0, atol=0.51 if bits == 16 else 1.0)
    whole = values.astype(np.float64)
    outside = np.mean((whole < low) | (whole > high))
    assert facts.outside == pytest.approx(outside)
    assert ("clipped" in losses(facts, made)) == (outside > 0)


def test_colour_and_its_order(rng):
    values = rng.random((7, 9, 3)).astype(np.float32)
    pixels = decode_image(tiff(values), spec((7, 9), 3), max_pixels=LIMIT)
    np.testing.assert_allclose(pixels / 65535, values, atol=1e-5)
    form = stored_form(io.BytesIO(tiff(values)))
    assert (form["height"], form["width"], form["channels"], form["bits"]) == (7, 9, 3, 32)
    assert form["format"] == "TIFF float"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_applied(rng, orientation, order):
    values = rng.random((4, 6)).astype(f"{order}f4")
    expected = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.T,
        6: np.rot90(values, -1),
        7: values.T[::-1, ::-1],
        8: np.rot90(values),
    }[orientation]
    data = plain_tiff(values, orientation, order)
    np.testing.assert_array_equal(read_image(data, max_pixels=LIMIT).pixels, expected)
    form = stored_form(io.BytesIO(data))
    assert (form["height"], form["width"]) == expected.shape


def test_what_is_lost_is_told(tmp_path, rng):
    values = rng.random((8, 8)).astype(np.float32)
    values[0, :4] = 3.0
    made = spec((8, 8), float_range=(0.0, 2.0))
    _, facts = decode_with_facts(tiff(values), made, max_pixels=LIMIT)
    assert losses(facts, made) == {"clipped": "6.2% of its values lie outside 0 to 2"}
    # Dark values are dark, and not those of a camera of fewer bits.
    for bits in (8, 16):
        dark = spec((8, 8), bit_depth=bits, float_range=(0.0, 100.0))
        _, facts = decode_with_facts(tiff(values), dark, max_pixels=LIMIT)
        assert losses(facts, dark) == {}
    (tmp_path / "a.tif").write_bytes(tiff(values))
    cache = build_cache([tmp_path / "a.tif"], made, cache_dir=tmp_path / "c", max_pixels=LIMIT)
    assert cache.facts[0][1].outside == pytest.approx(4 / 64)
    with pytest.warns(
        UserWarning, match=r"outside data.float_range=0..2: these values are clipped, up to 6"
    ):
        tell_losses(cache, made)


def test_training_and_runtime_decode_alike(tmp_path, rng):
    for bits in (8, 16):
        made = spec((6, 5), 3, bits)
        path = tmp_path / f"{bits}.tif"
        path.write_bytes(tiff(rng.random((30, 40, 3)).astype(np.float32)))
        cache = build_cache([path], made, cache_dir=tmp_path / "c", max_pixels=LIMIT)
        read = Reader(PreprocessSpec.from_dict(made.to_dict()), LIMIT).read(path)
        np.testing.assert_array_equal(cache.images[0], read.pixels)


def test_without_a_range_a_file_is_refused_and_says_what_it_spans(tmp_path):
    values = np.linspace(-0.25, 3.5, 64, dtype=np.float32).reshape(8, 8)
    none = spec((8, 8), float_range=None)
    with pytest.raises(
        DataError, match=r"here from -0\.25 to 3\.5.*data\.float_range=\[BLACK,WHITE"
    ):
        decode_image(tiff(values), none, max_pixels=LIMIT)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values))
    with pytest.raises(DataError, match=r"a\.tif: floating-point pixels, here from -0\.25"):
        propose_spec([path], size=None, max_pixels=LIMIT)
    found, _ = propose_spec([path], size=None, max_pixels=LIMIT, float_range=(-1.0, 4.0))
    assert (found.bit_depth, found.scale, found.float_range) == (16, 65535.0, (-1.0, 4.0))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(odd):
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = odd
    with pytest.raises(DataError, match="1 of its floating-point values are not finite"):
        decode_image(tiff(values), spec((4, 4)), max_pixels=LIMIT)


def test_other_layouts_and_damage_say_why(rng):
    values = rng.random((40, 50))
    whole = plain_tiff(values.astype("<f4"))
    for data, reason in (
        (plain_tiff(values.astype("<f2")), "16-bit floating-point pixels in a layout"),
        (plain_tiff(values.astype("<c8"), kind=6), "neither 8 nor 16 bit"),
        (whole[:4000], "damaged|truncated"),
        (
            whole.replace(
                struct.pack("<HHII", 279, 4, 1, 8000), struct.pack("<HHII", 279, 4, 1, 9000)
            ),
            "truncated: pixels beyond",
        ),
        (
            whole.replace(
                struct.pack("<HHII", 256, 4, 1, 50), struct.pack("<HHII", 256, 4, 1, 2**31)
            ),
            "more than max_pixels",
        ),
    ):
        with pytest.raises(DataError, match=reason):
            decode_image(data, spec((4, 4)), max_pixels=LIMIT)


def test_the_range_travels_with_the_specification():
    made = spec((4, 4), float_range=(-1.0, 2.5))
    document = json.loads(json.dumps(made.to_dict()))
    assert document["schema"] == 2
    assert PreprocessSpec.from_dict(document) == made
    assert made.decode_fingerprint() != spec((4, 4), float_range=(-1.0, 2.0)).decode_fingerprint()
    # Without a range all is as it was: the document, and the decoding's fingerprint.
    old = replace(made, float_range=None)
    assert old.to_dict()["schema"] == 1
    assert "float_range" not in old.to_dict()
    assert PreprocessSpec.from_dict(old.to_dict()) == old
    assert PreprocessSpec(6, 6, 1, 8, 255.0, (0.5,), (0.5,)).decode_fingerprint() == OLD
    for odd in ([1, 1], [2, 1], [0], ["a", 1], [0, float("nan")], 3, "ab"):
        with pytest.raises(CheckpointError):
            PreprocessSpec.from_dict({**document, "float_range": odd})


OLD = "15c2cd781b27f880"


def test_the_setting(tmp_path):
    config = Config.model_validate({"data": {"float_range": [0, 2]}})
    assert config.data.float_range == (0.0, 2.0)
    for odd in ([2, 0], [1, 1], [0], [0, float("inf")]):
        with pytest.raises(ValidationError):
            DataConfig(float_range=odd)


def test_a_set_of_float_images(tmp_path, rng):
    for label, level in (("ok", 0.2), ("hole", 0.8)):
        (tmp_path / "set" / label).mkdir(parents=True)
        for n in range(4):
            values = np.full((20, 20), level, np.float32) + rng.random((20, 20)) / 10
            Path(tmp_path / "set" / label / f"{n}.tif").write_bytes(tiff(values.astype(np.float32)))
    config = DataConfig(cache_dir=tmp_path / "c", float_range=(0.0, 1.0), size=16)
    found = load_inspection_set(tmp_path / "set", config, seed=0)
    assert len(found.table) == 8
    assert (found.spec.float_range, found.spec.scale) == ((0.0, 1.0), 65535.0)
    means = found.images(found.table["row"].to_numpy()).mean((1, 2, 3)).numpy()
    wanted = np.where(found.table["label"] == "ok", 0.25, 0.85)
    np.testing.assert_allclose(means, wanted, atol=0.02)
    with pytest.raises(DataError, match=r"data\.float_range"):
        load_inspection_set(tmp_path / "set", DataConfig(cache_dir=tmp_path / "c"), seed=0)
