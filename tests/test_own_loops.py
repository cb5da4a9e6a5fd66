"""The network and its loss for loops of one's own: as training makes them, and for torch.export."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils import _pytree as pytree

from recame.config import Config
from recame.contracts import ExpertOutput
from recame.errors import ConfigError
from recame.losses import Objective
from recame.models import Architecture, MultiExpertClassifier

TINY = {"model.backbone": "test_resnet", "model.pretrained": False}


def test_the_network_of_settings() -> None:
    network = MultiExpertClassifier.from_config({**TINY, "size": "32x64"}, num_classes=5)
    plan = network.architecture
    assert (plan.num_experts, plan.shared_stages, plan.pooled_stages) == (2, 2, 3)
    assert (network.spec.height, network.spec.width, network.spec.channels) == (32, 64, 3)
    assert network(torch.rand(2, 3, 32, 64)).logits.shape == (2, 2, 5)
    settings = Config().updated({**TINY, "model.shared_stages": -1, "data.channels": 1})
    grey = MultiExpertClassifier.from_config(settings, num_classes=5)
    assert grey.architecture.shared_stages == grey.num_stages - 1
    assert grey.spec.channels == 1
    with pytest.raises(ConfigError, match="did you mean backbone"):
        MultiExpertClassifier.from_config({"model.backbon": "resnet18"}, num_classes=5)
    with pytest.raises(ConfigError, match="num_classes=0"):
        MultiExpertClassifier.from_config(TINY, num_classes=0)


def test_what_settings_leave_open_is_what_training_takes() -> None:
    plan = Architecture.usual(Config().model)
    assert (plan.backbone, plan.num_experts) == ("tf_efficientnet_lite0", 2)
    assert plan.shared_stages == plan.pooled_stages - 1 > 2


def test_the_loss_of_settings() -> None:
    counts = [90, 9, 1]
    loss = Objective.from_config(None, counts, num_features=8)
    assert loss.tau.tolist() == [1.0, 2.0]
    assert Objective.from_config(None, counts, num_experts=1).tau.tolist() == [1.5]
    output = ExpertOutput(torch.zeros(4, 2, 3), torch.rand(4, 2, 8))
    parts = loss(output, torch.tensor([0, 1, 2, 0])).parts
    assert set(parts) == {"base", "hard", "contrastive", "intra"}
    fixed = Objective.from_config(None, counts, fixed_features=True)
    assert set(fixed(output, torch.tensor([0, 1, 2, 0])).parts) == {"base", "hard"}


def test_a_run_trains_by_the_same_loss(tiny_config: Callable[..., Config]) -> None:
    settings = tiny_config(objective__tau=(0.5, 1.5))
    loss = Objective.from_config(settings, [9, 3])
    assert loss.tau.tolist() == [0.5, 1.5]
    assert loss.weights["contrastive"] == 0.0


def test_torch_export_takes_the_network() -> None:
    network = MultiExpertClassifier.from_config({**TINY, "size": 32}, num_classes=3).eval()
    images = torch.rand(2, 3, 32, 32)
    graph = torch.export.export(network, (images,)).module()
    found, expected = graph(images), network(images)
    assert isinstance(found, ExpertOutput)
    torch.testing.assert_close(found.logits, expected.logits)
    leaves, shape = pytree.tree_flatten(expected)
    assert [tuple(leaf.shape) for leaf in leaves] == [(2, 2, 3), tuple(expected.features.shape)]
    assert isinstance(pytree.tree_unflatten(leaves, shape), ExpertOutput)
