"""A finished run's graph with the interface of a bundle's, so that a run predicts without torch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from recame.contracts import Array
from recame.data.stored_views import check_views
from recame.inference.run_graph import GRAPH_DIR, KeptGraph, RunGraph, open_graph
from recame.runs.classes import check_classes
from recame.runs.folder import RunFolder
from recame.runs.settings import check_weighting

logger = logging.getLogger(__name__)


class GraphSession:
    """A run's graph in ONNX Runtime on the CPU, with test-time augmentation.

    Args:
        kept: the graph.
        graph: the same graph, started for one call at a time.
        views: of test-time augmentation.

    Attributes:
        answers: identifies the outputs; a calibration must have been fitted to these.
        calibrate: calibration of the ensemble's probabilities (B, C); none until it is set.
    """

    backend = "onnxruntime"
    device = "cpu"
    precision = "fp32"
    outputs: tuple[str, ...] = ("probabilities", "expert_probabilities", "features")

    def __init__(self, kept: KeptGraph, graph: RunGraph, *, views: int) -> None:
        self.kept, self._graph, self.num_views = kept, graph, views
        self.spec, self.label_space, self.steady = kept.spec, kept.label_space, kept.steady
        self.max_pixels = kept.judging.max_pixels
        self.answers = replace(kept.judging, views=views).answers(kept.weights_sha256)
        self.calibrate: Callable[[Array], Array] = np.asarray

    def run(self, images: Array) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        experts, ensemble, features = self._graph.averaged(images, self.num_views, self.spec.pieces)
        found = (self.calibrate(ensemble), experts, features)
        return dict(zip(self.outputs, found, strict=True))

    def reopened(self, threads: int, calls: int) -> GraphSession:
        """Open another session for this many calls at once, which share the threads."""
        graph = RunGraph(self.kept.graph, threads=max(1, threads // calls))
        session = GraphSession(self.kept, graph, views=self.num_views)
        session.calibrate = self.calibrate
        return session


def open_graph_session(
    run: Path, *, device: str, threads: int, views: int | None
) -> GraphSession | None:
    """Start a finished run's graph, if the run predicts by it here.

    Args:
        run: the run's folder.
        device: as for `recame.load`.
        threads: CPU threads of all calls together.
        views: of test-time augmentation; None: as in the run.

    Returns:
        None if torch is used: on a GPU, in another precision, without a usable graph or without
        ONNX Runtime.

    Raises:
        CheckpointError: there is no finished run, or its `label_space.json` belongs to another run.
        ConfigError: the experts' weights are learned again for each set of images, or the images
            cannot have these views.
    """
    started = start_graph(RunFolder.open(run, finished=True), device=device, threads=threads)
    if started is None:
        return None
    kept, graph = started
    check_classes(run, kept.label_space)
    check_weighting(run, kept.judging.weighting)
    if views is not None:
        check_views(views, *kept.spec.piece_size)
    return GraphSession(kept, graph, views=views or kept.judging.views)


def start_graph(
    folder: RunFolder, *, device: str, threads: int
) -> tuple[KeptGraph, RunGraph] | None:
    """Start a finished run's graph, if the run predicts by it here; see `open_graph_session`."""
    kept = open_graph(folder) if device in ("auto", "cpu") else None
    if kept is None or not _answers_on_cpu(kept, device):
        return None
    try:
        graph = RunGraph(kept.graph, threads=threads)
        if graph.num_classes != kept.label_space.num_classes:
            raise RuntimeError("it has other classes than model.json")
    except ImportError:
        return None
    except RuntimeError as error:
        logger.warning("%s: %s. The run uses torch, slower.", folder.path / GRAPH_DIR, error)
        return None
    return kept, graph


def _answers_on_cpu(kept: KeptGraph, device: str) -> bool:
    """Whether the run predicts on a CPU in the graph's precision."""
    judging = kept.judging
    if judging.precision not in ("32", "auto"):
        return False
    if device == "cpu" or judging.accelerator == "cpu":
        return True
    return judging.accelerator == "auto" and not _cuda()


def _cuda() -> bool:
    """Whether torch finds a CUDA device; torch is imported only if there may be one."""
    if not Path("/dev/nvidiactl").exists() and shutil.which("nvidia-smi") is None:
        return False
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available()
