"""Models that map a batch to ExpertOutput: backbones, attention, experts, heads, checkpoints."""

from recame.models.architecture import Architecture
from recame.models.backbone import StagedBackbone, build_backbone
from recame.models.checkpoint import LoadedModel, load_checkpoint, save_checkpoint
from recame.models.classifier import (
    CosineClassifier,
    ExpertHead,
    LinearClassifier,
    cosine_logits,
)
from recame.models.experts import MultiExpertClassifier
from recame.models.frozen_forward import FrozenForward, becomes_graph
from recame.models.initialisation import class_means, initialise_classifier, read_text_features
from recame.models.norm_adaptation import adapt_batch_norms
from recame.models.pretrained import (
    PACKAGED_BACKBONE,
    Pretrained,
    pretrained_mean_std,
    register_backbone,
)
from recame.models.regional_attention import (
    RegionalChannelAttention,
    make_attention,
    regional_gates,
)
from recame.models.relabelling import adapted_to
from recame.models.transfer import continued, take_stages

__all__ = [
    "PACKAGED_BACKBONE",
    "Architecture",
    "CosineClassifier",
    "ExpertHead",
    "FrozenForward",
    "LinearClassifier",
    "LoadedModel",
    "MultiExpertClassifier",
    "Pretrained",
    "RegionalChannelAttention",
    "StagedBackbone",
    "adapt_batch_norms",
    "adapted_to",
    "becomes_graph",
    "build_backbone",
    "class_means",
    "continued",
    "cosine_logits",
    "initialise_classifier",
    "load_checkpoint",
    "make_attention",
    "pretrained_mean_std",
    "read_text_features",
    "regional_gates",
    "register_backbone",
    "save_checkpoint",
    "take_stages",
]
