"""Cut timm networks into stages that, run one after the other, compute the whole network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

#: Largest difference of outputs, relative to the largest value.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Cut:
    """A network's modules in order.

    Attributes:
        parts: one list for each stage; the stem belongs to the first one.
        tail: modules after the last stage.
        channels: of each stage's output.
        out_channels: after the tail.
    """

    parts: list[list[nn.Module]]
    tail: list[nn.Module]
    channels: list[int]
    out_channels: int


class Permuted(nn.Module):
    """Permute the axes of a map: between stages they have the order of a convolution."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, maps: Tensor) -> Tensor:
        """(B, ...) to (B, ...)."""
        return maps.permute(self.axes)


def cut_into_stages(model: nn.Module, in_channels: int, size: tuple[int, int]) -> Cut | None:
    """Cut a network by the first way whose stages compute the same as it; None: there is none.

    Args:
        model: of timm; put into training mode.
        in_channels: of its images.
        size: height and width of an image that it takes.
    """
    for parts, tail in _ways(model):
        found = _checked(model, parts, tail, (1, in_channels, *size))
        if found is not None:
            # Experts share a stage's output, so no module may change it in place.
            for part in parts[1:]:
                _keep_input(part)
            return found
    return None


_Way = tuple[list[list[nn.Module]], list[nn.Module]]
_CONTAINERS = ("stages", "layers", "blocks", "levels", "network")
#: Most members of a container that count as stages; if there are more, they are blocks.
_MOST_STAGES = 8
_AFTER = {
    *("head", "fc", "classifier", "global_pool", "avgpool", "head_drop", "fc_norm", "head_dist"),
    *("pool", "dropout", "pre_logits", "last_linear", "drop", "attn_pool"),
}


def _ways(model: nn.Module) -> Iterator[_Way]:
    """Ways to cut: first those of known families, then by the order of the modules."""
    children = dict(model.named_children())

    def present(*names: str) -> list[nn.Module]:
        return [children[n] for n in names if n in children]

    if {"conv1", "layer1", "layer3"} <= children.keys():
        stages = present("layer1", "layer2", "layer3", "layer4")
        yield _with_stem(present("conv1", "bn1", "act1", "maxpool"), stages), []
    if {"conv_stem", "blocks"} <= children.keys():
        tail = present("conv_head", "bn2") if "bn2" in children else []
        stem = present("conv_stem", "bn1", "act1")
        yield _with_stem(stem, list(children["blocks"].children())), tail
    if {"stem", "stages"} <= children.keys():
        stages = list(children["stages"].children())
        yield _with_stem(present("stem"), stages), present("norm_pre", "norm")
    if {"stem", "s1", "s4", "final_conv"} <= children.keys():
        yield _with_stem(present("stem"), present("s1", "s2", "s3", "s4")), present("final_conv")
    if isinstance(children.get("features"), nn.Sequential):
        yield _cut_features(model, children["features"]), []
    yield from _by_order(children)


def _by_order(children: dict[str, nn.Module]) -> Iterator[_Way]:
    """Ways by the order of declaration: a stem, the members of one container, a tail."""
    names = [name for name in children if name not in _AFTER]
    for container in _CONTAINERS:
        inside = children.get(container)
        if not isinstance(inside, nn.Sequential | nn.ModuleList) or len(inside) < 2:
            continue
        place = names.index(container)
        parts = _grouped(list(inside.children()))
        parts[0] = [*(children[name] for name in names[:place]), *parts[0]]
        yield parts, [children[name] for name in names[place + 1 :]]
    numbered = [
        name for name in names if name.rstrip("0123456789") in {"stage", "stages_", "layer"}
    ]
    if len(numbered) > 1:
        first, last = names.index(numbered[0]), names.index(numbered[-1])
        stem, stages, tail = (
            [children[name] for name in part]
            for part in (names[:first], names[first : last + 1], names[last + 1 :])
        )
        yield _with_stem(stem, stages), tail


def _grouped(blocks: list[nn.Module]) -> list[list[nn.Module]]:
    """Blocks as stages; many equal blocks form four groups of equal size."""
    count = len(blocks) if len(blocks) <= _MOST_STAGES else 4
    bounds = [number * len(blocks) // count for number in range(count + 1)]
    return [blocks[first:last] for first, last in pairwise(bounds)]


def _with_stem(stem: list[nn.Module], stages: list[nn.Module]) -> list[list[nn.Module]]:
    return [[*stem, stages[0]], *([stage] for stage in stages[1:])]


def _cut_features(model: nn.Module, features: nn.Module) -> list[list[nn.Module]]:
    """Cut `model.features` where a resolution ends, according to timm."""
    ends = {info["module"] for info in getattr(model, "feature_info", [])}
    parts: list[list[nn.Module]] = [[]]
    for name, module in features.named_children():
        _keep_input([module])
        parts[-1].append(module)
        if f"features.{name}" in ends:
            parts.append([])
    return [part for part in parts if part]


def _keep_input(modules: list[nn.Module]) -> None:
    """Stop activations from changing their input in place."""
    for part in modules:
        for module in part.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]


@torch.no_grad()
def _checked(
    model: nn.Module,
    parts: list[list[nn.Module]],
    tail: list[nn.Module],
    shape: tuple[int, int, int, int],
) -> Cut | None:
    """The cut with its channels, if it computes the same as the network on one image."""
    model.eval()
    x = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    try:
        expected = model.forward_features(x)  # type: ignore[operator]
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            expected = expected.permute(0, 3, 1, 2)
            last, first = Permuted(0, 3, 1, 2), Permuted(0, 2, 3, 1)
            parts = [[*parts[0], last], *([first, *part, last] for part in parts[1:])]
            tail = [first, *tail, last] if tail else []
        widths: list[int] = []
        for part in (*parts, tail):
            x = nn.Sequential(*part)(x)
            if not isinstance(x, Tensor) or x.ndim != 4:
                return None
            widths.append(int(x.shape[1]))
        if not isinstance(expected, Tensor) or x.shape != expected.shape:
            return None
        scale = max(1.0, float(expected.abs().max()))
        if not float((x - expected).abs().max()) <= _TOLERANCE * scale:
            return None
    except Exception:  # noqa: BLE001 - modules of another order fail in any way
        return None
    finally:
        model.train()
    return Cut(parts, tail, widths[:-1], widths[-1])
