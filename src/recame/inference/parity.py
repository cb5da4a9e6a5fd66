"""Check that an exported graph agrees with the network in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from recame.contracts import Array, IntArray, PreprocessSpec
from recame.inference.forward import BatchForward
from recame.models import MultiExpertClassifier
from recame.names import quoted

#: Largest allowed difference of a probability. Half precision has 11 bits, and a sharp softmax over
#: cosines times 16 loses about four of them; INT8 is checked only by its predicted classes.
MAX_DIFFERENCE = {"fp32": 1e-4, "fp16": 2e-2}

#: Smallest allowed share of real images with the same predicted class.
MIN_AGREEMENT = 0.99

#: Batch sizes that are compared: an image's outputs must not depend on its batch.
_BATCHES = (1, 2, 3, 7, 16)
#: If an image takes long: fewer synthetic images, and fewer batch sizes.
_FEW_MADE, _FEW_BATCHES = 8, (1, 3)

_BATCH = 32

#: From stored pixels (B, H, W, C) to probabilities (B, C).
Forward = Callable[[Array], Array]


@dataclass(frozen=True)
class Parity:
    """The result of the parity check.

    Attributes:
        images: real images compared.
        source: where they come from.
        max_difference: largest difference of a probability on them.
        mean_difference: mean over images of each image's largest difference.
        agreement: share of them with the same predicted class.
        differing: images with another predicted class.
        ties: how many of these have two best classes that are equal in torch, within the tolerance.
        tail_classes: the classes of the rarest group.
        tail_images: real images of these classes.
        tail_agreement: their share with the same predicted class; None without such images.
        synthetic_difference: largest difference on black, white and random images.
        batch_difference: largest difference of an image's outputs between batches of several sizes.
        failures: why the bundle must not be written; empty if it may be.
    """

    images: int
    source: str
    max_difference: float
    mean_difference: float
    agreement: float
    differing: int
    ties: int
    tail_classes: tuple[str, ...]
    tail_images: int
    tail_agreement: float | None
    synthetic_difference: float
    batch_difference: float
    failures: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        values = asdict(self)
        del values["failures"]
        return {**values, "tail_classes": list(self.tail_classes)}

    def sentence(self) -> str:
        """Describe the figures in words."""
        text = (
            f"{self.images:,} images ({self.source}): largest difference of a probability "
            f"{self.max_difference:.2g}, same class {self.agreement:.2%}"
        )
        if self.tail_agreement is not None:
            names = ", ".join(map(quoted, self.tail_classes[:4]))
            more = ", ..." if len(self.tail_classes) > 4 else ""
            text += f", tail ({names}{more}) {self.tail_agreement:.2%} of {self.tail_images:,}"
        return f"{text}; black, white and random images {self.synthetic_difference:.2g}"


def torch_forward(model: MultiExpertClassifier, spec: PreprocessSpec, views: int) -> Forward:
    """The reference: the network in eager torch, as in evaluation."""
    forward = BatchForward(model, spec=spec, num_views=views, num_images=0, device="cpu")

    def probabilities(images: Array) -> Array:
        with torch.inference_mode():
            return forward(np.ascontiguousarray(images))[1].numpy().astype(np.float64)

    return probabilities


def in_batches(
    forward: Forward, images: Array, rows: IntArray | None = None, size: int = _BATCH
) -> Array:
    """Run any number of images.

    Args:
        forward: the model.
        images: (M, H, W, C) stored pixels, an array or a memory map.
        rows: (N,) rows of `images`; None: all.
        size: images a call.

    Returns:
        (N, C).
    """
    rows = np.arange(len(images)) if rows is None else rows
    starts = range(0, len(rows), size)
    return np.concatenate([forward(np.asarray(images[rows[i : i + size]])) for i in starts])


def check_parity(
    forward: Forward,
    reference: Forward,
    images: Array,
    rows: IntArray,
    target: IntArray,
    *,
    precision: str,
    tail: tuple[tuple[str, int], ...],
    spec: PreprocessSpec,
    source: str,
    seed: int,
    brief: bool = False,
) -> Parity:
    """Compare a graph with torch.

    Args:
        forward: the written graph in its runtime.
        reference: the same arithmetic in torch.
        images: (M, H, W, C) stored pixels, an array or a memory map.
        rows: (N,) rows of the real images to compare, N >= 1.
        target: (N,) their class indices; -1 where unknown.
        precision: of the graph; decides the tolerances.
        tail: names and indices of the rarest classes, whose agreement is reported separately.
        spec: of the images.
        source: where the images come from, in words.
        seed: of the random images.
        brief: few random images and few batch sizes, for a slow graph of large images.
    """
    expected, found = in_batches(reference, images, rows), in_batches(forward, images, rows)
    difference = np.abs(found - expected).max(1)
    differing = found.argmax(1) != expected.argmax(1)
    limit = MAX_DIFFERENCE.get(precision)
    best = np.sort(expected, 1)[:, -2:]
    # Each probability may move by the limit, so two that differ by less than twice that may swap.
    ties = differing & (best[:, 1] - best[:, 0] <= 2 * (limit or 0.0))
    is_tail = np.isin(target, [index for _, index in tail])
    made = _synthetic(spec, seed)[: _FEW_MADE if brief else None]
    sizes = _FEW_BATCHES if brief else _BATCHES
    synthetic = in_batches(forward, made)
    parity = Parity(
        images=len(rows),
        source=source,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        agreement=float(1 - differing.mean()),
        differing=int(differing.sum()),
        ties=int(ties.sum()),
        tail_classes=tuple(name for name, _ in tail),
        tail_images=int(is_tail.sum()),
        tail_agreement=float(1 - differing[is_tail].mean()) if is_tail.any() else None,
        synthetic_difference=float(np.abs(synthetic - in_batches(reference, made)).max()),
        batch_difference=_batch_difference(
            forward, np.concatenate([images[rows[: 4 if brief else 12]], made]), sizes
        ),
    )
    wrong = _failures(parity, limit)
    if not all(np.isfinite(answers).all() for answers in (synthetic, found, expected)):
        wrong = ("some probabilities are not finite", *wrong)
    return replace(parity, failures=wrong)


def _failures(parity: Parity, limit: float | None) -> tuple[str, ...]:
    """Say which limits are exceeded; NaN exceeds every limit."""
    wrong = []
    if limit is not None:
        for what, value in (
            ("real images", parity.max_difference),
            ("black, white and random images", parity.synthetic_difference),
        ):
            if not value <= limit:
                wrong.append(f"on {what} a probability is {value:.2g} off (at most {limit:g})")
        if parity.differing > parity.ties:
            wrong.append(
                f"{parity.differing - parity.ties} of {parity.images} images get another class "
                "without a tie"
            )
    # One image of a small sample is allowed to differ.
    elif parity.differing > max(1, int((1 - MIN_AGREEMENT) * parity.images + 1e-9)):
        wrong.append(
            f"{parity.differing} of {parity.images} images get another class, an agreement of "
            f"{parity.agreement:.2%} (at least {MIN_AGREEMENT:.0%})"
        )
    batch_limit = limit or MAX_DIFFERENCE["fp16"]
    if not parity.batch_difference <= batch_limit:
        wrong.append(
            f"an image's output depends on the batch it is in, by {parity.batch_difference:.2g} "
            f"(at most {batch_limit:g})"
        )
    return tuple(wrong)


def _synthetic(spec: PreprocessSpec, seed: int) -> Array:
    """Black, white, half and random images: (20, H, W, C)."""
    shape = (spec.height, spec.width, spec.channels)
    largest = 2**spec.bit_depth - 1
    flat = np.stack([np.full(shape, level, spec.dtype) for level in (0, largest, largest // 2)])
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, largest, (17, *shape), spec.dtype, endpoint=True)
    return np.concatenate([flat, noise])


def _batch_difference(forward: Forward, images: Array, sizes: tuple[int, ...]) -> float:
    answers = [in_batches(forward, images, size=size) for size in sizes]
    return float(np.max([np.abs(other - answers[0]).max() for other in answers[1:]]))
