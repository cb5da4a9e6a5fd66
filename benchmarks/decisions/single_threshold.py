"""The rule that bundles had before: one threshold for all defects together.

It allows as large a share of the images that chose it as is asked of those that come.
"""

from __future__ import annotations

import numpy as np

from recame.contracts import FloatArray, IntArray

#: A threshold that no probability reaches.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))


def single_threshold(
    probabilities: FloatArray, target: IntArray, normal: int, *, max_escape: float
) -> float:
    """The lowest probability of the normal class from which `max_escape` of the defects pass.

    Args:
        probabilities: (N, C), calibrated.
        target: (N,) class indices.
        normal: index of the normal class.
        max_escape: in [0, 1].
    """
    certainty = probabilities[:, normal].astype(np.float64)
    called = probabilities.argmax(1) == normal
    defects = target != normal
    escaping = np.sort(certainty[defects & called])[::-1]
    allowed = int(np.floor(max_escape * defects.sum() + 1e-9))
    if len(escaping) <= allowed:
        return 0.0
    barred = float(escaping[allowed])
    above = certainty[called & (certainty > barred)]
    release = (barred + float(above.min())) / 2 if len(above) else (barred + NEVER) / 2
    # Decisions are made in float32.
    return NEVER if np.float32(release) <= np.float32(barred) else release
