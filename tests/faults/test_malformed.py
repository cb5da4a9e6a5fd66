"""Ten thousand malformed inputs: an answer or a `RecameError`, never a hang, below 1 GB of memory.

Each input is made from its kind and seed alone (`malformed.py`), so that a failure is seen again by

    python tests/faults/malformed.py CORPUS WORK KIND SEED 1

where CORPUS is what `corpus` below makes.
"""

from __future__ import annotations

import io
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.machine import describe_machine

HERE = Path(__file__).parent
BEFORE = HERE.parent / "fixtures" / "before"
CONFIGS = HERE.parents[1] / "configs"

#: Inputs of each kind; ten thousand together. Those that need no torch first.
COUNTS = {
    "settings": 1300,
    "images": 5200,
    "bundles": 600,
    "manifests": 1500,
    "folders": 300,
    "runs": 700,
    "weights": 400,
}
#: And in each CI run.
FEW = {kind: max(10, count // 50) for kind, count in COUNTS.items()}
#: Memory of a process, but for the pages of its libraries' files.
MOST_MIB = 1000
#: Seconds without an answer that are a hang, on a machine that others use as well.
HANG_S = 60
#: And until the libraries are loaded.
START_S = 280


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound inputs of every kind, from which the malformed are made."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def make_corpus(folder: Path) -> Path:
    """Write them."""
    rng = np.random.default_rng(0)
    grey, colour = (rng.integers(0, 256, (20, 24, *end), dtype=np.uint8) for end in ((), (3,)))
    deep = rng.integers(0, 65536, (20, 24), dtype=np.uint16)
    images: dict[str, bytes] = {}
    for name, pixels in (("grey", grey), ("colour", colour)):
        for kind, options in (
            ("PNG", {}),
            ("PNG", {"compress_level": 0}),
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("BMP", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("TIFF", {"compression": "tiff_deflate"}),
            ("TIFF", {"compression": "jpeg"}),
        ):
            stream = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            extra: dict[str, Any] = {"exif": exif} if kind != "BMP" else {}
            Image.fromarray(pixels).save(stream, kind, **options, **extra)
            images[f"{name}{len(images)}"] = stream.getvalue()
    for suffix in (".png", ".tif"):
        for name, pixels in (("deep", deep), ("deep colour", np.stack([deep] * 3, 2))):
            images[f"{name}{suffix}"] = cv2.imencode(suffix, pixels)[1].tobytes()
    images |= _of_further_kinds(rng)
    for kind in ("TIFF", "PNG", "WEBP"):
        stream = io.BytesIO()
        pages = [Image.fromarray(grey), Image.fromarray(grey + 1)]
        pages[0].save(stream, kind, save_all=True, append_images=pages[1:])
        images[f"pages {kind}"] = stream.getvalue()
    table = pd.DataFrame(
        {
            "image": [f"a/{n}.png" for n in range(12)],
            "label": ["ok", "hole", "d\u00e9faut"] * 4,
            "split": ["train", "train", "val", "test"] * 3,
            "product": ["A", "B"] * 6,
            "lot": [f"{n:04d}" for n in range(12)],
            "size": np.arange(12) / 4,
        }
    )
    texts = {
        "utf8": table.to_csv(index=False).encode(),
        "excel": table.to_csv(index=False, sep=";", lineterminator="\r\n").encode("cp1252"),
        "mark": table.to_csv(index=False).encode("utf-16"),
        "path": table.assign(path=table["image"]).to_csv(index=False).encode(),
    }
    (folder / "parquet").mkdir()
    table.to_parquet(folder / "parquet" / "a.parquet")
    table.astype({"label": "category"}).to_parquet(folder / "parquet" / "b.parquet")
    settings = {path.name: path.read_bytes() for path in sorted(CONFIGS.glob("*.yaml"))[:3]}
    settings["run"] = (BEFORE / "run" / "config.yaml").read_bytes()
    for kind, files in (("images", images), ("manifests", texts), ("settings", settings)):
        (folder / kind).mkdir()
        for name, content in files.items():
            (folder / kind / name).write_bytes(content)
    for name in ("run", "bundle"):
        shutil.copytree(BEFORE / name, folder / name)
    decided = {"temperature": 1.5, "fitted_on": {"views": 1}}
    document = {"schema": 1, "calibration": decided}
    (folder / "run" / "decisions.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def _of_further_kinds(rng: np.random.Generator) -> dict[str, bytes]:
    """WebP, PBM, PGM, PPM, JPEG 2000 and TIFF of floating point."""
    colour = rng.integers(0, 256, (72, 80, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (72, 80, 3), dtype=np.uint16)
    images: dict[str, bytes] = {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, kind, options in (
        ("webp", "WEBP", {"exif": exif}),
        ("webp lossless", "WEBP", {"lossless": True}),
        ("j2k", "JPEG2000", {"no_jp2": True}),
        ("jp2", "JPEG2000", {"tile_size": (32, 32)}),
    ):
        stream = io.BytesIO()
        Image.fromarray(colour).save(stream, kind, **options)
        images[name] = stream.getvalue()
    for suffix in (".jp2", ".pgm", ".ppm"):
        pixels = deep[..., 0] if suffix == ".pgm" else deep
        images[f"deep{suffix}"] = cv2.imencode(suffix, pixels)[1].tobytes()
    images["white.pgm"] = (
        b"P5\n# a camera\n80 72\n4095\n" + (deep[..., 0] >> 4).astype(">u2").tobytes()
    )
    images["text.pgm"] = b"P2 6 4 300 " + b" ".join(b"%d" % n for n in range(24))
    images["text.ppm"] = b"P3 2 2 7 " + b"1 2 3 " * 4
    images["text.pbm"], images["bytes.pbm"] = b"P1 4 2 0110 1 0 0 1", b"P4 12 3\n" + bytes(range(6))
    for kind in (np.float32, np.float64):
        values = deep.astype(kind) / 65535
        images[f"{np.dtype(kind)} grey"] = cv2.imencode(".tif", values[..., 0])[1].tobytes()
        images[f"{np.dtype(kind)} colour"] = cv2.imencode(".tif", values)[1].tobytes()
    pages = [deep[..., 0], deep[..., 1]]
    images["deep pages"] = cv2.imencodemulti(".tif", pages)[1].tobytes()
    return images


def give(
    corpus: Path, work: Path, counts: dict[str, int], *, apart: bool = False
) -> dict[str, Any]:
    """Give inputs of every kind to processes; one that ends or hangs is followed by another.

    Args:
        corpus: of sound inputs.
        work: a folder to work in.
        counts: inputs of each kind.
        apart: a process for each kind, so that none carries the libraries of another.

    Returns:
        `inputs`, `refused`, `peak_mib` of each kind, and `failed`: what came out that should not.
    """
    found = Found()
    for kinds in [[kind] for kind in counts] if apart else [list(counts)]:
        found.left = {kind: [0, counts[kind]] for kind in kinds}
        while any(count for _, count in found.left.values()):
            _give(corpus, work, found)
    return vars(found)


class Found:
    """What came of the inputs so far."""

    def __init__(self) -> None:
        self.inputs = self.refused = 0
        self.peak_mib: dict[str, float] = {}
        self.libraries_mib: dict[str, float] = {}
        self.failed: list[list[Any]] = []
        #: First seed and number of those to come, of each kind.
        self.left: dict[str, list[int]] = {}


def _give(corpus: Path, work: Path, found: Found) -> None:
    words = [sys.executable, str(HERE / "malformed.py"), str(corpus), str(work)]
    words += [str(w) for kind, left in found.left.items() if left[1] for w in (kind, *left)]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=(work / "stderr.txt").open("ab"),
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RECAME_CACHE": str(work / "cache")},
    )
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=listen, daemon=True).start()
    at: list[Any] = ["start", 0]
    while True:
        try:
            line = lines.get(timeout=START_S if at[0] == "start" else HANG_S)
        except queue.Empty:
            process.kill()
            process.wait()
            _note_end(found, at, f"no answer within {HANG_S} s")
            return
        if not line:
            if (code := process.wait()) or any(count for _, count in found.left.values()):
                _note_end(found, at, f"the process ended with {code}")
            return
        told = json.loads(line)
        if "at" in told:
            at = told["at"]
        elif "libraries" in told:
            found.libraries_mib[told["libraries"][0]] = told["libraries"][1]
        elif "failed" in told:
            found.failed.append(told["failed"])
        else:
            kind, refused, peak = told["done"]
            found.inputs += 1
            found.refused += refused
            found.peak_mib[kind] = max(peak, found.peak_mib.get(kind, 0))
            _count_off(found, kind)


def _count_off(found: Found, kind: str) -> None:
    first, count = found.left[kind]
    found.left[kind] = [first + 1, count - 1]


def _note_end(found: Found, at: list[Any], what: str) -> None:
    """An input that ended its process; the next one goes on behind it."""
    kind, _ = at
    assert kind in found.left, f"{what} before the first input"
    found.failed.append([*at, what])
    found.inputs += 1
    _count_off(found, kind)


def judged(found: dict[str, Any], counts: dict[str, int]) -> None:
    told = "\n".join(f"--- {kind} {seed}\n{what}" for kind, seed, what in found["failed"][:20])
    assert not found["failed"], f"{len(found['failed'])} inputs\n{told}"
    assert found["inputs"] == sum(counts.values())
    assert found["refused"] > found["inputs"] // 3
    assert max(found["peak_mib"].values()) < MOST_MIB, found["peak_mib"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")
@pytest.mark.slow
def test_a_share_of_them(corpus: Path, tmp_path: Path) -> None:
    judged(give(corpus, tmp_path, FEW), FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand(corpus: Path, tmp_path: Path) -> None:
    assert sum(COUNTS.values()) == 10_000
    began = time.perf_counter()
    found = give(corpus, tmp_path, COUNTS, apart=True)
    machine = describe_machine()
    figures = {
        **{key: found[key] for key in ("inputs", "refused", "peak_mib", "libraries_mib")},
        "seconds": round(time.perf_counter() - began),
        "machine": f"{machine['processor']}, {machine['cores']} cores",
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    judged(found, COUNTS)
