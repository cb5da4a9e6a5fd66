"""The training losses: from expert outputs and targets to a total and its named parts.

`Objective` is the module to train with; the functions are the terms that it is made of.
"""

from recame.losses.distillation import category_distillation, mutual_distillation
from recame.losses.diversity import expert_divergence
from recame.losses.hard_category import (
    differing_share,
    gathered_cross_entropy,
    hard_categories,
    keep_hard,
    masked_cross_entropy,
    num_hard_categories,
)
from recame.losses.logit_adjustment import (
    adjust_logits,
    balanced_softmax,
    cross_entropy,
    log_class_counts,
)
from recame.losses.metric import (
    active_share,
    contrastive,
    intra_class,
    pairwise_distances,
    relative_margin,
)
from recame.losses.objective import Objective
from recame.losses.reweighting import (
    batch_mean,
    class_balanced_weights,
    focal,
    ldam,
    ldam_margins,
)
from recame.losses.student import (
    Lesson,
    StudentObjective,
    balancing_weights,
    direction_distance,
    gate_distance,
    tempered_divergence,
)
from recame.losses.training_loss import Labels, LossFactory, TrainingLoss, own_loss

__all__ = [
    "Labels",
    "Lesson",
    "LossFactory",
    "Objective",
    "StudentObjective",
    "TrainingLoss",
    "active_share",
    "adjust_logits",
    "balanced_softmax",
    "balancing_weights",
    "batch_mean",
    "category_distillation",
    "class_balanced_weights",
    "contrastive",
    "cross_entropy",
    "differing_share",
    "direction_distance",
    "expert_divergence",
    "focal",
    "gate_distance",
    "gathered_cross_entropy",
    "hard_categories",
    "intra_class",
    "keep_hard",
    "ldam",
    "ldam_margins",
    "log_class_counts",
    "masked_cross_entropy",
    "mutual_distillation",
    "num_hard_categories",
    "own_loss",
    "pairwise_distances",
    "relative_margin",
    "tempered_divergence",
]
