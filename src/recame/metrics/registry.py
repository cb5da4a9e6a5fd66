"""The registry of metrics: name, meaning, direction, where it is shown, and formula of each.

A new metric needs only an entry in `METRICS`: `evaluate_predictions` computes it with an interval,
and files, terminal, Markdown, page, comparison and bench read the registry. Every metric lies in
[0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.label_space import GROUPS, LabelSpace
from recame.metrics.operating_point import escapes_at, normal_odds
from recame.metrics.statistics import ClassRates

#: From the rates of the P classes with images to values of shape (...).
Mean = Callable[[ClassRates], FloatArray]

#: Of (N,) classes, (N,) predictions and the label space: two masks (N,). The first marks the images
#: that count, the second those of them to which the metric applies. None if the label space has no
#: such classes.
Masks = tuple[BoolArray, BoolArray]
Share = Callable[[IntArray, IntArray, LabelSpace], Masks | None]

#: From (N, C) probabilities, (N,) classes and the label space to a number in [0, 1]; NaN if the
#: split holds no such image, None if the label space has no such classes.
Score = Callable[[FloatArray, IntArray, LabelSpace], float | None]


@dataclass(frozen=True)
class Metric:
    """A number about a model on labelled images.

    Attributes:
        name: in files and code.
        title: in running text.
        meaning: in a few words.
        level: where it is shown. `headline`: everywhere; `summary`: not among the tiles of the
            page, and not compared with a baseline; `detail`: only on the terminal and in files.
        column: its column heading in the tables of a bench; empty: not shown there.
        lower_is_better: whether a lower value is better.
        absent: why a split may have no value.
        mean: formula of a mean over classes; its interval is resampled.
        share: formula of a share of images; it has a Wilson interval.
        score: formula of any other number; its interval is resampled. `evaluate_predictions`
            computes the metrics without a formula here; a bench computes `tail_unseen`, which
            needs known clusters.
    """

    name: str
    title: str
    meaning: str
    level: Literal["headline", "summary", "detail"] = "detail"
    column: str = ""
    lower_is_better: bool = False
    absent: str = "no such image in this split"
    mean: Mean | None = None
    share: Share | None = None
    score: Score | None = None

    def goodness(self, value: float) -> float:
        """The value, or 1 minus the value if lower is better."""
        return 1 - value if self.lower_is_better else value


def _g_mean(rates: ClassRates) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(rates.recall).mean(-1)))


def _accuracy(target: IntArray, called: IntArray, space: LabelSpace) -> Masks | None:
    return np.ones(len(target), np.bool_), called == target


def _escape_rate(target: IntArray, called: IntArray, space: LabelSpace) -> Masks | None:
    normal = space.normal_index
    return None if normal is None else (target != normal, called == normal)


def _critical_escape_rate(target: IntArray, called: IntArray, space: LabelSpace) -> Masks | None:
    if space.normal_index is None or not space.critical:
        return None
    critical = [space.index(name) for name in space.critical if name != space.normal]
    return np.isin(target, critical), called == space.normal_index


def _overkill_rate(target: IntArray, called: IntArray, space: LabelSpace) -> Masks | None:
    normal = space.normal_index
    return None if normal is None else (target == normal, called != normal)


def _escapes_at(overkill: float) -> Score:
    def score(probabilities: FloatArray, target: IntArray, space: LabelSpace) -> float | None:
        normal = space.normal_index
        if normal is None:
            return None
        odds = normal_odds(probabilities, normal, space.counts)
        return escapes_at(odds, target, normal, space.counts, overkill)

    return score


#: In the order in which they are shown.
METRICS = (
    Metric(
        "balanced_accuracy",
        "balanced accuracy",
        "mean recall over the classes",
        level="headline",
        column="balanced accuracy",
        mean=lambda rates: rates.recall.mean(-1),
    ),
    Metric(
        "tail_recall",
        "tail recall",
        "mean recall of the rare classes",
        level="headline",
        column="tail",
        absent="no tail, or no image of it in this split",
    ),
    Metric(
        "tail_unseen",
        "tail recall on unseen clusters",
        "mean recall of the rare classes on clusters where training has no image of the class",
        column="tail, unseen clusters",
        absent="no tail, no image of it in such a cluster, or no clusters are known",
    ),
    *(
        Metric(
            f"{group}_recall",
            f"{group} recall",
            f"mean recall of the classes in the group {group} of the published cut-offs",
            column=group,
        )
        for group in GROUPS
    ),
    Metric(
        "worst_class_recall",
        "worst class",
        "lowest recall of a class",
        level="headline",
        column="worst class",
        mean=lambda rates: rates.recall.min(-1),
    ),
    Metric(
        "escape_rate",
        "escape rate",
        "defects called normal",
        level="headline",
        column="escapes",
        lower_is_better=True,
        absent="no such defect in this split",
        share=_escape_rate,
    ),
    Metric(
        "critical_escape_rate",
        "critical escape rate",
        "critical defects called normal",
        level="headline",
        column="critical escapes",
        lower_is_better=True,
        absent="no such defect in this split",
        share=_critical_escape_rate,
    ),
    Metric(
        "overkill_rate",
        "overkill rate",
        "normal called a defect",
        level="headline",
        column="overkill",
        lower_is_better=True,
        absent="no normal image in this split",
        share=_overkill_rate,
    ),
    *(
        Metric(
            f"escapes_at_{percent}_overkill",
            f"escapes at {percent} % overkill",
            f"defects that pass if at most {percent} % of normal images are held back",
            lower_is_better=True,
            absent="no defect or no normal image in this split",
            score=_escapes_at(percent / 100),
        )
        for percent in (1, 2)
    ),
    Metric(
        "macro_f1",
        "macro F1",
        "mean F1 over the classes",
        level="headline",
        column="macro-F1",
        mean=lambda rates: rates.f1.mean(-1),
    ),
    Metric(
        "macro_precision",
        "macro precision",
        "mean precision over the classes",
        mean=lambda rates: rates.precision.mean(-1),
    ),
    Metric("g_mean", "G-mean", "geometric mean of the recalls", mean=_g_mean),
    Metric(
        "accuracy",
        "accuracy",
        "share of images classified correctly",
        level="summary",
        share=_accuracy,
    ),
    Metric(
        "ece",
        "ECE",
        "mean gap between confidence and accuracy",
        level="summary",
        column="ECE",
        lower_is_better=True,
    ),
)

BY_NAME = {metric.name: metric for metric in METRICS}

#: Names of the metrics for which a lower value is better.
LOWER_IS_BETTER = frozenset(metric.name for metric in METRICS if metric.lower_is_better)
