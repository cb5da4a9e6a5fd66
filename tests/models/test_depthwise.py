from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn

from recame.models.depthwise import (
    DepthwiseConv2d,
    depthwise_weight_gradient,
    replace_depthwise,
)

CHANNELS = 6


def gradients(conv: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    out = conv(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *conv.parameters()])]


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
@settings(max_examples=60, deadline=None)
def test_gradient_is_torchs(
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
) -> None:
    pad = min(pad[0], kernel[0] // 2), min(pad[1], kernel[1] // 2)
    height = max(height, kernel[0] - 2 * pad[0])
    width = max(width, kernel[1] - 2 * pad[1])
    torch.manual_seed(0)
    conv = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, pad, groups=CHANNELS).double()
    x = torch.randn(3, CHANNELS, height, width, dtype=torch.float64)
    out = conv(x)
    grad = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, conv.weight, grad)
    found = depthwise_weight_gradient(x, grad, kernel, stride, pad)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize(("size", "own"), [(2, True), (4, True), (16, False)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_computes_what_it_replaces(
    kind: type[nn.Conv2d],
    size: int,
    own: bool,
    stride: int,
    bias: bool,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    conv = kind(CHANNELS, CHANNELS, 5, stride, 2, groups=CHANNELS, bias=bias)
    x = torch.randn(3, CHANNELS, size, size).contiguous(memory_format=layout)
    expected = gradients(conv, x)
    calls = []

    def counted(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        return depthwise_weight_gradient(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("recame.models.depthwise.depthwise_weight_gradient", counted)
    replaced = DepthwiseConv2d(conv)
    assert replaced.weight is conv.weight
    found = gradients(replaced, x)
    assert len(calls) == own
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 2, 3, padding=1, groups=2).double()
    x = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    replaced = DepthwiseConv2d(conv)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(replaced, {"weight": weight, "bias": bias}, (x,))

    assert conv.bias is not None
    parameters = [p.detach().requires_grad_() for p in (conv.weight, conv.bias)]
    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_frozen_weights_and_inference_take_torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no weight learns here")

    monkeypatch.setattr("recame.models.depthwise._Convolve.apply", refuse)
    conv = DepthwiseConv2d(nn.Conv2d(4, 4, 5, padding=2, groups=4))
    x = torch.randn(2, 4, 2, 2, requires_grad=True)
    with torch.no_grad():
        expected = conv(x)
    conv.requires_grad_(False)
    out = conv(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(out.detach(), expected)


def test_autocast() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    x = torch.randn(4, 8, 3, 3)
    expected = gradients(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(DepthwiseConv2d(conv), x)
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "resnet18"])
def test_networks_keep_their_weights(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    x = torch.randn(2, 3, 32, 32)
    expected, before = network(x), network.state_dict()
    replace_depthwise(network)
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(after[key] is before[key] or torch.equal(after[key], before[key]) for key in before)
    torch.testing.assert_close(network(x), expected)
    number = sum(isinstance(m, DepthwiseConv2d) for m in network.modules())
    assert number == {"tf_efficientnet_lite0": 16, "convnext_atto": 12, "resnet18": 0}[name]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(1, 1, 3),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        nn.Conv2d(4, 4, 3, groups=4, padding="same"),
        nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
    ],
)
def test_others_stay(conv: nn.Conv2d) -> None:
    network = nn.Sequential(conv)
    replace_depthwise(network)
    assert network[0] is conv
