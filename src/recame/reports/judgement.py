"""Explain the figures in sentences: what is good, what is weak, what the split cannot show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from recame.label_space import LabelSpace
from recame.metrics.comparison import Comparison
from recame.metrics.disagreement import Disagreement
from recame.metrics.evaluation import Evaluation
from recame.names import counted, quoted
from recame.pages.render import joined_text, listed_text

#: Balanced accuracy from which a result is called good, and below which weak.
GOOD, WEAK = 0.9, 0.7
#: ECE above which confidences should not be taken as probabilities.
MISCALIBRATED = 0.05

_MOST_DOUBTS = 6


class Sentence(NamedTuple):
    """One finding in words.

    Attributes:
        level: `good`, `note`, `warn` or `bad`.
        text: the sentence.
    """

    level: str
    text: str


def interpret(
    evaluation: Evaluation,
    label_space: LabelSpace,
    bins: pd.DataFrame,
    comparison: Comparison | None = None,
    disagreement: Disagreement | None = None,
) -> tuple[str, list[Sentence]]:
    """Explain the figures in words.

    Args:
        evaluation: of the split.
        label_space: its classes.
        bins: of the reliability diagram.
        comparison: with a baseline.
        disagreement: of the experts.

    Returns:
        A summary of two or three sentences, and the findings, the most important first.
    """
    lead = [_overall(evaluation), _weakest(evaluation)]
    lead += [] if comparison is None else [_against(comparison)]
    findings = [
        *_inspection(evaluation),
        *_head_and_tail(evaluation),
        *([] if comparison is None else _class_losses(comparison)),
        *([] if disagreement is None else [_ensemble(disagreement)]),
        *_calibration(evaluation, bins),
        *_products(evaluation),
        *(Sentence("warn", text) for text in doubts(evaluation)),
        *_notes(evaluation, label_space),
    ]
    return " ".join(lead), findings


def _overall(evaluation: Evaluation) -> str:
    balanced = evaluation.headline["balanced_accuracy"]
    value = balanced.value or 0.0
    classes = int((evaluation.per_class["images"] > 0).sum())
    images = counted(evaluation.num_images, "image")
    if classes == 1:
        return f"The split holds only one class: {value:.1%} of its {images} are correct."
    text = (
        f"On average {value:.1%} of a class's images are classified correctly "
        f"({_range(balanced.low, balanced.high)}; {counted(classes, 'class')}, {images}): "
    )
    if balanced.too_wide:
        return text + "too few images to evaluate the model."
    return text + f"a {'good' if value >= GOOD else 'weak' if value < WEAK else 'fair'} result."


def _weakest(evaluation: Evaluation) -> str:
    index = evaluation.names.index(evaluation.worst_class)
    wrong = evaluation.confusion[index].copy()
    hits, images, wrong[index] = int(wrong[index]), int(wrong.sum()), 0
    if hits == images:
        return "Every image of every class is classified correctly."
    most, misses = int(wrong.max()), images - hits
    called = f"called {evaluation.names[int(wrong.argmax())]}"
    text = f"The weakest class is {evaluation.worst_class}, {hits:,} of {images:,} right"
    if 2 * most > misses:
        text += f"; most of its errors are {called} ({most:,})."
    else:
        text += f"; its errors are most often {called} ({most:,} of {misses:,})."
    if evaluation.per_class["note"].iloc[index]:
        text += " That is too few images to tell how weak it really is."
    return text


def _against(comparison: Comparison) -> str:
    name = comparison.baseline
    if not comparison.images:
        return f"{name} was evaluated on other images, so the two cannot be compared."
    found = comparison.differences["balanced_accuracy"]
    points = f"{100 * abs(found.difference):.1f} points"
    interval = f"({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    if not found.real:
        return f"Against {name} this split shows no real difference: {points} {interval}."
    return (
        f"Against {name} balanced accuracy is {points} "
        f"{'higher' if found.difference > 0 else 'lower'} {interval} on the same "
        f"{comparison.images:,} images: a real difference."
    )


def _class_losses(comparison: Comparison) -> list[Sentence]:
    table = comparison.recalls.dropna()
    lost = table[table["only_baseline_right"] - table["only_model_right"] > 0]
    lost = lost.assign(change=lost["recall"] - lost["other"]).sort_values("change")
    listed = [
        f"{quoted(row['class'])} {100 * row['change']:+.1f}" for row in lost.to_dict("records")
    ]
    if not listed:
        return []
    level = "warn" if float(lost["change"].min()) < -0.05 else "note"
    text = f"Recall below {quoted(comparison.baseline)}'s (points): {joined_text(listed, 5)}."
    return [Sentence(level, text)]


def _inspection(evaluation: Evaluation) -> list[Sentence]:
    found = []
    escape, overkill = (evaluation.headline.get(name) for name in ("escape_rate", "overkill_rate"))
    critical = evaluation.headline.get("critical_escape_rate")
    if escape is not None and escape.value is not None:
        level = "good" if escape.value < 0.01 else "warn" if escape.value < 0.05 else "bad"
        share = f"{escape.value:.1%} of the defects are" if escape.value else "No defect is"
        called = quoted(evaluation.normal)
        text = f"{share} called {called} (escapes, {_range(escape.low, escape.high)})"
        if critical is not None and critical.value is not None:
            text += f"; of the critical ones {critical.value:.1%}"
            level = "bad" if critical.value > 0.01 and level != "bad" else level
        level = "warn" if escape.too_wide and level == "good" else level
        found.append(Sentence(level, text + "."))
    if overkill is not None and overkill.value is not None:
        level = "good" if overkill.value < 0.05 else "warn" if overkill.value < 0.2 else "bad"
        normal = quoted(evaluation.normal)
        share = f"{overkill.value:.1%} of {normal}" if overkill.value else f"No image of {normal}"
        text = f"{share} is called a defect (overkill, {_range(overkill.low, overkill.high)})."
        level = "warn" if overkill.too_wide and level == "good" else level
        found.append(Sentence(level, text))
    return found


def _head_and_tail(evaluation: Evaluation) -> list[Sentence]:
    tail = evaluation.headline.get("tail_recall")
    rest = ~evaluation.per_class["class"].isin(evaluation.tail_classes)
    others = evaluation.per_class.loc[rest, "recall"].mean()
    if tail is None or tail.value is None or np.isnan(others):
        return []
    gap = float(others) - tail.value
    listed = listed_text(evaluation.tail_classes, 5)
    level = "good" if gap < 0.05 else "warn" if gap < 0.2 else "bad"
    side = f"{100 * abs(gap):.1f} points {'below' if gap >= 0 else 'above'} the other classes"
    text = f"The rare classes ({listed}) reach a mean recall of {tail.value:.2f}, {side}."
    return [Sentence(level, text)]


def _ensemble(found: Disagreement) -> Sentence:
    share = found.disagreed / found.images
    gain = found.gain
    if not found.disagreed:
        text = f"The experts agree on all {found.images:,} images: the ensemble adds nothing."
        return Sentence("note", text)
    text = f"The experts differ on {found.disagreed:,} of {found.images:,} images ({share:.1%}). "
    interval = f"({100 * gain.low:+.1f} to {100 * gain.high:+.1f} points)"
    best = f"the best single expert (number {found.best_expert})"
    if gain.real:
        better = "above" if gain.difference > 0 else "below"
        points = f"{100 * abs(gain.difference):.1f} points"
        text += f"The ensemble is {points} {better} {best} {interval}."
        return Sentence("good" if gain.difference > 0 else "warn", text)
    return Sentence("note", text + f"The ensemble shows no real difference to {best} {interval}.")


def _calibration(evaluation: Evaluation, bins: pd.DataFrame) -> list[Sentence]:
    ece = evaluation.headline["ece"].value or 0.0
    filled = bins[bins["images"] > 0]
    gap = float((filled["gap"] * filled["images"]).sum() / max(int(filled["images"].sum()), 1))
    if ece <= MISCALIBRATED:
        text = (
            "Confidences can be taken as probabilities: they differ from the measured rates by "
            f"only {ece:.3f} on average."
        )
        return [Sentence("good", text)]
    if abs(gap) < ece / 2:
        how = f"off by {ece:.2f} on average, too high for some images and too low for others"
    else:
        how = f"{abs(gap):.2f} too {'low' if gap < 0 else 'high'} on average (ECE {ece:.3f})"
    text = f"Confidences are {how}: set thresholds on measured rates, not on the bare confidence."
    only_low = gap < 0 and abs(gap) >= ece / 2
    return [Sentence("note" if only_low else "warn", text)]


def _products(evaluation: Evaluation) -> list[Sentence]:
    table = evaluation.per_product
    if len(table) < 2:
        return []
    overall = float((table["accuracy"] * table["images"]).sum() / table["images"].sum())
    # Only if the whole interval is below: a small product may be low by chance.
    low = table[table["accuracy_high"] < overall].sort_values("accuracy")
    if low.empty:
        return []
    listed = [f"{quoted(row['product'])} {row['accuracy']:.2f}" for row in low.to_dict("records")]
    verb = "Products" if len(listed) > 1 else "A product"
    text = f"{verb} clearly below the mean accuracy of {overall:.2f}: {joined_text(listed, 5)}."
    return [Sentence("warn", text)]


def doubts(evaluation: Evaluation) -> list[str]:
    """Say in sentences what the split is too small to show."""
    told = []
    wide = [
        metric.title
        for metric in evaluation.metrics
        # The worst class has a sentence of its own.
        if metric.level == "headline" and metric.name != "worst_class_recall"
        if metric.name in evaluation.headline and evaluation.headline[metric.name].too_wide
    ]
    if wide:
        told.append(f"Too uncertain on this split to compare models by: {', '.join(wide)}.")
    table = evaluation.per_class
    unsure = table[(table["note"] != "") & (table["images"] > 0)].sort_values("images")
    if len(unsure):
        few = [
            f"{quoted(name)} ({counted(images, 'image')})"
            for name, images in zip(unsure["class"], unsure["images"], strict=True)
        ]
        told.append(f"Too few images to tell the recall of {joined_text(few, _MOST_DOUBTS)}.")
    absent = table.loc[table["images"] == 0, "class"].tolist()
    if absent:
        names = listed_text(absent, _MOST_DOUBTS)
        told.append(f"No image of {names} in this split: left out of every mean.")
    return told


def _notes(evaluation: Evaluation, label_space: LabelSpace) -> list[Sentence]:
    found = []
    if evaluation.num_unlabelled:
        images = counted(evaluation.num_unlabelled, "image")
        found.append(Sentence("note", f"{images} without a label: left out of every figure."))
    if label_space.normal is None:
        text = "No class is named as normal, so there is no escape and no overkill rate "
        found.append(Sentence("note", text + "(setting data.normal_class)."))
    return found


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval"
    return f"{100 * low:.1f}-{100 * high:.1f} %"
