"""The gates of a model's regional attention over a sample of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recame.contracts import Array
from recame.inference.forward import evaluating
from recame.models import MultiExpertClassifier
from recame.models.gates import attention_layers, reading_gates

#: A gate reacts to the image if its standard deviation over the images is above this.
ANSWERS = 0.05

_BATCH = 64


@dataclass(frozen=True)
class GateLayer:
    """The gates of one attention layer over a sample of images.

    Attributes:
        stage: of the backbone, from 1.
        expert: whose branch it belongs to; None: shared by all.
        mean: (R, S) mean gate of each region, over images and channels.
        low: (R, S) 5th percentile of a region's gates.
        high: (R, S) 95th percentile of a region's gates.
        varies: (R, S) standard deviation over the images, mean over the channels: how much the
            gates react to the content of the region.
        answering: (R, S) share of the channels whose gate's standard deviation over the images is
            above `ANSWERS`.
        channel: (R, S) the channel whose gate varies most over the images.
        channel_gates: (N, R, S) that channel's gate in each image.
        by_class: (K, R, S) its mean over the images of each class; NaN without an image.
        num_channels: C.
        identity: initial gate of a layer that starts as the identity.
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
    identity: float

    @property
    def name(self) -> str:
        """For example `stage 7, expert 1`."""
        return f"stage {self.stage}, {'shared' if self.expert is None else f'expert {self.expert}'}"

    @property
    def open(self) -> bool:
        """Whether nearly all gates are nearly open, so that the layer changes little."""
        near = self.low.min() > 0.97 and self.high.max() < 1.03
        return bool(near and self.answering.max() < 0.005)

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON, without the gates of single images."""
        return {
            "layer": self.name,
            "channels": self.num_channels,
            **{
                name: np.round(getattr(self, name), 5).tolist()
                for name in ("mean", "low", "high", "varies", "answering", "channel")
            },
        }


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
    layers = attention_layers(model)
    if not layers or not len(images):
        return []
    device = next(model.parameters()).device
    attention = [layer for _, _, layer in layers]
    shown = np.repeat(target, model.spec.pieces)
    with reading_gates(attention) as read, evaluating(model), torch.no_grad():
        for start in range(0, len(images), _BATCH):
            model(images[start : start + _BATCH].to(device))
    return [
        _summarise(
            stage + 1,
            expert,
            torch.cat(gates).float().cpu().numpy(),
            shown,
            num_classes,
            layer.identity,
        )
        for (stage, expert, layer), gates in zip(layers, read, strict=True)
    ]


def _summarise(
    stage: int,
    expert: int | None,
    gates: Array,
    target: Array,
    num_classes: int,
    identity: float,
) -> GateLayer:
    """Summarise gates (N, C, R, S)."""
    deviation = gates.std(0)
    channel = deviation.argmax(0)
    rows, columns = np.indices(channel.shape)
    low, high = np.quantile(gates, (0.05, 0.95), axis=(0, 1))
    # One row per class: 1 for its images.
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
        identity=identity,
    )
