"""Checkpoints of fine-tuning: two are kept, and each is checked before a run resumes from it."""

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
        run: its folder holds the files.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save; all processes of a distributed run take part, and the first one writes."""
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
    """Write a checkpoint directly to its folder.

    Lightning writes to the system's temporary folder first, which may be smaller than a checkpoint,
    and then moves the file. Here, `write_whole` prevents half-written files.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write it."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).write_bytes(content.getbuffer())


def newest_checkpoint(run: RunFolder, console: Console) -> Path | None:
    """The checkpoint to resume from; None if there is none yet.

    If the last one is damaged and the one before is not, the last one is removed, and one more
    epoch is repeated.

    Raises:
        CheckpointError: all are damaged, or another run wrote them; names the file and the remedy.
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
            say(console, f"{damaged[0]} is damaged: continuing from {path.name}", "yellow")
        return path
    if damaged:
        raise CheckpointError(
            f"{' and '.join(damaged)} cannot be read, so the run cannot continue from there. "
            "Remove what is named: --resume then repeats fine-tuning from its start, with the same "
            "result."
        )
    return None


def last_good_weights(checkpoint: Path, model: MultiExpertClassifier) -> int:
    """Load a checkpoint's weights (averaged ones if it has them); return the number of epochs."""
    values = torch.load(checkpoint, map_location="cpu", weights_only=True)
    own = {k: v for k, v in values["state_dict"].items() if k.startswith("model.")}
    model.load_state_dict({k.removeprefix("model."): v for k, v in own.items()})
    return int(values["epoch"]) + 1


def _damage(path: Path) -> str:
    """The reason why a checkpoint cannot be used; empty if it is undamaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            spoilt = archive.testzip()  # checks the checksum of each part
    except (OSError, zipfile.BadZipFile) as error:
        return str(error)
    return f"its part {spoilt} is damaged" if spoilt else ""


def _check_own(path: Path, run: RunFolder) -> None:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("run")
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of recame ({' '.join(str(error).split())[:200]}): remove "
            "it; --resume then repeats fine-tuning from its start, with the same result."
        ) from error
    if found != run.identity:
        raise CheckpointError(
            f"{path} was not written by this run, but by one with other data, settings or start: "
            "the result would be a mixture. Remove it; --resume then repeats fine-tuning."
        )
