"""Measure a model's cold start and the memory of a stream, each in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recame.errors import CheckpointError

_COLD_STARTS = 3
_FRESH_LIMIT_S = 600

#: Program of a new process: from start to the first decision, or a stream of one image.
_FRESH_PROCESS = """
import json, sys, time
began = time.perf_counter()
import recame
imported = time.perf_counter()
asked = json.loads(sys.argv[1])
with open(asked["image"], "rb") as file:
    image = file.read()
predictor = recame.load(asked["path"], **asked["options"])
loaded = time.perf_counter()
predictor.predict([image])
decided = time.perf_counter()
from recame.machine import peak_memory_mib
found = {"import_s": imported - began, "load_s": loaded - imported, "predict_s": decided - loaded,
         "total_s": decided - began, "peak_mib": peak_memory_mib(),
         "torch": "torch" in sys.modules}
if asked["stream_s"]:
    until = None
    def endless():
        while until is None or time.perf_counter() < until:
            yield image
    # Batch size and threads are measured before the first answer, which is not counted.
    stream = predictor.stream(endless())
    next(stream)
    began = time.perf_counter()
    until = began + asked["stream_s"]
    images = sum(1 for _ in stream)
    found = {"images": images, "images_per_s": images / (time.perf_counter() - began),
             "peak_mib": peak_memory_mib(), "runtime": predictor.describe()}
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True)
class ColdStart:
    """A new process up to its first decision; medians of several processes.

    Attributes:
        starts: processes measured.
        import_s: `import recame`.
        load_s: opening the model, including what it measures for its choices.
        predict_s: the first image, from its bytes to its decision.
        total_s: sum of the three.
        process_s: from starting the interpreter to its end.
        peak_mib: peak memory up to the first decision, in MiB; None if unknown.
        torch: whether torch was loaded.
    """

    starts: int
    import_s: float
    load_s: float
    predict_s: float
    total_s: float
    process_s: float
    peak_mib: float | None
    torch: bool


@dataclass(frozen=True)
class Streaming:
    """A process that decides a stream of encoded images, decoding ahead.

    Attributes:
        images: number of images.
        images_per_s: from bytes to decisions.
        peak_mib: peak memory of the process, in MiB; None if unknown.
        runtime: description of its predictor: the chosen threads and batch size.
    """

    images: int
    images_per_s: float
    peak_mib: float | None
    runtime: dict[str, Any]


def time_fresh(
    path: Path, image: bytes, options: dict[str, Any], seconds: float, say: Callable[[str], None]
) -> tuple[ColdStart, Streaming]:
    """Start the model several times in a new process, then stream one image for a while.

    Args:
        path: a bundle or a run.
        image: an image file's bytes.
        options: of `recame.load`.
        seconds: how long to stream.
        say: called with what is measured next.

    Raises:
        CheckpointError: a new process cannot use the model.
    """
    starts = []
    with tempfile.TemporaryDirectory(prefix="recame-latency-") as folder:
        file = Path(folder) / "image.png"
        file.write_bytes(image)
        asked = {"path": str(path), "image": str(file), "options": options, "stream_s": 0.0}
        for number in range(_COLD_STARTS):
            say(f"cold start {number + 1} of {_COLD_STARTS}")
            starts.append(_fresh_process(asked))
        say("streaming in a new process")
        stream, _ = _fresh_process({**asked, "stream_s": seconds})
    # A value that this system does not provide is None in each process.
    medians: dict[str, Any] = {
        name: None if value is None else float(np.median([start[name] for start, _ in starts]))
        for name, value in starts[0][0].items()
    }
    medians["process_s"] = float(np.median([lived for _, lived in starts]))
    medians["torch"] = starts[0][0]["torch"]
    return ColdStart(starts=len(starts), **medians), Streaming(**stream)


def _fresh_process(asked: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Run the program in a new process; return its result and the process's duration in s."""
    began = time.perf_counter()
    limit_s = _FRESH_LIMIT_S + asked["stream_s"]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and our own words
            [sys.executable, "-c", _FRESH_PROCESS, json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"A new process did not finish with {asked['path']} in {limit_s:.0f} s: check what "
            "else runs on the machine, and whether its disk is too slow."
        ) from None
    process_s = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"A new process cannot use {asked['path']} ({last}), although this one can: check the "
            "memory, and that recame is installed for this interpreter."
        )
    return json.loads(done.stdout.strip().splitlines()[-1]), process_s
