"""Changes of a training batch of one's own, beside those of `Augment`."""

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
    """What `augment.extra` names, made.

    Each is called with its `init_args` and then with every batch, and with the keyword `generator`
    if it takes one; what draws otherwise, as a transform of torchvision does, draws from torch's
    own numbers, which each step seeds.

    Raises:
        PluginError: one cannot be imported or made.
    """
    return tuple(_change(plugin) for plugin in plugins)


def _change(plugin: Plugin) -> Change:
    made = plugin.make(_SETTING)
    if not callable(made):
        raise PluginError(
            f"{_SETTING} names {plugin.class_path}, which makes a {type(made).__name__}, and that "
            "cannot be called with images: give a class or a function that makes what can."
        )
    drawing = takes(made, "generator")

    def change(images: Tensor, generator: torch.Generator) -> Tensor:
        found = made(images, generator=generator) if drawing else made(images)
        if not isinstance(found, Tensor) or found.shape != images.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise PluginError(
                f"{_SETTING} ({plugin.class_path}) makes {got} of images {tuple(images.shape)}: "
                "give back as many images of the same size."
            )
        return found.to(images.dtype).clamp(0.0, 1.0)

    return change
