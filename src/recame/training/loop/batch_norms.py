"""Batch norms of a run on several processes, with statistics over the whole step's images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import timm.layers
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm


@contextmanager
def shared_batch_norms(model: nn.Module, device: torch.device, world_size: int) -> Iterator[None]:
    """Let batch norms use the images of all processes, within a block.

    Args:
        model: changed in place: on a CPU until the block ends, on a GPU permanently.
        device: where it trains. torch itself synchronises batch norms only on GPUs.
        world_size: number of processes that train.
    """
    if world_size == 1:
        yield
        return
    if device.type == "cuda":
        # Use timm's conversion: Lightning's would lose the activations inside timm's norms.
        timm.layers.convert_sync_batchnorm(model)  # type: ignore[attr-defined,no-untyped-call]
        yield
        return
    changed = [
        (module, type(module))
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm)
    ]
    for module, kind in changed:
        module.__class__ = cast("Any", _shared(kind))
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = cast("Any", kind)


def _shared(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """A kind of batch norm that trains with the statistics of all processes."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            plain: Tensor = kind.forward(self, x)
            return plain
        x = normalised_together(x, self)
        # timm's norms include the following dropout and activation.
        return self.act(self.drop(x)) if isinstance(self, BatchNormAct2d) else x

    return type(f"Shared{kind.__name__}", (kind,), {"forward": forward})


def normalised_together(x: Tensor, norm: _BatchNorm) -> Tensor:
    """Normalise this process's images with the statistics of the images of all processes.

    Computes what `torch.nn.BatchNorm2d` computes for all of them (Ioffe & Szegedy, ICML 2015), in
    two passes, so that a large mean loses no digits. All processes must call it at the same time.

    Args:
        x: (B, C, ...); B may differ between the processes.
        norm: its running statistics are updated.
    """
    others = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    size = x.new_tensor([x.numel() / x.shape[1]])
    sums = _Summed.apply(torch.cat([x.sum(others), size]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = x - mean.view(shape)
    variance = _Summed.apply(centred.square().sum(others)) / count
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = norm.momentum
        if share is None:  # no momentum: a plain mean over all batches
            share = 1.0 / float(norm.num_batches_tracked)
        unbiased = variance.detach() * (count / (count - 1).clamp(min=1.0))
        norm.running_mean.lerp_(mean.detach(), share)
        norm.running_var.lerp_(unbiased, share)
    scaled: Tensor = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        return torch.addcmul(norm.bias.view(shape), scaled, norm.weight.view(shape))
    return scaled


class _Summed(torch.autograd.Function):
    """Sum values over all processes; in the backward pass, their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(values: Tensor) -> Tensor:
    total = values.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total
