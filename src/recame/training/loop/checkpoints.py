"""Fine-tuning's checkpoints: two are kept, and each is read whole before it is taken up."""

from __future__ import annotations

import io
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console

from recame.errors import CheckpointError
from recame.files import write_whole
from recame.models import MultiExpertClassifier
from recame.progress import say
from recame.runs.folder import RunFolder


class LastCheckpoint(Checkpoint):
    """Write `last.ckpt` after each epoch, and keep the one before as `previous.ckpt`.

    Args:
        run: where the files lie.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; every process of a distributed run takes part, the first one writes."""
        path = self._run.last_checkpoint
        with write_whole(path) if trainer.is_global_zero else nullcontext(path) as target:
            trainer.save_checkpoint(target, weights_only=False)
            if trainer.is_global_zero and path.exists():
                path.replace(self._run.previous_checkpoint)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bind the file to its run."""
        checkpoint["run"] = self._run.identity


class StraightToPlace(TorchCheckpointIO):
    """Write a checkpoint where it is asked for.

    Lightning's own way goes by the system's temporary folder, which may be smaller than a
    checkpoint, and moves what it wrote: `write_whole` sees to that here.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write it."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).write_bytes(content.getbuffer())


def newest_checkpoint(run: RunFolder, console: Console) -> Path | None:
    """The checkpoint to go on from; None where there is none yet.

    A damaged last one is removed where the one before is whole: an epoch more is repeated.

    Raises:
        CheckpointError: none is whole, or another run wrote it; says which file, and the way out.
    """
    damaged: list[str] = []
    for path in (run.last_checkpoint, run.previous_checkpoint):
        if not path.exists():
            continue
        if reason := _damage(path):
            damaged.append(f"{path} ({reason})")
            continue
        _check_own(path, run)
        if damaged:
            run.last_checkpoint.unlink(missing_ok=True)
            say(console, f"{damaged[0]} is damaged: going on from {path.name}", "yellow")
        return path
    if damaged:
        raise CheckpointError(
            f"{' and '.join(damaged)} cannot be read, so the run cannot go on from there. Remove "
            "what is named: --resume then fine-tunes anew from where it began, to the same end."
        )
    return None


def last_good_weights(checkpoint: Path, model: MultiExpertClassifier) -> int:
    """Give a network the weights of a checkpoint, averaged where they were; how many epochs."""
    values = torch.load(checkpoint, map_location="cpu", weights_only=True)
    own = {k: v for k, v in values["state_dict"].items() if k.startswith("model.")}
    model.load_state_dict({k.removeprefix("model."): v for k, v in own.items()})
    return int(values["epoch"]) + 1


def _damage(path: Path) -> str:
    """Why a checkpoint cannot be used; empty if it is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            spoilt = archive.testzip()  # by the checksum that each part carries
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return f"its part {spoilt} is not what was written" if spoilt else ""


def _check_own(path: Path, run: RunFolder) -> None:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("run")
    except Exception as error:
        raise CheckpointError(
            f"{path} is no checkpoint of recame ({' '.join(str(error).split())[:200]}): remove it; "
            "--resume then fine-tunes anew from where it began, to the same end."
        ) from error
    if found != run.identity:
        raise CheckpointError(
            f"{path} was not written by this run, as it began with other data or settings or at "
            "another time: the result would be neither's. Remove it; --resume then fine-tunes anew."
        )
