"""Where and how a model runs: the device and its arithmetic."""

from __future__ import annotations

from typing import Literal

import torch

from recame.config import Config
from recame.errors import ConfigError
from recame.runs.folder import RunFolder

Precision = Literal["32", "bf16", "16"]


def choose_device(accelerator: str) -> torch.device:
    """The device that `run.accelerator` means here.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if accelerator == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator == "gpu":
        raise ConfigError(
            "run.accelerator=gpu, but torch sees no CUDA device here. Install a CUDA build of "
            "torch, or set run.accelerator=auto."
        )
    return torch.device("cpu")


def choose_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """`32`, `bf16` or `16` for this device.

    A CPU keeps 32: its bf16 backward of depthwise convolutions is slower than fp32
    (`benchmarks/training` prints both).
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "32"
    return "bf16" if torch.cuda.is_bf16_supported() else "16"


def judging_precision(folder: RunFolder, config: Config, device: torch.device | str) -> Precision:
    """In what a run is judged and predicts, on `val`, on other images and on the line.

    Its own `run.precision` on the kind of device that this was chosen for, `32` on another: a
    GPU's half precision says nothing of what a CPU is fast or exact in.
    """
    place = torch.device(device)
    return choose_precision(config.run.precision, place) if place.type == folder.device else "32"
