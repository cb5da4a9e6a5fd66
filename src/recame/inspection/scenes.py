"""Finds near-duplicates: images that show the same scene again."""

from __future__ import annotations

import numpy as np
import pandas as pd

from recame.contracts import Array, FloatArray, IntArray
from recame.data.cache import PickedRows
from recame.inference.projection import nearest_rows

#: Side in pixels at which images are compared; images that are not square get about as many pixels,
#: each side a multiple of 16 and at least half of it.
SIDE = 64
_CANDIDATES = 3
_THUMB = 16
#: Spatial frequencies up to this many cycles a pixel are compared; above is mostly noise.
_BAND = 0.2
_REACH, _STEP = 1.5, 0.25
_RIM = 4
#: Residuals are averaged over blocks of this side: noise falls, differences of the scene stay.
_BLOCK = 4
#: Limits for a pair to count as one scene, see `near_duplicates`.
MIN_PHASE, MAX_RESIDUAL, MAX_RELATIVE, MIN_CORRELATION = 0.6, 1.2, 0.5, 0.8
#: Least noise that is assumed (of binarised or saturated images), for pixels in [0, 255].
_LEAST_NOISE = 1.5


def near_duplicates(
    images: Array | PickedRows, scale: float, components: FloatArray
) -> pd.DataFrame:
    """Pairs of images that show one scene twice, up to a small shift, other light and noise.

    Candidates are the 3 nearest others of each image in the embedding and among its blurred
    thumbnails. A candidate pair is aligned by phase correlation (Kuglin and Hines, 1975) to a
    quarter of a pixel within 1.5 pixels and counts if

    - `phase` >= 0.6: the phases of the spatial frequencies agree (1: all; 0: chance), and
    - `residual` <= 1.2: after fitting gain, offset, a tilt of the light and the rest of the shift,
      their means over blocks of 4 x 4 pixels differ by hardly more than the images' own noise
      makes them (in units of it), and
    - `relative` <= 0.5: they differ by less than half of what each differs from its other
      candidates (lower quartile), so that two views of one repetitive product do not count, and
    - `correlation` >= 0.8: there is something to compare beside noise.

    Args:
        images: (N, H, W, C) stored pixels; equal images should be left out.
        scale: the stored value that means 1.
        components: (N, Q) principal components of the embedding.

    Returns:
        One row for each pair: `first`, `second` (rows, first < second), `phase`, `residual`,
        `relative`, `correlation` (after alignment); most alike first.
    """
    grey = _grey(images, scale)
    vectors = (components, _thumbnails(grey))
    near = np.concatenate([nearest_rows(part, _CANDIDATES)[0] for part in vectors], 1)
    first = np.repeat(np.arange(len(near)), near.shape[1])
    pairs = np.unique(np.sort(np.stack([first, near.ravel()], 1), axis=1), axis=0)
    phase, shift = _align(grey, pairs)
    kept = phase > 0.35
    pairs, phase, shift = pairs[kept], phase[kept], shift[kept]
    blocks = np.array_split(np.arange(len(pairs)), max(1, -(-len(pairs) // 512)))
    fits = [_fit(grey, pairs[rows], shift[rows]) for rows in blocks]
    rest, correlation = (np.concatenate(parts) for parts in zip(*fits, strict=True))
    own = np.sqrt((_noise(grey)[pairs] ** 2).sum(1))
    residual = rest / (np.maximum(own, _LEAST_NOISE) / _BLOCK)
    relative = _relative(pairs, rest)
    meets = (phase >= MIN_PHASE) & (residual <= MAX_RESIDUAL) & (relative <= MAX_RELATIVE)
    table: pd.DataFrame = pd.DataFrame(
        {
            "first": pairs[:, 0],
            "second": pairs[:, 1],
            "phase": phase,
            "residual": residual,
            "relative": relative,
            "correlation": correlation,
        }
    )[meets & (correlation >= MIN_CORRELATION)]
    return table.sort_values("residual", kind="stable", ignore_index=True)


def scene_groups(num_images: int, pairs: Array) -> IntArray:
    """Number the sets of images that pairs join, directly or through others.

    Args:
        num_images: N.
        pairs: (M, 2) rows.

    Returns:
        (N,) group number; an image without a pair is a group by itself.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(num_images, num_images))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _grey(images: Array | PickedRows, scale: float) -> FloatArray:
    """(N, H, W) of [0, 255], in the images' shape."""
    import cv2

    height, width = images[0].shape[:2]
    ratio = SIDE / (height * width) ** 0.5
    rows, columns = (max(SIDE // 2, 16 * round(side * ratio / 16)) for side in (height, width))
    grey = np.empty((len(images), rows, columns), np.float32)
    rule = cv2.INTER_AREA if height * width > rows * columns else cv2.INTER_LINEAR
    for row in range(len(images)):
        flat = images[row].astype(np.float32).mean(2) * (255.0 / scale)
        # Of the same size, it stays as it is.
        grey[row] = cv2.resize(flat, (columns, rows), interpolation=rule)
    return grey


def _thumbnails(grey: FloatArray) -> FloatArray:
    """Means of blocks, of mean 0 and length 1: (N, 256), about so many of other shapes."""
    small = _block_means(grey, SIDE // _THUMB).reshape(len(grey), -1)
    small -= small.mean(1, keepdims=True)
    return np.asarray(small / (np.linalg.norm(small, axis=1, keepdims=True) + 1e-6), np.float32)


def _block_means(images: FloatArray, side: int) -> FloatArray:
    """(N, H, W) -> (N, H / side, W / side)."""
    num, rows, columns = images.shape
    blocks = images.reshape(num, rows // side, side, columns // side, side)
    return np.asarray(blocks.mean((2, 4)))


def _noise(grey: FloatArray) -> FloatArray:
    """Deviation of each image's noise from its diagonal differences (Donoho's median rule)."""
    cross = grey[:, :-1, :-1] - grey[:, 1:, :-1] - grey[:, :-1, 1:] + grey[:, 1:, 1:]
    return np.asarray(np.median(np.abs(cross).reshape(len(grey), -1), 1) / (2 * 0.6745), np.float32)


def _align(grey: FloatArray, pairs: IntArray) -> tuple[FloatArray, FloatArray]:
    """Height (M,) and place (M, 2: y, x) of each pair's phase correlation."""
    sides = grey.shape[1:]
    fy, fx = np.meshgrid(*(np.fft.fftfreq(side) for side in sides), indexing="ij")
    # Half of them, since the others are their conjugates.
    kept = (np.hypot(fy, fx) < _BAND) & ((fy > 0) | ((fy == 0) & (fx > 0)))
    fy, fx = fy[kept], fx[kept]
    down, across = (np.hanning(side + 2)[1:-1].astype(np.float32) for side in sides)
    window = down[:, None] * across[None]
    unit = np.empty((len(grey), len(fy)), np.complex64)
    for start in range(0, len(grey), 512):
        block = grey[start : start + 512]
        block = (block - block.mean((1, 2), keepdims=True)) * window
        spectrum = np.fft.fft2(block)[:, kept]
        unit[start : start + 512] = spectrum / (np.abs(spectrum) + 1e-6)
    steps = np.arange(-_REACH, _REACH + 1e-6, _STEP)
    shifts = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    ramp = 2 * np.pi * (np.outer(fy, shifts[:, 0]) + np.outer(fx, shifts[:, 1]))
    cosine, sine = np.cos(ramp).astype(np.float32), np.sin(ramp).astype(np.float32)
    height = np.empty(len(pairs), np.float32)
    place = np.empty((len(pairs), 2), np.float32)
    for start in range(0, len(pairs), 2048):
        part = pairs[start : start + 2048]
        cross = unit[part[:, 0]] * unit[part[:, 1]].conj()
        value = (cross.real @ cosine - cross.imag @ sine) / len(fy)
        best = value.argmax(1)
        height[start : start + 2048] = value[np.arange(len(part)), best]
        place[start : start + 2048] = shifts[best]
    return height, place


def _fit(grey: FloatArray, pairs: IntArray, shift: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What is left of the first image after fitting the second, and their correlation: (M,) each.

    Both are blurred a little and the second is moved. Least squares over its pixels, its slopes
    (what a shift finer than the search leaves, to first order) and a tilted plane of light explain
    the first; the deviation of the block means of what they leave unexplained is returned.
    """
    height, width = grey.shape[1:]
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    blur = (0.5 + 0.5 * np.cos(2 * np.pi * fy)) * (0.5 + 0.5 * np.cos(2 * np.pi * fx))
    inner = slice(_RIM, height - _RIM), slice(_RIM, width - _RIM)
    y, x = np.mgrid[inner]
    tilt = np.stack([np.ones(y.size), y.ravel() - height // 2, x.ravel() - width // 2], 1)
    plane, _ = np.linalg.qr(tilt)
    plane = plane.astype(np.float32)

    def flat(spectrum: Array) -> FloatArray:
        pixels = np.fft.irfft2(spectrum, s=(height, width))[:, *inner]
        rows = pixels.reshape(-1, y.size).astype(np.float32)
        return np.asarray(rows - (rows @ plane) @ plane.T)

    turn = shift[:, 0, None, None] * fy + shift[:, 1, None, None] * fx
    # The cross spectrum of `_align` peaks where the first is the second moved back by the shift.
    moved = np.fft.rfft2(grey[pairs[:, 1]]) * (blur * np.exp(-2j * np.pi * turn))
    first, second = flat(np.fft.rfft2(grey[pairs[:, 0]]) * blur), flat(moved)
    slopes = [flat(moved * (2j * np.pi * frequency)) for frequency in (fy, fx)]
    parts = np.stack([second, *slopes], 1)
    gram = parts @ parts.transpose(0, 2, 1)
    # A flat image has no slopes; a trace of a ridge keeps its equations solvable.
    ridge = 1e-6 * np.trace(gram, axis1=1, axis2=2) + 1e-3
    gram += ridge[:, None, None] * np.eye(len(slopes) + 1, dtype=np.float32)
    weight = np.linalg.solve(gram, parts @ first[:, :, None])
    rest = first - (weight.transpose(0, 2, 1) @ parts)[:, 0]
    blocks = _block_means(rest.reshape(-1, *y.shape), _BLOCK)
    power = (first**2).sum(1) * (second**2).sum(1) + 1e-6
    correlation = (first * second).sum(1) / np.sqrt(power)
    return np.sqrt((blocks**2).mean((1, 2))), np.asarray(correlation, np.float32)


def _relative(pairs: IntArray, rest: FloatArray) -> FloatArray:
    """Each pair's rest over the lower quartile of its members' candidates; 0 without others."""
    frame = pd.DataFrame({"image": pairs.T.ravel(), "rest": np.tile(rest, 2)})
    groups = frame.groupby("image")["rest"]
    quartile = groups.transform("quantile", q=0.25).where(groups.transform("size") >= 3).to_numpy()
    least = np.fmin(quartile[: len(pairs)], quartile[len(pairs) :])
    return np.asarray(np.nan_to_num(rest / np.maximum(least, 1e-6), nan=0.0), np.float32)
