"""Choose the image size: within the limits of time and speed, by the results on `val`.

This is decided once, before the set is decoded. `config.yaml` holds the result, which resumed runs
and further processes reuse.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from recame.config import Config, as_size
from recame.data.proposal import candidate_sizes, native_size
from recame.errors import DataError
from recame.inference.separability import Judged, gain
from recame.progress import Progress, silent
from recame.training.phases.size_trial import OPENING_S, TOO_SHORT, Sample, Size, Trial, Tried
from recame.training.planner import TRAINED_SHARE, budget_s, choose_size

#: Share of the time budget for the search, and seconds of its first forward passes.
SHARE, _FIRST_S = 0.08, 1.0
#: Number of standard errors by which a larger size must have less loss (docs/decisions/0026).
MARGIN = 3.0
#: Up to so many pixels, a larger size is chosen without such evidence if fine-tuning can show each
#: training image so often, and so many images in all (docs/decisions/0047).
AMPLE_PIXELS, AMPLE_PASSES, AMPLE_IMAGES = 128 * 128, 6, 6_000


def settle_size(
    table: pd.DataFrame,
    config: Config,
    device: torch.device,
    *,
    started: float,
    report: Progress = silent,
) -> tuple[int | str, str]:
    """Decide `data.size`, and give the reason.

    Sizes are left out if fine-tuning has no time to show each image often enough, or if one network
    without test-time augmentation would be slower than required. The others are tried: the
    pretrained network embeds a sample of the training and validation images at each size, and a
    closed-form classifier is evaluated on images that it has not seen. A larger size is chosen if
    it is better beyond chance.

    Args:
        table: of `read_manifest`.
        config: the settings; `data.size` is open.
        device: where the run trains.
        started: `time.monotonic()` at which the run's time budget begins.
        report: called with the progress.
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
        return size, f"{why}; other sizes were not tried: {TOO_SHORT}"
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
        tried, why_not = trial.judge(found.sizes, ends, report)
        if why_not:
            said += f"; other sizes were not tried: {why_not}"
        else:
            better = best_size([one.judged for one in tried])
            best = with_ample_time(tried, better, found.passes, sample.num_train)
            told = _told(native, tried, better, sample)
            if best != better:
                larger = tried[best].size
                told += (
                    f"; there is time to show each training image about "
                    f"{found.passes[larger]:.0f} times at {as_size(larger)}, and fine-tuning gains "
                    "from larger maps of small images"
                )
            return as_size(tried[best].size), told + said
    return size, why + said


def best_size(judged: Sequence[Judged]) -> int:
    """Position of the size to choose.

    Args:
        judged: results for the same images at ascending sizes. A later size must be better than the
            one chosen before by `MARGIN` standard errors.
    """
    chosen = 0
    for number in range(1, len(judged)):
        better, error = gain(judged[chosen], judged[number])
        if better > MARGIN * error:
            chosen = number
    return chosen


def with_ample_time(
    tried: Sequence[Tried], better: int, passes: Mapping[Size, float], num_train: int
) -> int:
    """Position of the size to choose: small images are enlarged further where time is ample.

    Features of a network that has not learnt the set tell little of what it will gain by learning
    on larger maps (docs/decisions/0047).

    Args:
        tried: results at ascending sizes.
        better: position of the size that these results support.
        passes: how often fine-tuning could show each training image at a size.
        num_train: number of training images.
    """
    least = max(AMPLE_PASSES, AMPLE_IMAGES / num_train)
    if tried[-1].judged.right.all():
        return better  # nothing is left to gain
    chosen = better
    for number in range(better + 1, len(tried)):
        size = tried[number].size
        ample = math.prod(size) <= AMPLE_PIXELS and passes.get(size, 0.0) >= least
        gained, error = gain(tried[better].judged, tried[number].judged)
        if ample and gained >= -MARGIN * error:
            chosen = number
    return chosen


def time_to_keep(config: Config, device: torch.device) -> float | None:
    """Time budget of a run, seconds; None if time does not limit it."""
    if config.finetune.enabled and config.finetune.epochs != "auto":
        return None
    return budget_s(config, device)


def _told(native: Size, tried: Sequence[Tried], best: int, sample: Sample) -> str:
    """Score and cost of each size, in words."""
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
