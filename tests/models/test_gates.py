"""What gates of a whole network come to."""

from __future__ import annotations

import torch

from recame.contracts import PreprocessSpec
from recame.models import Architecture, MultiExpertClassifier
from recame.models.gates import (
    attention_layers,
    every_attention,
    forward_with_gates,
    gate_spread,
    reading_gates,
)

SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.4,), (0.2,))


def test_spread_of_all_gates_and_over_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(5, 3, 2, 2, generator=generator), torch.rand(5, 7, 1, 1)]
    found = {name: value.item() for name, value in gate_spread(layers).items()}
    every = [gate for layer in layers for gate in layer.flatten().tolist()]
    mean = sum(every) / len(every)
    assert abs(found["gate_mean"] - mean) < 1e-6
    variance = sum((gate - mean) ** 2 for gate in every) / len(every)
    assert abs(found["gate_std"] - variance**0.5) < 1e-6
    over_images = [
        layer[:, channel, row, column].std(correction=0).item()
        for layer in layers
        for channel in range(layer.shape[1])
        for row in range(layer.shape[2])
        for column in range(layer.shape[3])
    ]
    assert abs(found["gate_varies"] - sum(over_images) / len(over_images)) < 1e-6


def test_an_identity_has_no_spread() -> None:
    torch.manual_seed(0)
    model = MultiExpertClassifier(Architecture("test_resnet", gate_start=0.5), 3, SPEC).eval()
    layers = every_attention(model)
    assert len(layers) >= len(attention_layers(model)) > 0
    with reading_gates(layers) as read, torch.no_grad():
        model(torch.rand(4, 1, 32, 32))
    found = gate_spread([gates for (gates,) in read])
    torch.testing.assert_close(found["gate_mean"].item(), 1.0)
    assert found["gate_std"].item() < 1e-6
    assert found["gate_varies"].item() < 1e-6
    plain = MultiExpertClassifier(Architecture("test_resnet", attention="none"), 3, SPEC)
    assert every_attention(plain) == []


def test_what_a_student_matches_is_what_a_map_is_multiplied_by() -> None:
    torch.manual_seed(0)
    plan = Architecture("test_resnet", gate_start=0.5)
    model = MultiExpertClassifier(plan, 3, SPEC).eval()
    images = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        _, gates = forward_with_gates(model, images)
        torch.testing.assert_close(gates, torch.ones_like(gates))
        for layer in every_attention(model):
            layer.fc2.bias.fill_(20.0)  # wide open: the sigmoid's 1, over one half
        _, gates = forward_with_gates(model, images)
    torch.testing.assert_close(gates, torch.full_like(gates, 2.0))
