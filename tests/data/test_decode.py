import errno
import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.data import decode, image_file
from recame.data.decode import decode_image, decode_with_facts, losses, match_with_facts
from recame.data.image_file import read_image, whole_file
from recame.data.proposal import native_size, propose_spec
from recame.errors import DataError
from recame.files import sha256

LIMIT = 10_000_000


def spec(height, width, channels=3, bit_depth=8, resize="stretch"):
    return PreprocessSpec(
        height,
        width,
        channels,
        bit_depth,
        255.0,
        (0.5,) * channels,
        (0.5,) * channels,
        resize,
    )


def pillow(array, kind, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def opencv(array, suffix):
    stored = array[..., ::-1] if array.ndim == 3 else array
    return cv2.imencode(suffix, np.ascontiguousarray(stored))[1].tobytes()


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_tiff(array, orientation):
    """An uncompressed 16-bit RGB TIFF written by hand, since Pillow writes none."""
    height, width, _ = array.shape
    data = array.astype("<u2").tobytes()
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 14),
        (274, 3, 1, orientation),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    ]
    head = b"II*\0" + struct.pack("<I", 14 + len(data)) + struct.pack("<3H", 16, 16, 16)
    table = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        packed = (
            struct.pack("<HH", value, 0) if (kind, count) == (3, 1) else struct.pack("<I", value)
        )
        table += struct.pack("<HHI", tag, kind, count) + packed
    return head + data + table + struct.pack("<I", 0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_is_exact(rng, kind, channels):
    shape = (5, 7) if channels == 1 else (5, 7, 3)
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    decoded = decode_image(pillow(array, kind), spec(5, 7, channels), max_pixels=LIMIT)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, array.reshape(5, 7, channels))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_16_bit_is_exact_and_keeps_the_colour_order(rng, suffix, shape):
    array = rng.integers(0, 65536, shape, dtype=np.uint16)
    channels = 3 if len(shape) == 3 else 1
    decoded = decode_image(opencv(array, suffix), spec(5, 7, channels, 16), max_pixels=LIMIT)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, array.reshape(5, 7, channels))
    shallow = decode_image(opencv(array, suffix), spec(5, 7, channels, 8), max_pixels=LIMIT)
    np.testing.assert_array_equal(shallow, array.reshape(5, 7, channels) >> 8)


def test_jpeg_is_close_and_grey_jpeg_has_one_channel():
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    decoded = decode_image(pillow(ramp, "JPEG", quality=95), spec(48, 64, 1), max_pixels=LIMIT)
    assert np.abs(decoded[..., 0].astype(int) - ramp).max() <= 3


def test_8_bit_in_a_16_bit_set_fills_the_range():
    array = np.array([[0, 1, 255]], dtype=np.uint8)
    decoded = decode_image(pillow(array, "PNG"), spec(1, 3, 1, 16), max_pixels=LIMIT)
    assert decoded.ravel().tolist() == [0, 257, 65535]


def test_bilevel_palette_and_alpha(rng):
    bits = rng.integers(0, 2, (4, 8)).astype(bool)
    decoded = decode_image(pillow(bits, "PNG"), spec(4, 8, 1), max_pixels=LIMIT)
    np.testing.assert_array_equal(decoded[..., 0], bits * np.uint8(255))
    rgba = rng.integers(0, 256, (4, 8, 4), dtype=np.uint8)
    decoded = decode_image(pillow(rgba, "PNG"), spec(4, 8), max_pixels=LIMIT)
    np.testing.assert_array_equal(decoded, rgba[..., :3])
    grey_alpha = rng.integers(0, 256, (4, 8, 2), dtype=np.uint8)
    decoded = decode_image(pillow(grey_alpha, "PNG"), spec(4, 8, 1), max_pixels=LIMIT)
    np.testing.assert_array_equal(decoded[..., 0], grey_alpha[..., 0])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    decoded = decode_image(stream.getvalue(), spec(1, 2), max_pixels=LIMIT)
    assert decoded[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_16_bit_grey_with_alpha_keeps_16_bits():
    row = b"\0" + struct.pack(">4H", 1000, 65535, 40001, 7)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 4, 0, 0, 0))
        + png_chunk(b"IDAT", zlib.compress(row))
        + png_chunk(b"IEND", b"")
    )
    decoded = decode_image(data, spec(1, 2, 1, 16), max_pixels=LIMIT)
    assert decoded.ravel().tolist() == [1000, 40001]


def test_grey_and_colour_become_each_other():
    grey = np.array([[0, 7, 255]], np.uint8)
    tripled = decode_image(pillow(grey, "PNG"), spec(1, 3), max_pixels=LIMIT)
    assert tripled[0].tolist() == [[0] * 3, [7] * 3, [255] * 3]
    colour = np.array([[[255, 0, 0], [0, 255, 0], [9, 9, 9]]], np.uint8)
    luma = decode_image(pillow(colour, "PNG"), spec(1, 3, 1), max_pixels=LIMIT)
    assert luma.ravel().tolist() == [76, 150, 9]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    array = np.zeros((16, 24), np.uint8)
    array[:8, :8] = 255  # a mark in the top left corner
    array[:8, 16:] = 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pillow(array, kind, exif=exif)
    expected = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.T,
        6: np.rot90(array, -1),
        7: array.T[::-1, ::-1],
        8: np.rot90(array),
    }[orientation]
    decoded = decode_image(data, spec(*expected.shape, 1), max_pixels=LIMIT)[..., 0]
    assert np.abs(decoded.astype(int) - expected).max() <= (20 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_orientation_of_16_bit_colour(rng, kind, orientation):
    array = rng.integers(0, 65536, (3, 5, 3), dtype=np.uint16)
    mirrored = array[:, ::-1] if orientation in (2, 4) else array
    turned = np.rot90(mirrored, {1: 0, 2: 0, 3: 2, 4: 2, 6: -1, 8: 1}[orientation])
    data = deep_tiff(array, orientation)
    if kind == "png":
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain = opencv(array, ".png")
        data = plain[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[33:]
    decoded = decode_image(data, spec(*turned.shape[:2], 3, 16), max_pixels=LIMIT)
    np.testing.assert_array_equal(decoded, turned)


def test_damaged_exif_beside_sound_pixels(rng):
    array = rng.integers(0, 256, (3, 5), dtype=np.uint8)
    plain = pillow(array, "PNG")
    data = plain[:33] + png_chunk(b"eXIf", b"nonsense") + plain[33:]
    decoded = decode_image(data, spec(3, 5, 1), max_pixels=LIMIT)
    np.testing.assert_array_equal(decoded[..., 0], array)


def test_resize_rules():
    array = np.full((20, 40), 50, np.uint8)
    array[:, 15:25] = 200
    data = pillow(array, "PNG")
    stretched = decode_image(data, spec(10, 10, 1), max_pixels=LIMIT)[..., 0]
    assert stretched.shape == (10, 10)
    assert abs(float(stretched.mean()) - array.mean()) < 1.0
    padded = decode_image(data, spec(10, 10, 1, resize="pad"), max_pixels=LIMIT)[..., 0]
    assert (padded[:2] == 50).all()
    assert padded[4, 4] == 200
    cropped = decode_image(data, spec(10, 10, 1, resize="crop"), max_pixels=LIMIT)[..., 0]
    assert (cropped[:, 3:7] == 200).all()
    assert (cropped[:, 0] == 50).all()
    enlarged = decode_image(data, spec(80, 80, 1), max_pixels=LIMIT)[..., 0]
    assert enlarged.shape == (80, 80)
    assert enlarged.max() == 200


def broken_files():
    good = pillow(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64), "PNG", compress_level=0)
    jpeg = pillow(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8), "JPEG")
    bitmap = pillow(np.zeros((64, 64), np.uint8), "BMP")
    return {
        "empty": (b"", "empty file (0 bytes)"),
        "text": (b"not at all", "not an image (none of PNG"),
        "png": (good[: len(good) // 2], "truncated"),
        "jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "bmp": (bitmap[: len(bitmap) // 2], "truncated"),
        "header": (good[:20], "damaged or truncated header"),
        "float": (opencv(np.zeros((4, 4), np.float32), ".tif"), "floating-point"),
        "float_rgb": (opencv(np.ones((4, 4, 3), np.float64), ".tif"), "here from 1 to 1"),
        "int32": (pillow(np.zeros((4, 4), np.int32), "TIFF"), "32-bit"),
    }


@pytest.mark.parametrize("kind", sorted(broken_files()))
def test_broken_files_say_why(kind):
    data, reason = broken_files()[kind]
    with pytest.raises(DataError) as error:
        decode_image(data, spec(64, 64, 1), max_pixels=LIMIT)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_absurdly_large_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        decode_image(tmp_path / "none.png", spec(4, 4), max_pixels=LIMIT)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    with pytest.raises(DataError, match=r"20000 x 20000 = 400,000,000 pixels, more than"):
        decode_image(huge, spec(4, 4), max_pixels=178_956_970)


def save_all(folder, arrays):
    paths = []
    for number, array in enumerate(arrays):
        paths.append(folder / f"{number}.png")
        paths[-1].write_bytes(opencv(array, ".png"))
    return paths


def test_propose_spec_finds_grey_in_colour_files(tmp_path, rng):
    grey = [np.repeat(rng.integers(0, 256, (10, 40, 1), dtype=np.uint8), 3, 2) for _ in range(3)]
    paths = [*save_all(tmp_path, grey), tmp_path / "missing.png"]
    found, native = propose_spec(paths, size=None, max_pixels=LIMIT)
    assert (found.channels, found.bit_depth, found.scale) == (1, 8, 255.0)
    assert (found.height, found.width, native) == (16, 40, (10, 40))
    assert native_size(paths) == (10, 40)
    grey[1][0, 0] = [200, 10, 10]
    found, _ = propose_spec(save_all(tmp_path, grey), size=(32, 48), mean=0.4, max_pixels=LIMIT)
    assert (found.channels, found.height, found.width, found.mean) == (3, 32, 48, (0.4,) * 3)


@pytest.mark.parametrize(
    ("peak", "scale"), [(1000, 1023.0), (4095, 4095.0), (4096, 16383.0), (60000, 65535.0)]
)
def test_propose_spec_finds_the_camera_s_depth(tmp_path, peak, scale):
    paths = save_all(tmp_path, [np.full((8, 8), peak, np.uint16), np.ones((8, 8), np.uint16)])
    found, _ = propose_spec(paths, size=None, max_pixels=LIMIT)
    assert (found.bit_depth, found.scale) == (16, scale)
    asked, _ = propose_spec(paths, size=None, bit_depth=8, channels=3, max_pixels=LIMIT)
    assert (asked.bit_depth, asked.scale, asked.channels) == (8, 255.0, 3)


def test_propose_spec_of_both_depths_takes_the_whole_range(tmp_path):
    arrays = [np.full((8, 8), 900, np.uint16), np.full((8, 8), 3, np.uint8)]
    found, _ = propose_spec(save_all(tmp_path, arrays), size=None, max_pixels=LIMIT)
    assert (found.bit_depth, found.scale) == (16, 65535.0)


def test_propose_spec_without_any_readable_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        propose_spec([tmp_path / "a.png"], size=None, max_pixels=LIMIT)


def test_decoding_needs_no_torch():
    code = "import sys, recame.data.decode; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_a_file_loses_is_told(rng):
    twelve = rng.integers(0, 4096, (8, 8), dtype=np.uint16)
    twelve[0, 0] = 4000
    for grey in (spec(8, 8, 1, 8), replace(spec(8, 8, 1, 16), scale=65535.0)):
        pixels, facts = decode_with_facts(opencv(twelve, ".png"), grey, max_pixels=LIMIT)
        assert pixels.max() <= grey.scale / 15
        assert list(losses(facts, grey)) == ["near black"]
        assert (facts.deep, facts.peak) == (True, 4000)
    ten = replace(spec(8, 8, 1, 16), scale=1023.0)
    _, facts = decode_with_facts(opencv(twelve, ".png"), ten, max_pixels=LIMIT)
    share = np.mean(twelve > 1023)
    assert losses(facts, ten) == {
        "clipped": f"{share:.1%} of its values lie above 1023, which is white"
    }
    # An 8-bit file fills 16 bits, and a camera's white with them.
    _, facts = decode_with_facts(
        pillow(np.array([[0, 3, 4, 255]], np.uint8), "PNG"),
        replace(ten, height=1),
        max_pixels=LIMIT,
    )
    assert (facts.deep, facts.above[0]) == (False, 0.5)
    for sound in (replace(ten, scale=4095.0), replace(ten, scale=16383.0)):
        _, facts = decode_with_facts(opencv(twelve, ".png"), sound, max_pixels=LIMIT)
        assert losses(facts, sound) == {}


def test_colour_and_further_pages_are_told(rng):
    colour = np.repeat(rng.integers(0, 250, (6, 6, 1), dtype=np.uint8), 3, 2)
    for change, told in ((2, []), (3, ["colour"])):
        colour[1, 2, 1] = 7 + change
        colour[1, 2, 0] = colour[1, 2, 2] = 7
        _, facts = decode_with_facts(pillow(colour, "PNG"), spec(6, 6, 1), max_pixels=LIMIT)
        assert list(losses(facts, spec(6, 6, 1))) == told
        _, facts = decode_with_facts(pillow(colour, "PNG"), spec(6, 6, 3), max_pixels=LIMIT)
        assert losses(facts, spec(6, 6, 3)) == {}
    pages = [Image.fromarray(np.full((4, 4), 50 * n, np.uint8)) for n in range(4)]
    for kind in ("TIFF", "PNG"):
        stream = io.BytesIO()
        pages[0].save(stream, kind, save_all=True, append_images=pages[1:])
        pixels, facts = decode_with_facts(stream.getvalue(), spec(4, 4, 1), max_pixels=LIMIT)
        assert pixels.max() == 0
        assert losses(facts, spec(4, 4, 1)) == {"pages": "only the first of its 4 pages is read"}


def test_large_images_are_taken_over_in_parts(rng, monkeypatch):
    monkeypatch.setattr(image_file, "_PART_PIXELS", 20)
    for shape, kind in (
        ((7, 9), "PNG"),
        ((7, 9, 3), "BMP"),
        ((7, 9, 4), "PNG"),
        ((7, 9, 2), "PNG"),
    ):
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        pixels, pages, _ = read_image(pillow(array, kind), max_pixels=LIMIT)
        wanted = array[..., :3] if shape[2:] in ((3,), (4,)) else array.reshape(7, 9, -1)[..., 0]
        np.testing.assert_array_equal(pixels, wanted)
        assert pages == 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_large_images_are_brought_to_a_spec_in_parts(rng, monkeypatch, kind, channels, bit_depth):
    wanted = replace(spec(7, 9, channels, bit_depth), scale=2.0**bit_depth - 1)
    pixels = rng.integers(0, 2**12 if kind == np.uint16 else 256, (50, 40, 3)).astype(kind)
    grey = np.repeat(pixels[..., :1], 3, 2)
    odd = grey.copy()
    odd[-1, -1] = np.iinfo(kind).max, 0, 0  # colour, and nothing else, in the last part
    for image in (pixels, grey, odd, pixels[..., 0]):
        whole, facts = match_with_facts(image, wanted)
        with monkeypatch.context() as patch:
            patch.setattr(decode, "_AT_ONCE_PIXELS", 120)
            found, same_facts = match_with_facts(image, wanted)
        np.testing.assert_array_equal(found, whole)
        assert same_facts == facts
        assert facts.coloured == (channels == 1 and image is not grey and image.ndim == 3)
        factor = 257 if kind == np.uint8 else 1
        unseen = bit_depth == 8 and kind == np.uint8
        assert facts.peak == (0 if unseen else int(image.max()) * factor)


def test_a_large_image_takes_no_copies_of_it():
    wanted = replace(spec(16, 16, 1, 16), scale=65535.0)
    pixels = np.zeros((3000, 3000, 3), np.uint8)
    tracemalloc.start()
    try:
        match_with_facts(pixels, wanted)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Grey of 16 bits takes 0.67 of it, and what is done at once as much again.
    assert peak < 1.5 * pixels.nbytes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", Path("/dev/zero")):
        with pytest.raises(DataError, match="cannot be opened: a pipe or a device"):
            decode_image(path, spec(4, 4), max_pixels=LIMIT)
        with pytest.raises(DataError, match="a pipe or a device"):
            native_size([path])
        with pytest.raises(OSError, match="a pipe or a device"):
            sha256(path)
    with pytest.raises(DataError, match="cannot be opened: Is a directory"):
        decode_image(tmp_path, spec(4, 4), max_pixels=LIMIT)


def test_a_file_is_judged_by_its_header_before_it_is_read(tmp_path):
    big = tmp_path / "big.png"
    with big.open("wb") as stream:
        stream.write(pillow(np.zeros((4, 4), np.uint8), "PNG"))
        stream.truncate(2**40)  # of which the disk holds next to nothing
    with pytest.raises(DataError, match=r"1,099,511,627,776 bytes, but no image of max_pixels"):
        decode_image(big, spec(4, 4), max_pixels=LIMIT)
    with big.open("wb") as stream:
        stream.write(b"GIF89a")
        stream.truncate(2**40)
    with pytest.raises(DataError, match="not an image"):
        decode_image(big, spec(4, 4), max_pixels=LIMIT)
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    lie = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    with pytest.raises(DataError, match=r"truncated: \d+ bytes cannot hold 10000 x 10000 pixels"):
        decode_image(lie, spec(4, 4), max_pixels=2 * 10**8)


def test_threads_share_the_memory(tmp_path, monkeypatch):
    paths = save_all(tmp_path, [np.full((40, 40), n, np.uint8) for n in range(8)])
    needed = paths[0].stat().st_size + 6 * 40 * 40
    monkeypatch.setattr(image_file, "_AT_ONCE", image_file._Budget(2 * needed + 99))
    at_once, most = [], []
    both = threading.Barrier(2, timeout=30)

    def read(path):
        with whole_file(path, max_pixels=LIMIT) as file:
            at_once.append(path)
            most.append(len(at_once))
            both.wait()
            pixels = decode_image(file.data, spec(40, 40, 1), max_pixels=LIMIT)
            at_once.remove(path)
            both.wait()
        return int(pixels.max())

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, paths)) == list(range(8))
    assert max(most) == 2


def test_a_file_larger_than_the_memory_waits_until_it_is_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "_AT_ONCE", image_file._Budget(10))
    (path,) = save_all(tmp_path, [np.full((4, 4), 9, np.uint8)])
    with ThreadPoolExecutor(4) as pool:
        decoded = pool.map(lambda _: decode_image(path, spec(4, 4, 1), max_pixels=LIMIT), range(9))
        assert [int(pixels[0, 0, 0]) for pixels in decoded] == [9] * 9


def test_a_disk_that_fails_is_not_a_damaged_file(tmp_path, monkeypatch):
    (path,) = save_all(tmp_path, [np.full((4, 4), 9, np.uint8)])

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, "Input/output error")

        def fileno(self):
            return os.open(path, os.O_RDONLY)

    monkeypatch.setattr(image_file, "open_regular", lambda _: Failing())
    with pytest.raises(DataError, match="cannot be opened: Input/output error"):
        decode_image(path, spec(4, 4, 1), max_pixels=LIMIT)
