"""Choose the device and the precision in which a model runs."""

from __future__ import annotations

import os
from typing import Literal

import torch

from recame.config import Config
from recame.errors import ConfigError
from recame.machine import usable_cores
from recame.runs.folder import RunFolder

Precision = Literal["32", "bf16", "16"]


def choose_device(accelerator: str) -> torch.device:
    """Choose the device for `run.accelerator` on this machine, and keep torch to its cores.

    Raises:
        ConfigError: a GPU is requested, but there is none.
    """
    _keep_to_quota()
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


def _keep_to_quota() -> None:
    """Let torch have no more threads than the quota of this process's container has cores.

    torch counts the cores of the machine. Threads beyond the quota are halted in the middle of
    their work, and all others wait for them. `OMP_NUM_THREADS` overrules this.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def choose_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """Choose `32`, `bf16` or `16` for this device.

    A CPU uses 32: there, the backward pass of depthwise convolutions is slower in bf16 than in
    fp32 (`benchmarks/training` prints both).
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "32"
    return "bf16" if torch.cuda.is_bf16_supported() else "16"


def judging_precision(folder: RunFolder, config: Config, device: torch.device | str) -> Precision:
    """Choose the precision in which a run is evaluated and predicts.

    `run.precision` on the kind of device for which it was chosen, `32` on another: half precision
    that suits a GPU may be slow or inexact on a CPU.
    """
    place = torch.device(device)
    return choose_precision(config.run.precision, place) if place.type == folder.device else "32"
