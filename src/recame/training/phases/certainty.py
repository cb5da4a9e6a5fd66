"""The certainty of a choice on `val`, in words: images of a class, standard errors, ties."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.metrics.statistics import (
    balanced_accuracy,
    class_means,
    paired_difference,
    standard_error,
)
from recame.names import counted
from recame.training.phases.price import Option

#: Number of standard errors above which a difference is hardly chance.
SURE = 2.0


def val_words(target: IntArray) -> str:
    """Number of evaluated images, in all and for a class, in words.

    Examples:
        >>> val_words(np.array([0, 0, 0, 1])), val_words(np.array([0, 1]))
        ('4 images, 1 to 3 a class', '2 images, 1 a class')
    """
    counts = np.bincount(target)
    counts = counts[counts > 0]
    least, most = int(counts.min()), int(counts.max())
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{counted(len(target))}, {each} a class"


def choice_words(chosen: str, right: Mapping[str, BoolArray], target: IntArray) -> str:
    """Scores of the candidates, and whether `val` shows a difference to the chosen one, in words.

    Args:
        chosen: the candidate that is kept.
        right: candidate -> (N,) whether it classifies each image correctly.
        target: (N,) class indices.
    """
    scores = {name: balanced_accuracy(found, target) for name, found in right.items()}
    nothing = np.zeros_like(next(iter(right.values())))
    listed = ", ".join(
        f"{name} {scores[name]:.3f} ± {standard_error(found, nothing, target):.3f}"
        for name, found in right.items()
    )
    told = f"balanced accuracy on val ({val_words(target)}): {listed} (standard errors)"
    others = [name for name in right if name != chosen]
    if not others:
        return told
    doubtful, behind = [], []
    for name in others:
        lead = scores[chosen] - scores[name]
        error = standard_error(right[chosen], right[name], target)
        text = f"{name} ({lead:+.3f} ± {error:.3f})"
        if abs(lead) <= SURE * error:
            doubtful.append(text)
        elif lead < 0:
            behind.append(text)
    if behind:
        told += f"; {chosen} is behind {_listed(behind)}"
    if doubtful:
        return f"{told}; so few images do not tell {chosen} from {_listed(doubtful)}"
    return told if behind else f"{told}; {chosen} is ahead by more than {SURE:g} of them"


def loss_words(bought: Option, losses: Mapping[Option, FloatArray], target: IntArray) -> str:
    """The log loss of the kept option, and how much higher that of other networks is, in words.

    Empty if there was one network alone to choose.

    Args:
        bought: the option that is kept.
        losses: option -> (N,) log losses, of all that were allowed.
        target: (N,) class indices.
    """
    least: dict[str, Option] = {}
    for option in sorted(losses, key=lambda each: class_means(losses[each], target).mean()):
        least.setdefault(option.network, option)
    others = [option for name, option in least.items() if name != bought.network]
    if not others:
        return ""
    told = []
    for option in others:
        more, error = paired_difference(losses[option] - losses[bought], target)
        told.append(f"{_named(option)} +{more:.3f} ± {error:.3f}")
    own = float(class_means(losses[bought], target).mean())
    return f"log loss on val {own:.3f}, the lowest, by {_named(bought)}; {', '.join(told)}"


def too_dear_words(
    bought: Option,
    losses: Mapping[Option, FloatArray],
    dear: Mapping[Option, FloatArray],
    target: IntArray,
    least_images_per_s: float | None,
) -> str:
    """How much lower the log loss is of what the limit of the cost rules out, in words.

    Empty if nothing that was ruled out has a lower log loss than the kept option.

    Args:
        bought: the option that is kept.
        losses: option -> (N,) log losses, of all that were allowed.
        dear: the same of those that the limit rules out.
        target: (N,) class indices.
        least_images_per_s: the limit.
    """
    if not dear:
        return ""
    best = min(dear, key=lambda option: class_means(dear[option], target).mean())
    less, error = paired_difference(losses[bought] - dear[best], target)
    if less <= 0:
        return ""
    return (
        f"{_named(best)} would have {less:.3f} ± {error:.3f} less, but with it two cores answer "
        f"fewer images/s than evaluation.least_images_per_s = {least_images_per_s:g} (0: any speed)"
    )


def _named(option: Option) -> str:
    return f"{option.network} with {counted(option.views, 'view')}"


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
