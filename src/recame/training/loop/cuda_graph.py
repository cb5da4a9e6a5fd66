"""A training step as one CUDA graph: one launch instead of thousands, so the GPU does not wait.

With a small batch or network, a fast GPU is idle while Python launches the next kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recame.contracts import LossResult

#: The loss of one batch from its images, and pairs of labels and their weight.
BatchLoss = Callable[[Tensor, Sequence[tuple[Tensor, Tensor | float]]], LossResult]

#: Warm-up steps before recording, in which libraries choose and load their kernels.
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class _Recording:
    """A graph, and the memory that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: list[tuple[Tensor, Tensor]]
    result: LossResult
    gradients: list[tuple[nn.Parameter, Tensor]]


class GraphedStep:
    """Forward pass, loss and backward pass of a batch, recorded once and then replayed.

    The kernels, and so the numbers, are those of ordinary calls. Weights may change in place, but
    must not be replaced. Each replay overwrites the gradients of the one before, so gradients
    cannot be accumulated over several batches.

    Args:
        network: on its GPU; includes parts of the loss that have parameters or buffers.
        loss: of one batch; must not read values back from the GPU.
    """

    def __init__(self, network: nn.Module, loss: BatchLoss) -> None:
        self._network = network
        self._loss = loss
        self._recording: _Recording | None = None
        self._state: object = None
        self._owes_gradients = False

    def __call__(
        self, images: Tensor, labels: Sequence[tuple[Tensor, float]], state: object = None
    ) -> LossResult | None:
        """The loss of a batch; `set_gradients` sets its gradients. Both hold until the next batch.

        Args:
            images: (B, C, H, W).
            labels: class indices (B,) and their weight; a mixed batch has two.
            state: other values that the loss depends on; when it changes, the step is recorded
                again.

        Returns:
            None for a batch of another shape than the first one: compute it without the graph.
        """
        known = self._recording
        if known is not None and images.shape != known.images.shape:
            return None
        if known is None or state != self._state:
            self._recording = known = None  # free its memory first
            self._recording = known = self._record(images, labels)
            self._state = state
        else:
            known.images.copy_(images)
            for (target, weight), (new_target, new_weight) in zip(
                known.labels, labels, strict=True
            ):
                target.copy_(new_target)
                weight.fill_(new_weight)
        known.graph.replay()
        self._owes_gradients = True
        return known.result

    def set_gradients(self) -> bool:
        """Set the parameters' gradients from the last replay; False if there was none since."""
        if not self._owes_gradients:
            return False
        assert self._recording is not None
        for parameter, gradient in self._recording.gradients:
            parameter.grad = gradient
        self._owes_gradients = False
        return True

    def _record(self, images: Tensor, labels: Sequence[tuple[Tensor, float]]) -> _Recording:
        """Record, and restore batch statistics and random state, which the warm-up changes."""
        images = images.clone()
        own = [(target.clone(), images.new_full((), weight)) for target, weight in labels]
        before = [buffer.clone() for buffer in self._network.buffers()]
        stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(images.device))
        graph = torch.cuda.CUDAGraph()
        with torch.random.fork_rng([images.device]):
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_STEPS):
                    self._differentiate(images, own)
            self._forget_gradients()
            with torch.cuda.graph(graph, stream=stream):
                result = self._differentiate(images, own)
        gradients = [(p, p.grad) for p in self._network.parameters() if p.grad is not None]
        self._forget_gradients()
        for buffer, kept in zip(self._network.buffers(), before, strict=True):
            buffer.copy_(kept)
        return _Recording(graph, images, own, result, gradients)

    def _differentiate(self, images: Tensor, labels: list[tuple[Tensor, Tensor]]) -> LossResult:
        self._forget_gradients()
        with torch.autocast(
            "cuda",
            torch.get_autocast_dtype("cuda"),
            torch.is_autocast_enabled("cuda"),
            cache_enabled=False,  # the graph must contain the casts of the weights
        ):
            result = self._loss(images, labels)
        torch.autograd.backward(result.total)
        return LossResult(result.total.detach(), result.parts)

    def _forget_gradients(self) -> None:
        for parameter in self._network.parameters():
            parameter.grad = None
