"""The end of a training: make a run's graph, check it against torch, and report its speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recame.contracts import Array, PreprocessSpec, ensemble_logits
from recame.data.decode import Reader
from recame.data.sampling import balanced_sample
from recame.errors import RecameError
from recame.inference.device import judging_precision
from recame.inference.forward import BatchForward
from recame.inference.graph import OneView
from recame.inference.parity import Parity, check_parity, in_batches, torch_forward
from recame.inference.run_graph import OUTPUTS, RunGraph, save_graph
from recame.machine import package_versions
from recame.models import LoadedModel, load_checkpoint
from recame.models.frozen_forward import export_onnx, graph_runtime_available, quick_onnx
from recame.models.recorded_graph import UnrecordableError
from recame.names import counted
from recame.progress import say
from recame.runs.judging import Judging
from recame.training.loop.cost import PRICE_BATCH, PRICE_S, compared_images
from recame.training.ongoing_run import OngoingRun
from recame.training.planner import budget_s
from recame.training.student.offer import student_offer

#: Largest difference of a feature, relative to its size or to 1.
_MAX_FEATURE_DIFFERENCE = 1e-3
#: Number of large images that are read to measure the cost of tiles.
_READ = 4
#: Seconds of `torch.onnx` for a network that cannot be recorded.
_SLOW_EXPORT_S = 20.0

_PACKAGES = ("recame", "torch", "timm", "onnx", "onnxruntime")


class _NoGraphError(Exception):
    """The reason why a run keeps no graph."""


def keep_graph(run: OngoingRun) -> None:
    """Make the graph of the selected network, and report how fast the run answers.

    A graph is made on a CPU in full precision. Otherwise, or if the graph cannot be made or its
    answers differ from torch's, the run keeps none and answers in torch: `run.json` says why.
    `recame.training.loop.cost.graph_cost_s` estimates the time for this.

    Args:
        run: its folder holds its weights and settings.
    """
    loaded = load_checkpoint(run.folder.path, run.device)
    views = int(run.config.evaluation.views)
    images = _some_images(run)
    answer, how = _in_torch(run, loaded, views), "torch"
    facts: dict[str, Any] = {"kept": False}
    try:
        graph, found = _checked_graph(run, loaded)
        session = RunGraph(graph, threads=torch.get_num_threads())
        price = _images_per_s(lambda pixels: session.averaged(pixels, views), images)
        how = "its graph"
        save_graph(run.folder, graph, found, Judging.of(run.config, run.folder.path))
        facts = {"kept": True}
    except (_NoGraphError, RecameError, OSError, MemoryError) as error:
        facts["reason"] = str(error)
        price, how = _images_per_s(answer, images), "torch"
        if run.device.type == "cpu":
            say(run.console, f"No graph is kept, and the run answers in torch: {error}", "yellow")
    run.folder.mark(run.folder.state, graph={**facts, "images_per_s": round(price, 1)})
    spec, experts = loaded.spec, loaded.architecture.num_experts
    say(
        run.console,
        f"Answers {price:,.0f} images/s {_seen(spec)} on this machine with "
        f"{counted(views, 'view')} and {counted(experts, 'network')} (by {how})"
        + (f"; {_reading(run)}" if spec.tiles else ""),
    )
    offer = student_offer(run, loaded, price)
    if offer is not None:
        say(run.console, offer)


def _seen(spec: PreprocessSpec) -> str:
    height, width = spec.piece_size
    return f"at {f'{spec.pieces} pieces of ' if spec.tiles else ''}{height} x {width} px"


def _reading(run: OngoingRun) -> str:
    """The cost of finding tiles, before the network sees them, in words."""
    paths = run.data.table["path"].iloc[: _READ + 1]
    reader = Reader(run.data.spec, run.config.data.max_pixels)
    reader.read(paths.iloc[0])  # a first time, to open the library
    began = time.perf_counter()
    for path in paths:
        reader.read(path)
    image_s = (time.perf_counter() - began) / len(paths)
    return f"reading an image and finding its tiles takes {1000 * image_s:.0f} ms of a core before"


def _checked_graph(run: OngoingRun, loaded: LoadedModel) -> tuple[bytes, dict[str, Any]]:
    """The graph, and the facts about it for its document."""
    if run.device.type != "cpu":
        raise _NoGraphError(f"it answers on {run.device.type}")
    precision = judging_precision(run.folder, run.config, run.device)
    if precision != "32":
        raise _NoGraphError(f"it answers in precision {precision}")
    if not graph_runtime_available():
        raise _NoGraphError("onnx, onnxscript or onnxruntime is not installed")
    began = time.perf_counter()
    graph, how = _made(run, loaded)
    made_s = time.perf_counter() - began
    try:
        session = RunGraph(graph, threads=torch.get_num_threads())
    except RuntimeError as error:
        raise _NoGraphError(str(error)) from error
    parity, features = _compared(run, loaded, session)
    if parity.failures:
        raise _NoGraphError(
            f"the graph does not answer as the network does: {'; '.join(parity.failures)}"
        )
    if not features <= _MAX_FEATURE_DIFFERENCE:
        raise _NoGraphError(f"the graph's features are {features:.2g} off")
    say(run.console, f"Graph ({made_s:.1f} s). Parity with torch on {parity.sentence()}")
    return graph, {
        "made": how,
        "versions": package_versions(*_PACKAGES),
        "parity": {**parity.to_dict(), "feature_difference": features},
    }


def _made(run: OngoingRun, loaded: LoadedModel) -> tuple[bytes, str]:
    """The ONNX file's bytes, and the name of the exporter."""
    spec, module = loaded.spec, OneView(loaded.model).eval()
    blank = np.zeros((2, spec.height, spec.width, spec.channels), spec.dtype)
    example = torch.from_numpy(blank)
    try:
        return quick_onnx(module, example, output_names=OUTPUTS), "recorded"
    except UnrecordableError as error:
        reason = str(error)
    budget = budget_s(run.config, run.device)
    if budget is not None and budget - (time.monotonic() - run.started) < _SLOW_EXPORT_S:
        raise _NoGraphError(f"{reason}, and the run has no time left for torch.onnx")
    with tempfile.TemporaryDirectory(prefix="recame-graph-") as scratch:
        path = Path(scratch) / "graph.onnx"
        try:
            export_onnx(module, example, path, output_names=OUTPUTS)
        except Exception as error:  # the exporter fails in many ways
            told = str(error).strip().partition("\n")[0]
            raise _NoGraphError(f"{reason}, and torch.onnx cannot export it ({told})") from error
        return path.read_bytes(), "exported"


def _compared(run: OngoingRun, loaded: LoadedModel, session: RunGraph) -> tuple[Parity, float]:
    """Differences between graph and torch on real images, in probabilities and features."""
    data, space, seed = run.data, run.data.label_space, run.config.run.seed
    reference = torch_forward(loaded.model, loaded.spec, 1)
    split = "val" if "val" in data.splits and len(data.view("val")) else "train"
    view = data.view(split)
    first = np.ascontiguousarray(data.cache.images[view.rows[:8]])
    reference(first[:1])
    began = time.perf_counter()
    reference(first)
    image_s = (time.perf_counter() - began) / len(first)
    size, brief = compared_images(image_s)
    chosen = balanced_sample(view.targets, size, seed)
    groups = space.quantile_groups()

    def answers(images: Array) -> Array:
        logits = torch.from_numpy(session(images)[0])
        return ensemble_logits(logits).softmax(-1).numpy().astype(np.float64)

    parity = check_parity(
        answers,
        reference,
        data.cache.images,
        view.rows[chosen],
        view.targets[chosen],
        precision="fp32",
        tail=tuple((n, i) for i, n in enumerate(space.names) if groups[i] == "few"),
        spec=loaded.spec,
        source=split,
        seed=seed,
        brief=brief,
    )
    forward = BatchForward(loaded.model, spec=loaded.spec, num_views=1, num_images=0, device="cpu")
    with torch.inference_mode():
        features = forward(first, with_features=True)[2]
    assert features is not None
    expected = features.numpy()
    found = in_batches(lambda images: session(images)[1], first)
    return parity, float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


def _in_torch(run: OngoingRun, loaded: LoadedModel, views: int) -> Callable[[Array], object]:
    forward = BatchForward(
        loaded.model,
        spec=loaded.spec,
        num_views=views,
        num_images=0,
        device=run.device,
        precision=judging_precision(run.folder, run.config, run.device),
    )

    def answer(images: Array) -> object:
        with torch.inference_mode():
            return forward(images)[1].cpu()  # wait for the GPU

    return answer


def _some_images(run: OngoingRun) -> Array:
    rows = run.data.view("train").rows
    return np.ascontiguousarray(run.data.cache.images[np.resize(rows, PRICE_BATCH)])


def _images_per_s(answer: Callable[[Array], object], images: Array) -> float:
    """Images per second, timed for a moment after a first call."""
    answer(images)
    rounds, began = 0, time.perf_counter()
    while rounds == 0 or time.perf_counter() - began < PRICE_S:
        answer(images)
        rounds += 1
    return rounds * len(images) / (time.perf_counter() - began)
