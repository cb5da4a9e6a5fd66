"""Leading directions of many vectors, and inverse covariances from them, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recame.contracts import FloatArray

#: Lower bound of variances; below that of any informative feature of vectors of length 1.
LEAST_VARIANCE = 1e-8
#: Rows that are multiplied at once.
_BLOCK = 1024


class Spectrum(NamedTuple):
    """Leading eigenvectors and eigenvalues of rows.T @ rows, and sums over all eigenvalues.

    Attributes:
        vectors: (R, D) eigenvectors, largest eigenvalue first.
        values: (R,) their eigenvalues.
        rest: mean of the other eigenvalues; the smallest one if there is no other.
        trace: sum of all eigenvalues.
        square: sum of the squares of all eigenvalues.
    """

    vectors: FloatArray
    values: FloatArray
    rest: float
    trace: float
    square: float


def spectrum_of(rows: FloatArray, most: int) -> Spectrum:
    """Spectrum of rows.T @ rows, for rows (N, D), from the smaller of the two products."""
    num_rows, width = rows.shape
    small = num_rows <= width
    values, vectors = np.linalg.eigh(product(rows.T, rows.T) if small else product(rows, rows))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    kept = min(most, int((values > 1e-9 * values[0]).sum()))
    leading, found = vectors[:, :kept], values[:kept]
    if small:
        leading = product(rows, leading / np.sqrt(found))
    trace = float(values.sum())
    rest = float(found[-1]) if kept == width else (trace - float(found.sum())) / (width - kept)
    directions = np.ascontiguousarray(leading.T, np.float32)
    return Spectrum(directions, found, max(rest, 0.0), trace, float((values**2).sum()))


class Precision(NamedTuple):
    """Inverse covariance: `scale * I - directions.T @ directions`."""

    directions: FloatArray
    scale: float

    def times(self, vectors: FloatArray) -> FloatArray:
        """Multiply it with vectors (M, D), float64."""
        wide = self.directions.astype(np.float64)
        return self.scale * vectors - (vectors @ wide.T) @ wide


def shrunk_precision(rows: FloatArray, effective: float, most: int) -> Precision:
    """Inverse of the shrunk covariance rows.T @ rows; `effective`: its number of images."""
    spectrum, width = spectrum_of(rows, most), rows.shape[1]
    usual = spectrum.trace / width
    above, below = spectrum.square / width**2 + usual**2, spectrum.square - usual**2 * width
    below *= (effective + 1) / width**2
    share = 1.0 if below <= above else above / below
    inner = (1 - share) * spectrum.values + share * usual
    outer = max((1 - share) * spectrum.rest + share * usual, LEAST_VARIANCE)
    root = np.sqrt(1 / outer - 1 / np.maximum(inner, outer))
    return Precision((spectrum.vectors * root[:, None]).astype(np.float32), 1 / outer)


def product(first: FloatArray, second: FloatArray) -> FloatArray:
    """first.T @ second, of (N, A) and (N, B), in float64 but without float64 copies of them."""
    found = np.zeros((first.shape[1], second.shape[1]))
    for start in range(0, len(first), _BLOCK):
        rows = slice(start, start + _BLOCK)
        found += first[rows].T.astype(np.float64) @ second[rows].astype(np.float64)
    return found


def squared_lengths(rows: FloatArray) -> FloatArray:
    """(N,) squared lengths, float64."""
    return np.asarray(np.einsum("nd,nd->n", rows, rows), np.float64)
