"""The networks of this benchmark: runs, their bundles, and the same weights in eager torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console

import recame
from recame.config import Config
from recame.contracts import PreprocessSpec, ensemble_logits
from recame.data.dataset import load_inspection_set, to_unit
from recame.data.transforms import dihedral_view
from recame.errors import ExportError
from recame.inference.finished_run import recorded_data
from recame.models import load_checkpoint
from recame.runs.folder import RunFolder
from recame.runtime import is_bundle, open_bundle

#: Format and precision of every bundle that is exported.
BUNDLES = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"))
NAMES = tuple(f"{kind}-{precision}" for kind, precision in BUNDLES)

Array = np.ndarray[Any, np.dtype[Any]]


def bundle_path(run: Path, name: str) -> Path:
    """Where a run's bundle lies, for a name of `NAMES`."""
    return run.with_name(f"{run.name}-{name}")


def exported(run: Path) -> list[str]:
    """Which of `NAMES` a run has bundles of."""
    return [name for name in NAMES if is_bundle(bundle_path(run, name))]


def export_missing(run: Path, console: Console, *, only_timed: bool = False) -> dict[str, str]:
    """Export the bundles of a run that are not there yet; name -> why where one was refused.

    Args:
        run: a finished run.
        console: for progress.
        only_timed: also write bundles that fail the parity check: an untrained network has no
            margins between its classes, and its speed is the same.
    """
    from recame.export import export as exporting
    from recame.inference.parity import check_parity

    def unjudged(*words: Any, **named: Any) -> Any:
        return replace(check_parity(*words, **named), failures=())

    refused = {}
    timed = patch.object(exporting, "check_parity", unjudged) if only_timed else nullcontext()
    for kind, precision in BUNDLES:
        name = f"{kind}-{precision}"
        out = bundle_path(run, name)
        if not is_bundle(out):
            console.print(f"exporting {out}", highlight=False)
            try:
                with timed:
                    exporting.export(run, out, format=kind, precision=precision, console=console)
            except ExportError as error:
                console.print(f"refused: {error}", highlight=False, markup=False)
                refused[name] = str(error)
    return refused


def train_once(manifest: Path, config: Config, out: Path, console: Console) -> None:
    """Train a run, take it up where it was interrupted, or leave it where it is finished."""
    begun = (out / "run.json").exists()
    if not begun or not RunFolder.open(out).finished:
        recame.train(manifest, config, out=out, resume=begun, console=console)


class Eager:
    """A run's network in eager torch, fp32: stored pixels -> probabilities, as its bundle gives.

    Args:
        run: a finished run.
        views: test-time views that are averaged.
        calibrate: what the ensemble's probabilities go through.
        channels_last: memory format.
    """

    def __init__(
        self,
        run: Path,
        *,
        views: int,
        calibrate: Callable[[Array], Array] = np.asarray,
        channels_last: bool = False,
    ) -> None:
        loaded = load_checkpoint(run)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = loaded.model.eval().to(memory_format=self.format)
        self.spec, self.label_space = loaded.spec, loaded.label_space
        self.views, self.calibrate = views, calibrate

    @torch.inference_mode()
    def __call__(self, images: Array) -> Array:
        """(B, H, W, C) stored pixels -> (B, C)."""
        unit = to_unit(torch.from_numpy(images).permute(0, 3, 1, 2), self.spec.scale)
        total = torch.zeros(())
        for view in range(self.views):
            seen = dihedral_view(unit, view).contiguous(memory_format=self.format)
            total = total + ensemble_logits(self.model(seen).logits).softmax(-1)
        return self.calibrate((total / self.views).numpy())


class TestSplit:
    """The test images of a run, as its own manifest splits them.

    Attributes:
        images: (N, H, W, C) stored pixels.
        target: (N,) class indices.
        tail: (N,) whether the image is of a tail class.
        paths: N image files.
    """

    def __init__(self, run: Path, spec: PreprocessSpec, tail_classes: Sequence[str]) -> None:
        folder = RunFolder.open(run)
        config = folder.load_config()
        loaded = load_checkpoint(run)
        data = load_inspection_set(
            recorded_data(folder, config),
            config.data,
            seed=config.run.seed,
            spec=spec,
            label_space=loaded.label_space,
        )
        view = data.view("test")
        self.label_space = loaded.label_space
        self.table = data.table.iloc[view.indices].reset_index(drop=True)
        self.images: Array = np.ascontiguousarray(data.cache.images[view.rows])
        self.target: Array = np.asarray(view.targets, np.int64)
        tail = [loaded.label_space.index(name) for name in tail_classes]
        self.tail: Array = np.isin(self.target, tail)
        self.paths = [Path(path) for path in self.table["path"]]


def in_batches(call: Any, images: Array, size: int = 128) -> Array:
    """Probabilities of all images, batch by batch."""
    parts = [call(images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate(parts)


def views_of(bundle: Path) -> int:
    """Test-time views in a bundle's graph."""
    return open_bundle(bundle).views
