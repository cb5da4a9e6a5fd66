"""Images in, decisions out: one class for bundles (no torch needed) and for run folders."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice, product
from typing import Any

import numpy as np

from recame.contracts import Array, FloatArray
from recame.data.decode import Image, Loss, Reader, ReadImage, expanded, near_black
from recame.decisions.actions import ACTION_OF, ACTIONS, Policy
from recame.decisions.calibration import Calibration
from recame.decisions.document import KeptPolicy
from recame.decisions.policy import Decider
from recame.errors import DataError
from recame.inference.torch_session import TorchSession
from recame.label_space import LabelSpace
from recame.machine import usable_cores
from recame.runtime.sessions import Session

#: Fewer images than these are predicted as they come; for more, it pays to measure first.
MANY_IMAGES = 64
#: Images a forward pass where nothing was measured.
DEFAULT_BATCH = 16
#: Batch sizes that are measured, and how long that may take.
_CPU_BATCHES, _GPU_BATCHES = (4, 16), (16, 64, 256)
_MEASURING_S = 0.4


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, and what is done with it.

    Attributes:
        image: the path as given; `#<position>` for bytes and arrays.
        label: the most probable class; None where there is no answer: the image cannot be read,
            or the model's answer names no class.
        confidence: its probability; NaN without a label.
        action: `release` (of the normal class, surely enough), `automatic` (the label stands),
            `review` and `unknown` (a person looks), `unreadable`. Without decisions that
            `recame tune` has fitted every label stands.
        reason: for it, of `recame.decisions.actions.REASONS`.
        probabilities: (C,) float32, in the label space's order.
        error: why there is no label.
        note: that, or what the image has lost, in words; mostly empty.
        candidates: where a person looks, the classes to look for, the likeliest first, joined by
            `|`; else empty.
        expert_probabilities: (E, C) float32, where the model gives them.
        sha256: of the file's bytes, hexadecimal, where `stream` was asked for it.
        lost: what the image has lost on its way to the model, by kind and in words: `clipped`
            values above its white, `near black` from fewer bits, `colour`, further `pages`.
        unknown_score: how strange the image is to the model; NaN where nothing says so.
        features: (E, D) what its classifiers saw, where `stream` was asked for them.
    """

    image: str
    label: str | None
    confidence: float
    action: str
    reason: str
    probabilities: FloatArray
    error: str | None = None
    note: str = ""
    candidates: str = ""
    expert_probabilities: FloatArray | None = field(default=None, repr=False)
    sha256: str | None = field(default=None, repr=False)
    lost: dict[Loss, str] = field(default_factory=dict)
    unknown_score: float = math.nan
    features: FloatArray | None = field(default=None, repr=False)

    @property
    def unreadable(self) -> bool:
        """Whether the image could not be read, so that the model has not seen it."""
        return self.action == "unreadable"

    @property
    def stands(self) -> bool:
        """Whether the label stands without a person's look."""
        return self.action in ("release", "automatic")


@dataclass(frozen=True)
class _Schedule:
    """How a stream is run: batches of `batch_size`, `calls` of them in the model at once."""

    session: Session
    batch_size: int
    calls: int
    why: str

    @property
    def decoders(self) -> int:
        """One batch more than the model takes is being decoded; a GPU needs all cores to be fed."""
        return self.calls + 1 if self.session.device == "cpu" else max(2, usable_cores())


class Predictor:
    """A loaded model; `load` makes one. Several threads may use it at once.

    Attributes:
        label_space: its C classes.
        spec: how it wants its images decoded.
        answers: what tells these answers from others: decisions hold for them alone.
        decisions: what `recame tune` has fitted; None without.
        decider: what decides by the answers.
        calibration: what the session's probabilities went through; None: nothing, or a temperature
            in the graph of a bundle of a version before.
        temperature: by which their scale is undone.
        fingerprint: tells this model from others.
        outputs: what `run` returns.
        reader: what reads its images.
    """

    def __init__(
        self,
        session: Session,
        label_space: LabelSpace,
        *,
        release_above: float | None,
        max_pixels: int,
        fingerprint: str,
        facts: dict[str, Any],
        threads: int,
        batch_size: int | None,
        reopen: Callable[[int], Session] | None,
        answers: Mapping[str, object],
        decisions: KeptPolicy | None,
        calibration: Calibration | None,
        temperature: float,
    ) -> None:
        """Wrap a session; `reopen` starts another one for a number of calls at once."""
        self.label_space, self.spec = label_space, session.spec
        self.fingerprint = fingerprint
        self.outputs = session.outputs
        self._session, self._reopen = session, reopen
        self.answers, self.decisions = answers, decisions
        self.calibration, self.temperature = calibration, temperature
        self.decider = Decider(
            tuple(label_space.names),
            None if decisions is None else decisions.policy,
            None if decisions is None else decisions.scorer,
            temperature,
            label_space.normal_index,
            release_above,
        )
        self.reader, self._facts = Reader(session.spec, max_pixels), facts
        self._threads, self._batch_size = threads, batch_size
        self._plan: _Schedule | None = None
        self._planning = threading.Lock()

    @property
    def policy(self) -> Policy | None:
        """By which it decides; None: every label stands."""
        return self.decider.policy

    def predict(self, images: Image | Sequence[Image]) -> list[Prediction]:
        """Predict a few images; an unreadable one has `error` set.

        Args:
            images: one of, or a sequence of: an image file's path, a folder's path (all images
                in it), a file's bytes, or pixels (H, W), (H, W, 1) or (H, W, 3) as uint8 or
                uint16, RGB, which are brought to the model's size, depth and channels as a file
                would be.

        Returns:
            One prediction an image, in order.

        Raises:
            DataError: an array is no image.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        alone = isinstance(images, (str, bytes, os.PathLike, np.ndarray))
        given: list[Image] = [images] if alone else list(images)  # type: ignore[list-item, arg-type]
        listed = list(chain.from_iterable(map(expanded, given)))
        if len(listed) >= MANY_IMAGES:
            return list(self.stream(listed))
        size = self._batch_size or DEFAULT_BATCH
        return [
            prediction
            for start in range(0, len(listed), size)
            for prediction in self._predict_batch(
                listed[start : start + size], start, self._session
            )
        ]

    def stream(
        self,
        images: Iterable[Image],
        *,
        num_images: int | None = None,
        batch_size: int | None = None,
        checksums: bool = False,
        features: bool = False,
    ) -> Iterator[Prediction]:
        """Predict any number of images in constant memory, in order, decoding ahead.

        Before the first answer some images are taken from `images` to fill the batches; at the
        first stream that is long, batch size and threads are measured.

        Args:
            images: paths, bytes and arrays, as for `predict`, but no folders.
            num_images: how many there will be, if that is known.
            batch_size: instead of the chosen one.
            checksums: whether each file's checksum is told.
            features: whether each image's features are.

        Raises:
            DataError: an array is no image.
        """
        iterator = iter(images)
        first = list(islice(iterator, MANY_IMAGES)) if num_images is None else []
        plan = self._plan_for(num_images or len(first))
        size = batch_size or plan.batch_size
        return self._pipeline(chain(first, iterator), plan, size, checksums, features)

    def batch_size_for(self, num_images: int) -> int:
        """The batch size that a stream of so many images will have."""
        return self._plan_for(num_images).batch_size

    def run(self, images: Array) -> dict[str, Array]:
        """Run the model on decoded pixels and return each of its `outputs`.

        Args:
            images: (B, H, W, C) stored pixels, exactly as `spec` says.

        Raises:
            DataError: the array has another shape or type.
        """
        wanted = (self.spec.height, self.spec.width, self.spec.channels)
        if images.ndim != 4 or images.shape[1:] != wanted or images.dtype != self.spec.dtype:
            raise DataError(
                f"The model takes {self.spec.dtype} pixels of shape (B, "
                f"{', '.join(map(str, wanted))}) here, got {images.dtype} {images.shape}: give "
                "images of other sizes and depths to predict(), which adapts them."
            )
        return self._session.run(np.ascontiguousarray(images))

    def probabilities(self, images: Array) -> FloatArray:
        """Class probabilities (B, C) of decoded pixels (B, H, W, C); see `run`."""
        return self.run(images)["probabilities"]

    def describe(self) -> dict[str, Any]:
        """What runs the model: backend, device, threads, batch size, and how they were chosen."""
        plan = self._plan or self._default_plan()
        return {
            **self._facts,
            "backend": self._session.backend,
            "device": self._session.device,
            "threads": self._threads,
            "batch_size": plan.batch_size,
            "parallel_batches": plan.calls,
            "decode_threads": plan.decoders,
            "chosen": plan.why,
        }

    def _plan_for(self, num_images: int) -> _Schedule:
        if isinstance(self._session, TorchSession):
            self._session.expect(num_images)
        with self._planning:
            if self._plan is None and num_images >= MANY_IMAGES and self._reopen is not None:
                self._plan = self._measured_plan(self._reopen)
                self._reopen = None  # and with it the graph's bytes
            return self._plan or self._default_plan()

    def _default_plan(self) -> _Schedule:
        if isinstance(self._session, TorchSession):
            size, why = (
                self._session.batch_size,
                "the run's evaluation.batch_size and torch's threads",
            )
        else:
            size, why = DEFAULT_BATCH, "not measured: no long stream yet"
        return _Schedule(self._session, self._batch_size or size, 1, why)

    def _measured_plan(self, reopen: Callable[[int], Session]) -> _Schedule:
        """Try batch sizes, and all threads on one batch against a batch for each thread."""
        on_cpu, asked = self._session.device == "cpu", self._batch_size
        sizes = (_CPU_BATCHES if on_cpu else _GPU_BATCHES) if asked is None else (asked,)
        sessions = {1: self._session}
        if on_cpu and self._threads > 1:
            several = reopen(self._threads)
            # How threads share a product may decide the last digit, and another start might measure
            # otherwise.
            sessions = {**(sessions if self._session.steady else {}), self._threads: several}
        shape = (max(sizes), self.spec.height, self.spec.width, self.spec.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape).astype(self.spec.dtype)
        began = time.perf_counter()
        rates = {(calls, 1): _rate(each, pixels[:1], calls) for calls, each in sessions.items()}
        for size, (calls, session) in product(sizes, sessions.items()):
            left = _MEASURING_S - (time.perf_counter() - began)
            if _ROUNDS * calls * size / max(rates.values()) < left:
                rates[calls, size] = _rate(session, pixels[:size], calls)
        # Where all is too slow to be measured, small batches start sooner.
        rates = {key: rate for key, rate in rates.items() if key[1] in sizes} or rates
        calls, size = max(rates, key=lambda key: rates[key])
        told = ", ".join(f"{c} x batch {b}: {rate:.0f}/s" for (c, b), rate in sorted(rates.items()))
        return _Schedule(sessions[calls], asked or size, calls, f"measured ({told})")

    def _pipeline(
        self,
        images: Iterator[Image],
        plan: _Schedule,
        batch_size: int,
        checksums: bool,
        features: bool,
    ) -> Iterator[Prediction]:
        """Batches through decoding and model, a bounded number under way, answers in order."""
        gate = threading.Semaphore(plan.calls)
        waiting: deque[Future[list[Prediction]]] = deque()
        start = 0
        with ThreadPoolExecutor(plan.decoders, thread_name_prefix="recame") as pool:
            try:
                while batch := list(islice(images, batch_size)):
                    waiting.append(
                        pool.submit(
                            self._predict_batch,
                            batch,
                            start,
                            plan.session,
                            gate,
                            checksums,
                            features,
                            least=1 if plan.session.steady else batch_size,
                        )
                    )
                    start += len(batch)
                    if len(waiting) > plan.decoders:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _predict_batch(
        self,
        images: Sequence[Image],
        start: int,
        session: Session,
        gate: threading.Semaphore | None = None,
        checksums: bool = False,
        features: bool = False,
        *,
        least: int = 1,
    ) -> list[Prediction]:
        """One batch; with fewer than `least` readable images the last fills the model's batch up.

        So an image's digits do not depend on which files beside it are unreadable, or left to do.
        """
        audits = self.decisions is not None and self.decisions.policy.audit > 0
        read = [self.reader.read(image, checksum=checksums or audits) for image in images]
        seen = [image for image in read if not isinstance(image.pixels, str)]
        answers: Iterator[dict[str, Any]] = iter(())
        if seen:
            pixels = [image.pixels for image in seen]
            with gate or threading.Semaphore():
                outputs = session.run(np.stack(pixels + pixels[-1:] * (least - len(pixels))))
            answers = self._answers(
                {name: rows[: len(seen)] for name, rows in outputs.items()}, seen, features
            )
        nothing = np.full(len(self.label_space.names), np.nan, np.float32)
        found = []
        for number, (image, got) in enumerate(zip(images, read, strict=True), start):
            name = f"#{number}" if isinstance(image, (bytes, np.ndarray)) else str(image)
            if isinstance(got.pixels, str):
                answer = _without_label("unreadable", nothing, got.pixels)
            else:
                answer = next(answers)
            note = answer.get("error") or "; ".join(got.lost.values())
            found.append(Prediction(name, **answer, note=note, sha256=got.sha256, lost=got.lost))
        return found

    def _answers(
        self, outputs: dict[str, Array], images: Sequence[ReadImage], features: bool
    ) -> Iterator[dict[str, Any]]:
        """What is said of each image that was run, as fields of a `Prediction`."""
        rows, experts = outputs["probabilities"], outputs.get("expert_probabilities")
        seen = outputs.get("features")
        decided = self.decider.decide(
            rows,
            experts,
            [image.sha256 for image in images],
            features=seen,
            near_black=[near_black(image.lost, self.spec) for image in images],
        )
        for place, fault in enumerate(decided.faults):
            known = {
                "expert_probabilities": None if experts is None else experts[place],
                "unknown_score": float(decided.strangeness[place]),
                "features": seen[place] if features and seen is not None else None,
            }
            if fault is not None:
                yield {**_without_label("not_finite", rows[place], fault), **known}
                continue
            yield {
                "label": self.label_space.names[decided.best[place]],
                "confidence": float(decided.confidence[place]),
                "action": decided.actions[place],
                "reason": decided.reasons[place],
                "probabilities": rows[place],
                "candidates": decided.candidates[place],
                **known,
            }


def _without_label(reason: str, probabilities: Array, error: str) -> dict[str, Any]:
    return {
        "label": None,
        "confidence": math.nan,
        "action": ACTIONS[ACTION_OF[reason]],
        "reason": reason,
        "probabilities": probabilities,
        "error": error,
    }


_ROUNDS = 2


def _rate(session: Session, pixels: Array, calls: int) -> float:
    """Images a second with `calls` batches at once, after a first run that is not counted."""
    with ThreadPoolExecutor(calls) as pool:
        list(pool.map(session.run, [pixels[:1]] * calls))
        began = time.perf_counter()
        list(pool.map(session.run, [pixels] * (_ROUNDS * calls)))
        return _ROUNDS * calls * len(pixels) / (time.perf_counter() - began)
