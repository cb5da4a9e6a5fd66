"""`line_mix: estimate`: how often each class comes on a line, told by a lot's own predictions.

What holds for a stated mix (purity, the shares expected, false alarms of the unknown) then holds
for the estimated one. No escape limit does: it is of each class, however often that comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recame.contracts import FloatArray
from recame.decisions.prior_shift import Known, PriorEstimate, estimate_prior
from recame.errors import CheckpointError, ConfigError
from recame.names import counted, quoted

#: Fewer images of a lot say nothing of a line: a share of one half is known to 7 points.
LEAST_IMAGES = 200
#: Classes whose shares a sentence tells.
_TOLD = 8


@dataclass(frozen=True, eq=False)
class LineMix:
    """The estimated shares of the classes on a line.

    Attributes:
        names: of the C classes.
        estimate: their shares, with 95 % intervals.
        source: the table of the lot.
        sha256: of its file.
    """

    names: tuple[str, ...]
    estimate: PriorEstimate
    source: str
    sha256: str

    @property
    def shares(self) -> FloatArray:
        """(C,) of sum 1."""
        return self.estimate.prior

    def words(self) -> str:
        """What the line is, as the end of a sentence."""
        found = self.estimate
        order = np.argsort(-found.prior, kind="stable")
        told = [
            f"{quoted(self.names[c])} {found.prior[c]:.1%} "
            f"({found.low[c]:.1%} to {found.high[c]:.1%})"
            for c in order[:_TOLD].tolist()
        ]
        more = f" and {len(order) - _TOLD} more" if len(order) > _TOLD else ""
        images = f"estimated from {counted(found.images)} of {self.source}"
        return f"a line as {images} ({', '.join(told)}{more})"

    def sentence(self) -> str:
        """What holds for it."""
        return (
            f"Purity, the shares expected and false alarms of the unknown are on {self.words()}; "
            "on a line of other shares they are not promised. No escape limit rests on it."
        )

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = self.estimate
        shares = {"prior": found.prior, "low": found.low, "high": found.high}
        return {
            **{
                what: dict(zip(self.names, values.tolist(), strict=True))
                for what, values in shares.items()
            },
            "images": found.images,
            "noticed_from": found.noticed_from,
            "source": self.source,
            "sha256": self.sha256,
            "holds": "purity, expected shares and false alarms of the unknown are promised for "
            "this estimated mix; no escape limit rests on it",
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], names: Sequence[str]) -> LineMix:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: it is damaged, or of other classes.
        """
        try:
            prior, low, high = (
                np.array([float(values[what][name]) for name in names])
                for what in ("prior", "low", "high")
            )
            noticed, images = values["noticed_from"], int(values["images"])
            found = PriorEstimate(
                prior, low, high, images, noticed_from=None if noticed is None else float(noticed)
            )
            return cls(tuple(names), found, str(values["source"]), str(values["sha256"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The estimated line_mix cannot be read ({error!r}): decisions.json was edited or "
                "damaged, or is of a model of other classes. Fit it anew with recame tune --lot."
            ) from error


def estimate_line(
    probabilities: FloatArray,
    prior: FloatArray,
    known: Known,
    names: Sequence[str],
    *,
    unknown_share: float | None,
    source: str,
    sha256: str,
) -> LineMix:
    """Estimate how often each class comes, or say why that cannot be told.

    Args:
        probabilities: (N, C) of the lot, calibrated; NaN where an image cannot be read.
        prior: (C,) that the probabilities speak of.
        known: the calibration's images.
        names: of the C classes.
        unknown_share: of the lot's images that are unlike anything known; None: nothing tells it.
        source: the lot's table.
        sha256: of its file.

    Raises:
        ConfigError: the lot tells no mix; nothing else is taken in its place.
    """
    usable = int(np.isfinite(probabilities).all(1).sum())
    if usable < LEAST_IMAGES:
        why = f"{counted(usable)} with probabilities are too few (it takes {LEAST_IMAGES})"
    else:
        found = estimate_prior(
            probabilities, prior, unknown_share=unknown_share, known=known, names=names
        )
        if not found.refused:
            return LineMix(tuple(names), found, source, sha256)
        why = found.refused
    raise ConfigError(
        f"line_mix: estimate: {source} does not tell how often each class comes: {why}. No other "
        "mix was taken in its place. Give another lot, or state the mix, for instance "
        f"{stated(names)}."
    )


def stated(names: Sequence[str]) -> str:
    """An example of a mix that is stated."""
    return f"line_mix: {{{quoted(names[0])}: 98, {quoted(names[1])}: 2}}"
