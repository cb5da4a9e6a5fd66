"""Finds likely label errors: labels with a low out-of-sample probability, ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recame.contracts import FloatArray, IntArray
from recame.data.corrections import CORRECTED, LEFT_OUT
from recame.inference.projection import principal_components, standardise
from recame.inspection.check import (
    Block,
    Check,
    Inspection,
    Section,
    SetFinding,
)
from recame.inspection.checks.duplicates import Duplicates
from recame.names import counted, quoted
from recame.progress import Progress, silent

_MOST_SHOWN = 24
_FOLDS = 5
_STEPS = 40
_WEIGHT_DECAY = 1e-3
#: A label counts as suspect when another class is this much more probable than it.
SUSPECT_MARGIN = 0.8
#: Images x features x classes; where there would be more, fewer principal components are used.
_MOST_PRODUCTS = 2_000_000_000
#: Below this many, threads wait for each other longer than they compute.
_FEW_PRODUCTS = 500_000_000


class LabelErrors(Check):
    """Likely label errors.

    Attributes:
        suspects: likely label errors, most likely first.
        judged: images whose label was tested.
    """

    place = 5
    of_images = True
    suspects = pd.DataFrame(
        columns=[
            *("table_row", "image", "label", "suggested"),
            *("margin", "label_probability", "suggested_probability", "split"),
        ]
    )
    judged = 0

    def find(self) -> None:
        """Test each label by the images of other scenes."""
        inspection, embedded = self.inspection, self.inspection.embedded
        if embedded is None:
            return
        with inspection.clock("testing labels") as step:
            found = label_suspects(
                embedded.details,
                embedded.target,
                inspection[Duplicates].scenes,
                len(inspection.names),
                seed=inspection.seed,
                on_progress=step,
            )
        self.suspects = named_suspects(inspection, embedded.rows, found)
        self.judged = int(found["judged"].sum())

    def say(self) -> list[SetFinding]:
        """How many labels are suspect, and which classes are mixed up."""
        suspects, judged = self.suspects, self.judged
        if not judged:
            return []
        if not len(suspects):
            text = f"None of {counted(judged, 'label')} is strongly contradicted by other images."
            return [SetFinding("labels", "good", "No label stands out as wrong", text)]
        pairs = (
            suspects["label"].map(quoted) + " -> " + suspects["suggested"].map(quoted)
        ).value_counts()
        top = ", ".join(f"{pair} ({count})" for pair, count in pairs.head(3).items())
        return [
            SetFinding(
                "labels",
                "warn",
                f"{counted(len(suspects), 'label')} may be wrong",
                f"{len(suspects) / judged:.1%} of {judged:,} tested labels. Most often: {top}. "
                "Look at each image before you change its label: hard images are among them. The "
                "likeliest errors come first.",
                f"Review suspects.csv from the top, and write the right class into {CORRECTED} "
                f"({LEFT_OUT} leaves out an image); stop when most labels turn out to be right. "
                "Keep the file, and train with --corrections FILE.",
                len(suspects),
            )
        ]

    def tiles(self) -> list[dict[str, str]]:
        """How many stand out."""
        count, meaning = len(self.suspects), f"of {self.judged:,} tested"
        tone = "warn" if count else "good"
        return [{"name": "Suspect labels", "value": f"{count:,}", "meaning": meaning, "tone": tone}]

    def show(self) -> list[Section]:
        """The likeliest errors."""
        pictures = [
            self.inspection.thumbnail(
                row["table_row"],
                f"labelled {row['label']}, rather {row['suggested']} "
                f"({row['suggested_probability']:.2f})",
            )
            for row in self.suspects.head(_MOST_SHOWN).to_dict("records")
        ]
        note = f"{counted(len(self.suspects), 'label')}, likeliest first. All in suspects.csv."
        shown = [Block("note", note), Block("thumbs", pictures)]
        heading = Block("heading", "Likely label errors")
        blocks = [heading, *(shown if pictures else [Block("text", "None.")])]
        return [Section("hygiene", "Hygiene", blocks)]

    def facts(self) -> dict[str, Any]:
        """How many there are."""
        return {"hygiene": {"suspect_labels": len(self.suspects), "labels_tested": self.judged}}

    def tables(self) -> dict[str, pd.DataFrame]:
        """All suspect labels, with an empty column for corrections."""
        return {"suspects": self.suspects.drop(columns="table_row").assign(**{CORRECTED: ""})}


def label_suspects(
    features: FloatArray,
    target: IntArray,
    groups: IntArray,
    num_classes: int,
    *,
    seed: int,
    on_progress: Progress = silent,
) -> pd.DataFrame:
    """Rank images by how strongly the others contradict their label.

    Softmax regression on the embedding, five folds, each image judged by the fold that did not
    see it, nor any near-duplicate of it. The class's frequency takes part in the probability, as
    wrong labels come from frequent classes most. As in confident learning (Northcutt et al., JAIR
    2021) an image counts as suspect when another class is at least as probable as that class is,
    on average, for its own images; here also by a margin of 0.8 over the label it has.

    Args:
        features: (N, P) `Embedding.details`.
        target: (N,) class indices.
        groups: (N,) images of one scene share a number, and a fold.
        num_classes: C.
        seed: of the folds.
        on_progress: told of each fold.

    Returns:
        N rows in the images' order: `margin` (probability of the best other class minus that of
        the label, in [-1, 1]), `other` (class index), `own` and `other_probability`, `suspect`,
        `judged` (false where the class has one scene only, which leaves nothing to compare with).
    """
    num_scenes = pd.Series(groups).groupby(target).nunique().reindex(range(num_classes))
    judged = (num_scenes.fillna(0).to_numpy() >= 2)[target]
    if num_classes < 2 or judged.sum() < 10 or len(np.unique(target[judged])) < 2:
        nothing = {"margin": -1.0, "other": -1, "own": np.nan, "other_probability": np.nan}
        index = range(len(target))
        return pd.DataFrame({**nothing, "suspect": False, "judged": False}, index=index)
    width = max(16, _MOST_PRODUCTS // (len(target) * num_classes))
    if width < features.shape[1]:
        features = principal_components(features, width)
    inputs, classes = torch.from_numpy(standardise(features)), torch.from_numpy(target)
    fold = _folds(target, groups, seed)
    probability = np.zeros((len(target), num_classes), np.float32)
    few = inputs.numel() * num_classes < _FEW_PRODUCTS
    with _threads(1 if few else torch.get_num_threads()):
        for number in range(_FOLDS):
            held_out = fold == number
            if held_out.any() and not held_out.all():
                fitted = _fit(inputs[~held_out], classes[~held_out], num_classes)
                with torch.no_grad():
                    probability[held_out] = torch.softmax(fitted(inputs[held_out]), 1).numpy()
            on_progress("label errors", number + 1, _FOLDS)
    return _ranked(probability, target, judged)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _folds(target: IntArray, groups: IntArray, seed: int) -> IntArray:
    """A fold for each scene; the scenes of each class are spread evenly."""
    first = pd.DataFrame({"group": groups, "target": target}).drop_duplicates("group")
    shuffled = first.sample(frac=1, random_state=seed)
    shuffled["fold"] = shuffled.groupby("target").cumcount() % _FOLDS
    return shuffled.set_index("group")["fold"].reindex(groups).to_numpy(np.int64)


def _fit(inputs: Tensor, classes: Tensor, num_classes: int) -> Callable[[Tensor], Tensor]:
    """Softmax regression with the log prior as its starting bias, by L-BFGS."""
    counts = torch.bincount(classes, minlength=num_classes).float()
    # A class without an image in this fold is never predicted.
    prior = torch.where(counts > 0, (counts.clamp_min(1) / counts.sum()).log(), -30.0)
    weight = torch.zeros(inputs.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, history_size=8, line_search_fn="strong_wolfe"
    )

    def logits(x: Tensor) -> Tensor:
        return x @ weight + (bias + prior)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(inputs), classes)
        loss = loss + _WEIGHT_DECAY * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return logits


def _ranked(probability: FloatArray, target: IntArray, judged: Any) -> pd.DataFrame:
    rows = np.arange(len(target))
    own = probability[rows, target]
    usual = np.full(probability.shape[1], 1.0)
    for c in np.unique(target[judged]):
        usual[c] = own[judged & (target == c)].mean()
    probability[rows, target] = -1.0
    other = probability.argmax(1)
    best = probability[rows, other]
    margin = np.where(judged, best - own, -1.0)
    suspect = judged & (margin >= SUSPECT_MARGIN) & (best >= usual[other])
    return pd.DataFrame(
        {
            "margin": margin,
            "other": other,
            "own": own,
            "other_probability": best,
            "suspect": suspect,
            "judged": judged,
        }
    )


def named_suspects(inspection: Inspection, rows: IntArray, found: pd.DataFrame) -> pd.DataFrame:
    """The suspects of `label_suspects`, most likely first, with the table's names."""
    ranked = found[found["suspect"]].sort_values("margin", ascending=False, kind="stable")
    named = ranked.assign(
        table_row=rows[ranked.index], suggested=[inspection.names[c] for c in ranked["other"]]
    ).rename(columns={"own": "label_probability", "other_probability": "suggested_probability"})
    part = inspection.table.iloc[named["table_row"]]
    for column in ("image", "label", "split"):
        named[column] = part[column].to_numpy() if column in part else ""
    return named[[*LabelErrors.suspects.columns]]
