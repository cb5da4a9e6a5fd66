"""How sure a bundle must be of the normal class before an image passes unseen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.policy import names_a_class
from recame.metrics.statistics import rate_at_most
from recame.names import quoted

#: A threshold that no probability reaches.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))

#: Of the rate that a bundle states.
CONFIDENCE = 0.95

#: Classes that a sentence names.
_NAMED = 4


@dataclass(frozen=True)
class NormalThreshold:
    """The threshold of the normal class, and what the images it was chosen by allow to say of it.

    Attributes:
        release_above: an image called normal passes if its probability is at least this.
        escape_at_most: the share of defects that may pass, with `confidence`.
        confidence: of `escape_at_most`.
        escape: share of the defects that pass.
        asked_max_escape: what was asked for; a wish, unless `proven`.
        overkill: share of the normal images that do not pass; None without any.
        num_defects: defects it was chosen by.
        num_normal: normal images.
        by_class: defect class -> its images, how many `pass`, its own `escape_at_most`.
        split: the images it was chosen by.
    """

    release_above: float
    escape_at_most: float
    escape: float
    asked_max_escape: float
    overkill: float | None
    num_defects: int
    num_normal: int
    by_class: dict[str, dict[str, Any]] = field(default_factory=dict)
    confidence: float = CONFIDENCE
    split: str = "val"

    @property
    def proven(self) -> bool:
        """Whether the defects were enough to promise what was asked for."""
        return self.escape_at_most <= self.asked_max_escape

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "proven": self.proven}

    def sentence(self, normal: str) -> str:
        """In words, for the engineer.

        Args:
            normal: name of the normal class.
        """
        if self.release_above >= NEVER:
            text = f"No image passes as {normal}: defects are taken for it with full certainty."
        else:
            text = f"An image passes as {normal} from a probability of {self.release_above:.4g} on."
        passed = round(self.escape * self.num_defects)
        text += (
            f" With {self.confidence:.0%} confidence at most {self.escape_at_most:.2%} of the "
            f"defects pass: on {self.split}, {passed} of {self.num_defects:,} do"
        )
        if self.overkill is not None:
            text += f", and {self.overkill:.1%} of {self.num_normal:,} normal images do not"
        text += "."
        worst = sorted(
            ((name, facts) for name, facts in self.by_class.items() if facts["pass"]),
            key=lambda item: -item[1]["escape_at_most"],
        )
        if worst:
            told = ", ".join(
                f"{quoted(name)} {facts['pass']} of {facts['images']} (at most "
                f"{facts['escape_at_most']:.0%})"
                for name, facts in worst[:_NAMED]
            )
            text += f" By class: {told}{', ...' if len(worst) > _NAMED else ''}."
        if not self.proven:
            text += f" Asked were at most {self.asked_max_escape:.2%}, which these are too few for"
            if self.asked_max_escape > 0:
                text += (
                    f": it takes {_least_defects(self.asked_max_escape):,} without any that pass"
                )
            text += "."
        return text


def _least_defects(max_escape: float) -> int:
    """Defects, none of which passes, that promise a share of them."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-max_escape))


def fit_normal_threshold(
    probabilities: FloatArray,
    target: IntArray,
    normal_index: int,
    *,
    max_escape: float,
    names: Sequence[str] = (),
    split: str = "val",
) -> NormalThreshold | None:
    """The lowest threshold under which at most `max_escape` of the defects pass as normal.

    Between the most certain defect that must not pass and the next image above it every threshold
    decides alike; their middle is taken, as far from both as it goes. An answer that names no
    class goes to review, and so does not pass.

    Args:
        probabilities: (N, C), calibrated.
        target: (N,) class indices; rows with -1 are left out.
        normal_index: of the normal class.
        max_escape: in [0, 1].
        names: of the C classes, to tell each defect class apart.
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
    called = (probabilities.argmax(1) == normal_index) & names_a_class(probabilities)
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
        escape_at_most=rate_at_most(escaped, num_defects, CONFIDENCE),
        escape=escaped / num_defects,
        asked_max_escape=max_escape,
        overkill=float((~passes & is_normal).sum() / num_normal) if num_normal else None,
        num_defects=num_defects,
        num_normal=num_normal,
        by_class={
            name: _of_class(passes[target == index])
            for index, name in enumerate(names)
            if index != normal_index and (target == index).any()
        },
        split=split,
    )


def _of_class(passes: BoolArray) -> dict[str, Any]:
    passed, images = int(passes.sum()), len(passes)
    at_most = rate_at_most(passed, images, CONFIDENCE)
    return {"images": images, "pass": passed, "escape_at_most": at_most}
