"""A fitted policy: from scores to an action for each image, and the reason for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from recame.contracts import Array, BoolArray, FloatArray, IntArray
from recame.decisions.audit import audited
from recame.decisions.scored import class_log_odds, release_scores
from recame.errors import CheckpointError

#: Of every draw, so that an image is audited by each model or by none.
_SALT = "recame audit"

RELEASE, AUTOMATIC, REVIEW, UNKNOWN, UNREADABLE = range(5)
#: What is done with an image, by these numbers.
ACTIONS = ("release", "automatic", "review", "unknown", "unreadable")

#: Reason -> the action that follows from it. An image has the first that is true of it, in this
#: order; the audit comes first, so that what it has drawn is a share of all that there is.
#: `unreadable` and `near_black` are told by whoever reads the files, and `over_budget` by whoever
#: ends a table: of images that go to a person for their score, those that no person has time for.
ACTION_OF = {
    "unreadable": UNREADABLE,
    "near_black": REVIEW,
    "over_budget": REVIEW,
    "not_finite": REVIEW,
    "audit": REVIEW,
    "unknown": UNKNOWN,
    "product_unseen": REVIEW,
    "released": RELEASE,
    "below_release": REVIEW,
    "automatic": AUTOMATIC,
    "class_not_promised": REVIEW,
    "ambiguous": REVIEW,
}
REASONS = tuple(ACTION_OF)
#: Of which `Policy.act` gives an image the first that is true.
_ASKED = REASONS[REASONS.index("not_finite") :]


class Acted(NamedTuple):
    """What is done with N images.

    Attributes:
        reason: (N,) numbers of `REASONS`.
        action: (N,) numbers of `ACTIONS`.
        best: (N,) the class that each is called: the most probable, or the normal one where it is
            released; meaningless where nothing is finite.
        odds: (N,) its log-odds; NaN where nothing is finite.
    """

    reason: IntArray
    action: IntArray
    best: IntArray
    odds: FloatArray

    def reasons(self) -> list[str]:
        """Each image's reason, of which its action follows."""
        return [REASONS[number] for number in self.reason]


@dataclass(frozen=True)
class Policy:
    """What scores lead to.

    Attributes:
        names: of the C classes.
        normal: index of the class that may be released; None: there is none.
        release_above: score (`release_scores`) that an image must exceed to be released; of a
            policy without `defect_weights` the log-odds of the normal class, as which it must then
            be called too.
        automatic_above: (C,) log-odds of its class that any other image must exceed to be decided
            by it without a person; inf: nothing is.
        defect_weights: (C,) what each defect class weighs in the score; None: fitted before there
            were any.
        guarded: indices of the classes of which nothing is promised: an image that is called one
            of them is not released.
        unknown_above: strangeness from which on an image is unknown; None: nothing says so.
        products: those of the training; None: they are not asked.
        audit: share of all images that people see, drawn by their content (`audited`).
        product_column: what tables call the products.
        review_budget: largest share of a production lot that people see; None: any.
        lot_column: what tables call the production lots; None: a table is one.
    """

    names: tuple[str, ...]
    normal: int | None
    release_above: float
    automatic_above: FloatArray = field(repr=False)
    defect_weights: FloatArray | None = field(default=None, repr=False)
    guarded: frozenset[int] = frozenset()
    unknown_above: float | None = None
    products: frozenset[str] | None = None
    audit: float = 0.0
    product_column: str = "product"
    review_budget: float | None = None
    lot_column: str | None = None

    def act(
        self,
        logits: FloatArray,
        *,
        strangeness: FloatArray | None = None,
        products: Sequence[str | None] | None = None,
        drawn: BoolArray | None = None,
    ) -> Acted:
        """Decide N images.

        Args:
            logits: (N, C) of the ensemble, not divided by a temperature (`logits_of`).
            strangeness: (N,) unknown scores; NaN counts as strange.
            products: (N,) of the images.
            drawn: (N,) those that people see in any case (`draws`).
        """
        odds = class_log_odds(logits)
        finite: BoolArray = np.asarray(np.isfinite(odds).all(1))
        best = np.nan_to_num(odds, nan=0.0).argmax(1)
        own = np.take_along_axis(odds, best[:, None], 1)[:, 0]
        nothing = np.zeros(len(odds), np.bool_)
        # What is no number is greater than nothing, and so never above a threshold.
        normal = nothing if self.normal is None else finite & (best == self.normal)
        released = normal & (own > self.release_above)
        if self.normal is not None and self.defect_weights is not None:
            scores = release_scores(logits, self.normal, self.defect_weights)
            held = np.isin(best, list(self.guarded))
            released = finite & ~held & (scores > self.release_above)
        above = self.automatic_above[best]
        facts: dict[str, BoolArray] = {
            "not_finite": ~finite,
            "unknown": nothing if strangeness is None else self._strange(strangeness),
            "product_unseen": self._unseen(products, len(odds)),
            "audit": nothing if drawn is None else drawn,
            "released": released,
            "below_release": normal,
            "automatic": finite & (own > above),
            "class_not_promised": above == math.inf,
            "ambiguous": ~nothing,
        }
        first = np.stack([facts[name] for name in _ASKED]).argmax(0)
        reason = first + len(REASONS) - len(_ASKED)
        passes = reason == REASONS.index("released")
        if passes.any():
            best, own = best.copy(), own.copy()
            best[passes], own[passes] = self.normal, odds[passes, self.normal]
        return Acted(reason, np.array(list(ACTION_OF.values()))[reason], best, own)

    def draws(self, digests: Sequence[str | None]) -> BoolArray | None:
        """Which images go to people for the audit, by the SHA-256 of their files.

        A file that could not be read has none, and is not released anyway. None without an audit.
        """
        if not self.audit:
            return None
        known = np.array([digest is not None for digest in digests], np.bool_)
        found = np.zeros(len(digests), np.bool_)
        found[known] = audited([d for d in digests if d is not None], self.audit, _SALT)
        return found

    def _strange(self, strangeness: FloatArray) -> BoolArray:
        if self.unknown_above is None:
            return np.zeros(len(strangeness), np.bool_)
        known: BoolArray = strangeness <= self.unknown_above
        return ~known

    def _unseen(self, products: Sequence[str | None] | None, number: int) -> BoolArray:
        if self.products is None or products is None:
            return np.zeros(number, np.bool_)
        return np.array([str(product) not in self.products for product in products], np.bool_)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, which has no infinity: `never` and `always` stand for it."""
        automatic = {
            name: _told(above)
            for index, (name, above) in enumerate(
                zip(self.names, self.automatic_above, strict=True)
            )
            if index != self.normal
        }
        return {
            "normal": None if self.normal is None else self.names[self.normal],
            "release_above": _told(self.release_above),
            "automatic_above": automatic,
            **self._told_weights(),
            "unknown_above": self.unknown_above,
            "products": None if self.products is None else sorted(self.products),
            "audit": self.audit,
            "product_column": self.product_column,
            "review_budget": self.review_budget,
            "lot_column": self.lot_column,
        }

    def _told_weights(self) -> dict[str, Any]:
        if self.normal is None or self.defect_weights is None:
            return {}
        pairs = zip(self.names, self.defect_weights.tolist(), strict=True)
        weights = {name: weight for at, (name, weight) in enumerate(pairs) if at != self.normal}
        guarded = [self.names[index] for index in sorted(self.guarded)]
        return {"defect_weights": weights, "guarded": guarded}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], names: Sequence[str]) -> Policy:
        """Read what `to_dict` wrote.

        Args:
            values: of the JSON.
            names: of the model's C classes.

        Raises:
            CheckpointError: it is damaged, or of other classes.
        """
        try:
            normal = values["normal"]
            index = None if normal is None else list(names).index(normal)
            automatic = values["automatic_above"]
            others = [name for name in names if name != normal]
            if sorted(automatic) != sorted(others):
                raise ValueError(f"thresholds of {sorted(automatic)}")
            above = [math.inf if n == normal else _number(automatic[n]) for n in names]
            weights = values.get("defect_weights")
            if weights is not None and sorted(weights) != sorted(others):
                raise ValueError(f"weights of {sorted(weights)}")
            unknown, products = values["unknown_above"], values["products"]
            budget, lots = values.get("review_budget"), values.get("lot_column")
            return cls(
                names=tuple(names),
                normal=index,
                release_above=_number(values["release_above"]),
                automatic_above=np.array(above),
                defect_weights=None
                if weights is None
                else np.array([1.0 if n == normal else _weight(weights[n]) for n in names]),
                guarded=frozenset(list(names).index(n) for n in values.get("guarded", ())),
                unknown_above=None if unknown is None else _number(unknown),
                products=None if products is None else frozenset(map(str, products)),
                audit=_share("an audit", values["audit"]),
                product_column=str(values.get("product_column", "product")),
                review_budget=None if budget is None else _share("a review budget", budget),
                lot_column=None if lots is None else str(lots),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The decision policy cannot be read ({error!r}): decisions.json was edited or "
                "damaged, or is of a model of other classes. Fit it anew with recame tune."
            ) from error


def candidates(
    names: Sequence[str], probabilities: Array, least: float = 0.05, most: int = 3
) -> list[str]:
    """For each image the classes that a person should look for, the likeliest first.

    Args:
        names: of the C classes.
        probabilities: (N, C), calibrated.
        least: probability of each but the first.
        most: classes.

    Examples:
        >>> candidates(("ok", "open", "short"), np.array([[0.5, 0.04, 0.46], [0.01, 0.98, 0.01]]))
        ['ok|short', 'open']
    """
    order = np.argsort(-probabilities, 1, kind="stable")[:, :most]
    likely = np.take_along_axis(probabilities, order, 1) >= least
    likely[:, :1] = True
    return [
        "|".join(names[index] for index in row[keep])
        for row, keep in zip(order, likely, strict=True)
    ]


def _weight(told: float) -> float:
    if isinstance(told, bool) or not 0 < told < math.inf:
        raise ValueError(f"a weight of {told!r}")
    return float(told)


def _share(what: str, told: float) -> float:
    if isinstance(told, bool) or not 0 <= told <= 1:
        raise ValueError(f"{what} of {told!r}")
    return float(told)


def _told(threshold: float) -> float | str:
    threshold = float(threshold)
    return threshold if math.isfinite(threshold) else "never" if threshold > 0 else "always"


def _number(told: float | str) -> float:
    if isinstance(told, str):
        return {"never": math.inf, "always": -math.inf}[told]
    if isinstance(told, bool) or math.isnan(told):
        raise ValueError(f"a threshold of {told!r}")
    return float(told)
