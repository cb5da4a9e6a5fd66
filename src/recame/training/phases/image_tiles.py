"""Decide whether large images are seen in tiles: if time allows, by the results on `val`.

This is decided after `data.size`, in the same way: once, on a sample, before the set is decoded.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from recame.config import Config, as_size, height_width
from recame.contracts import PreprocessSpec
from recame.data.at_sizes import ImagesAtSizes, decode_at_sizes
from recame.data.proposal import native_size
from recame.errors import DataError
from recame.inference.separability import Judged, accuracy_gain, gain
from recame.machine import usable_cores
from recame.progress import Progress, silent
from recame.training.phases.image_size import time_to_keep
from recame.training.phases.size_trial import NOTHING_TELLS, OPENING_S, Sample, Trial

#: Least side (of a square with as many pixels) for trying tiles: smaller images lose little when
#: they are shrunk.
LARGE = 512
#: Number of tiles of an image, and their side in pixels (docs/decisions/0027).
NUM_TILES, TILE_SIDE = 4, 64
#: Largest share of the time budget for finding the tiles of all images.
_FINDING_SHARE = 0.5
#: Number of standard errors by which tiles must have less loss, or be right more often. It is
#: smaller than for a larger size: for such large images, the whole image often shows nothing, and a
#: small sample is never certain (benchmarks/tiles/evidence.py).
_MARGIN, _RIGHT_MARGIN = 1.5, 2.0
#: Share of the time budget for trying tiles; large enough for enough images on a busy machine.
_TRYING_SHARE = 0.16
#: Least number of images for the decision.
_LEAST = 40


@dataclass(frozen=True)
class Tiles:
    """The decision on tiles.

    Attributes:
        number: of tiles; 0: none.
        size: of each piece, as `data.size`.
        why: the reason in a sentence; None if there was nothing to decide.
    """

    number: int
    size: int | str
    why: str | None = None


def settle_tiles(
    table: pd.DataFrame,
    config: Config,
    device: torch.device,
    *,
    started: float,
    report: Progress = silent,
) -> Tiles:
    """Decide `data.tiles` if it is open, and `data.size` with it.

    Args:
        table: of `read_manifest`.
        config: the settings; `data.size` is that of whole images.
        device: where the run trains.
        started: `time.monotonic()` at which the run's time budget begins.
        report: called with the progress.
    """
    whole = Tiles(0, config.data.size)
    paths = [Path(path) for path in table["path"]]
    native = native_size(paths, context=config.data.context)
    if math.sqrt(native[0] * native[1]) < LARGE or min(native) < 2 * TILE_SIDE:
        return whole
    if config.model.pretrained is False:
        return whole
    size = height_width(config.data.size)
    try:
        sample = Sample.draw(table, config)
        plain = sample.proposed(config, size)
    except DataError:  # what is wrong with the files is told where all of them are read
        return whole
    budget = time_to_keep(config, device)
    ends = math.inf if budget is None else time.monotonic() + _TRYING_SHARE * budget
    tiled = sample.proposed(config, (TILE_SIDE, TILE_SIDE), tiles=NUM_TILES)
    tiled = replace(tiled, channels=plain.channels, bit_depth=plain.bit_depth, scale=plain.scale)
    found = _decoded(sample, tiled, config, (ends - time.monotonic() - 2 * OPENING_S) / 2)
    if found.tried < min(_LEAST, len(sample.paths)):
        why = "the time is too short to try tiles of images as large"
        return replace(whole, why=f"{why} ({native[1]} x {native[0]} pixels)")
    image_s = found.seconds / found.tried
    all_s = image_s * len(paths)
    if budget is not None and all_s > _FINDING_SHARE * budget:
        return replace(
            whole,
            why=f"finding the tiles of {len(paths):,} images would take {all_s:.0f} of the "
            f"{budget:.0f} s; with more time they are tried",
        )
    if not len(found.positions):  # none can be read, which is told where all files are read
        return whole
    seen = _seen(sample, plain, found, config)
    positions = found.positions
    judged = []
    for spec, images in ((plain, seen.images[0]), (tiled, found.images[0])):
        trial = Trial(config, device, sample, native, spec)
        judged.append(trial.judged((spec.height, spec.width), images, positions))
        report("trying tiles", len(judged), 2)
    if not len(judged[0].target):
        return replace(whole, why=f"tiles are not tried: {NOTHING_TELLS}")
    better, error = gain(*judged)
    righter, doubt = accuracy_gain(*judged)
    why = _told(native, as_size(size), judged, image_s)
    if better > _MARGIN * error or righter > _RIGHT_MARGIN * doubt:
        return Tiles(NUM_TILES, TILE_SIDE, f"{why}; better beyond chance")
    return replace(whole, why=f"{why}; tiles must be better beyond chance")


def _decoded(sample: Sample, spec: PreprocessSpec, config: Config, most_s: float) -> ImagesAtSizes:
    return decode_at_sizes(
        sample.paths,
        spec,
        [(spec.height, spec.width)],
        max_pixels=config.data.max_pixels,
        most_s=None if math.isinf(most_s) else most_s,
    )


def _seen(
    sample: Sample, spec: PreprocessSpec, found: ImagesAtSizes, config: Config
) -> ImagesAtSizes:
    """The same files as whole images."""
    chosen = replace(sample, paths=[sample.paths[place] for place in found.positions])
    return _decoded(chosen, spec, config, math.inf)


def _told(native: tuple[int, int], size: int | str, judged: list[Judged], image_s: float) -> str:
    """Scores with and without tiles, and the cost of finding tiles, in words."""
    plain, tiled = (f"{one.accuracy:.3f} (loss {one.mean_loss:.3f})" for one in judged)
    return (
        f"images are about {native[1]} x {native[0]} pixels; balanced accuracy of classifiers on "
        f"the pretrained features of {len(judged[0].target):,} images: whole at {size} {plain}; "
        f"whole at {TILE_SIDE} beside the {NUM_TILES} places that are most unlike the rest, "
        f"{TILE_SIDE} x {TILE_SIDE} pixels each, {tiled}; to read an image and find them takes "
        f"{1000 * image_s * usable_cores():.0f} ms of a core"
    )
