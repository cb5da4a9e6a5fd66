"""What holds for every configuration of the objective, and where it must meet a simpler loss."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from recame.config.objective import ObjectiveConfig
from recame.contracts import ExpertOutput, LossResult
from recame.errors import ConfigError
from recame.losses import Objective, objective
from recame.losses.objective import Base, HardMode, HardSelection, IntraMode, MarginMode

COUNTS = (900, 90, 9, 1, 0, 40, 7)
NUM_CLASSES, NUM_EXPERTS, NUM_FEATURES = len(COUNTS), 3, 6
PARTS = (
    "base",
    "hard",
    "distillation",
    "hard_distillation",
    "diversity",
    "contrastive",
    "intra",
)
ONLY_BASE = {f"{name}_weight": 0.0 for name in PARTS[1:]}
CLUSTERS = {"intra_mode": "clusters", "intra_weight": 0.1}
MEMORY = CLUSTERS | {"hard_selection": "confusion"}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "published": {},
    **{base: {"base": base} for base in get_args(Base)},
    "focal_steep": {"base": "focal", "focal_gamma": 0.5},
    "tau_per_expert": {"tau": (0.0, 1.0, 2.0)},
    "gather": {"hard_mode": "gather"},
    "own": {"hard_selection": "own"},
    "gather_own": {"hard_mode": "gather", "hard_selection": "own"},
    "detached": {"detach_target": True},
    "detached_gather_own": {
        "detach_target": True,
        "hard_mode": "gather",
        "hard_selection": "own",
    },
    "normalised": {"normalise_features": True, "margin": 1.0},
    "relative": {"margin_mode": "relative", "margin": 1.0},
    "relative_normalised": {
        "margin_mode": "relative",
        "margin": 0.8,
        "normalise_features": True,
    },
    "confusion": {"hard_selection": "confusion"},
    "gather_confusion": {"hard_mode": "gather", "hard_selection": "confusion"},
    "clusters": CLUSTERS,
    "one_cluster": CLUSTERS | {"clusters": 1, "hard_selection": "confusion"},
    "only_clusters": {**{f"{name}_weight": 0.0 for name in PARTS[:6]}, **CLUSTERS},
    "prior": {"prior": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0])},
    "only_intra": {f"{name}_weight": 0.0 for name in PARTS[:6]},
    "diverse": {"diversity_weight": 0.4},
    "only_base": ONLY_BASE,
}


def make_objective(**changes: Any) -> Objective:
    """An objective; one with a memory has seen a few batches."""
    loss = Objective(COUNTS, num_experts=NUM_EXPERTS, num_features=NUM_FEATURES, **changes)
    for seed in (7, 8, 9) if loss.remembers else ():
        output, target = make_batch(20, seed)
        loss.remember(output, [(target, 1.0)])
    return loss


def make_batch(size: int = 10, seed: int = 0) -> tuple[ExpertOutput, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(size, NUM_EXPERTS, NUM_CLASSES, generator=generator)
    features = torch.randn(size, NUM_EXPERTS, NUM_FEATURES, generator=generator)
    target = torch.randint(0, NUM_CLASSES, (size,), generator=generator)
    return ExpertOutput(logits.requires_grad_(), features.requires_grad_()), target


def gradients(result: LossResult, output: ExpertOutput) -> tuple[Tensor, Tensor]:
    found = torch.autograd.grad(
        result.total, (output.logits, output.features), allow_unused=True, materialize_grads=True
    )
    return found[0], found[1]


@pytest.fixture(params=CONFIGURATIONS)
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGURATIONS[request.param]


@pytest.mark.parametrize("deferred", [False, True])
def test_finite_and_parts_add_up(changes: dict[str, Any], deferred: bool) -> None:
    loss, (output, target) = make_objective(**changes), make_batch()
    loss.set_deferred(deferred)
    result = loss(output, target)
    default = {"diversity_weight": 0.0}
    weights = {name: (default | changes).get(f"{name}_weight", 1.0) for name in PARTS}
    wanted = [name for name, weight in weights.items() if weight > 0]
    assert list(result.parts) == wanted
    assert result.total.shape == ()
    assert result.total.item() == pytest.approx(sum(p.item() for p in result.parts.values()))
    assert not any(part.requires_grad for part in result.parts.values())
    assert all(grad.isfinite().all() for grad in gradients(result, output))


def test_gradient_reaches_every_expert(changes: dict[str, Any]) -> None:
    loss, (output, target) = make_objective(**changes), make_batch()
    to_logits, to_features = gradients(loss(output, target), output)
    if loss.weights["base"] > 0:
        assert (to_logits.abs().sum((0, 2)) > 0).all()
    if loss.weights["intra"] > 0:
        assert (to_features.abs().sum((0, 2)) > 0).all()
    assert (to_logits.abs().sum() + to_features.abs().sum()) > 0


def test_permutation_invariant(changes: dict[str, Any]) -> None:
    loss, (output, target) = make_objective(**changes), make_batch()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    shuffled = ExpertOutput(output.logits[order], output.features[order])
    torch.testing.assert_close(loss(shuffled, target[order]).total, loss(output, target).total)


def test_autocast_computes_in_float32(changes: dict[str, Any]) -> None:
    loss, (output, target) = make_objective(**changes), make_batch()
    low = ExpertOutput(output.logits.bfloat16(), output.features.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(low, target).total
    expected = loss(ExpertOutput(low.logits.float(), low.features.float()), target).total
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    assert all(grad.isfinite().all() for grad in gradients(LossResult(actual, {}), low))


def test_empty_batch_is_zero_with_gradient(changes: dict[str, Any]) -> None:
    output, target = make_batch(size=0)
    result = make_objective(**changes)(output, target)
    assert result.total.item() == 0.0
    assert result.total.requires_grad
    assert gradients(result, output)[0].shape == output.logits.shape


@pytest.mark.parametrize("label", [0, 4])
@pytest.mark.parametrize("size", [1, 5])
def test_one_class_batch(changes: dict[str, Any], label: int, size: int) -> None:
    output, _ = make_batch(size)
    result = make_objective(**changes)(output, torch.full((size,), label))
    assert result.total.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(result, output))


def test_equal_features_have_no_gradient_and_no_nan(changes: dict[str, Any]) -> None:
    output, target = make_batch()
    same = torch.full((10, NUM_EXPERTS, NUM_FEATURES), 0.1, requires_grad=True)
    result = make_objective(**changes)(ExpertOutput(output.logits, same), target)
    grad = torch.autograd.grad(result.total, same, allow_unused=True)[0]
    assert result.total.isfinite()
    if changes.get("intra_mode") == "clusters":  # which lie elsewhere
        assert grad is not None
        assert grad.isfinite().all()
    else:
        assert grad is None or (grad == 0).all()


def test_extreme_logits_stay_finite(changes: dict[str, Any]) -> None:
    output, target = make_batch()
    extreme = ExpertOutput(1e4 * output.logits, output.features)
    result = make_objective(**changes)(extreme, target)
    assert result.total.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(result, output))


@pytest.mark.parametrize(
    ("part", "function"),
    [
        ("distillation", "mutual_distillation"),
        ("hard", "masked_cross_entropy"),
        ("contrastive", "contrastive"),
        ("intra", "intra_class"),
    ],
)
def test_weight_zero_computes_nothing(
    monkeypatch: pytest.MonkeyPatch, part: str, function: str
) -> None:
    calls: list[str] = []
    original = getattr(objective, function)

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(function)
        return original(*args, **kwargs)

    monkeypatch.setattr(objective, function, spy)
    output, target = make_batch()
    weights = {"hard_distillation_weight": 0.0}
    assert part in make_objective(**weights)(output, target).parts
    assert calls == [function]
    weights[f"{part}_weight"] = 0.0
    assert part not in make_objective(**weights)(output, target).parts
    assert calls == [function]


def test_only_base_looks_at_no_pairs_and_no_hard_categories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_args: Any, **_kwargs: Any) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")

    for name in ("pairwise_distances", "hard_categories", "mutual_distillation", "keep_hard"):
        monkeypatch.setattr(objective, name, forbidden)
    output, target = make_batch()
    assert list(make_objective(**ONLY_BASE)(output, target).parts) == ["base"]


def summed_cross_entropy(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    per_expert = [functional.cross_entropy(x, target, **options) for x in logits.unbind(1)]
    return torch.stack(per_expert).sum()


@pytest.mark.parametrize(
    "changes",
    [
        {"base": "balanced_softmax"},
        {"tau": 0.0},
        {"base": "focal", "focal_gamma": 0.0},
        {"base": "ldam", "ldam_max_margin": 0.0},
        {"base": "class_balanced", "class_balanced_beta": 0.0},
        {"base": "cross_entropy"},
    ],
)
def test_uniform_prior_and_neutral_settings_are_cross_entropy(changes: dict[str, Any]) -> None:
    output, target = make_batch()
    counts = (50,) * NUM_CLASSES if changes.get("base") == "balanced_softmax" else COUNTS
    loss = Objective(counts, num_experts=NUM_EXPERTS, **{**ONLY_BASE, **changes})
    torch.testing.assert_close(
        loss(output, target).total, summed_cross_entropy(output.logits, target)
    )


def test_gather_of_all_categories_is_the_full_loss() -> None:
    output, target = make_batch()
    for selection in ("reference", "own", "confusion"):
        loss = make_objective(num_hard=NUM_CLASSES, hard_mode="gather", hard_selection=selection)
        parts = loss(output, target).parts
        torch.testing.assert_close(parts["hard"], parts["base"])
        torch.testing.assert_close(parts["hard_distillation"], parts["distillation"])


@pytest.mark.parametrize("mode", ["reference", "gather"])
@pytest.mark.parametrize("selection", ["reference", "own", "confusion"])
def test_equal_experts_and_one_expert_distil_nothing(mode: str, selection: str) -> None:
    output, target = make_batch()
    alike = output.logits[:, :1].expand(-1, NUM_EXPERTS, -1)
    options: Any = {"hard_mode": mode, "hard_selection": selection}
    equal = make_objective(**options)(ExpertOutput(alike, output.features), target).parts
    alone = Objective(COUNTS, num_experts=1, **options)(
        ExpertOutput(output.logits[:, :1], output.features[:, :1]), target
    ).parts
    for parts in (equal, alone):
        assert parts["distillation"].item() == pytest.approx(0.0, abs=1e-6)
        assert parts["hard_distillation"].item() == pytest.approx(0.0, abs=1e-6)


def test_tau_per_expert_shifts_each_by_its_own_prior() -> None:
    output, target = make_batch()
    log_counts = torch.tensor(COUNTS).clamp_min(1).float().log()
    tau = (-1.0, 1.0, 2.5)
    shifted = output.logits + torch.tensor(tau)[:, None] * log_counts
    actual = make_objective(tau=tau, **ONLY_BASE)(output, target).total
    torch.testing.assert_close(actual, summed_cross_entropy(shifted, target))


def test_deferred_weights_the_base_by_effective_numbers() -> None:
    output, target = make_batch()
    loss = make_objective(base="cross_entropy", class_balanced_beta=0.9, **ONLY_BASE)
    plain = loss(output, target).total
    loss.set_deferred(True)
    weight = torch.tensor([0.1 / (1 - 0.9 ** max(count, 1)) for count in COUNTS])
    expected = summed_cross_entropy(output.logits, target, weight=weight)
    torch.testing.assert_close(loss(output, target).total, expected)
    loss.set_deferred(False)
    torch.testing.assert_close(loss(output, target).total, plain)


def test_prior_that_repeats_the_counts_changes_nothing() -> None:
    output, target = make_batch()
    counts = torch.tensor([900.0, 90.0, 9.0, 1.0, 1.0, 40.0, 7.0])
    loss = make_objective(prior=0.3 * counts)
    torch.testing.assert_close(loss(output, target).total, make_objective()(output, target).total)


def test_uniform_prior_of_a_sampler_leaves_the_logits_balanced() -> None:
    output, target = make_batch()
    loss = make_objective(prior=torch.ones(NUM_CLASSES), **ONLY_BASE)
    torch.testing.assert_close(
        loss(output, target).total, summed_cross_entropy(output.logits, target)
    )


def test_class_without_images_counts_as_one_image() -> None:
    output, target = make_batch()
    one = Objective([max(count, 1) for count in COUNTS], num_experts=NUM_EXPERTS)
    torch.testing.assert_close(make_objective()(output, target).total, one(output, target).total)


def test_buffers_follow_the_module_and_stay_out_of_checkpoints() -> None:
    loss = make_objective().double()
    assert {name for name, _ in loss.named_buffers()} >= {"log_counts", "tau"}
    assert loss.log_counts.dtype == torch.float64
    assert loss.state_dict() == {}
    memory = {"memory.confusion.matrix", "memory.prototypes.sums", "memory.prototypes.images"}
    assert set(make_objective(**MEMORY).state_dict()) == memory


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"counts": [5]}, "two classes"),
        ({"counts": [5, -1]}, "-1.0"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"tau": (1.0, 2.0)}, "num_experts=3"),
        ({"num_hard": 8}, "num_hard=8"),
        ({"base": "hinge"}, "'hinge'"),
        ({"hard_mode": "mask"}, "reference, gather"),
        ({"hard_weight": -1.0}, "weight of hard is -1.0"),
        ({"normalise_features": True}, "margin=20.0"),
        ({"margin_mode": "relative"}, "margin=20.0 with margin_mode='relative'"),
        ({"margin_mode": "quantile"}, "absolute, relative"),
        ({"hard_selection": "random"}, "reference, own, confusion"),
        ({"intra_mode": "centres"}, "reference, clusters"),
        ({"intra_mode": "clusters"}, "num_features=None"),
        ({"clusters": 0}, "clusters=0"),
        ({"prior": torch.ones(3)}, "7 classes"),
        ({"prior": torch.zeros(7)}, "not all 0"),
        ({"class_balanced_beta": 1.5}, "1.5"),
        ({**ONLY_BASE, "base_weight": 0.0}, "nothing to learn"),
    ],
)
def test_wrong_arguments_name_the_way_out(arguments: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment.replace("(", r"\(")):
        Objective(**{"counts": COUNTS, "num_experts": NUM_EXPERTS, **arguments})


def test_settings_know_the_same_words() -> None:
    settings = get_type_hints(ObjectiveConfig)
    assert settings["base"] == Base
    assert settings["hard_mode"] == HardMode
    assert settings["hard_selection"] == HardSelection
    assert settings["intra_mode"] == IntraMode
    assert settings["margin_mode"] == MarginMode


def kept(loss: Objective) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loss.state_dict().items()}


def assert_same_memory(loss: Objective, expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(kept(loss), expected, rtol=0, atol=0)


class TestMemory:
    def test_the_loss_of_a_batch_leaves_no_trace(self, changes: dict[str, Any]) -> None:
        loss, (output, target) = make_objective(**changes), make_batch()
        assert loss.remembers == bool(loss.state_dict())
        before = kept(loss)
        first = loss(output, target).total
        assert torch.equal(loss(output, target).total, first)
        loss.workings(output, target)
        assert_same_memory(loss, before)

    def test_what_is_shown_in_evaluation_is_not_remembered(self) -> None:
        loss, (output, target) = make_objective(**MEMORY), make_batch()
        before = kept(loss)
        loss.eval().remember(output, [(target, 1.0)])
        assert_same_memory(loss, before)

    def test_an_empty_batch_is_nothing_to_remember(self) -> None:
        loss, (output, target) = make_objective(**MEMORY), make_batch(0)
        before = kept(loss)
        loss.remember(output, [(target, 1.0)])
        assert_same_memory(loss, before)

    def test_a_loaded_memory_goes_on_as_the_first(self) -> None:
        loss, (output, target) = make_objective(**MEMORY), make_batch()
        other = Objective(COUNTS, num_experts=NUM_EXPERTS, num_features=NUM_FEATURES, **MEMORY)
        assert not torch.equal(other(output, target).total, loss(output, target).total)
        other.load_state_dict(loss.state_dict())
        for seed in range(3):
            output, target = make_batch(8, seed)
            assert torch.equal(other(output, target).total, loss(output, target).total)
            for memory in (other, loss):
                memory.remember(output, [(target, 1.0)])
            assert_same_memory(other, kept(loss))

    def test_forgotten_is_new(self) -> None:
        loss = make_objective(**MEMORY)
        loss.forget()
        new = Objective(COUNTS, num_experts=NUM_EXPERTS, num_features=NUM_FEATURES, **MEMORY)
        assert_same_memory(loss, kept(new))

    def test_half_precision_is_remembered_in_full(self) -> None:
        output, target = make_batch(12)
        low = ExpertOutput(output.logits.bfloat16(), output.features.bfloat16())
        ours, theirs = make_objective(**MEMORY), make_objective(**MEMORY)
        with torch.autocast("cpu", torch.bfloat16):
            ours.remember(low, [(target, 1.0)])
        theirs.remember(ExpertOutput(low.logits.float(), low.features.float()), [(target, 1.0)])
        assert_same_memory(ours, kept(theirs))
        assert all(value.dtype == torch.float32 for value in kept(ours).values())

    @pytest.mark.parametrize("part", ["logits", "features"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_an_image_without_numbers_is_passed_over(self, part: str, value: float) -> None:
        output, target = make_batch(6)
        broken = {"logits": output.logits.detach().clone(), "features": output.features.detach()}
        broken[part] = broken[part].clone()
        broken[part][2, 1] = value
        rest = torch.tensor([0, 1, 3, 4, 5])
        ours, theirs = make_objective(**MEMORY), make_objective(**MEMORY)
        ours.remember(ExpertOutput(**broken), [(target, 1.0)])
        kept_rows = ExpertOutput(output.logits[rest], output.features[rest])
        theirs.remember(kept_rows, [(target[rest], 1.0)])
        torch.testing.assert_close(kept(ours), kept(theirs))

    def test_a_mixed_image_counts_for_both_by_their_shares(self) -> None:
        output, target = make_batch(6)
        other = target.flip(0)
        ours, theirs = make_objective(**MEMORY), make_objective(**MEMORY)
        ours.remember(output, [(target, 0.7), (other, 0.3)])
        twice = ExpertOutput(output.logits.repeat(2, 1, 1), output.features.repeat(2, 1, 1))
        weight = torch.tensor([0.7] * 6 + [0.3] * 6)
        theirs.remember(twice, [(torch.cat([target, other]), weight)])
        assert_same_memory(ours, kept(theirs))

    def test_a_new_memory_changes_nothing_but_the_pull(self) -> None:
        """Without clusters there is no pull, and without confusion the ensemble's logits decide."""
        output, target = make_batch()
        alone = {"num_experts": 1, "num_features": NUM_FEATURES}
        one = ExpertOutput(output.logits[:, :1], output.features[:, :1])
        ours = Objective(COUNTS, **alone, **MEMORY)(one, target)  # type: ignore[arg-type]
        theirs = Objective(COUNTS, **alone)(one, target)  # type: ignore[arg-type]
        assert ours.parts["intra"].item() == 0.0
        for name in ("base", "hard", "hard_distillation"):
            assert torch.equal(ours.parts[name], theirs.parts[name])
        pulled = Objective(COUNTS, **alone, contrastive_weight=0.0, intra_weight=0.05)  # type: ignore[arg-type]
        both = ours.parts["contrastive"] + pulled(one, target).parts["intra"]
        torch.testing.assert_close(both, theirs.parts["contrastive"])

    def test_clusters_are_an_average_over_images_summed_over_experts(self) -> None:
        loss, (output, target) = make_objective(**CLUSTERS), make_batch()
        assert loss.memory.prototypes is not None
        total = 0.0
        for image in range(len(target)):
            for expert in range(NUM_EXPERTS):
                places = loss.memory.prototypes.sums[target[image], expert]
                live = places[loss.memory.prototypes.images[target[image], expert] >= 0.5]
                feature = output.features[image, expert].detach()
                far = [1 - functional.cosine_similarity(feature, p, dim=0).item() for p in live]
                total += min(far) if far else 0.0
        expected = 0.1 * total / len(target)
        assert loss(output, target).parts["intra"].item() == pytest.approx(expected, rel=1e-4)


class TestWorkings:
    def test_each_term_tells_its_own(self, changes: dict[str, Any]) -> None:
        loss, (output, target) = make_objective(**changes), make_batch()
        found = loss.workings(output, target)
        weights = loss.weights
        wanted = {"hard_differs"} if weights["hard"] + weights["hard_distillation"] > 0 else set()
        wanted |= {"pushed"} if weights["contrastive"] > 0 else set()
        wanted |= {"clusters"} if loss.memory.prototypes is not None else set()
        assert set(found) == wanted
        assert all(0 <= float(v) <= 1 for name, v in found.items() if name != "clusters")
        assert not any(value.requires_grad for value in found.values())
        empty, nothing = make_batch(0)
        assert all(value.isfinite() for value in loss.workings(empty, nothing).values())

    def test_what_the_margin_pushes(self) -> None:
        output, target = make_batch(40)
        unit = {"normalise_features": True}
        shares = [
            make_objective(margin=margin, margin_mode=mode, **unit).workings(output, target)
            for mode, margin in (("absolute", 2.0), ("absolute", 0.05), ("relative", 1.0))
        ]
        pushed = [float(share["pushed"]) for share in shares]
        assert pushed[0] > 0.99
        assert pushed[1] < 0.01
        assert 0.3 < pushed[2] < 0.6

    def test_own_categories_of_raw_logits_differ_only_where_the_target_is_low(self) -> None:
        output, _ = make_batch(30)
        options: dict[str, Any] = {"base": "cross_entropy", "hard_selection": "own"}
        loss = make_objective(num_hard=2, **options)
        right = output.logits.detach().clone()
        highest = right[:, 0].argmax(1)
        right[:] = right[:, :1]  # all experts alike, and all right
        assert loss.workings(ExpertOutput(right, output.features), highest)["hard_differs"] == 0.0
        lowest = right[:, 0].argmin(1)
        assert loss.workings(ExpertOutput(right, output.features), lowest)["hard_differs"] == 1.0

    def test_clusters_in_use(self) -> None:
        output, target = make_batch(40)
        loss = make_objective(**CLUSTERS)
        assert loss.memory.prototypes is not None
        live = (loss.memory.prototypes.images >= 0.5).sum(2).float()
        expected = live[live.sum(1) > 0].mean().item()
        found = loss.workings(output, target)["clusters"].item()
        assert 1.0 < found == pytest.approx(expected)
