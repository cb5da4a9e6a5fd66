"""Where a model looked: attribution maps of its stages, and the gates of its regional attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.models import MultiExpertClassifier, RegionalChannelAttention

Array = np.ndarray[Any, np.dtype[Any]]

#: Least sides of the two maps that are blended: the coarse one sees what, the fine one where.
_SIDES = (4, 8)

_BATCH = 64

#: A gate whose standard deviation over the images is above this answers to what it sees.
ANSWERS = 0.05


@dataclass(frozen=True)
class GateLayer:
    """The gates of one attention layer over a sample of images.

    Attributes:
        stage: of the backbone, from 1.
        expert: whose tail it belongs to; None: shared by all.
        mean: (R, S) mean gate of each region, over images and channels.
        low: (R, S) the gate that 5 % of a region's gates lie below.
        high: (R, S) the gate that 95 % lie below.
        varies: (R, S) standard deviation over the images, mean over the channels: how much the
            gates answer to what is in the region.
        answering: (R, S) share of the channels whose gate's standard deviation over the images is
            above `ANSWERS`.
        channel: (R, S) the channel whose gate varies most over the images.
        channel_gates: (N, R, S) that channel's gate in each image.
        by_class: (K, R, S) its mean over the images of each class; NaN without an image of it.
        num_channels: C.
    """

    stage: int
    expert: int | None
    mean: Array
    low: Array
    high: Array
    varies: Array
    answering: Array
    channel: Array
    channel_gates: Array
    by_class: Array
    num_channels: int

    @property
    def name(self) -> str:
        """As `stage 7, expert 1`."""
        return f"stage {self.stage}, {'shared' if self.expert is None else f'expert {self.expert}'}"

    @property
    def open(self) -> bool:
        """Whether nearly all gates let nearly everything through: the layer changes little."""
        return bool(self.low.min() > 0.97 and self.answering.max() < 0.005)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the images' own gates."""
        return {
            "layer": self.name,
            "channels": self.num_channels,
            **{
                name: np.round(getattr(self, name), 5).tolist()
                for name in ("mean", "low", "high", "varies", "answering", "channel")
            },
        }


def attribution_stages(model: MultiExpertClassifier, images: Tensor) -> tuple[int, ...]:
    """The stages whose maps are blended: the deepest of at least 4 x 4 and of at least 8 x 8.

    Args:
        model: any number of experts.
        images: (B, C, H, W) in [0, 1]; only their size counts.

    Returns:
        One or two stage indices, ascending. Where no map is that large, the deepest of the largest.
        Where only a class token is classified, the last stage's patches say nothing: left out.
    """
    blind = int(model.architecture.pooling == "token" and model.num_stages > 1)
    with _evaluating(model), torch.no_grad():
        maps = (images[:1] - model.mean) / model.std
        sides = []
        for stage in _stages(model, 0)[: model.num_stages - blind]:
            maps = stage(maps)
            sides.append(min(maps.shape[2:]))
    largest = max(sides)
    chosen = {
        max(i for i, side in enumerate(sides) if side >= min(least, largest)) for least in _SIDES
    }
    return tuple(sorted(chosen))


def attribution_maps(
    model: MultiExpertClassifier,
    images: Tensor,
    classes: Tensor,
    stages: tuple[int, ...] | None = None,
) -> Array:
    """What speaks for each of some classes in each image, by each expert.

    At each stage, activation times gradient, summed over the channels (HiResCAM: Draelos and
    Carin, arXiv 2011.08891, by captum's `LayerGradientXActivation`); the gradient is that of the
    class's logit above the mean of the expert's logits, so that what speaks for every class alike
    cancels. What speaks against the class is dropped. An image's maps of one stage are divided by
    the largest absolute value among them, resized, and averaged over the stages; so its maps are
    comparable between classes and between experts. The mean over the experts is the map of the
    ensemble where they share the stage.

    Args:
        model: its weights keep no gradient.
        images: (B, C, H, W) in [0, 1].
        classes: (B, K) class indices.
        stages: indices of stages; None: `attribution_stages`.

    Returns:
        (B, K, E, H, W) float32, 0 or more.
    """
    from captum.attr import LayerAttribution, LayerGradientXActivation

    stages = attribution_stages(model, images) if stages is None else stages
    size = (int(images.shape[2]), int(images.shape[3]))
    count, num_maps = len(images), classes.shape[1] * model.num_experts
    # captum follows gradients from the images on.
    seen = images.detach().clone().requires_grad_(True)
    total = torch.zeros(count, num_maps, *size, device=images.device)
    with _evaluating(model):
        for stage in stages:
            parts = []
            for target in classes.T:
                for expert in range(model.num_experts):
                    layer = _stages(model, expert)[stage]
                    method = LayerGradientXActivation(_logit_above_mean(model, expert), layer)
                    found = method.attribute(seen, target=target).detach()
                    parts.append(found.sum(1, keepdim=True))
            maps = torch.cat(parts, 1)
            largest = maps.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
            total += LayerAttribution.interpolate(maps / largest, size, "bilinear").relu()
    shape = (count, classes.shape[1], model.num_experts, *size)
    return np.asarray((total / len(stages)).view(shape).cpu().numpy())


def gate_layers(
    model: MultiExpertClassifier, images: Tensor, target: Array, num_classes: int
) -> list[GateLayer]:
    """Read the gates of the last attention layer of each stage.

    Args:
        model: with or without attention.
        images: (N, C, H, W) in [0, 1]; each batch goes to the model's device.
        target: (N,) class indices, -1 where unknown.
        num_classes: K.

    Returns:
        Shared layers first, then expert by expert; empty without attention or images.
    """
    layers = _attention_layers(model)
    if not layers or not len(images):
        return []
    device = next(model.parameters()).device
    read: list[list[Tensor]] = [[] for _ in layers]

    def reader(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read_gates(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, RegionalChannelAttention)
            read[index].append(module.gates(inputs[0]).float().cpu())

        return read_gates

    handles = [layer.register_forward_pre_hook(reader(i)) for i, (_, _, layer) in enumerate(layers)]
    try:
        with _evaluating(model), torch.no_grad():
            for start in range(0, len(images), _BATCH):
                model(images[start : start + _BATCH].to(device))
    finally:
        for handle in handles:
            handle.remove()
    return [
        _summarise(stage, expert, torch.cat(gates).numpy(), target, num_classes)
        for (stage, expert, _), gates in zip(layers, read, strict=True)
    ]


def _summarise(
    stage: int, expert: int | None, gates: Array, target: Array, num_classes: int
) -> GateLayer:
    """Reduce gates (N, C, R, S)."""
    deviation = gates.std(0)
    channel = deviation.argmax(0)
    rows, columns = np.indices(channel.shape)
    low, high = np.quantile(gates, (0.05, 0.95), axis=(0, 1))
    # One row a class: 1 where the image is of it.
    members = (np.arange(num_classes)[:, None] == target[None]).astype(np.float64)
    images = members.sum(1)
    channel_gates = gates[:, channel, rows, columns]
    sums = np.tensordot(members, channel_gates, axes=1)
    by_class = np.divide(
        sums,
        images[:, None, None],
        out=np.full(sums.shape, np.nan),
        where=images[:, None, None] > 0,
    )
    return GateLayer(
        stage=stage,
        expert=expert,
        mean=gates.mean((0, 1)),
        low=low,
        high=high,
        varies=deviation.mean(0),
        answering=(deviation > ANSWERS).mean(0),
        channel=channel,
        channel_gates=channel_gates,
        by_class=by_class,
        num_channels=gates.shape[1],
    )


def _attention_layers(
    model: MultiExpertClassifier,
) -> list[tuple[int, int | None, RegionalChannelAttention]]:
    """(stage from 1, expert, the stage's last attention layer)."""
    shared = len(model.trunk)
    places: list[tuple[int, int | None, nn.Module]] = [
        (number, None, stage) for number, stage in enumerate(model.trunk, 1)
    ]
    for expert, tail in enumerate(model.tails):
        assert isinstance(tail, nn.ModuleList)
        places += [(number, expert, stage) for number, stage in enumerate(tail, shared + 1)]
    found = []
    for number, owner, stage in places:
        layers = [m for m in stage.modules() if isinstance(m, RegionalChannelAttention)]
        if layers:
            found.append((number, owner, layers[-1]))
    return found


def _stages(model: MultiExpertClassifier, expert: int) -> list[nn.Module]:
    tail = model.tails[expert]
    assert isinstance(tail, nn.ModuleList)
    return [*model.trunk, *tail]


def _logit_above_mean(model: nn.Module, expert: int) -> Callable[[Tensor], Tensor]:
    def forward(images: Tensor) -> Tensor:
        logits: Tensor = model(images).logits[:, expert]
        return logits - logits.mean(1, keepdim=True)

    return forward


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """`eval()` for a while; each module's own mode is given back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def overlay(pixels: Array, heat: Array, colour: str, side: int = 160) -> Array:
    """An image, paled, with a map laid over it in one colour.

    Args:
        pixels: (H, W, C) in [0, 1], 1 or 3 channels.
        heat: (H, W) in [0, 1]; 0 shows the image alone.
        colour: as `#dd7b2f`.
        side: of the result's longer edge, in pixels.

    Returns:
        (h, w, 3) uint8.
    """
    scale = side / max(pixels.shape[:2])
    size = tuple(max(1, round(edge * scale)) for edge in pixels.shape[:2])
    grey = torch.from_numpy(np.ascontiguousarray(pixels.mean(2), dtype=np.float32))
    warm = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32))
    base, alpha = (
        functional.interpolate(part[None, None], size, mode=mode)[0, 0].numpy()
        for part, mode in ((grey, "nearest"), (warm, "bilinear"))
    )
    tint = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    pale = (0.25 + 0.6 * base)[..., None]
    strength = np.clip(alpha, 0, 1)[..., None] * 0.85
    mixed: Array = np.clip((pale * (1 - strength) + tint * strength) * 255 + 0.5, 0, 255)
    return mixed.astype(np.uint8)
