"""The experts' heads, batched: the layers of all experts run in one matrix product."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ExpertOutput
from recame.errors import ConfigError


def expert_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each expert's vectors by its own weights.

    Args:
        x: (B, E, D).
        weight: (E, C, D).

    Returns:
        (B, E, C).
    """
    return torch.matmul(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1)


def cosine_logits(x: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`scale * cos(x, weight) + bias` for every expert.

    Args:
        x: (B, E, D); a zero vector has cosine 0 with everything.
        weight: (E, C, D).
        bias: (E, C).
        scale: inverse temperature of the cosine.

    Returns:
        (B, E, C) float32, also under autocast.
    """
    # Half precision would lose the differences between confident classes.
    with torch.autocast(x.device.type, enabled=False):
        return scale * expert_linear(unit_vectors(x), unit_vectors(weight)) + bias.float()


def unit_vectors(x: Tensor) -> Tensor:
    """Scale to length 1, in float32; vectors shorter than 1e-6, and their gradients, become 0."""
    x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # `normalize` is not used: its gradient for a zero vector is 1e12.
    return x * torch.where(norm > 1e-6, 1 / norm.clamp_min(1e-6), 0.0)


class LinearClassifier(nn.Module):
    """Linear layer of E experts, initialised as `nn.Linear`: a classifier, or a hidden layer.

    Args:
        num_experts: E.
        in_features: D.
        num_classes: C.
    """

    def __init__(self, num_experts: int, in_features: int, num_classes: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(
            torch.empty(num_experts, num_classes, in_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.zeros(num_experts, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, D) features to (B, E, C) logits."""
        return expert_linear(x, self.weight) + self.bias


class CosineClassifier(LinearClassifier):
    """Cosine classifier of E experts (Gidaris and Komodakis, CVPR 2018), with a bias.

    The length of a class vector grows with the class's frequency; the cosine ignores it.

    Args:
        num_experts: E.
        in_features: D.
        num_classes: C.
        scale: factor of the cosine.
    """

    def __init__(
        self, num_experts: int, in_features: int, num_classes: int, *, scale: float = 16.0
    ) -> None:
        super().__init__(num_experts, in_features, num_classes)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, D) features to (B, E, C) logits."""
        return cosine_logits(x, self.weight, self.bias, self.scale)


class PieceAttention(nn.Module):
    """Gated attention over the pieces of an image, for each expert (Ilse et al., ICML 2018).

    At the start, all pieces have the same weight.

    Args:
        num_experts: E.
        in_features: P.
        width: of its hidden layer.
    """

    def __init__(self, num_experts: int, in_features: int, width: int = 64) -> None:
        super().__init__()
        self.look = LinearClassifier(num_experts, in_features, width)
        self.gate = LinearClassifier(num_experts, in_features, width)
        self.weigh = LinearClassifier(num_experts, width, 1)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, rows: Tensor, pieces: int) -> Tensor:
        """(B * T, E, P) -> (B, E, P)."""
        weights = self.weights(rows, pieces)
        return (rows.view(-1, pieces, *rows.shape[1:]) * weights).sum(1)

    def weights(self, rows: Tensor, pieces: int) -> Tensor:
        """(B * T, E, P) -> (B, T, E, 1), whose sums over the pieces are 1."""
        seen = torch.tanh(self.look(rows)) * torch.sigmoid(self.gate(rows))
        scores: Tensor = self.weigh(seen)
        return scores.view(-1, pieces, *scores.shape[1:]).softmax(1)


class ExpertHead(nn.Module):
    """Heads that map pooled features to logits, for all experts at once.

    Layers: feature normalisation, dropout, an optional hidden layer (linear, GELU, dropout), and
    the classifier. The experts start from different weights.

    The feature normalisation is a batch norm without weights, so it follows the features while the
    whole network trains. If it were fixed, the features would drift off centre, and a common offset
    hides the differences between classes from a cosine (docs/decisions/0004).

    If an image is seen in pieces, every piece is normalised, and each expert weighs the pieces by a
    gated attention (Ilse et al., Attention-based Deep Multiple Instance Learning, ICML 2018): all
    pieces share one label, and a single piece may decide it.

    Args:
        num_experts: E.
        in_features: P, width of the pooled features.
        num_classes: C.
        classifier: `cosine` or `linear`.
        cosine_scale: factor of the cosine.
        hidden: width of the hidden layer; 0: no hidden layer.
        dropout: rate, for the pooled and the hidden features.
        standardise: whether to normalise the pooled features; false as published.
        pieces: T, number of pieces of each image.

    Raises:
        ConfigError: the classifier's kind is unknown.
    """

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        num_classes: int,
        *,
        classifier: str = "cosine",
        cosine_scale: float = 16.0,
        hidden: int = 0,
        dropout: float = 0.0,
        standardise: bool = True,
        pieces: int = 1,
    ) -> None:
        super().__init__()
        self.shape, self.pieces = (num_experts, in_features), pieces
        self.standardise = (
            nn.BatchNorm1d(num_experts * in_features, affine=False) if standardise else None
        )
        self.attention = PieceAttention(num_experts, in_features) if pieces > 1 else None
        self.dropout = nn.Dropout(dropout)
        self.hidden = LinearClassifier(num_experts, in_features, hidden) if hidden else None
        width = hidden or in_features
        self.classifier: LinearClassifier
        if classifier == "cosine":
            self.classifier = CosineClassifier(num_experts, width, num_classes, scale=cosine_scale)
        elif classifier == "linear":
            self.classifier = LinearClassifier(num_experts, width, num_classes)
        else:
            raise ConfigError(
                f"Unknown classifier {classifier!r}: choose cosine or linear "
                "(setting model.classifier)."
            )

    @property
    def mean(self) -> Tensor:
        """Mean that is subtracted from pooled features outside of training: (E, P)."""
        if self.standardise is None:
            return self.classifier.weight.new_zeros(self.shape)
        assert self.standardise.running_mean is not None
        return self.standardise.running_mean.view(self.shape)

    @property
    def std(self) -> Tensor:
        """Standard deviation that divides centred features outside of training: (E, P)."""
        if self.standardise is None:
            return self.classifier.weight.new_ones(self.shape)
        assert self.standardise.running_var is not None
        return (self.standardise.running_var + self.standardise.eps).sqrt().view(self.shape)

    @torch.no_grad()
    def set_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation of the feature normalisation, for every expert.

        Args:
            mean: (P,).
            std: (P,); a constant feature (0, or not a number) is divided by 1.
        """
        norm = self.standardise
        if norm is not None and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.view(self.shape).copy_(mean)
            norm.running_var.view(self.shape).copy_(std.where(std > 1e-6, 1.0).square())

    @torch.no_grad()
    def set_class_means(self, means: Tensor) -> None:
        """Initialise a cosine classifier with the mean features of the classes.

        Args:
            means: (C, P) or (C, E, P), of pooled features before the feature normalisation, which
                must be set already. A class with values that are not numbers keeps its weights.

        Raises:
            ConfigError: the classifier is not a cosine on the pooled features, or P differs.
        """
        self._check_directions(int(means.shape[-1]))
        means = means if means.ndim == 3 else means[:, None]
        standardised = (means.to(self.mean) - self.mean) / self.std
        self._set_directions(standardised.transpose(0, 1))

    @torch.no_grad()
    def set_class_directions(self, directions: Tensor) -> None:
        """Initialise a cosine classifier with directions in the space of the pooled features.

        The product of a direction with a feature f = std * z + mean equals that of std * direction
        with z, plus a constant of the class. The constant is left out: it only says how close the
        class lies to the mean of all images (for text features, the gap between the modalities).

        Args:
            directions: (C, P), such as text features.

        Raises:
            ConfigError: the classifier is not a cosine on the pooled features, or P differs.
        """
        self._check_directions(int(directions.shape[-1]))
        self._set_directions(directions.to(self.std) * self.std[:, None])

    def _check_directions(self, width: int) -> None:
        if not isinstance(self.classifier, CosineClassifier) or self.hidden is not None:
            raise ConfigError(
                "Only a cosine classifier on the pooled features can start at class means or text "
                "features: set model.classifier=cosine and model.hidden=0, or "
                "model.initialisation=random."
            )
        if width != self.shape[1]:
            raise ConfigError(
                f"The classifier was to start at features {width} wide, but it sees "
                f"{self.shape[1]}: they must come from the same space. For text features set "
                "model.pooled_stages=1 and model.pooling=token, and project them to the image "
                "encoder's width when the file is made (docs/lift.md)."
            )

    def _set_directions(self, directions: Tensor) -> None:
        """Set (E, C, P), scaled to unit length; not for classes with zeros or non-numbers."""
        unit = functional.normalize(directions, dim=-1)
        usable = torch.isfinite(unit).all(-1, keepdim=True) & (unit.abs().amax(-1, True) > 0)
        self.classifier.weight.copy_(unit.where(usable, self.classifier.weight))

    def mean_piece(self, pooled: Tensor) -> Tensor:
        """The mean over an image's pieces: (..., T * P) -> (..., P)."""
        return pooled.view(*pooled.shape[:-1], self.pieces, -1).mean(-2)

    def _rows(self, pooled: Tensor) -> Tensor:
        """(B, E, T * P) -> (B * T, E, P)."""
        if self.pieces == 1:
            return pooled
        num_experts, width = self.shape
        rows = pooled.reshape(-1, num_experts, self.pieces, width).transpose(1, 2)
        return rows.reshape(-1, num_experts, width)

    @torch.no_grad()
    def take_experts(self, chosen: Sequence[tuple[ExpertHead, int]]) -> None:
        """Copy this head's experts from experts of other heads with the same layers.

        Args:
            chosen: E pairs of a head and the index of its expert.
        """
        known = [(dict(head.named_parameters()), expert) for head, expert in chosen]
        for name, parameter in self.named_parameters():
            parameter.copy_(torch.stack([found[name][expert] for found, expert in known]))
        if self.standardise is None:
            return
        for name in ("running_mean", "running_var"):
            values = [getattr(h.standardise, name).view(h.shape)[expert] for h, expert in chosen]
            getattr(self.standardise, name).copy_(torch.cat(values))

    def forward(self, pooled: Tensor) -> ExpertOutput:
        """Classify.

        Args:
            pooled: (B, E, P); with T pieces per image (B, E, T * P).

        Returns:
            Logits (B, E, C), and the inputs of the classifiers, features (B, E, D).
        """
        rows = self._rows(pooled)
        if self.standardise is not None:
            rows = self.standardise(rows.flatten(1)).view_as(rows)
        pooled = rows if self.attention is None else self.attention(rows, self.pieces)
        features = self.dropout(pooled)
        if self.hidden is not None:
            features = self.dropout(functional.gelu(self.hidden(features)))
        return ExpertOutput(self.classifier(features), features)
