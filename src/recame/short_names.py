"""Short names of the settings that are changed most: one table for Python and the command line.

The settings themselves are not imported: a machine that only predicts has not what checks them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from recame.durations import parse_duration
from recame.errors import ConfigError, did_you_mean


class ShortSettings(TypedDict, total=False):
    """The settings that functions take as keywords, see `SHORT`."""

    epochs: int
    batch_size: int
    size: int | str | tuple[int, int]
    time_budget: float | str
    normal: str
    seed: int
    device: str


@dataclass(frozen=True)
class ShortName:
    """A short name of a setting.

    Attributes:
        setting: its whole name.
        words: what it is, as help says it.
        read: from what people give to the setting's value.
    """

    setting: str
    words: str
    read: Callable[[Any], Any] = lambda value: value


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _accelerator(device: object) -> object:
    """The value of `run.accelerator` for a device: `gpu` for `cuda`.

    Raises:
        ConfigError: it names one of several GPUs.
    """
    text = str(device)
    if text.startswith(("cuda:", "gpu:")) or text.isdigit():
        number = text.rpartition(":")[2]
        raise ConfigError(
            f"device={text!r} names one of several GPUs, but a run's settings cannot: set "
            f"CUDA_VISIBLE_DEVICES={number} before the start, and device='cuda'."
        )
    return "gpu" if text == "cuda" else text


#: Short name -> setting, help, and how it is read; the keys are those of `ShortSettings`.
SHORT: dict[str, ShortName] = {
    "epochs": ShortName("finetune.epochs", "Passes over the training images."),
    "batch_size": ShortName("finetune.batch_size", "Training images in each step."),
    "size": ShortName(
        "data.size", "Size of the images in pixels: a side, or height x width, as 128x512."
    ),
    "time_budget": ShortName(
        "run.time_budget_s", "Time for the whole run, for example 90s, 15m or 1h30m.", _seconds
    ),
    "normal": ShortName("data.normal_class", "The class without a defect."),
    "seed": ShortName("run.seed", "Seed of every random number."),
    "device": ShortName("run.accelerator", "Device: auto, cpu or cuda.", _accelerator),
}

#: Name of a setting in other libraries -> its name here.
_ELSEWHERE = {
    **dict.fromkeys(("imgsz", "img_size", "image_size", "input_size", "resize"), "size=128"),
    **dict.fromkeys(("batch", "bs"), "batch_size=32"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "epoch"), "epochs=5"),
    **dict.fromkeys(("time", "max_time", "timeout"), 'time_budget="10m"'),
    **dict.fromkeys(("random_state",), "seed=0"),
    **dict.fromkeys(("accelerator", "gpus"), 'device="cuda"'),
    **dict.fromkeys(("lr", "lr0", "learning_rate"), 'the settings {"finetune.lr": 5e-4}'),
    **dict.fromkeys(("optimizer", "optim"), 'the settings {"finetune.optimizer": "sgd"}'),
    **dict.fromkeys(("model", "arch", "backbone"), 'the settings {"model.backbone": "resnet18"}'),
    **dict.fromkeys(("weights", "pretrained"), 'the settings {"model.pretrained": "runs/first"}'),
    **dict.fromkeys(("project", "name", "save_dir", "output", "output_dir"), 'out="runs/first"'),
}


def in_full(short: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their full names; None values are left out.

    Args:
        short: short names, or whole ones, to values.

    Examples:
        >>> in_full({"epochs": 5, "time_budget": "10m", "device": "cuda", "seed": None})
        {'finetune.epochs': 5, 'run.time_budget_s': 600.0, 'run.accelerator': 'gpu'}

    Raises:
        ConfigError: a name is unknown; the error proposes one.
    """
    found: dict[str, Any] = {}
    for name, value in short.items():
        if value is None:
            continue
        if name in SHORT:
            known = SHORT[name]
            name, value = known.setting, known.read(value)
        elif "." not in name:
            raise _unknown(name)
        found[name] = value
    return found


def _unknown(name: str) -> ConfigError:
    if name in _ELSEWHERE:
        return ConfigError(f"There is no setting {name!r} here: give {_ELSEWHERE[name]} instead.")
    meant = did_you_mean(name, SHORT)
    return ConfigError(
        f"There is no setting {name!r}{meant and f' ({meant})'}. Short names are "
        f"{', '.join(SHORT)}; give every other setting by its full name in a dictionary, "
        '{"section.key": value} (`recame settings` prints all).'
    )
