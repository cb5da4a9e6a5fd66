"""Cards of the worst mistakes: attribution maps and the nearest training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from recame.contracts import Array, IntArray, Predictions
from recame.inference.attribution import attribution_maps
from recame.label_space import LabelSpace
from recame.models import LoadedModel
from recame.pages.drawing import overlay
from recame.pages.render import BLUE, ORANGE, Picture, image_picture, photo_picture, share_text

#: Colours of the attribution maps for the predicted and for the true class.
CALLED_COLOUR, TRUE_COLOUR = ORANGE, BLUE

#: Most cards in the gallery, and most for one pair of classes as long as there are other pairs.
MOST_CARDS, MOST_A_PAIR = 12, 3
#: From this cosine on, two images are nearly the same for the model.
TWIN = 0.95
#: Most experts whose own maps are drawn.
MOST_EXPERTS = 4

#: Pixels of images whose maps are computed at once.
_MAPPED_PIXELS = 1 << 21
_LOSSLESS_SIDE = 128
_PHOTO_SIDE = 160


@dataclass(frozen=True)
class Neighbour:
    """A training image near a mistake.

    Attributes:
        image: its name in the manifest.
        label: its class.
        similarity: cosine of the features, mean over the experts.
        picture: the image.
    """

    image: str
    label: str
    similarity: float
    picture: Picture


@dataclass(frozen=True)
class Mistake:
    """A wrongly classified image.

    Attributes:
        image: name in the manifest.
        product: of the image; empty if unknown.
        true: the label.
        called: the class that the ensemble predicts.
        confidence: probability of the predicted class.
        true_probability: probability of the label's class.
        kind: `escape`, `overkill` or empty.
        critical: whether the label's class is critical.
        experts: each expert's predicted class and its confidence.
        picture: the image; None if it is not available.
        maps: (`ensemble` or `expert <k>`, attribution map of the predicted class, of the label).
        neighbours: the nearest training images, nearest first.
    """

    image: str
    product: str
    true: str
    called: str
    confidence: float
    true_probability: float
    kind: str
    critical: bool
    experts: tuple[tuple[str, float], ...]
    picture: Picture | None = None
    maps: tuple[tuple[str, Picture, Picture], ...] = ()
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def hint(self) -> str:
        """Say what the nearest training images suggest; empty if nothing."""
        labels = {neighbour.label for neighbour in self.neighbours}
        if len(self.neighbours) < 3 or labels not in ({self.called}, {self.true}):
            return ""
        if labels == {self.true}:
            return f"Its nearest training images are all {self.true}, yet it is called otherwise."
        if self.neighbours[0].similarity >= TWIN:
            return f"Training has nearly the same image as {self.called}: is the label right?"
        return f"Its nearest training images are all {self.called}."

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON, without the pictures."""
        names = ("image", "product", "true", "called", "confidence", "true_probability", "kind")
        return {
            **{name: getattr(self, name) for name in (*names, "critical")},
            "experts": [{"called": name, "confidence": share} for name, share in self.experts],
            "neighbours": [
                {"image": n.image, "label": n.label, "similarity": n.similarity}
                for n in self.neighbours
            ],
        }


def choose_mistakes(
    predictions: Predictions, label_space: LabelSpace, most: int = MOST_CARDS
) -> IntArray:
    """Choose the mistakes to show: critical escapes first, other escapes, then by confidence.

    Escapes take at most two thirds of the places as long as there are other mistakes. One pair of
    classes takes at most `MOST_A_PAIR` as long as there are other pairs.

    Args:
        predictions: of one split.
        label_space: with the normal and critical classes.
        most: largest number of mistakes.

    Returns:
        Rows of the predictions.
    """
    target, called = predictions.target, predictions.probabilities.argmax(1)
    rows = np.flatnonzero((target >= 0) & (called != target))
    confidence = predictions.probabilities[rows, called[rows]]
    escapes = called[rows] == (-1 if label_space.normal_index is None else label_space.normal_index)
    critical = np.isin(target[rows], [label_space.index(name) for name in label_space.critical])
    order = np.lexsort((-confidence, ~(critical & escapes), ~escapes))
    rows, escapes = rows[order], escapes[order]
    pair = target[rows] * label_space.num_classes + called[rows]
    # Mistakes beyond the limit of their pair, or of the escapes, come after all others.
    waits = (pd.Series(pair).groupby(pair).cumcount().to_numpy() >= MOST_A_PAIR) | (
        escapes & (np.cumsum(escapes) > most * 2 // 3)
    )
    return np.asarray(rows[np.sort(np.argsort(waits, kind="stable")[:most])], dtype=np.int64)


def describe_mistakes(
    predictions: Predictions, rows: IntArray, label_space: LabelSpace, product_column: str
) -> list[Mistake]:
    """Make cards without pictures, in the order of `rows`."""
    names, normal = label_space.names, label_space.normal
    images = predictions.table["image"].astype(str).to_numpy()
    products = predictions.table.get(product_column)
    found = []
    for row in rows.tolist():
        shares, experts = predictions.probabilities[row], predictions.expert_probabilities[row]
        true, called = names[predictions.target[row]], names[int(shares.argmax())]
        product = "" if products is None or products.isna().iloc[row] else str(products.iloc[row])
        found.append(
            Mistake(
                image=images[row],
                product=product,
                true=true,
                called=called,
                confidence=float(shares.max()),
                true_probability=float(shares[predictions.target[row]]),
                kind="escape" if called == normal else "overkill" if true == normal else "",
                critical=true in label_space.critical,
                experts=tuple((names[int(e.argmax())], float(e.max())) for e in experts),
            )
        )
    return found


def mistake_maps(
    loaded: LoadedModel, pixels: Array, mistakes: Sequence[Mistake]
) -> list[tuple[tuple[str, Picture, Picture], ...]]:
    """Compute attribution maps of each mistake, for the predicted and for the true class.

    Args:
        loaded: the model, on its device.
        pixels: (n, H, W, C) in [0, 1], the mistakes' images.
        mistakes: n of them.
    """
    space, model = loaded.label_space, loaded.model
    device = next(model.parameters()).device
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    pairs = torch.tensor([[space.index(m.called), space.index(m.true)] for m in mistakes])
    step = max(1, _MAPPED_PIXELS // (pixels.shape[1] * pixels.shape[2]))
    parts = zip(torch.split(images, step), torch.split(pairs, step), strict=True)
    maps = np.concatenate(
        [attribution_maps(model, i.contiguous().to(device), p.to(device)) for i, p in parts]
    )
    found = []
    for mistake, image, both in zip(mistakes, pixels, maps, strict=True):
        sources = [("ensemble", both.mean(1))]
        if model.num_experts > 1:
            sources += [(f"expert {k}", both[:, k]) for k in range(model.num_experts)][
                :MOST_EXPERTS
            ]
        largest = max(float(max(part.max() for _, part in sources)), 1e-9)
        sides = (mistake.called, CALLED_COLOUR), (mistake.true, TRUE_COLOUR)
        drawn = []
        for who, part in sources:
            called, true = (
                photo_picture(
                    overlay(image, heat / largest, colour, pieces=model.spec.pieces),
                    f"what speaks for {name} to the {who}",
                )
                for heat, (name, colour) in zip(part, sides, strict=True)
            )
            drawn.append((who, called, true))
        found.append(tuple(drawn))
    return found


def thumb(pixels: Array, alt: str, caption: str = "") -> Picture:
    """Make a small picture of an image.

    Args:
        pixels: (H, W, C) in [0, 1]; small images are stored losslessly, larger ones are shrunk.
        alt: what it shows.
        caption: printed below.
    """
    shown = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    eight = np.clip(shown * 255 + 0.5, 0, 255).astype(np.uint8)
    side = math.sqrt(eight.shape[0] * eight.shape[1])
    if side <= _LOSSLESS_SIDE:
        return image_picture(eight, alt, caption)
    from PIL import Image

    small = Image.fromarray(eight).convert("RGB")
    ratio = _PHOTO_SIDE / side
    small.thumbnail((math.ceil(small.width * ratio), math.ceil(small.height * ratio)))
    return photo_picture(np.asarray(small), alt, caption)


def neighbours_of(
    rows: IntArray, similarity: Array, images: Sequence[str], labels: Sequence[str], pixels: Array
) -> tuple[Neighbour, ...]:
    """Make the nearest training images of one mistake.

    Args:
        rows: (k,) positions in `images` and `labels`.
        similarity: (k,) cosines of the features.
        images: names of the candidates.
        labels: their classes.
        pixels: (k, H, W, C) in [0, 1], of `rows`.
    """
    return tuple(
        Neighbour(
            images[row],
            labels[row],
            float(near),
            thumb(
                image, f"training image of {labels[row]}", f"{labels[row]} {share_text(near, 2)}"
            ),
        )
        for row, near, image in zip(rows.tolist(), similarity.tolist(), pixels, strict=True)
    )
