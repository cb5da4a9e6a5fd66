"""The report as one HTML page."""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import yaml

from recame.decisions.outcome import Outcome, Share
from recame.files import records
from recame.metrics.registry import Metric
from recame.pages.drawing import PIECES_NOTE
from recame.pages.render import (
    BLUE,
    GROUP_COLOURS,
    Picture,
    count_text,
    figure_picture,
    interval_text,
    render_page,
    share_text,
)
from recame.reports.confusion import MOST_NUMBERED, confusion_figure
from recame.reports.gallery import CALLED_COLOUR, TRUE_COLOUR
from recame.reports.gates import class_gates, gates_sentence
from recame.reports.report_figures import (
    embedding_figure,
    heat_colour,
    loss_figure,
    mistakes_figure,
    recall_figure,
    reliability_figure,
    validation_figure,
)
from recame.reports.run_report import RunReport

#: If there are more, the page shows only this many and says so.
MOST_CLASS_ROWS, MOST_CONFUSION, MOST_PRODUCTS, MOST_PAIRS, MOST_GATED = 60, 60, 25, 12, 20

#: Metrics of the table of experts.
EXPERT_COLUMNS = ("balanced_accuracy", "tail_recall", "macro_f1", "accuracy")


def report_html(report: RunReport) -> str:
    """Return the whole HTML document, which needs no network.

    Args:
        report: the report.
    """
    facts = report.facts
    content: dict[str, Any] = {
        "title": f"{facts.name} on {facts.split}",
        "eyebrow": "recame report",
        "version": version("recame"),
        "footer": f"Written by recame {version('recame')}. Intervals are of "
        f"{report.evaluation.confidence:.0%}; docs/report.md says how each number is computed.",
        "report": report,
        "tiles": _tiles(report),
        "classes": _classes(report),
        "decisions": _decisions(report),
        "confusion": _confusion(report),
        "products": _products(report),
        "reliability": figure_picture(
            reliability_figure(report.bins, report.evaluation.headline["ece"].value or 0.0),
            "Accuracy over confidence in fifteen bins, with the diagonal",
        ),
        "experts": _experts(report),
        "maps": _maps(report),
        "gates": _gates(report),
        "curves": _curves(report),
        "made": _made(report),
        "called_colour": CALLED_COLOUR,
        "true_colour": TRUE_COLOUR,
        "pieces_note": PIECES_NOTE if report.evidence.pieces > 1 else "",
    }
    content["contents"] = _contents(report, content)
    return render_page("recame.reports", "report.html.j2", **content)


def _contents(report: RunReport, content: dict[str, Any]) -> list[tuple[str, str]]:
    present = {
        "classes": ("Classes", True),
        "decisions": ("Decisions", content["decisions"] is not None),
        "confusion": ("Confusions", True),
        "products": ("Products", content["products"] is not None),
        "mistakes": ("Worst mistakes", bool(report.evidence.mistakes)),
        "confidence": ("Confidence", True),
        "experts": ("Experts", content["experts"] is not None),
        "map": ("Embedding map", bool(content["maps"])),
        "gates": ("Attention gates", content["gates"] is not None),
        "training": ("Training", bool(content["curves"])),
        "made": ("How it was made", True),
    }
    return [(anchor, name) for anchor, (name, there) in present.items() if there]


def _tiles(report: RunReport) -> list[dict[str, str]]:
    evaluation, found = report.evaluation, []
    for metric in evaluation.metrics:
        estimate = evaluation.headline.get(metric.name)
        if estimate is None or metric.level != "headline":
            continue
        worst = metric.name == "worst_class_recall"
        tone = ""
        if estimate.value is not None and not estimate.too_wide:
            good = metric.goodness(estimate.value)
            tone = "good" if good >= 0.9 else "warn" if good >= 0.7 else "bad"
        found.append(
            {
                "name": metric.title[0].upper() + metric.title[1:],
                "value": share_text(estimate.value),
                "interval": interval_text(estimate.low, estimate.high, 3),
                "meaning": f"recall of {evaluation.worst_class}" if worst else metric.meaning,
                "change": change_text(metric, report),
                "tone": tone,
            }
        )
    return found


def change_text(metric: Metric, report: RunReport) -> str:
    """Return the difference to the baseline as `+0.270 (0.256 to 0.283), better than base`."""
    if report.comparison is None or metric.name not in report.comparison.differences:
        return ""
    difference = report.comparison.differences[metric.name]
    gained = metric.goodness(difference.value) > metric.goodness(difference.other)
    verdict = "no real difference to"
    if difference.real:
        verdict = "better than" if gained else "worse than"
    return (
        f"{difference.difference:+.3f} ({difference.low:+.3f} to {difference.high:+.3f}), "
        f"{verdict} {report.comparison.baseline}"
    )


def _classes(report: RunReport) -> dict[str, Any]:
    space = report.label_space
    table = report.evaluation.per_class.sort_values("train_images", ascending=False, kind="stable")
    remark, figure = "", None
    if len(table) > MOST_CLASS_ROWS:
        remark = (
            f"The {MOST_CLASS_ROWS} classes of lowest recall, of {len(table):,}; all of them are "
            "in per_class.csv."
        )
        figure = figure_picture(recall_figure(table), "Recall over training images", vector=False)
        table = table.sort_values("recall", kind="stable").head(MOST_CLASS_ROWS)
        table = table.sort_values("train_images", ascending=False, kind="stable")
    base = {}
    if report.comparison is not None and report.comparison.images:
        recalls = report.comparison.recalls
        base = dict(zip(recalls["class"], recalls["other"], strict=True))
    roles = dict.fromkeys(space.critical, "critical") | {space.normal: "normal"}
    table = table.assign(
        name=table["class"],
        role=table["class"].map(roles).fillna(""),
        colour=table["group"].map(GROUP_COLOURS),
        base=table["class"].map(base),
    )
    groups = [name for name in GROUP_COLOURS if (table["group"] == name).any()]
    return {"rows": records(table), "remark": remark, "figure": figure, "groups": groups}


def _decisions(report: RunReport) -> dict[str, Any] | None:
    """Results of the run's decisions on the images."""
    if report.outcome is None:
        return None
    return {"rows": outcome_rows(report.outcome), "escapes": escape_rows(report.outcome)}


#: Results of decisions that are shown, the most serious first.
_OUTCOMES = {
    "escape": "defects released",
    "overkill": "normal images not released",
    "review": "images that go to a person",
    "automatic": "images classified automatically",
    "misclassified": "of these, classified wrongly",
}


def outcome_rows(outcome: Outcome) -> list[list[str]]:
    """Rows of the decisions' results: name, counts, share, interval."""
    found = ((text, outcome.share(what)) for what, text in _OUTCOMES.items())
    return [[text, *_share_cells(share)] for text, share in found if share.images]


def escape_rows(outcome: Outcome) -> list[list[str]]:
    """The same rows for released defects of each class, most first."""
    found = [share for share in outcome.shares if share.what == "escape" and share.of]
    found.sort(key=lambda share: -share.number / share.images)
    return [[share.of, *_share_cells(share)] for share in found]


def _share_cells(share: Share) -> list[str]:
    low, high = share.interval
    of = f"{count_text(share.number)} of {count_text(share.images)}"
    return [of, f"{share.number / share.images:.2%}", f"{low:.2%} to {high:.2%}"]


def _confusion(report: RunReport) -> dict[str, Any]:
    space, pictures, remark = report.label_space, [], ""
    if space.num_classes <= MOST_CONFUSION:
        small = space.num_classes <= MOST_NUMBERED
        for normalised, alt in ((True, "shares of each class"), (False, "numbers of images")):
            figure = confusion_figure(report.evaluation, space, normalised)
            pictures.append(figure_picture(figure, f"Confusion matrix, {alt}", vector=small))
    else:
        remark = (
            f"{space.num_classes:,} classes are too many for a matrix on a page; "
            "all its filled cells are in report.json."
        )
    return {
        "pictures": pictures,
        "remark": remark,
        "pairs": pair_rows(report, MOST_PAIRS),
        "num_pairs": len(report.confusions),
    }


def pair_rows(report: RunReport, most: int) -> list[list[str]]:
    """Rows of the most frequent confusions: true class, predicted class, images, class share."""
    return [
        [row["true"], row["called"], count_text(row["images"]), f"{row['share']:.1%}"]
        for row in report.confusions.head(most).to_dict("records")
    ]


def expert_rows(report: RunReport) -> list[list[str]]:
    """Rows of the ensemble and each expert, with their `EXPERT_COLUMNS`."""
    return [
        [row["model"], *(share_text(row[name]) for name in EXPERT_COLUMNS)]
        for row in report.evaluation.experts.to_dict("records")
    ]


def _products(report: RunReport) -> dict[str, Any] | None:
    products = report.evaluation.per_product
    if not len(products):
        return None
    worst_first = products.sort_values("balanced_accuracy", kind="stable").head(MOST_PRODUCTS)
    by_product = worst_first.set_index("product").sort_index()
    shown = by_product.index.tolist()
    cells = report.evaluation.class_by_product
    cells = cells[cells["product"].isin(shown)]
    recall, images = (cells.pivot_table(v, "class", "product") for v in ("recall", "images"))
    by_training = report.evaluation.per_class.sort_values(
        "train_images", ascending=False, kind="stable"
    )
    names = [name for name in by_training["class"] if name in recall.index]
    remarks = []
    if len(products) > len(shown):
        remarks.append(
            f"the {len(shown)} products of lowest balanced accuracy, of {len(products):,}"
        )
    if len(names) > MOST_CLASS_ROWS:
        lowest = recall.loc[names].mean(axis=1).sort_values(kind="stable").index[:MOST_CLASS_ROWS]
        remarks.append(f"the {MOST_CLASS_ROWS} classes of lowest recall, of {len(names):,}")
        names = [name for name in names if name in set(lowest)]
    rows = [(name, list(map(_cell, recall.loc[name], images.loc[name]))) for name in names]
    means = list(map(_cell, by_product["balanced_accuracy"], by_product["images"]))
    return {
        "columns": shown,
        "rows": [*rows, ("mean of the classes", means)],
        "table": by_product.reset_index().to_dict("records"),
        "remark": "Shown: " + " and ".join(remarks) + "." if remarks else "",
    }


def _cell(recall: Any, images: Any) -> dict[str, str]:
    """Text, small text and background of a heat-map cell; white is a recall of 1."""
    if pd.isna(recall):
        return {"text": "", "small": "", "background": "#f3f4f6"}
    return {
        "text": "1" if recall == 1 else f"{recall:.2f}",
        "small": count_text(images),
        # The square root makes good and nearly perfect recalls distinguishable.
        "background": heat_colour(0.85 * math.sqrt(1 - recall)),
    }


def _experts(report: RunReport) -> dict[str, Any] | None:
    found = report.disagreement
    if found is None:
        return None
    columns = [("", "left"), *((name.replace("_", " "), "right") for name in EXPERT_COLUMNS)]
    differ = f"{count_text(found.disagreed)} of {count_text(found.images)}"
    counts = [
        ["images on which the experts differ", differ],
        ["mean difference of two experts", f"{found.pairwise:.2%} of the images"],
        ["agreement beyond chance (Fleiss' kappa)", share_text(found.fleiss_kappa)],
        ["ensemble right where they agree", _with_interval(found.accuracy_agreed)],
        ["ensemble right where they differ", _with_interval(found.accuracy_disagreed)],
        [f"right in the ensemble, wrong in expert {found.best_expert}", count_text(found.rescued)],
        [f"right in expert {found.best_expert}, wrong in the ensemble", count_text(found.lost)],
        ["at least one expert right", f"{found.any_right:.1%} of the images"],
    ]
    return {"columns": columns, "rows": expert_rows(report), "counts": counts}


def _with_interval(share: tuple[float, float, float] | None) -> str:
    if share is None:
        return "no such image"
    return f"{share[0]:.3f} ({interval_text(share[1], share[2])})"


def _maps(report: RunReport) -> list[Picture]:
    found = report.evidence.embedding
    if found is None:
        return []
    predictions, space = report.predictions, report.label_space
    target = predictions.target[found.rows]
    called = predictions.probabilities[found.rows].argmax(1)
    labels = np.array([*space.names, ""], dtype=object)[target].tolist()
    rare_first = [space.names[i] for i in np.argsort(space.counts, kind="stable")]
    figure = embedding_figure(found.points, labels, "Classes", rare_first)
    figures = [(figure, "coloured by class")]
    products = predictions.table.get(report.facts.product_column)
    if products is not None and len(products.dropna().unique()) > 1:
        own = products.iloc[found.rows].fillna("").astype(str)
        often = [name for name in own.value_counts().index if name]
        figure = embedding_figure(found.points, own.tolist(), "Products", often)
        figures.append((figure, "coloured by product"))
    right = np.where(target < 0, -1, called == target)
    escapes = (right == 0) & (called == (-1 if space.normal is None else space.normal_index))
    figure = mistakes_figure(found.points, right, escapes)
    figures.append((figure, "correct and wrong predictions"))
    return [
        figure_picture(f, f"Embedding map, {what}", vector=False, dpi=170) for f, what in figures
    ]


def _gates(report: RunReport) -> dict[str, Any] | None:
    layers = report.evidence.gates
    if not layers:
        return None
    rows = [
        {
            "name": layer.name,
            "channels": layer.num_channels,
            "mean": float(layer.mean.mean()),
            "low": float(layer.low.min()),
            "high": float(layer.high.max()),
            "grid": [
                [
                    {"text": f"{100 * share:.0f}", "background": heat_colour(3 * share)}
                    for share in line
                ]
                for line in layer.answering.tolist()
            ],
        }
        for layer in layers
    ]
    return {
        "rows": rows,
        "sentence": gates_sentence(layers),
        "examples": report.evidence.gate_examples,
        "all_open": all(layer.open for layer in layers),
        "by_class": _gates_by_class(report),
    }


def _gates_by_class(report: RunReport) -> list[tuple[str, list[dict[str, str]]]]:
    """Heat-map cells of the layer whose gates vary most: a row per class, a column per region."""
    examples = report.evidence.gate_examples
    shown = [e for e in report.evidence.gates if examples and e.name == examples[0].layer]
    if not shown:
        return []
    rows = []
    for name, gates in class_gates(shown[0], report.label_space.names, MOST_GATED):
        shares = [(share_text(g, 2), heat_colour(0.7 * (1 - g), BLUE)) for g in gates.tolist()]
        rows.append(
            (name, [{"text": t, "small": "", "background": colour} for t, colour in shares])
        )
    return rows


def _curves(report: RunReport) -> list[Picture]:
    history = report.facts.history
    if not len(history):
        return []
    drawn = [
        (loss_figure(history), "Training loss and its parts by epoch"),
        (validation_figure(history, report.facts.phases), "Balanced accuracy on val by epoch"),
    ]
    return [figure_picture(figure, alt) for figure, alt in drawn if figure is not None]


def _made(report: RunReport) -> dict[str, Any]:
    text = yaml.safe_dump(report.facts.settings, sort_keys=False, allow_unicode=True)
    changed = [[s.name, _plain(s.value), _plain(s.default)] for s in report.facts.changed]
    return {"settings": text, "changed": changed}


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
