"""The module that becomes a bundle's graph: stored pixels in, probabilities out.

The probabilities are not calibrated; the code that runs the graph does that
(`decisions.calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ensemble_logits
from recame.data.transforms import dihedral_view
from recame.errors import ExportError
from recame.models import (
    CosineClassifier,
    LinearClassifier,
    MultiExpertClassifier,
    RegionalChannelAttention,
)
from recame.models.classifier import unit_vectors
from recame.models.regional_attention import apply_gates, pool_regions, region_bounds

#: Outputs that a graph can have besides `probabilities`.
OPTIONAL_OUTPUTS = ("expert_probabilities", "features", "attribution")

#: The attribution map has the grid of the deepest pooled stage with sides of at least this.
_ATTRIBUTION_SIDE = 8


class DeploymentGraph(nn.Module):
    """A classifier with pre- and postprocessing, from stored pixels to probabilities.

    `p = mean over views of softmax(ensemble logits)`. With one view in 32 bits, log p is exactly
    the logits, up to a constant for each image.

    Args:
        model: in evaluation mode, on the CPU.
        views: V, number of flips and rotations that are averaged over, on one batch axis.
        outputs: from `OPTIONAL_OUTPUTS`, in the order in which they follow `probabilities`.

    Raises:
        ExportError: an output cannot be computed for this model.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        model: MultiExpertClassifier,
        *,
        views: int = 1,
        outputs: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if "attribution" in outputs and model.spec.pieces > 1:
            raise ExportError(
                f"No attribution map can be exported: the model sees {model.spec.pieces} parts of "
                "an image (the image and its tiles), at different places. Leave attribution out; "
                "the report of the run shows attribution maps of the tiles."
            )
        if "attribution" in outputs and model.head.hidden is not None:
            raise ExportError(
                f"No attribution map can be exported: the head has a hidden layer "
                f"(model.hidden={model.architecture.hidden}), so a logit is no sum over positions. "
                "Leave attribution out, or train with model.hidden=0."
            )
        self.model = rewritten(model)
        self.views, self._pieces = views, model.spec.pieces
        self.outputs = tuple(outputs)
        spec = model.spec
        std = torch.tensor(spec.std, dtype=torch.float64).view(1, -1, 1, 1)
        mean = torch.tensor(spec.mean, dtype=torch.float64).view(1, -1, 1, 1)
        # (pixel / scale - mean) / std as one multiplication and one addition.
        self.register_buffer("scale", (1 / (spec.scale * std)).float())
        self.register_buffer("offset", (-mean / std).float())
        self._largest = spec.scale if spec.scale < 2**spec.bit_depth - 1 else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify.

        Args:
            images: (B, H, W, C) stored pixels, integers.

        Returns:
            Probabilities (B, C), then the optional outputs: each expert's probabilities
            (B, E, C); features (B, E, D) of view 0; attribution (B, h, w).
        """
        maps = self._normalised(images)
        if self.views > 1:
            maps = torch.cat([dihedral_view(maps, view) for view in range(self.views)])
        shared, own = self._pooled_maps(maps)
        output = self.model.head(_pooled(shared, own, self._pieces))
        num = images.shape[0]
        probabilities = self._ensemble(output.logits)
        results = [probabilities]
        for name in self.outputs:
            if name == "expert_probabilities":
                results.append(self._by_view(output.logits.softmax(-1)).mean(0))
            elif name == "features":
                results.append(output.features[:num])
            else:
                # View 0 comes first.
                maps_of = [[m[:num] for m in (*shared, *stages)] for stages in own]
                called = probabilities.argmax(1)
                results.append(self._attribution(maps_of, output.features[:num], called))
        return tuple(results)

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output for one image, without the batch axis."""
        spec = self.model.spec
        blank = torch.zeros(1, spec.height, spec.width, spec.channels, dtype=torch.uint8)
        with torch.no_grad():
            found = self(blank)
        names = ("probabilities", *self.outputs)
        return {name: tuple(output.shape[1:]) for name, output in zip(names, found, strict=True)}

    def attribution_grid(self) -> tuple[int, int]:
        """Height and width of the attribution map."""
        spec = self.model.spec
        with torch.no_grad():
            blank = torch.zeros(1, spec.channels, spec.height, spec.width)
            shared, own = self._pooled_maps(blank)
        return _grid([*shared, *own[0]])

    def _normalised(self, images: Tensor) -> Tensor:
        """Stored pixels (B, H, W, C) to normalised images (B, C, H, W), one for each tile."""
        pixels = images.to(torch.float32)
        height, width = self.model.spec.piece_size
        if self._pieces > 1:
            pixels = pixels.reshape(-1, height, width, pixels.shape[3])
        if self.model.spec.channels == 1:
            # The same memory under another shape.
            pixels = pixels.reshape(-1, 1, height, width)
        else:
            pixels = pixels.permute(0, 3, 1, 2)
        if self._largest is not None:
            pixels = pixels.clamp(max=self._largest)
        return pixels * self.scale + self.offset

    def _pooled_maps(self, maps: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """The maps that feed the head: of the shared stages, and of each expert's own."""
        model = self.model
        first = model.num_stages - model.architecture.pooled_stages
        shared = []
        for number, stage in enumerate(model.trunk):
            maps = stage(maps)
            if number >= first:
                shared.append(model.head_map(maps))
        own: list[list[Tensor]] = []
        for tail in model.tails:
            assert isinstance(tail, nn.ModuleList)
            seen, kept = maps, []
            for number, stage in enumerate(tail, len(model.trunk)):
                seen = stage(seen)
                if number >= first:
                    kept.append(model.head_map(seen))
            own.append(kept)
        return shared, own

    def _by_view(self, values: Tensor) -> Tensor:
        """(V * B, ...) to (V, B, ...)."""
        return values.reshape(self.views, -1, *values.shape[1:])

    def _ensemble(self, logits: Tensor) -> Tensor:
        """Logits (V * B, E, C) to probabilities (B, C)."""
        found = ensemble_logits(logits).softmax(-1)
        return found if self.views == 1 else self._by_view(found).mean(0)

    def _attribution(self, maps: list[list[Tensor]], features: Tensor, called: Tensor) -> Tensor:
        """Contribution of each position to the predicted class's logit, minus the mean class's.

        Class activation mapping (Zhou et al., CVPR 2016) over all pooled stages: the head is linear
        in the maps (a cosine head is linear for a given feature length), so a logit is a sum over
        positions. The mean of the map is the logit without its bias, minus that of the mean class.

        Args:
            maps: for each expert, the maps (B, c, h, w) of its pooled stages.
            features: (B, E, D).
            called: (B,) predicted class indices.

        Returns:
            (B, h, w), positive where the position is evidence for the class.
        """
        head = self.model.head
        classifier = head.classifier
        assert isinstance(classifier, SeparateExperts)
        weight = classifier.scale * torch.stack(list(classifier.weights))
        weight = weight - weight.mean(1, keepdim=True)
        # (C, E, D) -> (B, E, D)
        chosen = weight.transpose(0, 1)[called]
        if classifier.cosine:
            length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
            chosen = chosen / length.clamp_min(1e-6)
        constant = -(chosen * (head.mean / head.std)).sum(-1)
        chosen = chosen / head.std
        grid = _grid(maps[0])
        total = constant.mean(1)[:, None, None]
        for expert, stages in enumerate(maps):
            first = 0
            for stage in stages:
                part = chosen[:, expert, first : first + stage.shape[1]]
                first += stage.shape[1]
                flat = torch.matmul(part[:, None], stage.flatten(2))
                place = flat.reshape(-1, 1, *stage.shape[2:])
                total = total + _resized(place, grid)[:, 0] / len(maps)
        return total


class OneView(DeploymentGraph):
    """A classifier's experts on stored pixels, without test-time augmentation and ensemble.

    Args:
        model: in evaluation mode, on the CPU.
    """

    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__(model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Stored pixels (B, H, W, C) -> logits (B, E, C), features (B, E, D)."""
        shared, own = self._pooled_maps(self._normalised(images))
        output = self.model.head(_pooled(shared, own, self._pieces))
        return output.logits, output.features


def _pooled(shared: list[Tensor], own: list[list[Tensor]], pieces: int) -> Tensor:
    """Means over the maps, concatenated: (B, E, P); with T tiles per image (B, E, T * P)."""
    common = [maps.mean((2, 3)) for maps in shared]
    each = [torch.cat([*common, *(maps.mean((2, 3)) for maps in stages)], 1) for stages in own]
    if pieces > 1:
        each = [rows.reshape(-1, pieces * rows.shape[1]) for rows in each]
    if not own[0]:
        return each[0][:, None].expand(-1, len(own), -1)
    return torch.stack(each, 1)


def _grid(maps: list[Tensor]) -> tuple[int, int]:
    """Size of the deepest map that is large enough; of the first map if none is."""
    sizes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
    large = [size for size in sizes if min(size) >= _ATTRIBUTION_SIDE]
    return large[-1] if large else sizes[0]


def _resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize maps to a grid by averaging or copying, so that their mean stays the same."""
    size = (int(maps.shape[2]), int(maps.shape[3]))
    if size == grid:
        return maps
    if size[0] >= grid[0] and size[1] >= grid[1]:
        return functional.adaptive_avg_pool2d(maps, grid)
    return functional.interpolate(maps, grid, mode="nearest")


class ConvolutionalGates(nn.Module):
    """Regional attention in the form that runtimes run fastest: 1 x 1 convolutions, enlarged gates.

    Matrix products over permuted maps, and a six-dimensional product, would break the blocked
    memory layout that a runtime keeps between convolutions.

    Args:
        attention: the layer that it replaces.
    """

    def __init__(self, attention: RegionalChannelAttention) -> None:
        super().__init__()
        self.regions = attention.regions
        self.max_pool = attention.max_pool
        self.gate_start = attention.gate_start
        self.squeeze, self.excite = (
            nn.Conv2d(layer.in_features, layer.out_features, 1)
            for layer in (attention.fc1, attention.fc2)
        )
        with torch.no_grad():
            for conv, layer in (
                (self.squeeze, attention.fc1),
                (self.excite, attention.fc2),
            ):
                conv.weight.copy_(layer.weight[:, :, None, None])
                conv.bias.copy_(layer.bias)  # type: ignore[union-attr]
            if attention.max_pool:
                # The layer is applied to the sum of two inputs, so its bias counts twice.
                self.excite.bias.mul_(2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Gate a map (B, C, H, W)."""
        height, width = int(x.shape[2]), int(x.shape[3])
        rows, cols = (
            region_bounds(size, count)
            for size, count in zip((height, width), self.regions, strict=True)
        )
        average, maximum = pool_regions(x, rows, cols)
        hidden = functional.relu(self.squeeze(average))
        if self.max_pool:
            hidden = hidden + functional.relu(self.squeeze(maximum))
        gates = torch.sigmoid(self.excite(hidden))
        if self.gate_start is not None:
            # A division, since the last multiplication marks the end of the gates in the graph.
            gates = gates / self.gate_start
        if height % gates.shape[2] or width % gates.shape[3]:
            return apply_gates(x, gates)
        if gates.shape[2:] != (1, 1):
            factors = (height // gates.shape[2], width // gates.shape[3])
            gates = functional.interpolate(gates, scale_factor=factors, mode="nearest")
        return x * gates


class SeparateExperts(nn.Module):
    """A layer of E experts computed one by one, so that an image has the same bits in any batch.

    With constant weights of two axes, the order of a runtime's additions depends only on the
    weights. With three axes, it depends on the number of images and of threads.

    Args:
        layer: the layer that it replaces.
    """

    def __init__(self, layer: LinearClassifier) -> None:
        super().__init__()
        self.cosine = isinstance(layer, CosineClassifier)
        self.scale = layer.scale if isinstance(layer, CosineClassifier) else 1.0
        weight = unit_vectors(layer.weight) if self.cosine else layer.weight
        self.weights = nn.ParameterList(each.detach().clone() for each in weight)
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, D) to (B, E, C)."""
        if self.cosine:
            x = unit_vectors(x)
        each = [functional.linear(x[:, k], weight) for k, weight in enumerate(self.weights)]
        found = torch.stack(each, 1)
        return (self.scale * found if self.cosine else found) + self.bias


def rewritten(model: MultiExpertClassifier) -> MultiExpertClassifier:
    """Copy a model to the CPU in evaluation mode, in the form that runtimes run best.

    Uses `ConvolutionalGates` and `SeparateExperts`; LoRA is merged into the weights.
    """
    copied = model.merged().cpu().eval()
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, RegionalChannelAttention):
                setattr(parent, name, ConvolutionalGates(child))
            elif isinstance(child, LinearClassifier):
                setattr(parent, name, SeparateExperts(child))
    return copied
