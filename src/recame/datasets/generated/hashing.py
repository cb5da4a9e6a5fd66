"""Randomness that is the same on every machine: integer hashes of (seed, image, name, pixel).

A generator that draws image after image ties an image's pixels to its place in the batch. Here
each number is a hash of what it is for, so that any subset of images can be made alone. Only
integer arithmetic and exactly rounded float operations are used, no transcendental functions.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from recame.contracts import Array, IntArray

#: float32; numpy's types forget that next to Python numbers.
F32 = Array
U32 = np.ndarray[Any, np.dtype[np.uint32]]
U64 = np.ndarray[Any, np.dtype[np.uint64]]
I64 = IntArray

#: Mean and standard deviation of the sum of four random bytes.
_BYTES_MEAN, _BYTES_SD = 510.0, 147.8
_NAMES: dict[str, np.uint64] = {}


def make_keys(parent: U64 | int, numbers: I64 | int) -> U64:
    """One 64-bit key for each number below a parent key (Steele et al., SplitMix, 2014).

    Args:
        parent: (N,) or (1,) keys, or a seed.
        numbers: (N,) integers, or one.

    Returns:
        (N,).
    """
    x = np.atleast_1d(np.asarray(parent)).astype(np.uint64)
    return _splitmix(_splitmix(x) ^ np.atleast_1d(np.asarray(numbers)).astype(np.uint64))


def named(keys: U64, name: str) -> U64:
    """Keys of another, independent purpose."""
    if name not in _NAMES:
        _NAMES[name] = np.uint64(zlib.crc32(name.encode()) * 2654435761 % 2**64)
    return _splitmix(keys ^ _NAMES[name])


def uniform(keys: U64, name: str, low: float | F32 = 0.0, high: float | F32 = 1.0) -> F32:
    """A number in [low, high) for each key and purpose.

    Args:
        keys: (N,).
        name: what the number is for.
        low: a number, or (N, 1, 1).
        high: a number, or (N, 1, 1).

    Returns:
        (N, 1, 1), so that it broadcasts over pixels.
    """
    bits = (named(keys, name) >> 40).astype(np.float32)
    share: F32 = (bits * np.float32(2.0**-24))[:, None, None]
    return low + (high - low) * share


def below(keys: U64, name: str, limit: int | I64) -> I64:
    """An integer in [0, limit) for each key: (N,)."""
    bits = named(keys, name) >> 32
    return (bits * np.asarray(limit).astype(np.uint64) >> 32).astype(np.int64)


def shuffled(keys: U64, name: str) -> I64:
    """A random order of the keys: (N,) positions."""
    return np.argsort(named(keys, name), kind="stable")


def pixel_noise(keys: U64, name: str, shape: tuple[int, int]) -> F32:
    """White noise for each pixel: sum of four random bytes, which is Gaussian but for its far tail.

    Returns:
        (N, *shape) of mean 0 and deviation 1.
    """
    x: Any = _mix(np.arange(shape[0] * shape[1], dtype=np.uint32).reshape(1, *shape))
    x = _mix(x ^ low_word(named(keys, name)))
    y = x & 0x00FF00FF
    x >>= 8
    x &= 0x00FF00FF
    y += x
    np.right_shift(y, 16, out=x)
    y &= 0xFFFF
    y += x
    noise: F32 = y.astype(np.float32)
    noise -= np.float32(_BYTES_MEAN)
    noise *= np.float32(1 / _BYTES_SD)
    return noise


def cell_hash(keys: U32, i: F32, j: F32) -> F32:
    """A number in [0, 1) for each cell of an endless plane, the same whoever looks at it.

    Args:
        keys: (N, 1, 1), the plane.
        i: whole numbers, any shape that broadcasts.
        j: the same.
    """
    x = i.astype(np.int32).view(np.uint32) * np.uint32(0x9E3779B1)
    x = x + j.astype(np.int32).view(np.uint32) * np.uint32(0x85EBCA77)
    return np.asarray((_mix(x ^ keys) >> 8).astype(np.float32) * np.float32(2.0**-24))


def smooth_field(
    keys: U64, name: str, cells: int, size: int, shape: tuple[int, int] | None = None
) -> F32:
    """Smooth random hills over an image: random values on a lattice, smoothly interpolated.

    Args:
        keys: (N,).
        name: what the field is for.
        cells: lattice cells a window's side.
        size: pixels a window's side.
        shape: height and width of the image, pixels; None for a window.

    Returns:
        (N, *shape) in [-1, 1].
    """
    height, width = shape or (size, size)
    step = -(-size // cells)
    rows, columns = (max(cells, -(-side // step)) + 1 for side in (height, width))
    lattice = _mix(np.arange(rows * columns, dtype=np.uint32).reshape(1, rows, columns))
    lattice = _mix(lattice ^ low_word(named(keys, name)))
    values = (lattice >> 8).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    t = (np.arange(step, dtype=np.float32) + np.float32(0.5)) / np.float32(step)
    weight = t * t * (3 - 2 * t)
    # A cell is a whole number of pixels, so that broadcasting interpolates without a gather.
    low, high = values[:, :-1, None, :], values[:, 1:, None, :]
    lines = (low + (high - low) * weight[None, None, :, None]).reshape(len(keys), -1, columns)
    left, right = lines[:, :height, :-1, None], lines[:, :height, 1:, None]
    field = left + (right - left) * weight
    return np.asarray(field.reshape(len(keys), height, -1)[..., :width])


def low_word(keys: U64) -> U32:
    """The low 32 bits of each key: (N, 1, 1)."""
    return (keys & 0xFFFFFFFF).astype(np.uint32)[:, None, None]


def _splitmix(x: Any) -> U64:
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return np.asarray(x ^ (x >> 31))


def _mix(x: Any) -> U32:
    """`lowbias32` (Wellons, Prospecting for Hash Functions, 2018), on a fresh array."""
    x = x ^ (x >> 16)
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return np.asarray(x)
