"""Measure how fast a bundle or a run decides on this machine, and whether it keeps the takt."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recame.contracts import AnyPath, PreprocessSpec
from recame.data.image_file import open_header
from recame.data.listing import list_images
from recame.errors import ConfigError, DataError
from recame.files import write_json
from recame.machine import describe_machine, load_average
from recame.runtime.fresh_process import ColdStart, Streaming, time_fresh
from recame.runtime.timing import LEAST_FOR_P99, Timing, time_calls, warm_up

if TYPE_CHECKING:
    import pandas as pd

    from recame.runtime.predictor import Predictor

LATENCY_SCHEMA = 1

BATCHES = (1, 2, 4, 8, 16, 32, 64)

#: A larger ratio of p99 to p50 suggests that other programs used the processor.
_LARGEST_SPREAD = 3.0
_ROUNDS = 4
_MOST_FILES = 256
_OF_STREAMS = ("batch_size", "parallel_batches", "decode_threads", "chosen")


@dataclass(frozen=True)
class LatencyReport:
    """The result of `measure_latency`.

    Attributes:
        path: the bundle or run.
        measured: when, in UTC.
        runtime: description of the predictor: backend, device, threads.
        machine: `describe_machine`.
        spec: of the images.
        batches: batch size -> time of one inference on decoded images.
        one_image: end-to-end latency of one image, from encoded bytes to the decision: `png` (an
            image made in memory) and, if a folder was given, `files`.
        cold_start: None if it was not requested.
        streaming: None if it was not requested.
        load_average: of the minute before.
        notes: reasons to doubt these figures.
    """

    path: str
    measured: str
    runtime: dict[str, Any]
    machine: dict[str, Any]
    spec: PreprocessSpec
    batches: dict[int, Timing]
    one_image: dict[str, Timing]
    cold_start: ColdStart | None
    streaming: Streaming | None
    load_average: float | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return the latency of one image, and the throughput of the fastest batch size."""
        best = max(self.batches, key=self.images_per_s)
        return (
            f"{self.path}: one image {self.deciding.p50_ms:.2f} ms (p50), within "
            f"{self.deciding.bound_ms:.2f} ms; {self.images_per_s(best):,.0f} images/s in batches "
            f"of {best}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per batch size: `samples, mean_ms, p50_ms, p95_ms, p99_ms, max_ms, images_per_s`.

        Times are in ms.
        """
        import pandas as pd

        rows = [
            {"batch": n, **asdict(timing), "images_per_s": self.images_per_s(n)}
            for n, timing in self.batches.items()
        ]
        return pd.DataFrame(rows).set_index("batch")

    def images_per_s(self, batch: int) -> float:
        """Mean throughput of inference at a batch size, in images per second."""
        return batch / self.batches[batch].mean_ms * 1e3

    @property
    def deciding(self) -> Timing:
        """End-to-end latency of one image; that of the real files if there are any."""
        return self.one_image.get("files", self.one_image["png"])

    def fits(self, takt_s: float) -> bool:
        """Whether 99 of 100 images are decided within the takt, one at a time.

        With too few samples for a p99, all of them must be.
        """
        return self.deciding.bound_ms <= takt_s * 1e3

    def answer(self, takt_s: float) -> str:
        """Say in one or two sentences whether the takt is kept, and which batches keep it."""
        takt_ms, timing = takt_s * 1e3, self.deciding
        name = "p99" if timing.p99_ms is not None else f"slowest of {timing.samples} (no p99)"
        verdict, relation = ("fits", "<=") if self.fits(takt_s) else ("does not fit", ">")
        text = (
            f"{verdict}: one image from bytes to decision, {name} {timing.bound_ms:.2f} ms "
            f"{relation} {takt_ms:g} ms."
        )
        # batch / throughput is the duration of a batch.
        largest = max((b for b in self.batches if b / self.images_per_s(b) <= takt_s), default=None)
        smallest = min(
            (b for b in self.batches if self.images_per_s(b) * takt_s >= 1), default=None
        )
        if largest:
            return (
                f"{text} Inference of a batch of {largest} takes "
                f"{self.batches[largest].mean_ms:.2f} ms, which is within one takt (mean, without "
                "decoding)."
            )
        if smallest:
            return (
                f"{text} In batches of {smallest}, inference keeps up with one image per takt "
                f"({self.images_per_s(smallest):,.0f} images/s), but each decision comes later."
            )
        return f"{text} No batch size keeps up: a smaller student or INT8 is needed."

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON, with a schema version."""
        return {
            "schema": LATENCY_SCHEMA,
            "path": self.path,
            "measured": self.measured,
            "runtime": self.runtime,
            "machine": self.machine,
            "preprocess": self.spec.to_dict(),
            "batches": [
                {"batch": b, "images_per_s": self.images_per_s(b), **asdict(timing)}
                for b, timing in self.batches.items()
            ],
            "one_image": {name: asdict(timing) for name, timing in self.one_image.items()},
            "cold_start": None if self.cold_start is None else asdict(self.cold_start),
            "streaming": None if self.streaming is None else asdict(self.streaming),
            "load_average": self.load_average,
            "notes": list(self.notes),
        }


def parse_batches(text: str) -> tuple[int, ...]:
    """Read batch sizes from text such as `1,8,32`, in ascending order.

    Raises:
        ConfigError: one is not a whole number above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise ConfigError(
            f"--batches {text!r}: {wrong[0]!r} is no batch size. Write whole numbers above 0, for "
            "example 1,8,32."
        )
    return tuple(sorted({int(part) for part in parts}))


def measure_latency(
    path: AnyPath,
    *,
    batches: Sequence[int] = BATCHES,
    seconds: float = 2.0,
    threads: int | str = "auto",
    device: str = "auto",
    images: AnyPath | None = None,
    fresh_processes: bool = True,
    on_progress: Callable[[str], None] | None = None,
) -> LatencyReport:
    """Measure the latency of a bundle or a run on this machine.

    Inference is measured on batches of decoded images. The batch sizes take turns in several
    rounds, so that a disturbance does not affect only one of them. End-to-end latency is measured
    for one image after the other, from the bytes of a PNG file to the decision.

    Args:
        path: a bundle, or the folder of a finished run (which needs torch).
        batches: batch sizes of inference.
        seconds: time for each batch size. `one_image` continues until there are enough samples for
            p99, at most ten times as long.
        threads: as for `recame.load`.
        device: as for `recame.load`.
        images: a folder of files that are measured too; up to 256 files, spread evenly over it, are
            kept in memory.
        fresh_processes: also measure cold starts and the memory of a stream, in new processes.
        on_progress: called with what is measured next.

    Raises:
        CheckpointError: the bundle or run cannot be used.
        DataError: none of `images` can be read.
        ConfigError: a batch size or `seconds` is not above 0.
    """
    from recame.runtime.opening import load

    if not batches or min(batches) < 1 or not seconds > 0:
        raise ConfigError(
            f"batches={list(batches)}, seconds={seconds}: batch sizes must be 1 or more, and "
            "seconds above 0."
        )
    say = on_progress or (lambda _: None)
    say("loading")
    load_before = load_average()
    options: dict[str, Any] = {"threads": threads, "device": device}
    # Batches must not be split or combined, so that the requested sizes are measured.
    predictor = load(path, batch_size=max(batches), **options)
    sources = {"png": [example_png(predictor.spec)]}
    if images is not None:
        sources["files"] = _readable_files(Path(images), predictor)
    timings = _time_batches(predictor, batches, seconds, say)
    one_image = {}
    for name, encoded in sources.items():
        say(f"one image from bytes to decision ({name})")
        one_image[name] = _time_one_image(predictor, encoded, seconds)
    spec, machine = predictor.spec, describe_machine()
    # The settings of streams are chosen in the new process; here every batch was one call.
    runtime = {k: value for k, value in predictor.describe().items() if k not in _OF_STREAMS}
    cold_start = streaming = None
    if fresh_processes:
        # So that its threads do not disturb the new processes.
        del predictor
        gc.collect()
        cold_start, streaming = time_fresh(Path(path), sources["png"][0], options, seconds, say)
    return LatencyReport(
        path=str(path),
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        runtime=runtime,
        machine=machine,
        spec=spec,
        batches=timings,
        one_image=one_image,
        cold_start=cold_start,
        streaming=streaming,
        load_average=load_before,
        notes=tuple(_doubts(timings, one_image, load_before, int(machine["cores"]))),
    )


def save_latency(report: LatencyReport, path: Path, takt_s: float | None = None) -> None:
    """Write the report as JSON, whole or not at all.

    Args:
        report: what was measured.
        path: the file.
        takt_s: adds `takt`: whether it is kept, and the sentence that says so.

    Raises:
        DataError: the file cannot be written.
    """
    document = report.to_dict()
    if takt_s is not None:
        document["takt"] = {
            "takt_s": takt_s,
            "fits": report.fits(takt_s),
            "answer": report.answer(takt_s),
        }
    write_json(path, document, advice="Choose another place for --json.")


def example_png(spec: PreprocessSpec, seed: int = 0) -> bytes:
    """Make a PNG file of the spec's size: a brightness gradient with camera noise."""
    import cv2

    noise = np.random.default_rng(seed).normal(0, 0.03, (spec.height, spec.width, spec.channels))
    unit = np.clip(np.linspace(0.2, 0.8, spec.width)[None, :, None] + noise, 0, 1)
    pixels = (unit * (2**spec.bit_depth - 1)).astype(spec.dtype)
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return encoded.tobytes()


def _readable_files(folder: Path, predictor: Predictor) -> list[bytes]:
    """Read at most 256 files, spread evenly, that the predictor can decode.

    Raises:
        DataError: there is no such file.
    """
    paths = list_images([folder])
    spread = np.unique(np.linspace(0, len(paths) - 1, _MOST_FILES).astype(int))
    tried = [(paths[i], predictor.predict([paths[i]])[0].error) for i in spread]
    encoded = []
    for path in (path for path, error in tried if error is None):
        with open_header(path) as (stream, _):
            encoded.append(stream.read())
    if not encoded:
        reason = f"{tried[-1][0]}: {tried[-1][1]}"
        raise DataError(
            f"None of the images tried in {folder} can be read ({reason}), so there is nothing to "
            "measure: give a folder of the line's own images to --images."
        )
    return encoded


def _time_batches(
    predictor: Predictor,
    batches: Sequence[int],
    seconds: float,
    say: Callable[[str], None],
) -> dict[int, Timing]:
    spec = predictor.spec
    shape = (max(batches), spec.height, spec.width, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 2**spec.bit_depth, shape, spec.dtype)
    durations: dict[int, list[int]] = {batch: [] for batch in batches}
    for number in range(_ROUNDS):
        for batch, collected in durations.items():
            say(f"inference, batch {batch}, round {number + 1} of {_ROUNDS}")
            infer = partial(predictor.probabilities, pixels[:batch])
            warm_up(infer)
            collected += time_calls(infer, seconds / _ROUNDS)
    return {batch: Timing.of(collected) for batch, collected in durations.items()}


def _time_one_image(predictor: Predictor, encoded: Sequence[bytes], seconds: float) -> Timing:
    following = cycle(encoded)

    def decide() -> None:
        predictor.predict([next(following)])

    warm_up(decide)
    return Timing.of(time_calls(decide, seconds, LEAST_FOR_P99, most_s=10 * seconds))


def _doubts(
    batches: dict[int, Timing],
    one_image: dict[str, Timing],
    load_before: float | None,
    cores: int,
) -> list[str]:
    """Reasons to doubt the figures, one sentence each."""
    notes = []
    if (load_before or 0) > cores / 2:
        notes.append(
            f"The machine was busy before the measurement (load average {load_before:.1f} on "
            f"{cores} cores): measure again when nothing else runs."
        )
    named = {f"batch {batch}": timing for batch, timing in batches.items()}
    named |= {f"one image ({name})": timing for name, timing in one_image.items()}
    uneven = [
        f"{name}: {timing.p99_ms / timing.p50_ms:.1f}"
        for name, timing in named.items()
        if timing.p99_ms is not None and timing.p99_ms > _LARGEST_SPREAD * timing.p50_ms
    ]
    if uneven:
        notes.append(
            f"p99 is more than {_LARGEST_SPREAD:g} times p50 ({', '.join(uneven)}): other programs "
            "may have used the processor at times."
        )
    if few := [f"{name}: {t.samples}" for name, t in named.items() if t.p99_ms is None]:
        notes.append(
            f"Too few samples for a p99, which needs {LEAST_FOR_P99} ({', '.join(few)}): raise "
            "--seconds."
        )
    return notes
