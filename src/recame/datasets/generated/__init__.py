"""ICDefectSynth: generated inspection images of 14 classes, or 30, on many product lines.

The same seed gives the same pixels on every machine: all randomness is integer hashes of (seed,
image, purpose), and pixels are computed by + - * /, square roots, comparisons and rounding in
float32, which IEEE 754 defines to the last bit; there is no sine, exponential, sum or matrix
product whose result would depend on the processor. (The bytes of a PNG file also depend on the
compression library; its pixels do not.)
"""

from __future__ import annotations

from recame.datasets.generated.defects import CLASSES, DefectClass
from recame.datasets.generated.fine_classes import FINE_CLASSES
from recame.datasets.generated.generate import generate, render, windows, write
from recame.datasets.generated.plan import SyntheticSpec, is_head, plan, train_counts
from recame.datasets.generated.products import DESIGNS

__all__ = [
    "CLASSES",
    "DESIGNS",
    "FINE_CLASSES",
    "DefectClass",
    "SyntheticSpec",
    "generate",
    "is_head",
    "plan",
    "render",
    "train_counts",
    "windows",
    "write",
]
