"""Large images as a few small ones: all of it shrunk, and the places that are unlike the rest.

A defect of twelve pixels vanishes when an image of 1024 is shrunk to 128, and cutting the image
into tiles that all pass the network costs 64 times as much. But what is wrong on an industrial
image is seldom what is repeated on it: each place is compared with all other places of the same
image, by features of the first stages of a network (`finder.onnx`), and only the places without a
counterpart are cut out, as they are. Labels of places are not needed, and nothing is learnt here,
so that training, evaluation and the line see the same pieces. Needs no torch.
"""

from __future__ import annotations

import threading
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recame.contracts import Array, FloatArray, IntArray, Pixels, PreprocessSpec

_FINDER = Path(__file__).with_name("finder.onnx")
#: Pixels of the image to one of the search, and of the search to a cell of its features.
_SHRINK, CELL = 2, 8
#: Pixels that are searched at most: larger images are shrunk further.
_MOST_SEARCHED = 2**21
#: The border is mirrored by so many cells, which see no edge then.
_RIM = 4
#: Cells are compared with those of their block of about so many a side, so that time and memory
#: grow with the image and not with its square; so many rows of them at once.
_BLOCK, _ROWS = 64, 8
#: Cells so near are no counterparts: they see the same, and a defect may cover several.
_NEAR = 1
#: What is added to the variances that features are whitened by, of 1.
_RIDGE = 0.01
#: Rings of cells that see the mirrored border, and the quantile by which they are compared.
_BORDER, _HIGH = 2, 0.9
#: Deviation, in cells, of the Gaussian that evens single cells out.
_SMOOTH = 0.5
_SESSIONS = threading.Lock()


def places(pixels: Pixels, spec: PreprocessSpec) -> IntArray:
    """Where the tiles of an image are cut, the most unusual place first.

    Args:
        pixels: (H', W', C) of the specification's depth and channels.
        spec: how many tiles, and their height and width.

    Returns:
        (T, 2) first row and first column of each, in pixels; the last place is repeated where the
        image is too small for so many that do not overlap by more than half.
    """
    unusual = unusualness(pixels, spec.scale)
    height, width = spec.piece_size
    rows, columns = (
        (np.arange(cells) + 0.5) * (side / cells)
        for cells, side in zip(unusual.shape, pixels.shape[:2], strict=True)
    )
    found: list[tuple[int, int]] = []
    for _ in range(spec.tiles):
        row, column = np.unravel_index(int(unusual.argmax()), unusual.shape)
        if found and not np.isfinite(unusual[row, column]):
            found.append(found[-1])
            continue
        y, x = rows[row], columns[column]
        near = (np.abs(rows - y) < height / 2)[:, None] & (np.abs(columns - x) < width / 2)
        unusual[near] = -np.inf
        found.append((_first(y, height, pixels.shape[0]), _first(x, width, pixels.shape[1])))
    return np.asarray(found, np.int64).reshape(-1, 2)


def unusualness(pixels: Pixels, scale: float) -> FloatArray:
    """How far the looks of each place are from those of any other place of the image.

    The distance of a cell's features, whitened over the image, to the nearest of another cell of
    its block that is no neighbour (as from the memory of Roth et al., PatchCore, CVPR 2022, which
    is of other images there).

    Args:
        pixels: (H, W, C), uint8 or uint16.
        scale: the value of white.

    Returns:
        (h, w) float32, of cells of about 16 x 16 pixels.
    """
    features = _whitened(_features(_searched(pixels, scale)))
    found: FloatArray = np.empty(features.shape[:2], np.float32)
    for rows in _blocks(found.shape[0]):
        for columns in _blocks(found.shape[1]):
            found[rows, columns] = _alone(features[rows, columns])
    return _at_the_border(np.asarray(cv2.GaussianBlur(found, (0, 0), _SMOOTH), np.float32))


def _at_the_border(unusual: FloatArray) -> FloatArray:
    """Damp the outermost cells, whose mirrored surroundings are like those of no cell inside.

    Each ring of cells is brought down to where its 90th percentile is that of the cells inside.
    """
    down, along = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in unusual.shape)
    ring = np.minimum(down[:, None], along[None])
    inside = unusual[ring >= _BORDER]
    if inside.size:
        usual = np.quantile(inside, _HIGH)
        for number in range(_BORDER):
            cells = ring == number
            unusual[cells] *= min(1.0, usual / max(float(np.quantile(unusual[cells], _HIGH)), 1e-9))
    return unusual


def _whitened(features: FloatArray) -> FloatArray:
    """(h, w, D) of mean 0 and no covariance, but for what hardly varies."""
    flat = features.reshape(-1, features.shape[-1])
    flat = (flat - flat.mean(0)) / (flat.std(0) + 1e-6)
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    white = vectors / np.sqrt(np.maximum(values, 0) + _RIDGE)
    return np.asarray((flat @ white.astype(np.float32)).reshape(features.shape))


def _alone(features: FloatArray) -> FloatArray:
    """(h, w, D) -> (h, w): distance of each cell to the nearest that is no neighbour."""
    height, width, depth = features.shape
    flat = features.reshape(-1, depth)
    square = np.einsum("nd,nd->n", flat, flat)[:, None]
    # The products of these are squared distances, but for the cell's own square.
    cells = np.concatenate([-2 * flat, np.ones_like(square)], 1)
    others = np.ascontiguousarray(np.concatenate([flat, square], 1).T)
    numbers = np.arange(height * width).reshape(height, width)
    nearest: FloatArray = np.empty(height * width, np.float32)
    # A few rows of cells at once, whose distances stay in the processor's cache.
    for top in range(0, height, _ROWS):
        bottom = min(height, top + _ROWS)
        part = slice(top * width, bottom * width)
        away = cells[part] @ others
        for down, along in product(range(-_NEAR, _NEAR + 1), repeat=2):
            rows = slice(max(top, -down), min(bottom, height - down))
            own = numbers[rows, max(0, -along) : width - max(0, along)]
            away[own - part.start, own + down * width + along] = np.inf
        nearest[part] = away.min(1)
    nearest += square[:, 0]
    # Where all are neighbours, none is unlike the others.
    nearest[~np.isfinite(nearest)] = 0
    return np.asarray(np.sqrt(np.maximum(nearest, 0)).reshape(height, width))


def _blocks(cells: int) -> list[slice]:
    """Equal parts of about `_BLOCK` cells."""
    ends = np.linspace(0, cells, max(1, round(cells / _BLOCK)) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _searched(pixels: Pixels, scale: float) -> Array:
    """(H, W, C) -> (h, w, C) uint8, both sides whole numbers of cells, without the rim."""
    shrink = max(_SHRINK, (pixels.shape[0] * pixels.shape[1] / _MOST_SEARCHED) ** 0.5)
    height, width = (max(1, round(side / shrink / CELL)) * CELL for side in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    if small.dtype != np.uint8:
        small = np.minimum(small * np.float32(255 / scale) + np.float32(0.5), 255).astype(np.uint8)
    return small.reshape(height, width, -1)


def _features(searched: Array) -> FloatArray:
    """(h, w, C) -> (h / 8, w / 8, D)."""
    rim = _RIM * CELL
    sides = [(min(rim, (side - 1) // CELL * CELL),) * 2 for side in searched.shape[:2]]
    padded = np.pad(searched, [*sides, (0, 0)], mode="reflect")
    (found,) = _session().run(None, {"pixels": padded.transpose(2, 0, 1)[None]})
    down, along = (before // CELL for before, _ in sides)
    found = found[0].transpose(1, 2, 0)
    inside: FloatArray = found[down : found.shape[0] - down, along : found.shape[1] - along]
    return inside


def _session() -> Any:
    # One for the whole process: several threads may run it at once, each on one core.
    with _SESSIONS:
        return _open()


@cache
def _open() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        _FINDER.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


def _first(centre: float, length: int, side: int) -> int:
    """Where a tile begins that lies about a place, inside where it fits."""
    return int(max(0, min(round(centre - length / 2), side - length)))


def cut(pixels: Pixels, top: int, left: int, height: int, width: int) -> Pixels:
    """A tile (height, width, C), the border repeated where the image is smaller."""
    part = pixels[top : top + height, left : left + width]
    missing = [(0, height - part.shape[0]), (0, width - part.shape[1]), (0, 0)]
    return np.pad(part, missing, mode="edge") if part.shape[:2] != (height, width) else part
