"""The starting weights of a new network: from timm, or from a run or checkpoint of recame."""

from __future__ import annotations

from pathlib import Path

from recame.contracts import PreprocessSpec
from recame.errors import ConfigError
from recame.models import (
    Architecture,
    LoadedModel,
    MultiExpertClassifier,
    Pretrained,
    continued,
    load_checkpoint,
    pretrained_mean_std,
)
from recame.runs.folder import RunFolder


def own_source(pretrained: Pretrained) -> LoadedModel | None:
    """The network of a run's or checkpoint's folder; None if `model.pretrained` names neither.

    Raises:
        CheckpointError: the folder holds no checkpoint, a damaged one, or an unfinished run.
    """
    if not isinstance(pretrained, Path):
        return None
    if not pretrained.is_dir() and (pretrained.exists() or pretrained.suffix):
        return None  # a file of weights, or a missing one
    if (pretrained / "run.json").exists():
        RunFolder.open(pretrained, finished=True)
    return load_checkpoint(pretrained)


def starting_mean_std(
    backbone: str, pretrained: Pretrained, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The normalisation that the weights were trained with, one value for each channel.

    Raises:
        ConfigError: unknown backbone, `package` for another one, or a run with other channels.
        CheckpointError: as for `own_source`.
    """
    source = own_source(pretrained)
    if source is None:
        return pretrained_mean_std(backbone, pretrained, channels)
    _check_channels(source, pretrained, channels)
    return source.spec.mean, source.spec.std


def starting_network(
    architecture: Architecture, num_classes: int, spec: PreprocessSpec, pretrained: Pretrained
) -> MultiExpertClassifier:
    """A network before any training, with the weights that `model.pretrained` names.

    Raises:
        ConfigError: it cannot be built, or the weights are of another network.
        CheckpointError: the weights cannot be read, or are an unfinished run's.
    """
    source = own_source(pretrained)
    if source is None:
        return MultiExpertClassifier(architecture, num_classes, spec, pretrained)
    _check_channels(source, pretrained, spec.channels)
    return continued(source.model, architecture, num_classes, spec)


def _check_channels(source: LoadedModel, pretrained: Pretrained, channels: int) -> None:
    theirs = source.spec.channels
    if theirs != channels:
        raise ConfigError(
            f"model.pretrained={pretrained} was trained on images of {theirs} channel(s), and "
            f"these have {channels}: its first layer does not fit. Set data.channels={theirs}, or "
            "another model.pretrained."
        )
