"""A fitted policy: it gives each image an action, and the reason for it, from its scores."""

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

#: Salt of every audit draw: the same for all models, so they all audit the same images.
_SALT = "recame audit"

RELEASE, AUTOMATIC, REVIEW, UNKNOWN, UNREADABLE = range(5)
#: What is done with an image; code refers to actions by their index here.
ACTIONS = ("release", "automatic", "review", "unknown", "unreadable")

#: Reason -> action. An image gets the first reason, in this order, that applies to it. The audit
#: comes first, so that audited images are a random share of all images. The code that reads files
#: sets `unreadable` and `near_black`. The code that finishes a table sets `over_budget`: images
#: that go to a person because of their score, but for which no person has time.
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
#: The reasons that `Policy.act` checks; an image gets the first that applies.
_ASKED = REASONS[REASONS.index("not_finite") :]


class Acted(NamedTuple):
    """What is done with N images.

    Attributes:
        reason: (N,) indices into `REASONS`.
        action: (N,) indices into `ACTIONS`.
        best: (N,) predicted class of each image: the most probable one, or the normal class if the
            image is released; meaningless if its scores are not finite.
        odds: (N,) log-odds of that class; NaN if the scores are not finite.
    """

    reason: IntArray
    action: IntArray
    best: IntArray
    odds: FloatArray

    def reasons(self) -> list[str]:
        """The reason of each image; its action follows from it."""
        return [REASONS[number] for number in self.reason]


@dataclass(frozen=True)
class Policy:
    """Thresholds, and the rules that turn scores into actions.

    Attributes:
        names: of the C classes.
        normal: index of the class that may be released; None: there is none.
        release_above: score (`release_scores`) that an image must exceed to be released. Without
            `defect_weights`, this score is the log-odds of the normal class, and the image must
            also be predicted as normal.
        automatic_above: (C,) log-odds of the predicted class that any other image must exceed to
            be booked automatically; inf: no image of that class is.
        defect_weights: (C,) weight of each defect class in the score; None: the policy was fitted
            by a version without such weights.
        guarded: indices of the classes without a promise: an image predicted as one of them is not
            released.
        unknown_above: an image with a higher strangeness is unknown; None: no image is unknown.
        products: those that training has seen; None: products are not checked.
        audit: share of all images that people see, drawn by their content (`audited`).
        product_column: the tables' column of products.
        review_budget: largest share of a production lot that people see; None: no limit.
        lot_column: the tables' column of production lots; None: each table is one lot.
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
            strangeness: (N,) scores of how strange each image is; NaN counts as strange.
            products: (N,) product of each image.
            drawn: (N,) images that people see in any case (`draws`).
        """
        odds = class_log_odds(logits)
        finite: BoolArray = np.asarray(np.isfinite(odds).all(1))
        best = np.nan_to_num(odds, nan=0.0).argmax(1)
        own = np.take_along_axis(odds, best[:, None], 1)[:, 0]
        nothing = np.zeros(len(odds), np.bool_)
        # NaN compares false with any threshold, so such an image is never released.
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
        """Draw the images that go to people for the audit, by the SHA-256 of their files.

        A file that could not be read has no checksum (None); it is not released anyway. Returns
        None without an audit.
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
        """Return it as values for JSON; `never` and `always` stand for infinite thresholds."""
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
            values: read from JSON.
            names: of the model's C classes.

        Raises:
            CheckpointError: the policy is damaged, or belongs to other classes.
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
                "damaged, or belongs to a model of other classes. Fit it again with recame tune."
            ) from error


def candidates(
    names: Sequence[str], probabilities: Array, least: float = 0.05, most: int = 3
) -> list[str]:
    """List for each image the classes that a person should look for, the most probable first.

    Args:
        names: of the C classes.
        probabilities: (N, C), calibrated.
        least: smallest probability of every class but the first.
        most: largest number of classes for an image.

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
