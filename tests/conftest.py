"""What many tests share: one thread, caches that vanish, and small generated sets of images."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recame.config import Config

#: A network that trains in milliseconds, and just enough steps to see that it does.
TINY = {
    "data.size": 32,
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "model.num_experts": 2,
    "model.shared_stages": 3,
    "augment.symmetry": "square",
    "objective.contrastive_weight": 0.0,
    "objective.intra_weight": 0.0,
    "probe.steps": 30,
    "probe.views": 2,
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "evaluation.views": 1,
    "evaluation.bootstrap": 50,
    "run.accelerator": "cpu",
}

LONG_TAIL = {"ok": 60, "scratch": 24, "dent": 12, "hole": 6}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _throwaway_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go to a folder of this session, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECAME_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")  # of child processes
        yield


@pytest.fixture(scope="session")
def tiny_words() -> list[str]:
    """The settings of `tiny_config` as words of a command line."""
    return [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, object]:
    """Settings of a run of seconds, by their dotted names."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Config]:
    """Settings of a run of seconds; keyword `section__key` changes one."""

    def make(**changes: object) -> Config:
        return Config().updated(TINY | {k.replace("__", "."): v for k, v in changes.items()})

    return make


def draw(kind: int, rng: np.random.Generator, side: int = 32) -> np.ndarray:
    """A surface with the kind's defect: the kinds differ in direction, place and brightness."""
    image = rng.normal(120, 12, (side, side))
    y, x = np.mgrid[:side, :side]
    shift = rng.integers(-4, 5)
    if kind == 1:
        image[np.abs(y - x + shift) < 2] += 110
    elif kind == 2:
        image[(y - side / 2 + shift) ** 2 + (x - side / 2 - shift) ** 2 < 40] -= 90
    elif kind == 3:
        image[:, side // 2 + shift - 2 : side // 2 + shift + 2] = 250
    elif kind > 3:
        image[:: kind - 1] = 20
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def write_images() -> Callable[..., Path]:
    """Write a folder per class: `write_images(folder, {"ok": 60, ...})`."""

    def write(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for kind, (name, count) in enumerate(counts.items()):
            (folder / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw(kind, rng)).save(folder / name / f"{number:03d}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def defects(tmp_path_factory: pytest.TempPathFactory, write_images: Callable[..., Path]) -> Path:
    """102 images in four classes, 10 to 1, a folder per class; read only."""
    return write_images(tmp_path_factory.mktemp("data") / "defects", LONG_TAIL)


@pytest.fixture(scope="session")
def defects_table(defects: Path) -> Path:
    """The same images as a CSV with splits and products; read only."""
    lines = ["image,label,split,product,lot"]
    for name, count in LONG_TAIL.items():
        for number in range(count):
            split = ("train", "train", "val", "train", "test", "train")[number % 6]
            product = "board-A" if number % 4 < 2 else "board-B"
            lines.append(f"defects/{name}/{number:03d}.png,{name},{split},{product},{number:04d}")
    path = defects.parent / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(
    defects: Path, tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder of a finished run on `defects`; read only: work on a copy."""
    from recame.training.train import train

    run = train(defects, tiny_config(), out=tmp_path_factory.mktemp("finished") / "run").path
    before = contents(run)
    yield run
    assert contents(run) == before, "a test wrote into the run that all tests share"


@pytest.fixture(scope="session")
def _traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traced")


@pytest.fixture(scope="module")
def trace_once(_traced: Path) -> Iterator[None]:
    """Tracing takes seconds: a module's exports of the same weights and outputs share a graph."""
    from recame.export import export as export_module

    real = export_module._trace

    def trace(graph: Any, source: Any, path: Path) -> None:
        told = hashlib.sha256(f"{graph.views} {graph.outputs}".encode())
        for weights in graph.state_dict().values():
            told.update(weights.numpy().tobytes())
        known = _traced / f"{told.hexdigest()[:20]}.onnx"
        if not known.exists():
            real(graph, source, known)
        path.write_bytes(known.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_trace", trace)
        yield


@pytest.fixture(scope="session")
def run_until_killed() -> Callable[[Callable[[], object]], None]:
    """Run in a child process, which must end by SIGKILL; a fork spares it the slow imports."""

    def run(child: Callable[[], object]) -> None:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL

    return run


@pytest.fixture(scope="session")
def die_at() -> Callable[[Any, str, int], None]:
    """Let the given call of `place.name` be this process's last: `die_at(place, name, call)`."""

    def die(place: Any, name: str, call: int) -> None:
        original = getattr(place, name)
        calls = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(place, name, counted)

    return die


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path): path.read_bytes() for path in files}
