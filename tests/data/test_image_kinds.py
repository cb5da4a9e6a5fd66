"""WebP, PBM, PGM, PPM and JPEG 2000: their own pixels, and why a file gives none."""

import io
import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.data.cache import build_cache
from recame.data.decode import Reader, decode_image, decode_with_facts, losses
from recame.data.image_file import read_image, stored_form
from recame.data.proposal import propose_spec
from recame.errors import DataError

LIMIT = 10_000_000


def spec(height, width, channels=3, bit_depth=8, scale=None):
    scale = scale or 2.0**bit_depth - 1
    return PreprocessSpec(
        height, width, channels, bit_depth, scale, (0.5,) * channels, (0.5,) * channels
    )


def pillow(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def pnm(number, array, white, remark=b""):
    """A file of netpbm's, as its pages describe it."""
    height, width = array.shape[:2]
    head = b"P%d\n%s%d %d\n" % (number, remark, width, height)
    if number not in (1, 4):
        head += b"%d\n" % white
    if number < 4:
        return head + b"\n".join(b" ".join(b"%d" % v for v in row.ravel()) for row in array)
    if number == 4:
        return head + np.packbits(array, axis=1).tobytes()
    return head + array.astype(">u2" if white > 255 else "u1").tobytes()


def jp2(array, **options):
    """Without loss, by OpenCV, which knows 16-bit colour."""
    stored = array[..., ::-1] if array.ndim == 3 else array
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    return cv2.imencode(".jp2", np.ascontiguousarray(stored), lossless)[1].tobytes()


def with_precision(data, bits):
    """A JPEG 2000 of 16 bits that says it has fewer: its values must fit them."""
    at = data.index(b"\xff\x4f\xff\x51") + 4
    (count,) = struct.unpack(">H", data[at + 36 : at + 38])
    changed = bytearray(data)
    for channel in range(count):
        changed[at + 38 + 3 * channel] = bits - 1
    header = changed.index(b"ihdr") + 4 + 10
    changed[header] = bits - 1
    return bytes(changed)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def examples():
    """One file of each new kind, with the pixels that it holds at 8 or 16 bits."""
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 256, (72, 80, 3), dtype=np.uint8)
    grey, bits = colour[..., 0], rng.integers(0, 2, (72, 80), dtype=np.uint8)
    deep = rng.integers(0, 65536, (72, 80, 3), dtype=np.uint16)
    return {
        "a.webp": (pillow(colour, "WEBP", lossless=True), colour),
        "a.pbm": (pnm(4, bits, 1), (1 - bits) * np.uint8(255)),
        "text.pbm": (pnm(1, bits, 1), (1 - bits) * np.uint8(255)),
        "a.pgm": (pnm(5, grey, 255), grey),
        "text.pgm": (pnm(2, grey, 255), grey),
        "deep.pgm": (pnm(5, deep[..., 0], 65535), deep[..., 0]),
        "text.ppm": (pnm(3, deep, 65535), deep),
        "a.ppm": (pnm(6, colour, 255), colour),
        "deep.pnm": (pnm(6, deep, 65535), deep),
        "grey.jp2": (jp2(grey), grey),
        "a.jp2": (jp2(colour), colour),
        "deep.jp2": (jp2(deep), deep),
        "deep grey.jp2": (jp2(deep[..., 0]), deep[..., 0]),
        "a.j2k": (pillow(colour, "JPEG2000", no_jp2=True), colour),
    }


@pytest.mark.parametrize("name", sorted(examples()))
def test_each_kind_gives_its_own_pixels(name, tmp_path):
    data, wanted = examples()[name]
    decoded = read_image(data, max_pixels=LIMIT)
    assert decoded.pixels.dtype == wanted.dtype
    assert decoded.pages == 1
    form = stored_form(io.BytesIO(data))
    assert (form["height"], form["width"]) == wanted.shape[:2]
    assert form["bits"] == 8 * wanted.itemsize
    if "webp" not in name:
        assert form["channels"] == (3 if wanted.ndim == 3 else 1)
    np.testing.assert_array_equal(decoded.pixels, wanted)
    # Training's decoding and the runtime's are one, whatever the kind.
    made = spec(72, 80, form["channels"], form["bits"])
    (tmp_path / name).write_bytes(data)
    cache = build_cache([tmp_path / name], made, cache_dir=tmp_path / "c", max_pixels=LIMIT)
    read = Reader(made, LIMIT).read(tmp_path / name, checksum=True)
    np.testing.assert_array_equal(cache.images[0], read.pixels)
    np.testing.assert_array_equal(read.pixels, wanted.reshape(72, 80, -1))


@settings(deadline=None)
@given(
    st.integers(1, 65535),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([2, 3, 5, 6]),
    st.booleans(),
    st.data(),
)
def test_white_is_white_whatever_the_largest_value(white, height, width, number, remarked, data):
    shape = (height, width, 3) if number in (3, 6) else (height, width)
    seed = data.draw(st.integers(0, 99))
    values = np.random.default_rng(seed).integers(0, white + 1, shape)
    values.flat[0] = white
    remark = b"# of a camera 7 8\n" if remarked else b""
    decoded = read_image(pnm(number, values, white, remark), max_pixels=LIMIT)
    top = 255 if white < 256 else 65535
    assert decoded.pixels.dtype == (np.uint8 if white < 256 else np.uint16)
    assert decoded.pixels.flat[0] == top
    np.testing.assert_allclose(decoded.pixels, values * (top / white), rtol=0, atol=0.5001)


def test_a_declared_white_needs_no_guess(tmp_path, rng):
    # A dark image of a 12-bit camera: as PNG its largest value says what white may be.
    dark = rng.integers(0, 900, (20, 20), dtype=np.uint16)
    (tmp_path / "a.pgm").write_bytes(pnm(5, dark, 4095))
    found, _ = propose_spec([tmp_path / "a.pgm"], size=None, max_pixels=LIMIT)
    assert (found.bit_depth, found.scale) == (16, 65535.0)
    pixels, facts = decode_with_facts(pnm(5, dark, 4095), found, max_pixels=LIMIT)
    np.testing.assert_allclose(pixels[..., 0] / 65535, dark / 4095, atol=1e-5)
    # Nor is it near black to a model of 8 bits, which sees its upper eight.
    shallow = spec(20, 20, 1)
    pixels, facts = decode_with_facts(pnm(5, dark, 4095), shallow, max_pixels=LIMIT)
    assert losses(facts, shallow) == {}
    assert np.abs(pixels[..., 0] - dark / 4095 * 255).max() < 1.01
    # 65535 may be what any 16-bit file says: as for PNG, the values decide.
    _, facts = decode_with_facts(pnm(5, dark, 65535), shallow, max_pixels=LIMIT)
    assert list(losses(facts, shallow)) == ["near black"]
    # A model whose white is that of 12-bit PNG files is told what it loses.
    twelve = replace(found, scale=4095.0)
    _, facts = decode_with_facts(pnm(5, dark, 4095), twelve, max_pixels=LIMIT)
    assert list(losses(facts, twelve)) == ["clipped"]


@pytest.mark.parametrize("shape", [(72, 80), (72, 80, 3)])
def test_jpeg_2000_of_12_bits_fills_16(rng, shape):
    values = rng.integers(0, 4096, shape, dtype=np.uint16)
    decoded = read_image(with_precision(jp2(values), 12), max_pixels=LIMIT)
    assert decoded.declares_white
    assert decoded.pixels.shape == shape
    assert decoded.pixels.dtype == np.uint16
    assert decoded.pixels.max() <= 65535


def test_alpha_is_dropped_and_lossy_is_close(rng):
    rgba = rng.integers(0, 256, (72, 80, 4), dtype=np.uint8)
    rgba[..., 3] |= 1  # what nobody can see is not kept
    for data in (pillow(rgba, "WEBP", lossless=True, exact=True), pillow(rgba, "JPEG2000")):
        decoded = read_image(data, max_pixels=LIMIT)
        np.testing.assert_array_equal(decoded.pixels, rgba[..., :3])
    ramp = np.repeat(np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))[..., None], 3, 2)
    decoded = read_image(pillow(ramp, "WEBP", quality=95), max_pixels=LIMIT)
    assert np.abs(decoded.pixels.astype(int) - ramp).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_webp(orientation):
    array = np.zeros((16, 24, 3), np.uint8)
    array[:8, :8], array[:8, 16:] = 255, 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pillow(array, "WEBP", lossless=True, exif=exif)
    expected = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array, -1),
        7: array.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(array),
    }[orientation]
    np.testing.assert_array_equal(read_image(data, max_pixels=LIMIT).pixels, expected)
    form = stored_form(io.BytesIO(data))
    assert (form["height"], form["width"]) == expected.shape[:2]


def test_further_images_are_told():
    frames = [Image.fromarray(np.full((8, 8, 3), 60 * n, np.uint8)) for n in range(1, 4)]
    stream = io.BytesIO()
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    grey = np.full((4, 4), 7, np.uint8)
    for data, first in ((stream.getvalue(), 60), (pnm(5, grey, 255) * 3, 7)):
        pixels, facts = decode_with_facts(data, spec(8, 8), max_pixels=LIMIT)
        assert set(pixels.flat) == {first}
        assert losses(facts, spec(8, 8))["pages"] == "only the first of its 3 pages is read"


def lies():
    grey = np.random.default_rng(2).integers(0, 256, (72, 80), dtype=np.uint8)
    raw, text, code = pnm(5, grey, 255), pnm(2, grey, 255), jp2(grey)
    webp = pillow(np.stack([grey] * 3, 2), "WEBP", lossless=True)
    siz = code.index(b"\xff\x4f\xff\x51") + 8
    return {
        "pgm cut": (raw[:-1], "truncated: .* bytes cannot hold 80 x 72 pixels"),
        "pgm text cut": (text[: len(text) // 2], "truncated: .* of 5,760 values"),
        "pgm bright": (pnm(5, grey, 200), "damaged: a value of 255, above the file's largest"),
        "pgm letters": (text.replace(b" ", b"x", 50), "damaged"),
        "pgm minus": (b"P2 2 1 255\n-1 3", "damaged: other letters than digits"),
        "pgm head": (b"P5\n7", "damaged or truncated header"),
        "pgm none": (b"P5 0 4 255\n", "damaged or truncated header: 0 x 4"),
        "pgm white": (b"P5 1 1 65536\n\0\0", "up to 65536"),
        "pgm empty": (b"P2 1 2 255\n", "truncated: 1 of 2 values"),
        "pgm huge": (b"P5 99999 99999 255\n", "99999 x 99999 .* more than max_pixels"),
        "pbm digits": (b"P1 2 2\n0 1 2 1", "damaged: other digits"),
        "pbm cut": (b"P1 2 2\n01 1", "truncated: 3 of 2 x 2"),
        "webp cut": (webp[: len(webp) // 2], "damaged|truncated"),
        "webp head": (webp[:20], "damaged or truncated header"),
        "webp huge": (
            b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6,
            "16777216 x 16777216 .* more than max_pixels",
        ),
        "jp2 cut": (code[: len(code) // 2], "damaged|truncated"),
        "jp2 head": (code[:30], "damaged or truncated header"),
        "jp2 huge": (
            code[:siz] + struct.pack(">II", 4000, 4000) + code[siz + 8 :],
            "4000 x 4000 .* more than max_pixels",
        ),
        "jp2 21 bits": (with_precision(code, 21), "signed or 21-bit pixels"),
        "jp2 bomb": (
            code[:siz] + struct.pack(">II", 3_000_000, 3000) + code[siz + 8 : 2000],
            "truncated: .* bytes cannot hold 3000000 x 3000 pixels",
        ),
    }


@pytest.mark.parametrize("name", sorted(lies()))
def test_what_cannot_be_read_says_why(name):
    data, reason = lies()[name]
    limit = 10**10 if "bomb" in name else LIMIT
    with pytest.raises(DataError, match=reason) as error:
        decode_image(data, spec(8, 8), max_pixels=limit)
    assert "\n" not in str(error.value)


@settings(deadline=None)
@given(st.sampled_from(sorted(examples())), st.integers(0, 2**32), st.integers(0, 255))
def test_a_changed_byte_gives_pixels_or_a_reason(name, at, value):
    data = bytearray(examples()[name][0])
    data[at % len(data)] = value
    read = Reader(spec(8, 8), LIMIT).read(bytes(data))
    assert read.pixels if isinstance(read.pixels, str) else read.pixels.shape == (8, 8, 3)
