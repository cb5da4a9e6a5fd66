"""Depthwise convolutions with a fast weight gradient on CPUs for small maps."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeGuard

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional

_Pair: TypeAlias = tuple[int, int]


def depthwise_weight_gradient(
    x: Tensor, grad: Tensor, kernel: _Pair, stride: _Pair, pad: _Pair
) -> Tensor:
    """Gradient of a depthwise convolution's weight, tap by tap.

    `gradient[c, i, j] = sum over b, y, x of grad[b, c, y, x] * input[b, c, s y + i - p, ...]`: one
    product and one sum for each tap, over the part of the map that the tap sees.

    Args:
        x: (B, C, H, W), the convolution's input.
        grad: (B, C, h, w), the gradient of its output.
        kernel: number of taps, vertically and horizontally.
        stride: in each direction.
        pad: zeros on each side, in each direction.

    Returns:
        (C, 1, *kernel).
    """
    # Channels-last memory makes the sum over pixels several times faster.
    x, grad = (part.contiguous(memory_format=torch.channels_last) for part in (x, grad))
    sizes = zip(kernel, x.shape[2:], grad.shape[2:], stride, pad, strict=True)
    rows, cols = ([_span(tap, *size) for tap in range(taps)] for taps, *size in sizes)
    nothing = x.new_zeros(x.shape[1])
    taps = [
        (x[:, :, row, col] * grad[:, :, out_row, out_col]).sum((0, 2, 3))
        if out_row.start < out_row.stop and out_col.start < out_col.stop
        else nothing
        for out_row, row in rows
        for out_col, col in cols
    ]
    return torch.stack(taps, 1).view(x.shape[1], 1, *kernel)


def _span(tap: int, size: int, out_size: int, stride: int, pad: int) -> tuple[slice, slice]:
    """Outputs that see a pixel of the map, not padding, through a tap; and these pixels."""
    first = max(0, -((tap - pad) // stride))
    stop = min(out_size, (size - 1 + pad - tap) // stride + 1)
    start = first * stride + tap - pad
    return slice(first, stop), slice(start, start + (stop - first - 1) * stride + 1, stride)


class _Convolve(torch.autograd.Function):
    """A depthwise convolution; only the gradient of its weight differs from torch's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: _Pair, pad: _Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, pad)
        return functional.conv2d(x, weight, bias, stride, pad, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight), (stride, pad) = grads, ctx.saved_tensors, ctx.geometry
        channels, (learns_x, learns_weight, learns_bias) = len(weight), ctx.needs_input_grad[:3]
        for_x = for_weight = for_bias = None
        if learns_x:
            for_x = torch.ops.aten.convolution_backward(
                *(grad, x, weight, None, stride, pad, (1, 1), False, (0, 0), channels),
                (True, False, False),
            )[0]
        if learns_weight:
            for_weight = depthwise_weight_gradient(x, grad, weight.shape[2:], stride, pad)
        if learns_bias:  # oneDNN would make the weight's gradient for it
            for_bias = grad.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None, None


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that replaces another one and uses the same parameters.

    oneDNN, which computes torch's convolutions on a CPU, has no fast weight gradient for a kernel
    that is larger than the map: 20 to 80 ms instead of 1 to 3 for a batch of 64 at EfficientNet's
    last stages, more than a third of a training step at 64 px (docs/decisions/0013). For such
    kernels the gradient is `depthwise_weight_gradient`; for others it is torch's.

    Args:
        conv: the replaced convolution: as many groups as input and output channels, no dilation,
            zero padding; timm's `Conv2dSame` pads as TensorFlow does.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            _pair(conv.padding),
            groups=conv.groups,
            device="meta",  # no weights of its own are drawn
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.pads_same = isinstance(conv, Conv2dSame)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, h, w)."""
        if self.pads_same:
            x = pad_same(x, list(self.kernel_size), list(self.stride))
        stride, pad = _pair(self.stride), _pair(self.padding)
        if self._has_own_gradient(x):
            return _Convolve.apply(x, self.weight, self.bias, stride, pad)  # type: ignore[no-any-return]
        return functional.conv2d(x, self.weight, self.bias, stride, pad, 1, self.groups)

    def _has_own_gradient(self, x: Tensor) -> bool:
        """Whether the weight learns, and torch's gradient would be slow."""
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        special = torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
        if x.device.type != "cpu" or not learns or special:
            return False
        sizes = zip(x.shape[2:], self.kernel_size, self.stride, _pair(self.padding), strict=True)
        return any((n + 2 * p - k) // s + 1 < k for n, k, s, p in sizes)


def replace_depthwise(network: nn.Module) -> None:
    """Replace each convolution that `DepthwiseConv2d` can compute by one.

    Args:
        network: changed in place; its parameters stay the same objects, under the same names.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if _is_depthwise(child):
                setattr(parent, name, DepthwiseConv2d(child))


def _is_depthwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        isinstance(module, nn.Conv2d)
        and type(module) in (nn.Conv2d, Conv2dSame)  # a subclass may compute something else
        and 1 < module.groups == module.in_channels == module.out_channels
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _pair(values: str | tuple[int, ...]) -> _Pair:
    """A pair (vertical, horizontal), for the type checker."""
    assert not isinstance(values, str)
    return values[0], values[1]
