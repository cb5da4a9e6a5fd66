"""The multi-expert classifier: a shared backbone, a branch for each expert, one batched head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recame.config import Config, as_config, height_width
from recame.contracts import AnyPath, ExpertOutput, PreprocessSpec
from recame.errors import ConfigError
from recame.models.adapters import merge_lora, tune
from recame.models.architecture import Architecture
from recame.models.backbone import StagedBackbone, build_backbone
from recame.models.classifier import ExpertHead
from recame.models.pretrained import Pretrained, pretrained_mean_std, register_backbone
from recame.pieces import apart, together

#: Side of the images, if the settings leave it open.
_USUAL_SIDE = 128

# `torch.export` and `torch.utils._pytree` see its fields.
torch.export.register_dataclass(ExpertOutput)


class MultiExpertClassifier(nn.Module):
    """E experts over one backbone cut into stages (Shao et al., IEEE TCAD 2026).

    The first `shared_stages` stages run once for all experts. With pretrained weights the backbone
    is loaded once, and every expert branch starts as a copy; without, each branch is initialised at
    random.

    Args:
        architecture: what to build.
        num_classes: C.
        spec: gives channels, mean and std; `forward` normalises the images.
        pretrained: as for `build_backbone`.
        open_gates: as for `build_backbone`.

    Raises:
        ConfigError: the backbone cannot be built, or `shared_stages` or `pooled_stages` do not fit
            its number of stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int,
        spec: PreprocessSpec,
        pretrained: Pretrained = False,
        *,
        open_gates: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(
                f"num_classes={num_classes}: a classifier needs classes. Give their number."
            )
        self.architecture, self.spec, self.num_classes = architecture, spec, num_classes
        shared, num_experts = architecture.shared_stages, architecture.num_experts
        if num_experts < 1:
            raise ConfigError(f"model.num_experts={num_experts}: at least one expert is needed.")
        backbone = self._build(pretrained, open_gates)
        self.stage_channels = list(backbone.stage_channels)
        self._check_stages()
        self._pooled_channels = backbone.pooled
        self.trunk = backbone.stages[:shared]
        own = backbone.stages[shared:]
        drawn = pretrained is False and len(own) > 0
        self.tails = nn.ModuleList([own])
        self.tails.extend(
            self._build(False, open_gates).stages[shared:] if drawn else copy.deepcopy(own)
            for _ in range(num_experts - 1)
        )
        self.head = ExpertHead(
            num_experts,
            sum(self.stage_channels[-architecture.pooled_stages :]),
            num_classes,
            classifier=architecture.classifier,
            cosine_scale=architecture.cosine_scale,
            hidden=architecture.hidden,
            dropout=architecture.dropout,
            standardise=architecture.standardise,
            pieces=spec.pieces,
        )
        # Not persistent: the specification is stored with the weights and holds these values.
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self._norms_frozen = False
        self._stopped_stages: tuple[int, list[nn.Parameter]] = (0, [])

    @classmethod
    def from_config(
        cls,
        config: Config | Mapping[str, Any] | AnyPath | None,
        num_classes: int,
        *,
        spec: PreprocessSpec | None = None,
    ) -> MultiExpertClassifier:
        """The network that training builds from settings, before any training.

        Args:
            config: the settings, see `recame.config.as_config`; None: the defaults.
                `Architecture.usual` decides open settings.
            num_classes: C.
            spec: of its images; None: 8-bit images of `data.size` (128 x 128 if open), in colour
                unless `data.channels` is 1, with the normalisation of the weights.

        Raises:
            ConfigError: a setting is wrong, or the backbone cannot be built.
        """
        settings = as_config(config)
        register_backbone(settings.model.backbone_from)
        channels = settings.data.channels
        channels = 3 if channels == "auto" else channels
        plan, pretrained = Architecture.usual(settings.model, channels), settings.model.pretrained
        if spec is None:
            size = settings.data.size
            height, width = height_width(_USUAL_SIDE if size == "auto" else size)
            mean, std = pretrained_mean_std(plan.backbone, pretrained, channels)
            spec = PreprocessSpec(height, width, channels, 8, 255.0, mean, std)
        return cls(plan, num_classes, spec, pretrained)

    def _build(self, pretrained: Pretrained, open_gates: bool) -> StagedBackbone:
        plan = self.architecture
        backbone = build_backbone(
            plan.backbone,
            pretrained=pretrained,
            in_channels=self.spec.channels,
            attention=plan.attention,
            regions=plan.regions,
            reduction=plan.reduction,
            gate_start=plan.gate_start,
            num_stages=plan.stages,
            pooling=plan.pooling,
            image_size=self.spec.piece_size,
            open_gates=open_gates,
            origin=plan.backbone_from,
        )
        tune(backbone, plan.tuning, plan.tuning_rank, self.num_classes)
        return backbone

    def _check_stages(self) -> None:
        plan, count = self.architecture, self.num_stages
        if not 0 <= plan.shared_stages <= count:
            raise ConfigError(
                f"model.shared_stages={plan.shared_stages}, but {plan.backbone} has {count} "
                f"stages: give 0 (separate experts) to {count} (experts differ in their heads)."
            )
        if not 1 <= plan.pooled_stages <= count:
            raise ConfigError(
                f"model.pooled_stages={plan.pooled_stages}, but {plan.backbone} has {count} "
                f"stages: give 1 to {count}."
            )

    @property
    def num_stages(self) -> int:
        """Stages of the backbone, shared and own together."""
        return len(self.stage_channels)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.architecture.num_experts

    @property
    def num_features(self) -> int:
        """D, width of the features that the classifier sees."""
        return int(self.head.classifier.weight.shape[-1])

    def stages(self, expert: int = 0) -> list[nn.Module]:
        """All stages of an expert: the shared ones, then those of its branch."""
        return [*self.trunk, *self.tails[expert].children()]

    def forward(self, images: Tensor) -> ExpertOutput:
        """Classify.

        Args:
            images: (B, C, H, W) in [0, 1], not normalised.

        Returns:
            Logits (B, E, C) and features (B, E, D).
        """
        return self.from_trunk(*self.trunk_features(images))

    def trunk_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the shared stages. If they are frozen, their output may be cached.

        Args:
            images: (B, C, H, W) in [0, 1].

        Returns:
            The last shared stage's map (B, c, h, w) (without shared stages: the normalised
            images), and the pooled outputs of the shared stages that feed the head (B, Q), where
            Q may be 0. With T pieces per image the maps are stacked vertically, (B, c, T * h, w),
            and the pooled outputs are concatenated, (B, T * Q).
        """
        seen = apart(images, self.spec.pieces)
        maps, parts = self._run(self.trunk, (seen - self.mean) / self.std, 0)
        pooled = (
            self._of_images(torch.cat(parts, 1)) if parts else maps.new_empty(images.shape[0], 0)
        )
        return together(maps, self.spec.pieces), pooled

    def from_trunk(self, maps: Tensor, pooled: Tensor) -> ExpertOutput:
        """Run expert branches and heads on the output of `trunk_features`.

        Args:
            maps: from `trunk_features`.
            pooled: from `trunk_features`.

        Returns:
            Logits (B, E, C) and features (B, E, D).
        """
        return self.head(self._pooled_from_trunk(maps, pooled))  # type: ignore[no-any-return]

    def pooled(self, images: Tensor) -> Tensor:
        """Features of all experts: map averages of the last `pooled_stages` stages, concatenated.

        Args:
            images: (B, C, H, W) in [0, 1].

        Returns:
            (B, E, P); with T pieces per image (B, E, T * P).
        """
        return self._pooled_from_trunk(*self.trunk_features(images))

    def pooled_single(self, images: Tensor, expert: int = 0) -> Tensor:
        """Pooled features of one expert; those of all experts if `tails_identical`.

        Args:
            images: (B, C, H, W) in [0, 1].
            expert: its index.

        Returns:
            (B, P); with T pieces per image (B, T * P).
        """
        return self._expert_pooled(expert, *self.trunk_features(images))

    @torch.no_grad()
    def tails_identical(self) -> bool:
        """Whether all expert branches hold the same weights and statistics."""
        first, *others = self.tails
        return all(_same_weights(first, other) for other in others)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of the shared backbone (`trunk`), expert branches (`tails`) and `head`."""
        return {name: list(part.parameters()) for name, part in self.named_children()}

    def set_batch_norm_frozen(self, frozen: bool) -> None:
        """Freeze or unfreeze the statistics of the backbone's batch norms during training."""
        self._norms_frozen = frozen
        self.train(self.training)

    def set_frozen_stages(self, num: int) -> None:
        """Freeze the first stages of every expert, weights and statistics; 0 unfreezes them.

        Frozen first stages need no backward pass, so the largest maps of a network only cost their
        forward pass.
        """
        for parameter in self._stopped_stages[1]:
            parameter.requires_grad_(True)
        first = nn.ModuleList(
            stage for expert in range(self.num_experts) for stage in self.stages(expert)[:num]
        )
        stopped = [parameter for parameter in first.parameters() if parameter.requires_grad]
        first.requires_grad_(False)
        self._stopped_stages = (num, stopped)
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiExpertClassifier:
        """Set training mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        # The statistics of a frozen backbone are frozen too. The head's feature normalisation
        # always follows the features.
        frozen = self._norms_frozen or self.architecture.tuning != "full"
        for expert in range(self.num_experts):
            for number, stage in enumerate(self.stages(expert)):
                if frozen or number < self._stopped_stages[0]:
                    _stop_norms(stage)
        return self

    def head_map(self, maps: Tensor) -> Tensor:
        """The part of a stage's output (B, c, h, w) that the head averages: all but tokens."""
        return maps if self._pooled_channels is None else maps[:, self._pooled_channels]

    @torch.no_grad()
    def merged(self) -> MultiExpertClassifier:
        """A copy with LoRA's products added to the weights: as fast as without LoRA.

        Other adapters are kept.
        """
        model = copy.deepcopy(self)
        if self.architecture.tuning == "lora":
            merge_lora(model)
            model.architecture = replace(self.architecture, tuning="full", tuning_rank=None)
        return model

    @torch.no_grad()
    def joined(self, other: MultiExpertClassifier, expert: int = -1) -> MultiExpertClassifier:
        """An ensemble of two experts: the first of this model and one of the other.

        Experts that were trained differently make different errors, so their ensemble is better. If
        tau rises over the experts, the first and the last have the smallest and the largest
        (docs/decisions/0008). The ensemble costs two whole networks, except for equal first stages.

        Args:
            other: of the same backbone, head, classes and preprocessing; the number of experts and
                of shared stages may differ.
            expert: index of the other's expert; negative counts from the last.

        Returns:
            A new model, on this one's device, in evaluation mode.
        """
        own, others = self.stages(0), other.stages(expert)
        equal = [_same_weights(a, b) for a, b in zip(own, others, strict=True)]
        shared_stages = (*equal, False).index(False)
        plan = replace(self.architecture, num_experts=2, shared_stages=shared_stages)
        assert plan == replace(other.architecture, num_experts=2, shared_stages=shared_stages)
        model = MultiExpertClassifier(plan, self.num_classes, self.spec)
        model.trunk.load_state_dict(nn.ModuleList(own[:shared_stages]).state_dict())
        for tail, stages in zip(model.tails, (own, others), strict=True):
            tail.load_state_dict(nn.ModuleList(stages[shared_stages:]).state_dict())
        model.head.take_experts([(self.head, 0), (other.head, expert)])
        return model.to(next(self.parameters()).device).eval()

    def _run(self, stages: nn.ModuleList, maps: Tensor, first: int) -> tuple[Tensor, list[Tensor]]:
        """Run the stages from number `first` on; also return the averages that feed the head."""
        pooled = []
        for number, stage in enumerate(stages, first):
            maps = stage(maps)
            if number >= self.num_stages - self.architecture.pooled_stages:
                pooled.append(self.head_map(maps).mean((2, 3)))
        return maps, pooled

    def _expert_pooled(self, expert: int, maps: Tensor, shared: Tensor) -> Tensor:
        tail, pieces = self.tails[expert], self.spec.pieces
        assert isinstance(tail, nn.ModuleList)
        _, own = self._run(tail, apart(maps, pieces), len(self.trunk))
        if shared.shape[1]:
            of_pieces = shared if pieces == 1 else shared.reshape(-1, shared.shape[1] // pieces)
            own = [of_pieces, *own]
        return self._of_images(torch.cat(own, 1) if len(own) > 1 else own[0])

    def _of_images(self, rows: Tensor) -> Tensor:
        """Concatenate the values of an image's pieces: (B * T, Q) -> (B, T * Q)."""
        pieces = self.spec.pieces
        return rows if pieces == 1 else rows.reshape(-1, pieces * rows.shape[1])

    def _pooled_from_trunk(self, maps: Tensor, shared: Tensor) -> Tensor:
        if len(self.trunk) == self.num_stages:
            return shared[:, None].expand(-1, self.num_experts, -1)
        return torch.stack(
            [self._expert_pooled(e, maps, shared) for e in range(self.num_experts)], 1
        )


def _same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules of the same kind hold the same weights and statistics."""
    state, other = first.state_dict(), second.state_dict()
    return all(torch.equal(state[name], other[name]) for name in state)


def _stop_norms(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
