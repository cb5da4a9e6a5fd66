"""Losses of a student: labels, and the distribution, features and gates of its teacher.

Sources: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, for the temperature;
Ren et al., Balanced Meta-Softmax, NeurIPS 2020, for the prior; Romero et al., FitNets, ICLR 2015,
for features through a projection; Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR
2017, for matching attention maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from recame.contracts import ExpertOutput, LossResult, ensemble_logits
from recame.errors import ConfigError
from recame.losses.arguments import check_choice, checked_weights
from recame.losses.logit_adjustment import log_class_counts
from recame.losses.reweighting import batch_mean
from recame.losses.training_loss import Labels, TrainingLoss, weighted_total

Balance = Literal["prior", "weights", "none"]
Compared = Literal["ensemble", "each"]


@dataclass(frozen=True)
class Lesson:
    """The answers of a teacher for a batch; constants for the student.

    Attributes:
        logits: (B, C) of the ensemble, without a prior.
        features: (B, D') inputs of its classifiers, averaged over experts; None if not needed.
        gates: (B, S', R) mean gate of each stage and region; None if not needed.
    """

    logits: Tensor
    features: Tensor | None = None
    gates: Tensor | None = None


def tempered_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))` (Hinton et al. 2015).

    The factor keeps the size of the gradient when T grows. For T to infinity the result becomes
    half the variance over the classes of `student - teacher`, and all classes have equal weight.

    Args:
        student: (..., C) logits.
        teacher: (..., C) logits, of a shape that broadcasts.
        temperature: T, above 0.

    Returns:
        (...) in nats, 0 for logits that differ by a constant.
    """
    logs = functional.log_softmax(teacher / temperature, -1)
    divergence = logs.exp() * (logs - functional.log_softmax(student / temperature, -1))
    return temperature**2 * divergence.sum(-1)


def balancing_weights(teacher: Tensor, log_prior: Tensor) -> Tensor:
    """Weight of each image that makes all classes equally frequent, without its label.

    With class shares pi in training and p the teacher's balanced posterior, the ratio of the
    images' densities is, by Bayes' rule, `p_balanced(x) / p_pi(x) = 1 / (C sum_c pi_c p_c(x))`. For
    an image that certainly belongs to class c it is `1 / (C pi_c)`.

    Args:
        teacher: (B, C) balanced logits.
        log_prior: (C,) log of pi, up to a constant.

    Returns:
        (B,) above 0.
    """
    log_share = functional.log_softmax(log_prior, -1)
    log_posterior = functional.log_softmax(teacher, -1)
    return torch.exp(-torch.logsumexp(log_share + log_posterior, -1)) / teacher.shape[-1]


def direction_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between unit vectors, `2 - 2 cos`.

    Args:
        student: (B, D).
        teacher: (B, D).

    Returns:
        (B,) in [0, 4].
    """
    apart = functional.normalize(student, dim=-1) - functional.normalize(teacher, dim=-1)
    return apart.square().sum(-1)


def gate_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over stages of the squared distance between the regions' mean gates.

    Gates are averaged over channels, so that networks of different widths can be compared. Unlike
    the maps of Zagoruyko and Komodakis they are not scaled to unit length: the scale of a gate, in
    (0, 1) or, with `model.gate_start`, around 1, is the information how far a region is closed.

    Args:
        student: (B, S, R) mean gate of each stage and region.
        teacher: (B, S, R).

    Returns:
        (B,).
    """
    return (student - teacher).square().sum(-1).mean(-1)


class StudentObjective(nn.Module):
    """Loss of a student: labels and the teacher's terms; a term of weight 0 is not computed.

    | part | meaning |
    | --- | --- |
    | `base` | all terms of `labels`, over the images that have a label |
    | `teacher` | `tempered_divergence` from the teacher's distribution, over all images |
    | `features` | `direction_distance` of a learned projection from the teacher's features |
    | `gates` | `gate_distance` |

    **Balance.** The teacher was trained with balanced softmax, so its raw logits are those of a
    balanced classifier, and an identical student would be balanced too. But a small student is
    never identical. On training images, which the teacher has memorised, its distribution is
    nearly a label, and most images belong to frequent classes: matching it would favour these, as
    plain cross-entropy does. So `prior` adds the log of the prior of the batches to both sides,
    before the temperature. This does not move the minimum, and for a certain teacher and T = 1 it
    is balanced softmax itself. (Added after the temperature, the prior would reweight the classes
    for a large T.) `weights` multiplies each image by `balancing_weights` instead; `none` does
    neither.

    **Several experts.** `ensemble` compares the distribution of the experts' mean logits with the
    teacher's, as the code of RIDE does (Wang et al., ICLR 2021; RIDE adds the whole loss once for
    each expert, a factor that is left out here); `each` compares the distribution of every expert
    and sums over them.

    Args:
        labels: the loss on labels, of as many experts as the student has.
        counts: (C,) training images of each class.
        prior: (C,) share of each class in the batches, images without labels included, up to a
            factor.
        temperature: T of the teacher's term.
        balance: see above.
        experts: see above.
        teacher_weight: weight of `teacher`.
        label_weight: weight of `base`.
        feature_weight: weight of `features`.
        gate_weight: weight of `gates`.
        widths: of the student's and the teacher's features; the projection learns with the student.
        gate_stages: for each stage of the student with gates, the teacher's stage to compare with.

    Raises:
        ConfigError: an argument is out of range.
    """

    log_prior: Tensor

    def __init__(
        self,
        labels: TrainingLoss,
        counts: Sequence[int] | Tensor,
        prior: Tensor,
        *,
        temperature: float = 2.0,
        balance: Balance = "prior",
        experts: Compared = "ensemble",
        teacher_weight: float = 1.0,
        label_weight: float = 0.3,
        feature_weight: float = 0.0,
        gate_weight: float = 0.0,
        widths: tuple[int, int] = (0, 0),
        gate_stages: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ConfigError(f"temperature={temperature} divides logits: give a value above 0.")
        check_choice("balance", balance, Balance)
        check_choice("experts", experts, Compared)
        self.weights = checked_weights(
            base=label_weight, teacher=teacher_weight, features=feature_weight, gates=gate_weight
        )
        self.labels = labels
        self.temperature, self.balance, self.experts = temperature, balance, experts
        self.gate_stages = list(gate_stages)
        self.projection = nn.Linear(*widths, bias=False) if feature_weight > 0 else None
        images = torch.as_tensor(counts, dtype=torch.float64)
        log_prior = log_class_counts(images, torch.as_tensor(prior, dtype=torch.float64).cpu())
        self.register_buffer("log_prior", log_prior.float(), persistent=False)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.labels.num_classes

    @property
    def needs_gates(self) -> bool:
        """Whether the student's gates must be given."""
        return self.weights["gates"] > 0

    def set_deferred(self, active: bool) -> None:
        """As `Objective.set_deferred`, for the loss on labels."""
        self.labels.set_deferred(active)

    @property
    def remembers(self) -> bool:
        """Whether the loss on labels has a memory."""
        return self.weights["base"] > 0 and self.labels.remembers

    def remember(self, output: ExpertOutput, labels: Labels) -> None:
        """As `TrainingLoss.remember`, for the images that have a label."""
        known = [(target.clamp_min(0), (target >= 0) * share) for target, share in labels]
        self.labels.remember(output, known)

    def workings(self, output: ExpertOutput, target: Tensor) -> dict[str, Tensor]:
        """As `TrainingLoss.workings`, for the images with a label; empty without that loss."""
        if self.weights["base"] == 0:
            return {}
        known = target >= 0
        labelled = ExpertOutput(output.logits[known], output.features[known])
        return self.labels.workings(labelled, target[known])

    def forward(
        self, output: ExpertOutput, target: Tensor, lesson: Lesson, gates: Tensor | None = None
    ) -> LossResult:
        """The loss of one batch.

        Args:
            output: of the student: logits (B, E, C) and features (B, E, D).
            target: (B,) class indices, -1 if the label is unknown.
            lesson: for the same images; constants.
            gates: (B, S, R) the student's mean gates, if the weight of `gates` is above 0.

        Returns:
            The total and its parts; for an empty batch zeros that are still differentiable.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            terms: dict[str, Tensor] = {}
            if self.weights["base"] > 0:
                known = target >= 0
                labelled = ExpertOutput(output.logits[known], output.features[known])
                terms["base"] = self.labels(labelled, target[known]).total
            terms |= self._teachers_terms(output, lesson, gates)
            return weighted_total(self.weights, terms)

    def _teachers_terms(
        self, output: ExpertOutput, lesson: Lesson, gates: Tensor | None
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        dtype = torch.promote_types(output.logits.dtype, torch.float32)
        if self.weights["teacher"] > 0:
            student, teacher = output.logits.to(dtype), lesson.logits.to(dtype).detach()
            if self.experts == "ensemble":
                student = ensemble_logits(student)[:, None]
            log_prior = self.log_prior.to(dtype)
            shift = log_prior if self.balance == "prior" else 0.0
            losses = tempered_divergence(
                student + shift, teacher[:, None] + shift, self.temperature
            )
            weights = balancing_weights(teacher, log_prior) if self.balance == "weights" else None
            terms["teacher"] = batch_mean(losses, weights)
        if self.projection is not None:
            assert lesson.features is not None
            projected = self.projection(output.features.mean(1).to(dtype))
            taught = lesson.features.to(dtype).detach()
            terms["features"] = batch_mean(direction_distance(projected, taught))
        if self.needs_gates:
            assert lesson.gates is not None
            assert gates is not None
            taught = lesson.gates[:, self.gate_stages].to(dtype).detach()
            terms["gates"] = batch_mean(gate_distance(gates.to(dtype), taught))
        return terms
