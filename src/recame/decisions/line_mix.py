"""`line_mix: estimate`: how often each class comes on a line, estimated from a lot's predictions.

Purity, expected shares and false alarms depend on the mix; they then hold for the estimated mix.
Escape limits do not depend on it: each is about one class, however often that class comes.
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

#: Least images of a lot: with so many, a share of one half is known to 7 percentage points.
LEAST_IMAGES = 200
#: Most classes whose shares a sentence lists.
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
        """(C,) shares of the classes; they sum to 1."""
        return self.estimate.prior

    def words(self) -> str:
        """Describe the line, as the end of a sentence."""
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
        """Say in words what holds for this mix."""
        return (
            f"Purity, expected shares and false alarms of the unknown are for {self.words()}; they "
            "are not promised for a line with other shares. Escape limits do not depend on it."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
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
            "this estimated mix; escape limits do not depend on it",
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], names: Sequence[str]) -> LineMix:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: the mix is damaged, or belongs to other classes.
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
                "damaged, or belongs to a model of other classes. Fit it again with recame tune "
                "--lot."
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
    """Estimate how often each class comes, or say why that is not possible.

    Args:
        probabilities: (N, C) of the lot, calibrated; NaN if an image cannot be read.
        prior: (C,) class prior of the probabilities.
        known: the calibration images.
        names: of the C classes.
        unknown_share: share of the lot's images that are unknown; None: not known.
        source: the lot's table.
        sha256: of its file.

    Raises:
        ConfigError: the mix cannot be estimated from the lot; no other mix is used instead.
    """
    usable = int(np.isfinite(probabilities).all(1).sum())
    if usable < LEAST_IMAGES:
        why = f"{counted(usable)} with probabilities are too few ({LEAST_IMAGES} are needed)"
    else:
        found = estimate_prior(
            probabilities, prior, unknown_share=unknown_share, known=known, names=names
        )
        if not found.refused:
            return LineMix(tuple(names), found, source, sha256)
        why = found.refused
    raise ConfigError(
        f"line_mix: estimate: {source} does not show how often each class comes: {why}. No other "
        "mix was used instead. Give another lot, or state the mix, for instance "
        f"{stated(names)}."
    )


def stated(names: Sequence[str]) -> str:
    """An example of a mix that is stated."""
    return f"line_mix: {{{quoted(names[0])}: 98, {quoted(names[1])}: 2}}"
