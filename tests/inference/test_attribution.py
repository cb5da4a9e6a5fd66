from __future__ import annotations

import numpy as np
import pytest
import torch

from recame.contracts import PreprocessSpec
from recame.inference.attribution import (
    _enlarged,
    _spoken_for,
    attribution_maps,
    attribution_stages,
)
from recame.inference.gates import gate_layers
from recame.models import Architecture, MultiExpertClassifier, RegionalChannelAttention
from recame.pages.drawing import overlay
from recame.reports.gates import gates_sentence

SPEC = PreprocessSpec(64, 64, 1, 8, 255.0, (0.5,), (0.25,))


def small_model(attention="regional", num_experts=2, shared_stages=2, num_classes=3):
    torch.manual_seed(0)
    plan = Architecture(
        "test_resnet",
        num_experts=num_experts,
        shared_stages=shared_stages,
        attention=attention,
        classifier="linear",
    )
    model = MultiExpertClassifier(plan, num_classes, SPEC).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # timm starts each block's last norm at 0
    return model


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_stages_are_the_deepest_whose_maps_are_large_enough(images):
    model = small_model()
    sides = []
    maps = (images[:1] - model.mean) / model.std
    for stage in (*model.trunk, *model.tails[0]):
        maps = stage(maps)
        sides.append(maps.shape[-1])
    chosen = attribution_stages(model, images)
    deepest = [max(i for i, side in enumerate(sides) if side >= least) for least in (4, 8)]
    assert set(chosen) == set(deepest)
    # No map of an image of 8 pixels is that large: the first stage has the largest.
    assert attribution_stages(model, images[..., :8, :8]) == (0,)


def test_a_class_tokens_last_stage_is_left_out():
    images = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    spec = PreprocessSpec(96, 96, 1, 8, 255.0, (0.5,), (0.25,))
    chosen = {}
    for pooling in ("average", "token"):
        plan = Architecture("test_vit", num_experts=1, pooled_stages=1, pooling=pooling)
        model = MultiExpertClassifier(plan, 3, spec, pretrained=False)
        chosen[pooling] = attribution_stages(model, images)
        assert attribution_maps(model, images, torch.tensor([[0], [1]])).std() > 0
    assert chosen == {"average": (3,), "token": (2,)}


def test_maps_have_the_images_shape_and_leave_the_model_as_it_was(images):
    model = small_model().train()
    classes = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    maps = attribution_maps(model, images, classes)
    assert maps.shape == (5, 2, 2, 64, 64)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert 0 < maps.max() <= 1 + 1e-6
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_speaks_for_a_class_is_activation_times_gradient(images):
    model, seen = small_model(), {}
    classes = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    stages = (2, 3)
    found = _spoken_for(model, images, classes, stages)
    for part, stage in zip(found, stages, strict=True):
        for number, (place, expert) in enumerate(np.ndindex(2, 2)):
            # The gradient of what is added to a map is the map's own.
            def add(_, __, output):
                seen["added"] = torch.zeros_like(output, requires_grad=True)
                seen["map"] = output.detach()
                return output + seen["added"]

            hook = model.stages(expert)[stage].register_forward_hook(add)
            logits = model(images).logits[:, expert]
            hook.remove()
            (logits[range(5), classes[:, place]] - logits.mean(1)).sum().backward()
            wanted = (seen["map"] * seen["added"].grad).sum(1)
            torch.testing.assert_close(part[number], wanted)


def test_a_map_of_the_last_stage_adds_up_to_what_the_class_gains(images):
    # Head and average are linear here, so activation times gradient is the whole logit.
    model = small_model(num_experts=1)
    with torch.no_grad():
        model.head.classifier.bias.zero_()
    last = model.num_stages - 1
    model.requires_grad_(False)  # weights that do not train give maps all the same
    classes = torch.tensor([[0, 1, 2]] * 5)
    with torch.no_grad():
        logits = model(images).logits[:, 0]
        above = (logits - logits.mean(1, keepdim=True)).numpy()
    maps = attribution_maps(model, images, classes, stages=(last,))
    found = maps.sum((2, 3, 4))
    # Only what speaks for a class is kept: the class of the largest gain has the largest map.
    assert (found.argmax(1) == above.argmax(1)).mean() >= 0.8


def test_a_map_finds_the_patch_that_decides():
    model = small_model(attention="none", num_experts=1, shared_stages=0)
    image = torch.full((1, 1, 64, 64), 0.5)
    image[..., 8:20, 40:56] = torch.rand(12, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(torch.full_like(image, 0.5)).logits[0, 0]
        gained = model(image).logits[0, 0] - plain
        # A class that the patch speaks for, whatever the plain image does.
        model.head.classifier.bias -= plain[None]
    target = int((gained - gained.mean()).argmax())
    fine = attribution_stages(model, image)[:1]
    heat = attribution_maps(model, image, torch.tensor([[target]]), fine)[0, 0, 0]
    base = attribution_maps(model, torch.full_like(image, 0.5), torch.tensor([[target]]), fine)[
        0, 0, 0
    ]
    near = np.zeros((64, 64), bool)
    near[:32, 28:] = True
    change = np.abs(heat - base)
    assert change[near].mean() > 3 * change[~near].mean()


def test_no_piece_tints_the_one_below_it():
    maps = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])[None, None, :, None].expand(2, 3, 6, 2)
    found = _enlarged(maps, (24, 8), pieces=3)
    assert found.shape == (2, 3, 24, 8)
    assert (found[:, :, 8:16] == 1).all()
    assert not found[:, :, :8].any()
    assert not found[:, :, 16:].any()


def test_gates_are_those_of_the_layers(images):
    model = small_model()
    target = np.array([0, 0, 1, 1, -1])
    layers = gate_layers(model, images, target, 3)
    assert [layer.name for layer in layers] == [
        "stage 1, shared",
        "stage 2, shared",
        *(f"stage {stage}, expert {expert}" for expert in (0, 1) for stage in (3, 4)),
    ]
    # Read again by hand: what comes out of the first layer over what went in.
    attention = [m for m in model.trunk[0].modules() if isinstance(m, RegionalChannelAttention)][-1]
    seen = []
    handle = attention.register_forward_hook(lambda _, i, o: seen.append((i[0].clone(), o.clone())))
    with torch.no_grad():
        model(images)
    handle.remove()
    before, after = seen[0]
    half = before.shape[-1] // 2
    ratio = (after / before)[:, :, :half, :half].nanmedian(-1).values.nanmedian(-1).values
    first = layers[0]
    assert first.mean[0, 0] == pytest.approx(ratio.mean().item(), abs=1e-4)
    channel = int(first.channel[0, 0])
    assert first.channel_gates[:, 0, 0] == pytest.approx(ratio[:, channel].numpy(), abs=1e-4)
    assert first.by_class[0, 0, 0] == pytest.approx(ratio[:2, channel].mean().item(), abs=1e-4)
    assert np.isnan(first.by_class[2]).all()


def test_a_gate_that_nobody_touched_is_called_open(images):
    model = small_model()
    layers = [m for m in model.modules() if isinstance(m, RegionalChannelAttention)]
    with torch.no_grad():
        for layer in layers:
            layer.fc2.weight.zero_()
            layer.fc2.bias.fill_(3.0)
    found = gate_layers(model, images, np.zeros(5, np.int64), 3)
    assert all(layer.open for layer in found)
    assert found[0].mean == pytest.approx(np.full((2, 2), 0.9975), abs=1e-4)
    assert found[0].answering.max() == 0
    with torch.no_grad():
        layers[-1].fc2.bias.fill_(0.0)
    assert not gate_layers(model, images, np.zeros(5, np.int64), 3)[-1].open


def test_without_attention_or_images_there_are_no_gates(images):
    assert gate_layers(small_model("none"), images, np.zeros(5, np.int64), 3) == []
    assert gate_layers(small_model(), images[:0], np.zeros(0, np.int64), 3) == []
    grid = gate_layers(small_model("channel"), images, np.zeros(5, np.int64), 3)[0].mean
    assert grid.shape == (1, 1)


def test_an_overlay_shows_the_image_where_the_map_is_empty():
    pixels = np.zeros((4, 8, 1), np.float32)
    pixels[:, 4:] = 1
    heat = np.zeros((4, 8))
    heat[:2] = 1
    shown = overlay(pixels, heat, "#ff0000", side=16)
    assert shown.shape == (11, 23, 3)  # as many pixels as 16 x 16
    grey = shown[-1]
    assert (grey == grey[:, :1]).all()
    assert grey[0, 0] < grey[-1, 0]
    assert shown[0, 0, 0] > 200
    assert shown[0, 0, 1] < 60


def test_gates_that_are_divided_are_told_as_what_a_map_is_multiplied_by(images):
    torch.manual_seed(0)
    plan = Architecture("test_resnet", shared_stages=2, gate_start=0.5)
    model = MultiExpertClassifier(plan, 3, SPEC).eval()
    found = gate_layers(model, images, np.zeros(5, np.int64), 3)
    assert all(layer.open for layer in found)
    assert found[0].mean == pytest.approx(np.ones((2, 2)), abs=1e-5)
    assert gates_sentence(found).count("identity starts at 1.") == 1
    layers = [m for m in model.modules() if isinstance(m, RegionalChannelAttention)]
    with torch.no_grad():
        layers[-1].fc2.bias.fill_(1.0)  # twice the sigmoid, far above 1
    last = gate_layers(model, images, np.zeros(5, np.int64), 3)[-1]
    assert last.mean.max() > 1.5
    assert not last.open
