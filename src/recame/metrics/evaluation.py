"""Evaluate predictions: metrics in which a rare class counts as much as a frequent one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import BoolArray, IntArray, Predictions
from recame.errors import DataError
from recame.files import records
from recame.label_space import GROUPS, LabelSpace
from recame.metrics.breakdown import (
    experts_table,
    groups_table,
    macro_statistics,
    per_class_table,
    product_tables,
)
from recame.metrics.calibration import expected_calibration_error
from recame.metrics.own import own_metrics
from recame.metrics.recall_figure import recall_figure
from recame.metrics.registry import LOWER_IS_BETTER, METRICS, Metric
from recame.metrics.scored import scored
from recame.metrics.statistics import (
    Estimate,
    bootstrap_intervals,
    class_counts,
    confusion_matrix,
    wilson_interval,
)
from recame.names import counted

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from recame.config import Config


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model on one split.

    Classes without images in the split have no recall and are left out of every mean. Precision
    depends on the split's class mix; recall does not.

    Attributes:
        headline: name -> estimate, in the order of `registry.METRICS`. There is a `<group>_recall`
            for each group of the published cut-offs that has classes; `escape_rate`,
            `overkill_rate` and `escapes_at_<percent>_overkill` need a normal class;
            `critical_escape_rate` needs critical classes; the others are always there. Shares of
            images have Wilson intervals, and so has `worst_class_recall`; `ece` has no interval;
            the others have bootstrap intervals.
        worst_class: the class of `worst_class_recall`.
        tail_classes: the classes of `tail_recall`: the `few` group of the published cut-offs if it
            holds some of the classes but not all, else the `few` group of the quantiles.
        tail_rule: which rule chose the tail, `cutoffs` or `quantile`; `none` for a balanced set.
        per_class: one row per class in index order: `class, train_images, group, images,
            precision, precision_low, precision_high, recall, recall_low, recall_high, f1, note`.
        groups: `rule` (`cutoffs`, `quantile`), `group, classes, train_images, images, recall,
            recall_low, recall_high`.
        experts: `model` (`ensemble`, `expert 0`, ...), `balanced_accuracy, accuracy, macro_f1,
            tail_recall`.
        per_product: `product, images, classes, balanced_accuracy, accuracy, accuracy_low,
            accuracy_high, worst_class, worst_class_recall, worst_class_images`; empty without a
            product column.
        class_by_product: one row per class and product: `class, product, images, recall,
            recall_low, recall_high`.
        confusion: (C, C) images by true class (rows) and predicted class (columns).
        names: C class names, index order.
        num_images: images with a label.
        num_unlabelled: images without a label, which are left out.
        confidence: of every interval.
        normal: the class that means "no defect", if there is one.
        critical: the classes whose escapes matter most.
        expert_weights: of the experts in the ensemble, if they were learned on these images.
        metrics: those of the registry, then those of the user.
    """

    headline: dict[str, Estimate]
    worst_class: str
    tail_classes: tuple[str, ...]
    tail_rule: str
    per_class: pd.DataFrame
    groups: pd.DataFrame
    experts: pd.DataFrame
    per_product: pd.DataFrame
    class_by_product: pd.DataFrame
    confusion: IntArray
    names: tuple[str, ...]
    num_images: int
    num_unlabelled: int
    confidence: float
    normal: str | None = None
    critical: tuple[str, ...] = ()
    expert_weights: tuple[float, ...] | None = None
    metrics: tuple[Metric, ...] = METRICS

    def __str__(self) -> str:
        """Return the headline numbers as a few lines of text."""
        told = [m for m in self.metrics if m.level != "detail" and m.name in self.headline]
        lines = [f"{counted(self.num_images)} of {counted(len(self.names), 'class')}"]
        width = max(len(metric.title) for metric in told)
        for metric in told:
            estimate = self.headline[metric.name]
            doubt = " too few to tell" if estimate.too_wide else ""
            lines.append(f"  {metric.title:{width}}  {estimate}{doubt}")
        return "\n".join([*lines, f"  worst class: {self.worst_class}"])

    def __getitem__(self, name: str) -> Estimate:
        """Return a headline number by name.

        Raises:
            DataError: there is no metric of that name.
        """
        if name not in self.headline:
            raise DataError(
                f"There is no figure {name!r} here; there are {', '.join(self.headline)}. Rates of "
                "escapes and false calls need a normal class."
            )
        return self.headline[name]

    def to_frame(self) -> pd.DataFrame:
        """Return the headline numbers, one row each: `value, low, high`, NaN where there is none.

        `per_class`, `groups`, `experts`, `per_product` and `class_by_product` are tables already.
        """
        import pandas as pd

        rows = {name: estimate.to_dict() for name, estimate in self.headline.items()}
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])
        return table.astype(float).rename_axis("metric")

    def plot(self) -> Figure:
        """Draw each class's recall with its interval, the rarest class last.

        Returns:
            A new figure; matplotlib's global state is not changed.
        """
        return recall_figure(self.per_class)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values for JSON: headline numbers under their names, no NaN."""
        weights = self.expert_weights
        return {
            **({} if weights is None else {"expert_weights": list(weights)}),
            **{name: estimate.to_dict() for name, estimate in self.headline.items()},
            "worst_class": self.worst_class,
            "tail_classes": list(self.tail_classes),
            "tail_rule": self.tail_rule,
            "num_images": self.num_images,
            "num_unlabelled": self.num_unlabelled,
            "confidence": self.confidence,
            "per_class": records(self.per_class),
            "groups": records(self.groups),
            "experts": records(self.experts),
            "per_product": records(self.per_product),
            "class_by_product": records(self.class_by_product),
            "confusion": {"classes": list(self.names), "counts": self.confusion.tolist()},
        }


def evaluate_predictions(
    predictions: Predictions,
    label_space: LabelSpace,
    *,
    product_column: str = "product",
    bootstrap: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    own: Sequence[Metric] = (),
) -> Evaluation:
    """Evaluate predictions against the labels of their images.

    Args:
        predictions: of one split; rows with target -1 are left out and counted.
        label_space: gives the classes, their training counts and roles.
        product_column: the table's column to group by; ignored if it is missing.
        bootstrap: resamples for the intervals that have no formula; 0: no such intervals.
        seed: of the resampling.
        confidence: of every interval, in (0, 1).
        own: further metrics of the user, each a share or a score.

    Raises:
        DataError: no row has a label, or a probability is NaN or infinite.
    """
    known = _comparable(predictions)
    target = predictions.target[known]
    prediction = predictions.probabilities[known].argmax(1)
    confusion = confusion_matrix(target, prediction, label_space.num_classes)
    counts = class_counts(confusion)
    tail_rule, tail = tail_of(label_space)
    members = {**_group_members(label_space), "tail_recall": tail}

    normal = label_space.normal_index
    values = macro_statistics(counts, members, normal)
    intervals = bootstrap_intervals(
        confusion,
        lambda drawn: macro_statistics(drawn, members, normal),
        resamples=bootstrap,
        seed=seed,
        confidence=confidence,
        lower_is_better=LOWER_IS_BETTER,
    )
    macro = {name: _estimate(float(value), intervals.get(name)) for name, value in values.items()}
    metrics, probabilities = (*METRICS, *own), predictions.probabilities[known]
    per_class = per_class_table(counts, label_space, confidence)
    worst = int(per_class["recall"].fillna(np.inf).to_numpy().argmin())
    computed = {
        "tail_recall": Estimate(None),
        **macro,
        **{f"{g}_recall": macro[f"cutoffs {g}"] for g in GROUPS if f"cutoffs {g}" in macro},
        "worst_class_recall": _share(counts.hits[worst], counts.support[worst], confidence),
        **_shares(metrics, target, prediction, label_space, confidence),
        "ece": Estimate(expected_calibration_error(probabilities, target)),
        **scored(
            metrics,
            probabilities,
            target,
            label_space,
            resamples=bootstrap,
            seed=seed,
            confidence=confidence,
        ),
    }
    products = predictions.table.loc[known].get(product_column)
    weights = predictions.expert_weights
    by_product, class_by_product = product_tables(
        products, target, prediction, label_space.names, confidence
    )
    return Evaluation(
        headline={m.name: computed[m.name] for m in metrics if m.name in computed},
        worst_class=label_space.names[worst],
        tail_classes=tuple(n for n, inside in zip(label_space.names, tail, strict=True) if inside),
        tail_rule=tail_rule,
        per_class=per_class,
        groups=groups_table(macro, members, counts.support, label_space),
        experts=experts_table(predictions.expert_probabilities[known], target, counts, tail),
        per_product=by_product,
        class_by_product=class_by_product,
        confusion=confusion,
        names=label_space.names,
        num_images=int(known.sum()),
        num_unlabelled=int((~known).sum()),
        confidence=confidence,
        normal=label_space.normal,
        critical=label_space.critical,
        expert_weights=None if weights is None else tuple(round(float(w), 4) for w in weights),
        metrics=metrics,
    )


def _comparable(predictions: Predictions) -> BoolArray:
    """(N,) which images have a label; refuse predictions that cannot be judged."""
    known: BoolArray = predictions.target >= 0
    if not known.any():
        raise DataError(
            f"None of the {len(predictions)} predicted images has a label, so there is nothing to "
            "compare with. Fill the label column, or use `recame predict` for images without one."
        )
    broken = int((~np.isfinite(predictions.probabilities[known])).any(1).sum())
    if broken:
        raise DataError(
            f"The model gives no numbers for {broken:,} of {int(known.sum()):,} images (NaN or "
            "infinite), so every figure would be wrong: check its weights, or evaluate it with "
            "run.precision: '32' in its config.yaml."
        )
    return known


def _shares(
    metrics: Sequence[Metric],
    target: IntArray,
    prediction: IntArray,
    label_space: LabelSpace,
    confidence: float,
) -> dict[str, Estimate]:
    """The metrics that are shares of images, with Wilson intervals; without undefined ones."""
    found = {m.name: m.share(target, prediction, label_space) for m in metrics if m.share}
    return {
        name: _share((share[0] & share[1]).sum(), share[0].sum(), confidence)
        for name, share in found.items()
        if share is not None
    }


def evaluate_as_configured(
    predictions: Predictions, label_space: LabelSpace, config: Config
) -> Evaluation:
    """Evaluate predictions with a run's settings."""
    return evaluate_predictions(
        predictions,
        label_space,
        product_column=config.data.product_column,
        bootstrap=config.evaluation.bootstrap,
        seed=config.run.seed,
        own=own_metrics(config.evaluation.metrics),
    )


def _estimate(value: float, interval: tuple[float, float] | None) -> Estimate:
    if interval is None:
        return Estimate(value)
    # A G-mean of 0 can lie below all resampled values.
    return Estimate(value, min(interval[0], value), max(interval[1], value))


def _share(successes: float, trials: float, confidence: float) -> Estimate:
    if trials == 0:
        return Estimate(None)
    low, high = wilson_interval(successes, trials, confidence)
    return Estimate(float(successes / trials), float(low), float(high))


def tail_of(space: LabelSpace) -> tuple[str, BoolArray]:
    """The rule that chose the tail (`cutoffs`, `quantile` or `none`), and the (C,) tail mask."""
    few = np.array(space.groups()) == "few"
    if few.any() and not few.all():
        return "cutoffs", few
    few = np.array(space.quantile_groups()) == "few"
    return ("quantile" if few.any() else "none"), few


def _group_members(space: LabelSpace) -> dict[str, BoolArray]:
    rules = {"cutoffs": np.array(space.groups()), "quantile": np.array(space.quantile_groups())}
    return {f"{rule} {group}": of == group for rule, of in rules.items() for group in GROUPS}
