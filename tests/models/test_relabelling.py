from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recame.contracts import PreprocessSpec, ensemble_logits
from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.models import (
    Architecture,
    LoadedModel,
    MultiExpertClassifier,
    adapted_to,
    load_checkpoint,
    save_checkpoint,
)

SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.4,), (0.2,))
SPACE = LabelSpace(("ok", "crack", "void", "dent"), (50, 9, 5, 2), normal="ok")


def space(*names: str) -> LabelSpace:
    return LabelSpace(names, tuple(range(len(names), 0, -1)))


def trained(backbone: str = "test_resnet", **changes: Any) -> LoadedModel:
    torch.manual_seed(0)
    plan = Architecture(backbone, **{"stages": 1, "attention": "none", **changes})
    model = MultiExpertClassifier(plan, SPACE.num_classes, SPEC)
    with torch.no_grad():
        model.head.classifier.bias.normal_()
        width = model.head.shape[1]
        model.head.set_standardisation(torch.randn(width), torch.rand(width) + 0.5)
    return LoadedModel(model.eval(), SPACE, SPEC, plan)


def logits(loaded: LoadedModel) -> Tensor:
    images = torch.rand(40, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return loaded.model(images).logits


NETWORKS: list[dict[str, Any]] = [
    {"num_experts": experts, "classifier": classifier, "hidden": hidden}
    for experts in (1, 3)
    for classifier in ("cosine", "linear")
    for hidden in (0, 6)
]


@pytest.mark.parametrize("plan", NETWORKS)
def test_the_same_classes_are_judged_as_before(plan: dict[str, Any]) -> None:
    before = trained(**plan)
    after = adapted_to(before, SPACE)
    assert torch.equal(logits(after), logits(before))
    assert after.architecture == before.architecture == after.model.architecture
    order = [2, 0, 3, 1]
    turned = adapted_to(before, space(*(SPACE.names[i] for i in order)))
    weight = before.model.head.classifier.weight
    assert torch.equal(turned.model.head.classifier.weight, weight[:, order])
    chosen = torch.tensor(order)[logits(turned).argmax(-1)]
    assert torch.equal(chosen, logits(before).argmax(-1))
    torch.testing.assert_close(logits(turned), logits(before)[..., order], rtol=1e-6, atol=1e-6)
    back = adapted_to(turned, SPACE)
    theirs = before.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in back.model.state_dict().items())
    assert torch.equal(logits(back), logits(before))


@pytest.mark.parametrize("plan", NETWORKS)
def test_new_classes_leave_the_others_alone(plan: dict[str, Any], tmp_path: Path) -> None:
    before = trained(**plan)
    wider = space("stain", "void", "ok", "burr", "crack", "dent")
    after = adapted_to(before, wider)
    assert (after.label_space, after.model.num_classes) == (wider, 6)
    new, old = [0, 3], [1, 2, 4, 5]
    known = logits(before)[..., [2, 0, 1, 3]]
    torch.testing.assert_close(logits(after)[..., old], known, rtol=1e-6, atol=1e-6)
    bias = after.model.head.classifier.bias
    assert torch.equal(bias[:, new], bias[:, old].amin(1, keepdim=True).expand(-1, 2))
    save_checkpoint(tmp_path, after.model, after.label_space)
    again = load_checkpoint(tmp_path)
    assert torch.equal(logits(again), logits(after))
    assert before.model.head.classifier.weight.shape[1] == 4


@pytest.mark.parametrize("num_experts", [1, 3])
def test_a_new_class_of_a_linear_classifier_is_not_predicted(num_experts: int) -> None:
    after = adapted_to(
        trained(classifier="linear", num_experts=num_experts), space("stain", *SPACE.names, "burr")
    )
    found = logits(after)
    for judged in (*found.unbind(1), ensemble_logits(found)):
        assert not set(judged.argmax(1).tolist()) & {0, 5}
        assert (judged[:, [0, 5]] <= judged[:, 1:5].mean(1, keepdim=True) + 1e-6).all()


def test_a_new_class_of_a_cosine_classifier_looks_like_none() -> None:
    before = trained(stages=2)
    torch.manual_seed(4)
    after = adapted_to(before, space(*SPACE.names, "stain", "burr"))
    weight = torch.nn.functional.normalize(after.model.head.classifier.weight, dim=-1)
    cosines = weight @ weight.transpose(1, 2)
    off_diagonal = cosines - torch.eye(6)
    assert off_diagonal[:, 4:].abs().max() < 0.5
    torch.manual_seed(4)
    again = adapted_to(before, after.label_space)
    assert torch.equal(again.model.head.classifier.weight, after.model.head.classifier.weight)


def test_new_classes_can_be_learnt() -> None:
    for classifier in ("cosine", "linear"):
        model = adapted_to(trained(classifier=classifier), space("stain", "ok", "burr")).model
        model(torch.rand(4, 1, 32, 32)).logits[..., 0].sum().backward()
        gradient = model.head.classifier.weight.grad
        assert gradient is not None
        assert gradient[:, 0].abs().sum() > 0


def test_missing_classes_are_left_out() -> None:
    before = trained()
    after = adapted_to(before, space("dent", "crack"))
    torch.testing.assert_close(logits(after), logits(before)[..., [3, 1]], rtol=1e-6, atol=1e-6)


def test_an_open_rank_stays_what_it_was(tmp_path: Path) -> None:
    before = trained("test_vit", tuning="adapter")
    after = adapted_to(before, space(*SPACE.names, *map(str, range(600))))
    assert after.architecture.tuning_rank == 4
    save_checkpoint(tmp_path, after.model, after.label_space)
    assert torch.equal(logits(load_checkpoint(tmp_path)), logits(after))


def test_nothing_shared() -> None:
    with pytest.raises(DataError, match=r"classes a, b is one .*\(ok, crack, void, dent\)"):
        adapted_to(trained(), space("a", "b"))
