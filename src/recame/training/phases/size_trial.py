"""Try a sample of a set at several sizes: which ones time and speed allow, and how each scores."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from recame.config import Config, as_size
from recame.contracts import Array, BoolArray, FloatArray, IntArray, PreprocessSpec
from recame.data.at_sizes import decode_at_sizes
from recame.data.cache import ImageCache
from recame.data.corrections import corrected
from recame.data.dataset import InspectionSet
from recame.data.proposal import candidate_sizes, propose_spec
from recame.data.sampling import balanced_sample
from recame.data.splits import complete_splits
from recame.inference.separability import Judged, judge
from recame.label_space import LabelSpace
from recame.models import MultiExpertClassifier
from recame.progress import Progress
from recame.runs.folder import RunFolder
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.features import embed, open_forward
from recame.training.phases.price import NOMINAL_MACS_PER_S, macs
from recame.training.planner import num_processes, plan_model
from recame.training.starting_weights import starting_mean_std

#: Seconds for preparing a size: its network and graph.
OPENING_S = 0.8
#: Images for timing a forward pass; a graph always pays off for the number of images given second.
_TIMED, _MANY = 16, 10**6
#: Largest numbers of images of the training split and of `val` in the sample, and least number in
#: all.
_MOST_TRAIN, _MOST_VAL, _LEAST = 480, 240, 60
#: Number of files from which channels, depth and scale are proposed.
_LOOKED_AT = 16
#: Number of images of a class in `val` that suffice to evaluate the class.
_ENOUGH_VAL = 20
#: Pixels, and least number of images, of the forward pass that is timed: a few small images take
#: longer each than a batch of them.
_FORWARD_PIXELS, _LEAST_FORWARD = 32 * 64 * 64, 8
#: Why a trial has no result.
TOO_SHORT = "the time is too short"
NOTHING_TELLS = "no class has an image in val, or three in train, to judge by"
#: Time of a fine-tuning step, in forward passes (docs/decisions/0026).
STEP_FORWARDS = 2.7
#: Required fine-tuning for a larger size: passes over the training images, but not more than the
#: second and not less than the third number of images (docs/decisions/0026).
LEAST_PASSES, MANY_IMAGES, FEWEST_IMAGES = 2.5, 20_000, 1_000
#: Largest number of pixels of a candidate on a CPU without a time budget, where epochs get longer.
_UNTIMED_CPU_PIXELS = 128 * 128

Size = tuple[int, int]


class Tried(NamedTuple):
    """A size, its results on the sample, and seconds per image."""

    size: Size
    judged: Judged
    image_s: float


@dataclass(frozen=True)
class Candidates:
    """Sizes to try.

    Attributes:
        sizes: height and width; the first is chosen unless another one is better.
        left: sentences on the sizes that were left out, and the reasons.
        passes: how often fine-tuning could show each training image at a size; empty if no time
            limits it.
    """

    sizes: tuple[Size, ...]
    left: tuple[str, ...] = ()
    passes: Mapping[Size, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Files of the training split and of `val`, in an order whose first part is a sample too.

    Attributes:
        paths: N files.
        target: (N,) class indices.
        of_val: (N,) whether a file belongs to `val`.
        classes: of the training split.
        num_train: number of images of the whole training split.
    """

    paths: list[Path]
    target: IntArray
    of_val: BoolArray
    classes: LabelSpace
    num_train: int

    @classmethod
    def draw(cls, table: pd.DataFrame, config: Config) -> Sample:
        """Draw from a table of `read_manifest`, with the splits that training makes.

        Raises:
            DataError: it cannot be split.
        """
        settings, seed = config.data, config.run.seed
        table = complete_splits(
            table,
            val_fraction=settings.val_fraction,
            test_fraction=settings.test_fraction,
            group_by=settings.group_by,
            seed=seed,
            calibrate_fraction=0.0 if settings.calibrate == "auto" else settings.calibrate,
        )
        table, _ = corrected(table, settings)
        labels = table["label"]
        train = np.flatnonzero((table["split"] == "train") & labels.notna())
        classes = LabelSpace.from_labels(labels.iloc[train])
        target = pd.Index(classes.names).get_indexer(pd.Index(labels)).astype(np.int64)
        val = np.flatnonzero((table["split"] == "val") & (target >= 0))
        rows = [
            part[balanced_sample(target[part], most, seed)]
            for part, most in ((train, _MOST_TRAIN), (val, _MOST_VAL))
        ]
        # Interleave, so that any first part holds the same share of both splits.
        place = np.concatenate([np.linspace(0, 1, len(part)) for part in rows])
        order = np.argsort(place, kind="stable")
        chosen = np.concatenate(rows)[order]
        of_val = np.repeat([False, True], [len(part) for part in rows])[order]
        paths = [Path(path) for path in table["path"].iloc[chosen]]
        return cls(paths, target[chosen], of_val, classes, len(train))

    def proposed(self, config: Config, size: Size, *, tiles: int = 0) -> PreprocessSpec:
        """The specification for decoding these files, from a few of them.

        Args:
            config: with the requested data settings.
            size: height and width; with tiles, those of each piece.
            tiles: number of tiles of each image.

        Raises:
            DataError: none of the few files can be read.
        """
        settings = config.data
        return propose_spec(
            self.paths,
            size=size,
            tiles=tiles,
            channels=settings.channels,
            bit_depth=settings.bit_depth,
            resize=settings.resize,
            max_pixels=settings.max_pixels,
            float_range=settings.float_range,
            context=settings.context,
            sample=_LOOKED_AT,
        )[0]


class Trial:
    """Tries the run's network, with one expert, at several sizes."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        sample: Sample,
        native: Size,
        spec: PreprocessSpec,
    ) -> None:
        self._config, self._device, self._sample = config, device, sample
        self._native, self._spec = native, spec

    def candidates(self, left_s: float | None) -> Candidates:
        """The sizes that the required speed and the time allow.

        Args:
            left_s: seconds for fine-tuning; None: its time is not limited.
        """
        sizes = candidate_sizes(self._native)
        first = sizes[0]
        some = max(_LEAST_FORWARD, _FORWARD_PIXELS // math.prod(first))
        run = self._at(first, np.zeros((some, *first, self._spec.channels), self._spec.dtype))
        model = run.new_model()
        pixels = {size: math.prod(size) / math.prod(first) for size in sizes}
        left, passes = [], dict[Size, float]()
        if slow := self._slow(sizes, macs(model), pixels):
            size, images_per_s = next(iter(slow.items()))
            least = self._config.evaluation.least_images_per_s
            left.append(
                f"{as_size(size)} would answer about {images_per_s:.0f} images a second on two "
                f"cores, less than evaluation.least_images_per_s = {least:g} (0 lifts that)"
            )
            sizes = [size for size in sizes if size not in slow]
        if left_s is None:
            if self._device.type == "cpu":  # epochs get longer with the pixels, without a limit
                most = max(_UNTIMED_CPU_PIXELS, math.prod(first))
                sizes = [size for size in sizes if math.prod(size) <= most]
        elif self._config.finetune.enabled:
            step_s = STEP_FORWARDS * _forward_s(run, model)
            shown = left_s * num_processes(self._config.run, self._device) / step_s
            num_train = self._sample.num_train
            passes = {size: shown / pixels[size] / num_train for size in sizes}
            needed = needed_images(num_train) / num_train
            rare = [s for s in sizes if pixels[s] > 1 and passes[s] < needed]
            sizes = [size for size in sizes if size not in rare]
            if rare:
                size = min(rare, key=math.prod)
                left.append(
                    f"at {as_size(size)} fine-tuning would show each of {num_train:,} images "
                    f"about {passes[size]:.1f} times"
                )
        return Candidates(chosen_three(sizes, first), tuple(left), passes)

    def _slow(
        self, sizes: Sequence[Size], cost: float, pixels: Mapping[Size, float]
    ) -> dict[Size, float]:
        """Larger sizes too slow even for one network without test-time augmentation -> images/s."""
        least = self._config.evaluation.least_images_per_s
        if not least or self._device.type != "cpu":
            return {}
        rates = {size: NOMINAL_MACS_PER_S / cost / pixels[size] for size in sizes[1:]}
        return {size: rate for size, rate in rates.items() if rate < least and pixels[size] > 1}

    def judge(
        self, sizes: Sequence[Size], ends: float | None, report: Progress
    ) -> tuple[list[Tried], str]:
        """Evaluate the sample at each size that there is time for.

        The second value is empty, or says why there is no result.

        Args:
            sizes: ascending.
            ends: `time.monotonic()` at which it must be done; None: no limit.
            report: called with the progress.
        """
        decoded = decode_at_sizes(
            self._sample.paths,
            self._spec,
            sizes,
            max_pixels=self._config.data.max_pixels,
            most_s=None if ends is None else (ends - time.monotonic()) / 3,
        )
        num_images = len(decoded.positions)
        if decoded.tried < min(_LEAST, len(self._sample.paths)):
            return [], TOO_SHORT  # so few images would call one size better by chance
        if ends is not None and num_images:
            image_s = self._image_s(sizes[0], decoded.images[0])
            sizes, num_images = fitting(image_s, sizes, num_images, ends - time.monotonic())
        tried: list[Tried] = []
        positions = decoded.positions[:num_images]
        if len(sizes) == 1 or not len(positions):
            return [], TOO_SHORT
        for size, images in zip(sizes, decoded.images, strict=False):
            began = time.monotonic()
            judged = self.judged(size, images[:num_images], positions)
            if not len(judged.target):
                return [], NOTHING_TELLS
            tried.append(Tried(size, judged, (time.monotonic() - began) / num_images))
            report("trying sizes", len(tried), len(sizes))
            if judged.right.all():
                break  # no improvement is possible
        return tried, ""

    def _at(self, size: Size, images: Array) -> OngoingRun:
        """A run with one expert on images in memory, all of the training split."""
        spec = replace(self._spec, height=size[0], width=size[1])
        table = pd.DataFrame({"split": "train", "target": -1, "row": np.arange(len(images))})
        cache = ImageCache(images, np.arange(len(images)), (), "")
        data = InspectionSet(table, self._sample.classes, spec, cache, self._native)
        config = self._config.updated({"data.size": as_size(size)})
        config = plan_model(config, data, self._device).config
        mean, std = starting_mean_std(config.model.backbone, config.model.pretrained, spec.channels)
        data = replace(data, spec=replace(spec, mean=mean, std=std))
        one = config.model.model_copy(update={"num_experts": 1})
        config = config.model_copy(update={"model": one})
        quiet = Console(quiet=True)
        return OngoingRun(RunFolder(Path()), config, data, self._device, quiet, time.monotonic())

    def _image_s(self, size: Size, images: Array) -> float:
        """Seconds per image for computing features: the best of two timings after a first call."""
        run = self._at(size, images[:_TIMED])
        model = run.new_model()
        forward, taken = open_forward(run, model, _MANY), []
        for _ in range(3):
            began = time.monotonic()
            embed(run, model, run.data.view("train"), 1, forward=forward)
            taken.append(time.monotonic() - began)
        return min(taken[1:]) / len(run.data.table)

    def features(self, size: Size, images: Array) -> FloatArray:
        """Features (N, P) of the pretrained network for images in memory.

        Args:
            size: of the images, pixels.
            images: (N, H, W, C) of the trial's specification, except for the size.
        """
        run = self._at(size, images)
        model = run.new_model()
        view = run.data.view("train")
        pooled = embed(run, model, view, 1, forward=open_forward(run, model, _MANY)).pooled
        pooled = pooled[:, 0].flatten(1)
        if run.data.spec.tiles:  # it is not known yet which piece decides
            rows = pooled.view(len(pooled), run.data.spec.pieces, -1)
            pooled = torch.cat([rows.mean(1), rows.amax(1)], 1)
        found: FloatArray = pooled.numpy()
        return found

    def judged(self, size: Size, images: Array, positions: IntArray) -> Judged:
        """Evaluate how well the pretrained network's features separate images in memory.

        Args:
            size: of the images, pixels.
            images: (N, H, W, C) of the trial's specification, except for the size.
            positions: (N,) positions of the images among the sample's files.
        """
        features = self.features(size, images)
        target, of_val = self._sample.target[positions], self._sample.of_val[positions]
        return judge(
            features[~of_val],
            target[~of_val],
            features[of_val],
            target[of_val],
            self._sample.classes.num_classes,
            enough=_ENOUGH_VAL,
        )


def chosen_three(sizes: Sequence[Size], first: Size) -> tuple[Size, ...]:
    """The first size, the largest, and the one halfway between, by number of pixels.

    Args:
        sizes: candidates.
        first: the default size; smaller ones are not tried.

    Examples:
        >>> chosen_three([(64, 64), (96, 96), (128, 128), (160, 160), (192, 192)], (96, 96))
        ((96, 96), (128, 128), (192, 192))
    """
    larger = [s for s in sorted(sizes, key=math.prod) if math.prod(s) > math.prod(first)]
    if len(larger) < 3:
        return first, *larger
    middle = math.sqrt(math.prod(first) * math.prod(larger[-1]))
    between = min(larger[:-1], key=lambda size: abs(math.log(math.prod(size) / middle)))
    return first, between, larger[-1]


def fitting(
    image_s: float, sizes: Sequence[Size], num_images: int, left_s: float
) -> tuple[tuple[Size, ...], int]:
    """The sizes, and the number of images, that there is time to try.

    Args:
        image_s: seconds per image at the first size.
        sizes: ascending; the last ones are left out if too few images would fit.
        num_images: largest number of images.
        left_s: seconds left.
    """
    sizes = tuple(sizes)
    while len(sizes) > 1:
        pixels = sum(math.prod(size) for size in sizes) / math.prod(sizes[0])
        fits = int((left_s - OPENING_S * len(sizes)) / (image_s * pixels))
        if fits >= min(_LEAST, num_images):
            return sizes, min(num_images, fits)
        sizes = sizes[:-1]
    return sizes, 0


def needed_images(num_train: int) -> float:
    """Least number of images in fine-tuning for choosing a size larger than the default."""
    return max(FEWEST_IMAGES, min(MANY_IMAGES, LEAST_PASSES * num_train))


def _forward_s(run: OngoingRun, model: MultiExpertClassifier) -> float:
    """Seconds of an image's forward pass as in training, the best of three timings."""
    images = run.data.images(np.arange(len(run.data.table))).to(run.device)
    model.eval()
    taken = []
    with torch.inference_mode():
        for _ in range(3):
            began = time.monotonic()
            model(images).logits.cpu()
            taken.append(time.monotonic() - began)
    return min(taken) / len(images)
