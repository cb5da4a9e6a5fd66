"""What size images are brought to: what time and answers allow, and then what `val` says.

Decided before the set is decoded, once: `config.yaml` holds it, and a run that is resumed, or a
further process of it, asks nothing again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from recame.config import Config, as_size
from recame.data.proposal import candidate_sizes, native_size
from recame.errors import DataError
from recame.inference.separability import Judged, gain
from recame.progress import Progress, silent
from recame.training.phases.size_trial import OPENING_S, Sample, Size, Trial, Tried
from recame.training.planner import TRAINED_SHARE, budget_s, choose_size

#: Share of the time budget that the search may take, and seconds of its first forwards.
SHARE, _FIRST_S = 0.08, 1.0
#: A dearer size must lose less by so many standard errors (docs/decisions/0026).
MARGIN = 3.0


def settle_size(
    table: pd.DataFrame,
    config: Config,
    device: torch.device,
    *,
    started: float,
    report: Progress = silent,
) -> tuple[int | str, str]:
    """Decide `data.size`, and say why.

    Candidates that fine-tuning could not show each image often enough in the time, or at which
    one network under one view would answer slower than was asked, are left out. What remains is
    tried: the pretrained network embeds a sample of the training and validation images at each
    size, and a classifier in closed form is judged on images that it has not seen. A dearer size is
    taken if it is better beyond chance.

    Args:
        table: of `read_manifest`.
        config: the settings; `data.size` is open.
        device: where the run trains.
        started: `time.monotonic()` from where the run's time counts.
        report: told of the progress.
    """
    paths = [Path(path) for path in table["path"]]
    native = native_size(paths, context=config.data.context)
    size, why = choose_size(native)
    budget = time_to_keep(config, device)
    began = time.monotonic()
    ends = None if budget is None else began + SHARE * budget
    if config.model.pretrained is False or len(candidate_sizes(native)) == 1:
        return size, why
    if ends is not None and ends - began < _FIRST_S + 2 * OPENING_S:
        return size, f"{why}; the time is too short to try others"
    try:
        sample = Sample.draw(table, config)
        trial = Trial(
            config, device, sample, native, sample.proposed(config, candidate_sizes(native)[0])
        )
    except DataError:  # what is wrong with the files is told where all of them are read
        return size, why
    left_s = None if budget is None else TRAINED_SHARE * budget - (began - started)
    found = trial.candidates(left_s)
    said = "".join(f"; {sentence}" for sentence in found.left)
    if len(found.sizes) > 1:
        tried = trial.judge(found.sizes, ends, report)
        if tried:
            best = best_size([one.judged for one in tried])
            return as_size(tried[best].size), _told(native, tried, best, sample) + said
    return size, why + said


def best_size(judged: Sequence[Judged]) -> int:
    """Position of the size to take.

    Args:
        judged: the same images at ascending sizes; a later one must be better than the one that
            was taken before it by `MARGIN` standard errors.
    """
    chosen = 0
    for number in range(1, len(judged)):
        better, error = gain(judged[chosen], judged[number])
        if better > MARGIN * error:
            chosen = number
    return chosen


def time_to_keep(config: Config, device: torch.device) -> float | None:
    """Seconds that a run has; None where time does not end it, and sizes are alike to it."""
    if config.finetune.enabled and config.finetune.epochs != "auto":
        return None
    return budget_s(config, device)


def _told(native: Size, tried: Sequence[Tried], best: int, sample: Sample) -> str:
    """What each size scored and cost."""
    num_images = len(tried[0].judged.target)
    listed = ", ".join(
        f"{as_size(one.size)} {one.judged.accuracy:.3f} (loss {one.judged.mean_loss:.3f}, "
        f"{1000 * one.image_s:.1f} ms an image)"
        for one in tried
    )
    how = "val and images left out of train" if sample.of_val.any() else "images left out of train"
    taken = "better beyond chance" if best else "a dearer size must be better beyond chance"
    if tried[-1].judged.right.all():
        taken = "better beyond chance, and all right" if best else "all are right: no more is tried"
    return (
        f"images are about {native[1]} x {native[0]} pixels; balanced accuracy of classifiers on "
        f"the pretrained features of {num_images:,} images ({how}): {listed}; {taken}"
    )
