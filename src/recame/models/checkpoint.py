"""Models on disk: weights, and a description of how to build and feed the model."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recame.contracts import AnyPath, PreprocessSpec
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import json_text, read_json, sha256, write_together
from recame.label_space import LabelSpace
from recame.models.architecture import Architecture
from recame.models.experts import MultiExpertClassifier

#: Schema of models whose gates are divided by their start; older versions read `_UNDIVIDED` only.
CHECKPOINT_SCHEMA = 3
_UNDIVIDED = 2

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "model.json"

_CLASS_WEIGHT = "head.classifier.weight"

#: Exceptions of building a network from an edited or damaged description.
_UNBUILDABLE = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
)


@dataclass(frozen=True)
class LoadedModel:
    """The content of a checkpoint.

    Attributes:
        model: in evaluation mode, on the requested device.
        label_space: the classes of its training.
        spec: the preprocessing of its training.
        architecture: of the model.
    """

    model: MultiExpertClassifier
    label_space: LabelSpace
    spec: PreprocessSpec
    architecture: Architecture


def save_checkpoint(
    folder: Path,
    model: MultiExpertClassifier,
    label_space: LabelSpace,
    *,
    of_run: str | None = None,
) -> None:
    """Write weights, architecture, preprocessing and label space; both files, or neither.

    Args:
        folder: created if missing.
        model: on any device.
        label_space: its C classes.
        of_run: identity of the unfinished run; only this run may resume from the checkpoint.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written. An existing checkpoint
            stays unchanged.
    """
    assert model.num_classes == label_space.num_classes
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with write_together(folder, error=CheckpointError) as partial:
        try:
            save_file(state, partial / WEIGHTS_FILE)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error
        document = {
            "schema": _UNDIVIDED if model.architecture.gate_start is None else CHECKPOINT_SCHEMA,
            "recame": version("recame"),
            "weights_sha256": sha256(partial / WEIGHTS_FILE),
            "architecture": model.architecture.to_dict(),
            "preprocess": model.spec.to_dict(),
            "label_space": label_space.to_dict(),
            **({} if of_run is None else {"run": of_run}),
        }
        (partial / DESCRIPTION_FILE).write_text(json_text(document), encoding="utf-8")


def load_checkpoint(path: AnyPath, device: str | torch.device = "cpu") -> LoadedModel:
    """Build the model of a folder, without a config file and without any download.

    Args:
        path: the folder that holds `model.safetensors` and `model.json`.
        device: device of the model.

    Raises:
        CheckpointError: a file is missing, damaged, edited, or of a newer schema.
    """
    folder = Path(path)
    document = _read_description(folder)
    weights = folder / WEIGHTS_FILE
    try:
        architecture = Architecture.from_dict(document["architecture"])
        spec = PreprocessSpec.from_dict(document["preprocess"])
        label_space = LabelSpace.from_dict(document["label_space"])
        checksum = document["weights_sha256"]
    except (*_UNBUILDABLE, DataError, ConfigError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION_FILE} cannot be used ({error}): it was edited or damaged. "
            "Copy it again from the run that wrote it."
        ) from error
    try:
        found = sha256(weights)
        if found != checksum:
            raise CheckpointError(
                f"{weights} is not the file that {DESCRIPTION_FILE} describes (SHA-256 "
                f"{found[:12]} instead of {str(checksum)[:12]}): it is damaged or mixed with "
                "another run's. Copy the folder again, or train again."
            )
        with safe_open(weights, framework="pt") as tensors:
            num_classes = int(tensors.get_slice(_CLASS_WEIGHT).get_shape()[1])
        if num_classes != label_space.num_classes:
            raise CheckpointError(
                f"{folder / DESCRIPTION_FILE} names {label_space.num_classes} classes, but the "
                f"weights were trained for {num_classes}: put the label space of that run back; "
                "to add or drop a class, train again."
            )
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{weights} cannot be read ({error}): it is damaged. Copy the folder again, or train "
            "again."
        ) from error
    try:
        model = MultiExpertClassifier(architecture, num_classes, spec)
        model.load_state_dict(_upgraded(state, architecture.num_experts))
    except (*_UNBUILDABLE, ConfigError) as error:
        raise CheckpointError(
            f"The weights of {folder} do not fit the architecture in {DESCRIPTION_FILE} "
            f"({' '.join(str(error).split())[:300]}): it was edited, or timm has changed since."
        ) from error
    return LoadedModel(model.to(device).eval(), label_space, spec, architecture)


def owner(folder: Path) -> str | None:
    """The `of_run` of a checkpoint.

    Raises:
        CheckpointError: the description is missing or damaged.
    """
    identity = _read_description(folder).get("run")
    return None if identity is None else str(identity)


def _upgraded(state: dict[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """Convert weights of schema 1, whose experts shared one fixed feature normalisation."""
    if "head.mean" in state:
        mean, std = (state.pop(f"head.{name}").repeat(num_experts) for name in ("mean", "std"))
        norm = "head.standardise"
        state |= {f"{norm}.running_mean": mean, f"{norm}.running_var": std.square()}
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return state


def _read_description(folder: Path) -> dict[str, Any]:
    """The JSON document of a checkpoint whose schema this version reads."""
    missing = [name for name in (DESCRIPTION_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} holds no {' and no '.join(missing)}: give the run folder that "
            f"`recame train --out` wrote, with {WEIGHTS_FILE} and {DESCRIPTION_FILE} in it."
        )
    return read_json(folder / DESCRIPTION_FILE, newest=CHECKPOINT_SCHEMA)
