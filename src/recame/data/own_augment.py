"""The user's own augmentations of a training batch, beside those of `Augment`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recame.errors import PluginError
from recame.plugins import Plugin, takes

#: (B, C, H, W) in [0, 1] and a generator on the CPU -> the same, changed.
Change = Callable[[Tensor, torch.Generator], Tensor]

_SETTING = "augment.extra"


def own_changes(plugins: Sequence[Plugin]) -> tuple[Change, ...]:
    """Make the augmentations that `augment.extra` names.

    Each is made with its `init_args`, and then called with every batch, and with the keyword
    `generator` if it takes one. Others, such as transforms of torchvision, draw from torch's global
    generator, which each step seeds.

    Raises:
        PluginError: an augmentation cannot be imported or made.
    """
    return tuple(_change(plugin) for plugin in plugins)


def _change(plugin: Plugin) -> Change:
    made = plugin.make(_SETTING)
    if not callable(made):
        raise PluginError(
            f"{_SETTING} names {plugin.class_path}, which makes a {type(made).__name__}, but that "
            "cannot be called with images: give a class or a function that makes a callable."
        )
    drawing = takes(made, "generator")

    def change(images: Tensor, generator: torch.Generator) -> Tensor:
        found = made(images, generator=generator) if drawing else made(images)
        if not isinstance(found, Tensor) or found.shape != images.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise PluginError(
                f"{_SETTING} ({plugin.class_path}) returns {got} for images {tuple(images.shape)}: "
                "return as many images of the same size."
            )
        return found.to(images.dtype).clamp(0.0, 1.0)

    return change
