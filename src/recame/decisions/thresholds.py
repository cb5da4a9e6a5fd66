"""How sure a bundle must be of the normal class before an image passes unseen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.metrics.statistics import wilson_interval

#: A threshold that no probability reaches.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))


@dataclass(frozen=True)
class NormalThreshold:
    """The threshold of the normal class, and what it does on the images it was chosen by.

    Attributes:
        release_above: an image called normal passes if its probability is at least this.
        max_escape: the share of defects that may pass.
        escape: share of the defects that pass.
        escape_upper: upper end of its 95 % interval (Wilson).
        overkill: share of the normal images that do not pass; None without any.
        num_defects: defects it was chosen by.
        num_normal: normal images.
        split: the images it was chosen by.
    """

    release_above: float
    max_escape: float
    escape: float
    escape_upper: float
    overkill: float | None
    num_defects: int
    num_normal: int
    split: str = "val"

    @property
    def proven(self) -> bool:
        """Whether the defects were enough to promise `max_escape`."""
        return self.escape_upper <= self.max_escape

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def sentence(self, normal: str) -> str:
        """In words, for the engineer.

        Args:
            normal: name of the normal class.
        """
        if self.release_above >= NEVER:
            rule = f"No image passes as {normal}: defects are taken for it with full certainty."
        else:
            rule = f"An image passes as {normal} from a probability of {self.release_above:.4g} on."
        passed = round(self.escape * self.num_defects)
        text = f"{rule} On {self.split}, {passed} of {self.num_defects:,} defects pass"
        if self.overkill is not None:
            text += f" and {self.overkill:.1%} of {self.num_normal:,} normal images do not"
        text += "."
        if not self.proven:
            text += (
                f" These are too few defects to promise at most {self.max_escape:.2%}: up to "
                f"{self.escape_upper:.2%} may pass (95 %). Confirm it on more labelled defects."
            )
        return text


def fit_normal_threshold(
    probabilities: FloatArray,
    target: IntArray,
    normal_index: int,
    *,
    max_escape: float,
    split: str = "val",
) -> NormalThreshold | None:
    """The lowest threshold under which at most `max_escape` of the defects pass as normal.

    Between the most certain defect that must not pass and the next image above it every threshold
    decides alike; their middle is taken, as far from both as it goes.

    Args:
        probabilities: (N, C), calibrated.
        target: (N,) class indices; rows with -1 are left out.
        normal_index: of the normal class.
        max_escape: in [0, 1].
        split: where the images come from.

    Returns:
        None where there is no defect to choose by.
    """
    known = target >= 0
    probabilities, target = probabilities[known], target[known]
    is_normal = target == normal_index
    num_defects, num_normal = int((~is_normal).sum()), int(is_normal.sum())
    if num_defects == 0:
        return None
    called = probabilities.argmax(1) == normal_index
    certainty = probabilities[:, normal_index].astype(np.float64)
    escaping = np.sort(certainty[~is_normal & called])[::-1]
    # The product of a share and a count may fall just short of a whole number.
    allowed = int(np.floor(max_escape * num_defects + 1e-9))
    if len(escaping) <= allowed:
        release = 0.0
    else:
        barred = float(escaping[allowed])
        above = certainty[called & (certainty > barred)]
        release = (barred + float(above.min())) / 2 if len(above) else (barred + NEVER) / 2
        # Decisions are made in float32.
        release = NEVER if np.float32(release) <= np.float32(barred) else release
    passes = called & (certainty >= release)
    escaped = int((passes & ~is_normal).sum())
    return NormalThreshold(
        release_above=release,
        max_escape=max_escape,
        escape=escaped / num_defects,
        escape_upper=float(wilson_interval(escaped, num_defects)[1]),
        overkill=float((~passes & is_normal).sum() / num_normal) if num_normal else None,
        num_defects=num_defects,
        num_normal=num_normal,
        split=split,
    )
