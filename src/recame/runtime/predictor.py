"""The `Predictor`: decides images with a bundle (which needs no torch) or a run folder."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import Array, FloatArray
from recame.data.decode import Image, Reader, ReadImage, near_black
from recame.data.given_images import given_images
from recame.decisions.actions import ACTION_OF, ACTIONS, Policy
from recame.decisions.calibration import Calibration
from recame.decisions.document import KeptPolicy
from recame.decisions.policy import Decider
from recame.errors import DataError
from recame.inference.torch_session import TorchSession
from recame.label_space import LabelSpace
from recame.machine import usable_cores
from recame.names import counted
from recame.peers import attribute_error
from recame.runtime.prediction import Prediction
from recame.runtime.prediction_list import PredictionList
from recame.runtime.sessions import Session

#: With more images, it pays off to measure batch size and threads first.
MANY_IMAGES = 64
#: Images in a forward pass if nothing was measured.
DEFAULT_BATCH = 16
#: Batch sizes that are measured, and how long this may take.
_CPU_BATCHES, _GPU_BATCHES = (4, 16), (16, 64, 256)
_MEASURING_S = 0.4


@dataclass(frozen=True)
class _Schedule:
    """How a stream is run: batches of `batch_size`, `calls` of them in the model at once."""

    session: Session
    batch_size: int
    calls: int
    why: str

    @property
    def decoders(self) -> int:
        """Threads that decode: one batch ahead of the model on a CPU, all cores for a GPU."""
        return self.calls + 1 if self.session.device == "cpu" else max(2, usable_cores())


class Predictor:
    """A loaded model; `load` makes one. Several threads may use it at once.

    Attributes:
        label_space: its C classes.
        spec: how images are decoded for it.
        answers: identifies the model's outputs; decisions hold only for these.
        decisions: fitted by `recame tune`; None without decisions.
        decider: makes the decisions.
        calibration: of the session's probabilities; None: none, or a temperature inside the graph
            of a bundle of an older version.
        temperature: restores the scale of the logits.
        fingerprint: identifies this model.
        outputs: names of what `run` returns.
        reader: reads its images.
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
        """Wrap a session; `reopen` opens another one for a given number of calls at once."""
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
        """The policy that decides; None: every image is booked as its predicted class."""
        return self.decider.policy

    @property
    def classes_(self) -> Array:
        """(C,) names of the classes, in the order of the probabilities."""
        return np.array(self.label_space.names, object)

    def __repr__(self) -> str:
        return f"Predictor({self._facts.get('model')}, {len(self.label_space.names)} classes)"

    def __call__(self, images: Any) -> PredictionList:
        """Same as `predict`."""
        return self.predict(images)

    def predict(self, images: Any) -> PredictionList:
        """Predict a few images; an unreadable one has `error` set.

        Args:
            images: one of the following, or a sequence that may mix them: the path of an image
                file; the path of a folder or a table (all images in it); a file's bytes, or an open
                file; an array of pixels (H, W), (H, W, 1) or (H, W, 3), RGB, uint8 or uint16, or a
                batch of them, which is converted to the model's size, depth and channels as a file
                is; a PIL image; a torch tensor of such pixels, (C, H, W), or a batch of them.

        Returns:
            One prediction per image, in order: a list with `labels`, `probabilities`, `to_frame()`
            and `plot()`.

        Raises:
            DataError: an element is no image.
        """
        listed = given_images(images)
        size = self._batch_size or DEFAULT_BATCH
        found: Iterable[Prediction]
        if len(listed) >= MANY_IMAGES:
            found = self.stream(listed)
        else:
            found = chain.from_iterable(
                self._predict_batch(listed[start : start + size], start, self._session)
                for start in range(0, len(listed), size)
            )
        return PredictionList(found, self.label_space.names, listed, self.reader, self.spec)

    def predict_proba(self, images: Any) -> FloatArray:
        """Class probabilities (N, C), in the order of `classes_`, as in scikit-learn.

        Args:
            images: as for `predict`. The row of an unreadable image is NaN, with a warning.
        """
        found = self.predict(images)
        if unread := [each for each in found if each.unreadable]:
            warnings.warn(
                f"{counted(len(unread))} cannot be read ({unread[0].image}: {unread[0].error}), "
                "and their probabilities are NaN: leave them out, or repair them.",
                stacklevel=2,
            )
        return found.probabilities

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

        Before the first prediction, some images are taken from `images` to fill the batches. At the
        first long stream, batch size and threads are measured.

        Args:
            images: paths, bytes and arrays, as for `predict`, but no folders.
            num_images: number of images, if it is known.
            batch_size: None: the measured one.
            checksums: whether predictions have the checksum of their file.
            features: whether predictions have features.

        Raises:
            DataError: an array is no image.
        """
        iterator = iter(images)
        first = list(islice(iterator, MANY_IMAGES)) if num_images is None else []
        plan = self._plan_for(num_images or len(first))
        size = batch_size or plan.batch_size
        return self._pipeline(chain(first, iterator), plan, size, checksums, features)

    def batch_size_for(self, num_images: int) -> int:
        """The batch size for a stream of this many images."""
        return self._plan_for(num_images).batch_size

    def run(self, images: Array) -> dict[str, Array]:
        """Run the model on decoded pixels and return each of its `outputs`.

        Args:
            images: (B, H, W, C) stored pixels of exactly the size and type of `spec`.

        Raises:
            DataError: the array has another shape or type.
        """
        wanted = (self.spec.height, self.spec.width, self.spec.channels)
        if images.ndim != 4 or images.shape[1:] != wanted or images.dtype != self.spec.dtype:
            raise DataError(
                f"run() needs {self.spec.dtype} pixels of shape (B, "
                f"{', '.join(map(str, wanted))}), but got {images.dtype} {images.shape}: for "
                "images of other sizes and depths use predict(), which converts them."
            )
        return self._session.run(np.ascontiguousarray(images))

    def probabilities(self, images: Array) -> FloatArray:
        """Class probabilities (B, C) of decoded pixels (B, H, W, C); see `run`."""
        return self.run(images)["probabilities"]

    if not TYPE_CHECKING:  # to a type checker a misspelt name is none

        def __getattr__(self, name: str) -> Any:
            """Say how what other libraries' models do is done here."""
            raise attribute_error(self, name)

    def describe(self) -> dict[str, Any]:
        """Return backend, device, threads, batch size, and how they were chosen."""
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
        """Measure batch sizes, with all threads on one batch and with one batch per thread."""
        on_cpu, asked = self._session.device == "cpu", self._batch_size
        sizes = (_CPU_BATCHES if on_cpu else _GPU_BATCHES) if asked is None else (asked,)
        sessions = {1: self._session}
        if on_cpu and self._threads > 1:
            several = reopen(self._threads)
            # The number of threads may change the last digit, and another measurement might choose
            # another one.
            sessions = {**(sessions if self._session.steady else {}), self._threads: several}
        shape = (max(sizes), self.spec.height, self.spec.width, self.spec.channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape).astype(self.spec.dtype)
        began = time.perf_counter()
        rates = {(calls, 1): _rate(each, pixels[:1], calls) for calls, each in sessions.items()}
        for size, (calls, session) in product(sizes, sessions.items()):
            left = _MEASURING_S - (time.perf_counter() - began)
            if _ROUNDS * calls * size / max(rates.values()) < left:
                rates[calls, size] = _rate(session, pixels[:size], calls)
        # If all are too slow to be measured, small batches give the first result sooner.
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
        """Decode and predict batches in parallel, a bounded number at once, results in order."""
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
        """Predict one batch; fewer than `least` readable images are padded with the last one.

        So an image's digits do not depend on which other files are unreadable or already done.
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
        """Fields of a `Prediction` for each image."""
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
    """Images per second with `calls` batches at once, after one run for warm-up."""
    with ThreadPoolExecutor(calls) as pool:
        list(pool.map(session.run, [pixels[:1]] * calls))
        began = time.perf_counter()
        list(pool.map(session.run, [pixels] * (_ROUNDS * calls)))
        return _ROUNDS * calls * len(pixels) / (time.perf_counter() - began)
