"""The student's loss: its limits, its gradients, and what balance means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recame.contracts import ExpertOutput
from recame.errors import ConfigError
from recame.losses import (
    Lesson,
    Objective,
    StudentObjective,
    balancing_weights,
    direction_distance,
    gate_distance,
    tempered_divergence,
)

COUNTS = (900, 90, 9, 1, 0)
NUM_CLASSES, WIDTHS = len(COUNTS), (6, 10)
ONLY_TEACHER = {"label_weight": 0.0}
ALL_TERMS = {"feature_weight": 0.5, "gate_weight": 2.0, "widths": WIDTHS, "gate_stages": (0, 2)}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "hot": {"temperature": 50.0},
    "weights": {"balance": "weights"},
    "none": {"balance": "none"},
    "all": ALL_TERMS,
    "only_teacher": ONLY_TEACHER,
    "only_labels": {"teacher_weight": 0.0},
    "only_gates": {**ALL_TERMS, "label_weight": 0.0, "teacher_weight": 0.0, "feature_weight": 0.0},
}


def labels(base: str = "balanced_softmax") -> Objective:
    terms = ("hard", "distillation", "hard_distillation", "contrastive", "intra")
    off = {f"{name}_weight": 0.0 for name in terms}
    return Objective(COUNTS, num_experts=1, base=base, **off)  # type: ignore[arg-type]


def make(prior: Tensor | None = None, **changes: Any) -> StudentObjective:
    torch.manual_seed(0)
    prior = torch.tensor(COUNTS).float() if prior is None else prior
    return StudentObjective(labels(), COUNTS, prior, **changes)


def batch(size: int = 12, seed: int = 0) -> tuple[ExpertOutput, Tensor, Lesson, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, 1, NUM_CLASSES, generator=generator)
    features = torch.randn(size, 1, WIDTHS[0], generator=generator)
    target = torch.randint(0, NUM_CLASSES, (size,), generator=generator)
    lesson = Lesson(
        3 * torch.randn(size, NUM_CLASSES, generator=generator),
        torch.randn(size, WIDTHS[1], generator=generator),
        torch.rand(size, 3, 4, generator=generator),
    )
    gates = torch.rand(size, 2, 4, generator=generator).requires_grad_()
    return ExpertOutput(logits.requires_grad_(), features.requires_grad_()), target, lesson, gates


@pytest.fixture(params=CONFIGURATIONS)
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGURATIONS[request.param]


class TestContract:
    def test_finite_and_parts_add_up(self, changes: dict[str, Any]) -> None:
        loss, (output, target, lesson, gates) = make(**changes), batch()
        result = loss(output, target, lesson, gates)
        assert list(result.parts) == [name for name, w in loss.weights.items() if w > 0]
        assert result.total.item() == pytest.approx(sum(p.item() for p in result.parts.values()))
        assert not any(part.requires_grad for part in result.parts.values())
        result.total.backward()
        grads = [t.grad for t in (output.logits, output.features, gates) if t.grad is not None]
        assert sum(float(grad.abs().sum()) for grad in grads) > 0
        assert all(grad.isfinite().all() for grad in grads)

    def test_gradient_reaches_the_student_alone(self) -> None:
        loss, (output, target, lesson, gates) = make(**ALL_TERMS), batch()
        assert lesson.features is not None
        assert lesson.gates is not None
        taught = (lesson.logits, lesson.features, lesson.gates)
        for tensor in taught:
            tensor.requires_grad_()
        loss(output, target, lesson, gates).total.backward()
        assert all(tensor.grad is None for tensor in taught)
        assert loss.projection is not None
        assert loss.projection.weight.grad is not None
        for tensor in (output.logits, output.features, gates, loss.projection.weight):
            assert tensor.grad is not None
            assert tensor.grad.abs().sum() > 0

    def test_order_of_the_batch_does_not_matter(self, changes: dict[str, Any]) -> None:
        loss, (output, target, lesson, gates) = make(**changes), batch()
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
        assert lesson.features is not None
        assert lesson.gates is not None
        turned = Lesson(lesson.logits[order], lesson.features[order], lesson.gates[order])
        shuffled = ExpertOutput(output.logits[order], output.features[order])
        torch.testing.assert_close(
            loss(shuffled, target[order], turned, gates[order]).total,
            loss(output, target, lesson, gates).total,
        )

    def test_half_precision_is_computed_in_full(self, changes: dict[str, Any]) -> None:
        loss, (output, target, lesson, gates) = make(**changes), batch()
        with torch.autocast("cpu", torch.bfloat16):
            ours = loss(output, target, lesson, gates).total
            low = ExpertOutput(output.logits.bfloat16(), output.features.bfloat16())
            rounded = loss(low, target, lesson, gates).total
        assert (ours.dtype, rounded.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(ours, loss(output, target, lesson, gates).total)
        torch.testing.assert_close(rounded, ours, rtol=0.05, atol=0.05)

    @pytest.mark.parametrize("size", [0, 1])
    def test_empty_batch_and_single_image(self, size: int, changes: dict[str, Any]) -> None:
        loss, (output, target, lesson, gates) = make(**changes), batch(size)
        total = loss(output, target, lesson, gates).total
        total.backward()
        assert total.isfinite()
        assert size > 0 or total.item() == 0.0

    def test_extreme_logits(self) -> None:
        loss, (output, target, lesson, _) = make(), batch()
        far = ExpertOutput(1e4 * output.logits, output.features)
        total = loss(far, target, Lesson(-1e4 * lesson.logits)).total
        total.backward()
        assert total.isfinite()
        assert output.logits.grad is not None
        assert output.logits.grad.isfinite().all()

    def test_the_projection_is_all_that_learns(self) -> None:
        assert list(make().parameters()) == []
        assert [tuple(p.shape) for p in make(**ALL_TERMS).parameters()] == [(10, 6)]
        assert set(make(**ALL_TERMS).state_dict()) == {"projection.weight"}


class TestLimits:
    @pytest.mark.parametrize("balance", ["prior", "weights", "none"])
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    def test_equal_logits_leave_nothing_to_learn(self, balance: str, temperature: float) -> None:
        loss = make(**ONLY_TEACHER, balance=balance, temperature=temperature)
        output, target, _, _ = batch()
        same = Lesson(output.logits[:, 0].detach() + 5.0)  # a constant changes no distribution
        result = loss(output, target, same)
        result.total.backward()
        assert result.total.item() == pytest.approx(0.0, abs=1e-5)
        assert output.logits.grad is not None
        assert output.logits.grad.abs().max() < 1e-5

    def test_sure_teacher_at_temperature_one_is_balanced_softmax(self) -> None:
        output, target, _, _ = batch()
        sure = Lesson(60.0 * functional.one_hot(target, NUM_CLASSES))
        ours = make(**ONLY_TEACHER, temperature=1.0)(output, target, sure).total
        torch.testing.assert_close(ours, labels()(output, target).total, rtol=1e-4, atol=0.0)

    def test_sure_teacher_without_balance_is_cross_entropy(self) -> None:
        output, target, _, _ = batch()
        sure = Lesson(60.0 * functional.one_hot(target, NUM_CLASSES))
        ours = make(**ONLY_TEACHER, temperature=1.0, balance="none")(output, target, sure).total
        torch.testing.assert_close(ours, functional.cross_entropy(output.logits[:, 0], target))

    def test_high_temperature_compares_logits_class_by_class(self) -> None:
        output, _, lesson, _ = batch()
        student = output.logits[:, 0].detach().double()
        teacher = lesson.logits.double()
        expected = 0.5 * (student - teacher).var(-1, correction=0)
        torch.testing.assert_close(
            tempered_divergence(student, teacher, 1e4), expected, rtol=1e-3, atol=1e-6
        )
        # So with the prior: a rare class's error weighs what a frequent one's does.
        shift = torch.tensor(COUNTS).clamp_min(1).double().log()
        shifted = tempered_divergence(student + shift, teacher + shift, 1e4)
        torch.testing.assert_close(shifted, expected, rtol=1e-3, atol=1e-6)

    def test_divergence_in_plain_loops(self) -> None:
        output, _, lesson, _ = batch(4)
        student, teacher = output.logits[:, 0].detach(), lesson.logits
        for i, found in enumerate(tempered_divergence(student, teacher, 2.0)):
            p, q = (torch.softmax(z[i] / 2.0, 0) for z in (teacher, student))
            expected = 4.0 * sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True))
            assert found.item() == pytest.approx(expected, rel=1e-4)

    def test_labels_are_asked_where_there_are_any(self) -> None:
        output, target, lesson, _ = batch()
        hidden = target.clone()
        hidden[::2] = -1
        some = ExpertOutput(output.logits[1::2], output.features[1::2])
        expected = 0.3 * labels()(some, target[1::2]).total
        parts = make()(output, hidden, lesson).parts
        torch.testing.assert_close(parts["base"], expected.detach())
        torch.testing.assert_close(
            parts["teacher"], make()(output, target, lesson).parts["teacher"]
        )
        nobody = make()(output, torch.full_like(target, -1), lesson)
        assert nobody.parts["base"].item() == 0.0
        assert nobody.total.item() == pytest.approx(parts["teacher"].item())


class TestBalance:
    def test_weights_are_the_ratio_of_the_densities(self) -> None:
        """On a line with two Gaussian classes, 9 to 1, where all densities are known."""
        share = torch.tensor([0.9, 0.1]).double()
        x = torch.linspace(-4, 4, 81).double()
        density = torch.stack([torch.exp(-0.5 * (x - m) ** 2) for m in (-1.0, 1.0)], 1)
        balanced = density.log()  # logits of the balanced posterior, up to a constant
        expected = density.mean(1) / (density * share).sum(1)
        torch.testing.assert_close(balancing_weights(balanced, share.log() + 3.0), expected)

    def test_sure_image_weighs_by_its_class(self) -> None:
        logits = 100.0 * torch.eye(NUM_CLASSES)
        share = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
        torch.testing.assert_close(balancing_weights(logits, share.log()), 1 / (5 * share))

    def test_uniform_prior_makes_all_kinds_equal(self) -> None:
        output, target, lesson, _ = batch()
        totals = [
            make(torch.ones(NUM_CLASSES), balance=kind)(output, target, lesson).total
            for kind in ("prior", "weights", "none")
        ]
        torch.testing.assert_close(totals[0], totals[1])
        torch.testing.assert_close(totals[0], totals[2])

    @pytest.mark.parametrize(
        ("balance", "fair"), [("prior", True), ("weights", True), ("none", False)]
    )
    def test_small_student_of_a_sure_teacher(self, balance: str, fair: bool) -> None:
        """A student that knows nothing but the prior: 90 images of one class, 10 of the other."""
        target = torch.tensor([0] * 90 + [1] * 10)
        teacher = Lesson(50.0 * functional.one_hot(target, 2).float())
        off = {"hard_weight": 0.0, "distillation_weight": 0.0, "hard_distillation_weight": 0.0}
        plain = Objective([90, 10], num_experts=1, contrastive_weight=0, intra_weight=0, **off)
        loss = StudentObjective(
            plain,
            [90, 10],
            torch.tensor([0.9, 0.1]),
            label_weight=0.0,
            temperature=1.0,
            balance=balance,  # type: ignore[arg-type]
        )
        bias = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.LBFGS([bias], max_iter=60)

        def closure() -> Tensor:
            optimizer.zero_grad()
            output = ExpertOutput(bias.expand(100, 1, 2), torch.zeros(100, 1, 1))
            total: Tensor = loss(output, target, teacher).total
            total.backward()
            return total

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        odds = float((bias[0] - bias[1]).detach())
        assert odds == pytest.approx(0.0 if fair else torch.tensor(9.0).log().item(), abs=0.02)


class TestSeveralExperts:
    EXPERTS = 3

    def several(self, **changes: Any) -> tuple[StudentObjective, ExpertOutput, Tensor, Lesson]:
        _, target, lesson, _ = batch()
        generator = torch.Generator().manual_seed(4)
        logits = 2 * torch.randn(len(target), self.EXPERTS, NUM_CLASSES, generator=generator)
        output = ExpertOutput(logits.requires_grad_(), torch.zeros(len(target), self.EXPERTS, 2))
        terms = {"hard_weight": 0.0, "hard_distillation_weight": 0.0, "diversity_weight": 0.4}
        spread = Objective(
            COUNTS, num_experts=self.EXPERTS, contrastive_weight=0, intra_weight=0, **terms
        )
        return StudentObjective(spread, COUNTS, torch.ones(5), **changes), output, target, lesson

    def test_each_sums_over_the_experts(self) -> None:
        loss, output, _, lesson = self.several(**ONLY_TEACHER, experts="each", balance="none")
        found = loss(output, torch.zeros(12, dtype=torch.long), lesson).total
        alone = [
            tempered_divergence(output.logits[:, e], lesson.logits, 2.0).mean()
            for e in range(self.EXPERTS)
        ]
        torch.testing.assert_close(found, torch.stack(alone).sum())

    def test_ensemble_compares_the_mean(self) -> None:
        loss, output, target, lesson = self.several(**ONLY_TEACHER, balance="none")
        expected = tempered_divergence(output.logits.mean(1), lesson.logits, 2.0).mean()
        torch.testing.assert_close(loss(output, target, lesson).total, expected)
        # Experts may differ as long as their mean is the teacher.
        apart = torch.tensor([4.0, 0.0, -4.0])[:, None] * output.logits[:, :1].detach()
        agreed = ExpertOutput(lesson.logits[:, None] + apart, output.features)
        assert loss(agreed, target, lesson).total.item() == pytest.approx(0.0, abs=1e-5)
        each = self.several(**ONLY_TEACHER, experts="each")[0]
        assert each(agreed, target, lesson).total.item() > 1.0

    @pytest.mark.parametrize("balance", ["prior", "weights", "none"])
    def test_equal_experts_make_each_a_multiple(self, balance: str) -> None:
        totals = []
        for experts in ("ensemble", "each"):
            loss, output, target, lesson = self.several(
                **ONLY_TEACHER, experts=experts, balance=balance
            )
            same = output.logits[:, :1].expand(-1, self.EXPERTS, -1)
            totals.append(loss(ExpertOutput(same, output.features), target, lesson).total)
        torch.testing.assert_close(totals[1], self.EXPERTS * totals[0])

    def test_the_labels_keep_their_terms(self) -> None:
        loss, output, target, lesson = self.several(teacher_weight=0.0, label_weight=0.5)
        result = loss(output, target, lesson)
        torch.testing.assert_close(result.total, 0.5 * loss.labels(output, target).total)
        result.total.backward()
        assert output.logits.grad is not None
        assert output.logits.grad.abs().sum((0, 2)).min() > 0  # reaches every expert


def test_directions_ignore_length() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    y = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 9.0]])
    assert direction_distance(x, y).tolist() == pytest.approx([0.0, 4.0, 2.0])


def test_gates_are_compared_by_stage_and_region() -> None:
    student, teacher = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    teacher[0, 0] = torch.tensor([0.1, 0.2, 0.2])
    assert gate_distance(student, teacher).item() == pytest.approx(0.09 / 2)
    output, target, lesson, _ = batch()
    assert lesson.gates is not None
    loss = make(**{**ALL_TERMS, "label_weight": 0.0, "teacher_weight": 0.0, "feature_weight": 0.0})
    assert loss(output, target, lesson, lesson.gates[:, [0, 2]]).total.item() == 0.0
    assert loss(output, target, lesson, lesson.gates[:, [0, 1]]).total.item() > 0.1


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"balance": "both"}, "prior, weights, none"),
        ({"experts": "all"}, "experts='all' is unknown: choose one of ensemble, each"),
        ({"teacher_weight": -1.0}, "weight of teacher is -1.0"),
        ({"teacher_weight": 0.0, "label_weight": 0.0}, "nothing to learn"),
    ],
)
def test_wrong_arguments_name_the_way_out(arguments: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        make(**arguments)


class TestMemory:
    def student(self, **changes: Any) -> StudentObjective:
        terms = ("hard_distillation", "contrastive", "intra")
        off: dict[str, Any] = {f"{name}_weight": 0.0 for name in terms}
        teachable = Objective(COUNTS, num_experts=1, hard_selection="confusion", **off)
        prior = torch.tensor(COUNTS).float()
        return StudentObjective(teachable, COUNTS, prior, **changes)

    def test_is_the_labels_loss_of_images_that_have_a_label(self) -> None:
        loss, (output, target, _, _) = self.student(), batch()
        target[::3] = -1
        assert loss.remembers
        loss.remember(output, [(target, 0.8), (target.flip(0), 0.2)])
        other = self.student().labels
        for labels, share in ((target, 0.8), (target.flip(0), 0.2)):
            assert (labels >= 0).any()
            known = labels >= 0
            part = ExpertOutput(output.logits[known], output.features[known])
            other.remember(part, [(labels[known], share)])
        ours, theirs = (
            part.state_dict()["memory.confusion.matrix"] for part in (loss.labels, other)
        )
        # One step of both labels, and one of each, fade alike but not in the same order.
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
        assert not torch.equal(ours, self.student().labels.state_dict()["memory.confusion.matrix"])

    def test_without_labels_there_is_none(self) -> None:
        loss, (output, target, _, _) = self.student(label_weight=0.0), batch()
        assert not loss.remembers
        assert loss.workings(output, target) == {}
        assert not make().remembers

    def test_workings_leave_out_what_has_no_label(self) -> None:
        loss, (output, target, _, _) = self.student(), batch()
        target[:4] = -1
        part = ExpertOutput(output.logits[4:], output.features[4:])
        expected = loss.labels.workings(part, target[4:])
        assert loss.workings(output, target) == expected
        assert set(expected) == {"hard_differs"}
