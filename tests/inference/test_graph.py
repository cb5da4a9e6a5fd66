from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from recame.contracts import PreprocessSpec
from recame.data.transforms import dihedral_view
from recame.errors import ExportError
from recame.inference.graph import DeploymentGraph, rewritten
from recame.inference.parity import torch_forward
from recame.models import Architecture, MultiExpertClassifier


def build(channels: int = 1, depth: int = 8, scale: float = 255.0, side: int = 32, **plan: object):
    torch.manual_seed(0)
    mean, std = (0.4,) * channels, (0.25,) * channels
    spec = PreprocessSpec(side, side, channels, depth, scale, mean, std)
    settings = {"shared_stages": 2, "pooled_stages": 3} | plan
    model = MultiExpertClassifier(Architecture("test_resnet", **settings), 5, spec)
    model(torch.rand(16, channels, side, side))  # batch norms that are not the identity
    return model.eval()


def pixels(model: MultiExpertClassifier, number: int = 3) -> Tensor:
    spec = model.spec
    shape = (number, spec.height, spec.width, spec.channels)
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(0, 2**spec.bit_depth, shape).astype(spec.dtype))


@pytest.mark.parametrize(
    ("channels", "depth", "scale"),
    [(1, 8, 255.0), (3, 8, 255.0), (1, 16, 4095.0), (3, 16, 65535.0)],
)
@pytest.mark.parametrize("views", [1, 8, 4])
def test_is_evaluation(channels: int, depth: int, scale: float, views: int) -> None:
    model = build(channels, depth, scale)
    images = pixels(model)
    graph = DeploymentGraph(model, views=views).eval()
    with torch.no_grad():
        (found,) = graph(images)
    expected = torch_forward(model, model.spec, views)(images.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, atol=1e-5)


@pytest.mark.parametrize(
    "plan",
    [{"attention": kind} for kind in ("regional", "channel", "squeeze_excite", "none")]
    + [{"regions": (3, 3)}, {"shared_stages": 0}, {"shared_stages": 4}]
    + [{"gate_start": 0.3}, {"gate_start": 0.5, "regions": (3, 3)}],
    ids=str,
)
def test_rewriting_changes_nothing(plan: dict[str, object]) -> None:
    model = build(**plan)
    for name, parameter in model.named_parameters():
        if "gate_start" in plan and ".fc2." in name:
            torch.nn.init.normal_(parameter, std=0.3)  # gates that are not the identity
    images = torch.rand(2, 1, 32, 32)
    changed = rewritten(model)
    with torch.no_grad():
        torch.testing.assert_close(changed(images).logits, model(images).logits)
    assert set(model.state_dict()) != set(changed.state_dict())


def test_logarithms_of_what_it_says_are_the_logits() -> None:
    """Up to a number for each image, with their digits."""
    model = build()
    images = pixels(model)
    with torch.no_grad():
        (found,) = DeploymentGraph(model).eval()(images)
        logits = model(images.permute(0, 3, 1, 2) / 255).logits.double().mean(1)
    apart = found.double().log() - logits
    assert (apart - apart.mean(1, keepdim=True)).abs().max() < 1e-5


def test_optional_outputs() -> None:
    model = build()
    images = pixels(model)
    names = ("expert_probabilities", "features", "attribution")
    graph = DeploymentGraph(model, views=2, outputs=names).eval()
    unit = images.permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        probabilities, experts, features, attribution = graph(images)
        plain, mirrored = model(unit), model(dihedral_view(unit, 1))
    mean = (plain.logits.softmax(-1) + mirrored.logits.softmax(-1)) / 2
    torch.testing.assert_close(experts, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features, plain.features, rtol=1e-4, atol=1e-4)
    assert probabilities.shape == (3, 5)
    assert attribution.shape == (3, *graph.attribution_grid())


@pytest.mark.parametrize("classifier", ["cosine", "linear"])
@pytest.mark.parametrize("shared", [0, 2, 4])
def test_attribution_adds_up_to_the_logit(classifier: str, shared: int) -> None:
    model = build(side=64, classifier=classifier, shared_stages=shared)
    with torch.no_grad():
        model.head.set_standardisation(torch.randn(model.head.shape[1]), torch.tensor(0.5))
        model.head.classifier.bias.normal_()
        images = pixels(model)
        graph = DeploymentGraph(model, outputs=("attribution",)).eval()
        probabilities, maps = graph(images)
        output = model(images.permute(0, 3, 1, 2) / 255)
    own = (output.logits - model.head.classifier.bias).mean(1)
    above = own - own.mean(1, keepdim=True)
    called = probabilities.argmax(1)
    torch.testing.assert_close(
        maps.mean((1, 2)), above[torch.arange(3), called], rtol=1e-3, atol=1e-4
    )
    assert maps.std() > 0


def test_attribution_needs_a_head_without_hidden_layer() -> None:
    with pytest.raises(ExportError, match=r"model\.hidden=8.*train with model\.hidden=0"):
        DeploymentGraph(build(hidden=8), outputs=("attribution",))
