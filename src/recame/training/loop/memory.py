"""Gather batches of all processes, so that the memory of a loss is the same in each of them."""

from __future__ import annotations

import torch
from torch import Tensor

from recame.contracts import ExpertOutput
from recame.losses import Labels


def of_all_processes(output: ExpertOutput, labels: Labels) -> tuple[ExpertOutput, Labels]:
    """Join the batches of all processes, in rank order; all must call it at the same time.

    So each process keeps the same memory: that of a single process that sees the whole batch, in
    another order.

    Args:
        output: logits (B, E, C) and features (B, E, D); B may differ between the processes.
        labels: class indices (B,) and their weight; the same number in all processes.
    """
    logits, features = (
        gathered(part.detach().float()) for part in (output.logits, output.features)
    )
    together = []
    for target, share in labels:
        weight = torch.ones(len(target), device=target.device) * share
        together.append((gathered(target), gathered(weight)))
    return ExpertOutput(logits, features), together


def gathered(rows: Tensor) -> Tensor:
    """Concatenate the rows (N, ...) of all processes; N may differ."""
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, count)
    sizes = [int(number) for number in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.zeros_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
