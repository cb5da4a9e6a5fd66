"""A finished run's model in torch, with the interface of a bundle's graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import Array
from recame.data.stored_views import check_views
from recame.errors import ConfigError, MissingDependencyError
from recame.label_space import LabelSpace
from recame.runs.classes import check_classes
from recame.runs.folder import RunFolder
from recame.runs.judging import Judging
from recame.runs.settings import check_weighting

TORCH_DEVICES = ("auto", "cpu", "cuda")

#: A run's words for precisions -> a bundle's.
_PRECISIONS = {"32": "fp32", "16": "fp16", "bf16": "bf16"}


class TorchSession:
    """A finished run's model in torch, with test-time augmentation.

    Args:
        run: the run's folder.
        device: `auto` (the run's setting), `cpu` or `cuda`.
        threads: CPU threads; None: torch's number for the process is not changed.
        views: of test-time augmentation; None: as in the run's settings.

    Raises:
        CheckpointError: there is no finished run, or its model cannot be loaded, or has
            other classes than its `label_space.json`.
        ConfigError: the device does not exist, or the images cannot have these views.
        MissingDependencyError: the training packages are not installed.

    Attributes:
        answers: `RunFolder.answers`; a calibration must have been fitted to these.
        precision: in which it runs: `fp32`, `fp16` or `bf16`.
        calibrate: calibration of the ensemble's probabilities (B, C); none until it is set.
    """

    backend = "torch"
    steady = False
    outputs: tuple[str, ...] = ("probabilities", "expert_probabilities", "features")

    def __init__(
        self, run: Path, *, device: str, threads: int | None, views: int | None = None
    ) -> None:
        folder = RunFolder.open(run, finished=True)
        try:
            import torch

            from recame.inference.device import judging_precision
            from recame.inference.forward import BatchForward
            from recame.models import load_checkpoint
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                str(error.name), "train", f"to run {run}, which is a run folder and no bundle"
            ) from error
        config = folder.load_config()
        check_weighting(run, config.evaluation.weighting)
        self.device = _torch_device(device, config.run.accelerator)
        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        self._precision = judging_precision(folder, config, self.device)
        self.precision = _PRECISIONS[self._precision]
        self.calibrate: Callable[[Array], Array] = np.asarray
        loaded = load_checkpoint(run, self.device)
        check_classes(run, loaded.label_space)
        self._model, self.spec = loaded.model, loaded.spec
        self.label_space: LabelSpace = loaded.label_space
        if views is not None:
            check_views(views, *self.spec.piece_size)
        judging = Judging.of(config, run)
        judging = replace(judging, views=views or judging.views)
        self.answers = judging.answers(folder.weights_sha256())
        self.num_views, self.batch_size = judging.views, judging.batch_size
        self.max_pixels = judging.max_pixels
        self._make_forward = BatchForward
        self._inference_mode = torch.inference_mode
        self._forward: Any = None
        self._expected = 0
        # FrozenForward and the network's caches do not allow simultaneous calls.
        self._lock = threading.Lock()

    def expect(self, num_images: int) -> None:
        """Say how many images will come; a graph is prepared if it pays off."""
        if num_images > self._expected:
            with self._lock:
                self._expected, self._forward = num_images, None

    def run(self, images: Array) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        with self._lock, self._inference_mode():
            if self._forward is None:
                self._forward = self._make_forward(
                    self._model,
                    spec=self.spec,
                    num_views=self.num_views,
                    num_images=self._expected,
                    device=self.device,
                    precision=self._precision,
                )
            experts, ensemble, features = self._forward(images, with_features=True)
            found = (self.calibrate(ensemble.cpu().numpy()), experts, features)
            return {
                name: np.asarray(values.float().cpu()) if name != "probabilities" else values
                for name, values in zip(self.outputs, found, strict=True)
            }


def _torch_device(device: str, accelerator: str) -> str:
    import torch

    if device not in TORCH_DEVICES:
        raise ConfigError(
            f"device={device!r} is unknown to a run folder: choose {', '.join(TORCH_DEVICES)}"
            + ("; TensorRT needs an ONNX bundle (recame export)." if device == "tensorrt" else ".")
        )
    if device == "auto":
        device = {"cpu": "cpu", "gpu": "cuda"}.get(accelerator, device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch sees no CUDA device here. Install a CUDA build of torch, or "
            "use --device cpu."
        )
    return device
