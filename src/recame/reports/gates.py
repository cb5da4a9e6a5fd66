"""Which images open and close the attention gates, in pictures and in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from recame.contracts import Array, IntArray, Predictions
from recame.data.sampling import balanced_sample
from recame.inference.gates import GateLayer, gate_layers
from recame.pages.render import Picture
from recame.reports.gallery import thumb
from recame.reports.sampled_images import Look

#: Images whose gates are read; pictures of images that open a gate, and that close it.
GATE_IMAGES, GATE_PICTURES = 256, 6
#: Pixel values in memory at once; fewer images are read if they are large.
_GATE_VALUES = 1 << 26


@dataclass(frozen=True)
class GateExample:
    """Images that open one gate of a region, and images that close it.

    Attributes:
        layer: name of the attention layer.
        region: (row, column) from 0, and the grid's size.
        channel: of the feature map.
        opened: images with the most open gate.
        closed: images with the most closed gate.
        high: mean gate of `opened`.
        low: mean gate of `closed`.
    """

    layer: str
    region: tuple[int, int, int, int]
    channel: int
    opened: tuple[Picture, ...]
    closed: tuple[Picture, ...]
    high: float
    low: float

    @property
    def place(self) -> str:
        """Describe the region in words, for example `top left`."""
        row, column, rows, columns = self.region
        if (rows, columns) == (1, 1):
            return "whole map"
        if rows == 2 and columns == 2:
            return f"{('top', 'bottom')[row]} {('left', 'right')[column]}"
        return f"row {row + 1}, column {column + 1} of {rows} x {columns}"


def read_gates(
    look: Look, predictions: Predictions, rows: IntArray, sample: IntArray, seed: int
) -> tuple[list[GateLayer], list[GateExample], int]:
    """Read the gates of a sample of the split, and find the images that open and close them most.

    Args:
        look: the model and the images.
        predictions: of the split.
        rows: (N,) cache row of each prediction.
        sample: rows of the predictions to choose from; their images must be available.
        seed: of the choice.

    Returns:
        The layers, examples of the layer whose gates vary most, and how many images were read.
    """
    if look.loaded.architecture.attention == "none" or not len(sample):
        return [], [], 0
    spec, fewest = look.data.spec, 2 * GATE_PICTURES
    affordable = _GATE_VALUES // (spec.height * spec.width * spec.channels)
    number = min(max(affordable, fewest), GATE_IMAGES)
    read = sample[np.sort(balanced_sample(predictions.target[sample], number, seed))]
    layers = gate_layers(
        look.loaded.model,
        torch.from_numpy(look.pixels(rows[read])).permute(0, 3, 1, 2),
        predictions.target[read],
        look.loaded.label_space.num_classes,
    )
    varied = [layer for layer in layers if layer.answering.max() > 0]
    if not varied or len(read) < fewest:
        return layers, [], len(read)
    most = max(varied, key=lambda layer: float(layer.channel_gates.std(0).mean()))
    return layers, _gate_examples(look, most, rows[read], predictions.target[read]), len(read)


def class_gates(layer: GateLayer, names: Sequence[str], most: int) -> list[tuple[str, Array]]:
    """Mean of each region's most varying gate, for each class.

    Args:
        layer: gates of images of these classes.
        names: the classes, index order.
        most: largest number of classes; those that differ most from the mean over classes.

    Returns:
        (class, (R * S,) mean gates) of the classes with images, in index order.
    """
    flat = layer.by_class.reshape(len(names), -1)
    present = np.flatnonzero(~np.isnan(flat[:, 0]))
    if not len(present):
        return []
    apart = np.abs(flat[present] - flat[present].mean(0)).max(1)
    chosen = np.sort(present[np.argsort(-apart, kind="stable")[:most]])
    return [(names[index], flat[index]) for index in chosen.tolist()]


def gates_sentence(layers: Sequence[GateLayer]) -> str:
    """Say in words whether the attention reacts to the image.

    Args:
        layers: at least one.
    """
    busy = [layer for layer in layers if not layer.open]
    start = f"{layers[0].identity:.4g}"
    if not busy:
        mean = float(np.mean([layer.mean.mean() for layer in layers]))
        return (
            f"The gates hardly vary: their mean is {mean:.4f}; attention that starts as the "
            f"identity starts at {start}. In this run the attention changes almost nothing."
        )
    most = max(busy, key=lambda layer: float(layer.answering.max()))
    still = f", {len(layers) - len(busy)} hardly vary" if len(busy) < len(layers) else ""
    return (
        f"Of {len(layers)} attention layers, {len(busy)} react to the image{still} (attention that "
        f"starts as the identity starts at {start}). {most.name} reacts most: up to "
        f"{float(most.answering.max()):.0%} of a region's gates vary with the image."
    )


def _gate_examples(
    look: Look, layer: GateLayer, rows: IntArray, labels: IntArray
) -> list[GateExample]:
    """Find, for each region, the images that open and close its most varying gate."""
    # Index -1 of an image without a label selects the last name.
    names = np.array([*look.loaded.label_space.names, "no label"], dtype=object)
    height, width = layer.channel.shape
    found = []
    for row, column in np.ndindex(height, width):
        gates = layer.channel_gates[:, row, column]
        order = np.argsort(-gates, kind="stable")
        ends = order[:GATE_PICTURES], order[::-1][:GATE_PICTURES]
        opened, closed = (
            tuple(
                thumb(image, f"image of {label}", f"{label} {gate:.2f}")
                for image, label, gate in zip(
                    look.shown(rows[end]), names[labels[end]], gates[end].tolist(), strict=True
                )
            )
            for end in ends
        )
        high, low = (float(gates[end].mean()) for end in ends)
        channel = int(layer.channel[row, column])
        region = row, column, height, width
        found.append(GateExample(layer.name, region, channel, opened, closed, high, low))
    return found
