"""What regional attention costs on a GPU, and whether pooling by reductions would be faster.

    python benchmarks/training/attention.py [--batch-sizes 16 128]

Forward and backward of the attention of every block of one ResNet-101 at 224 px, bfloat16,
channels last, in milliseconds; beside it a multiplication by one number, which reads and writes
the same maps once each way. `pool_regions` pools with strided kernels, in which one thread reads a
whole region: the faster way on a CPU, perhaps not on a GPU. The two ways must agree before anything
is timed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from recame.models import regional_attention
from recame.models.regional_attention import RegionalChannelAttention

#: Channels, side and number of the blocks of a ResNet-101 at 224 px.
BLOCKS = ((256, 56, 3), (512, 28, 4), (1024, 14, 23), (2048, 7, 3))
STRIDED = regional_attention.pool_regions


def pool_by_reductions(x: Tensor, rows: list[int], cols: list[int]) -> tuple[Tensor, Tensor]:
    """`pool_regions` where the regions are equal, with one reduction each."""
    height, width = x.shape[2:]
    grid = len(rows) - 1, len(cols) - 1
    if height % grid[0] or width % grid[1]:
        return STRIDED(x, rows, cols)
    cut = x.view(*x.shape[:2], grid[0], height // grid[0], grid[1], width // grid[1])
    return cut.mean((3, 5)), cut.amax((3, 5))


def milliseconds(call: Callable[[], object]) -> float:
    """Median of ten calls, by events on the GPU."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(10):
        begins, ends = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begins.record()
        call()
        ends.record()
        torch.cuda.synchronize()
        taken.append(begins.elapsed_time(ends))
    return statistics.median(taken)


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 128])
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for channels, side, _ in BLOCKS:
        x = torch.rand(2, channels, side, side, device=device)
        cuts = regional_attention.region_bounds(side, 2)
        for one, other in zip(
            STRIDED(x, cuts, cuts), pool_by_reductions(x, cuts, cuts), strict=True
        ):
            torch.testing.assert_close(one, other)
    if device.type != "cuda":
        raise SystemExit("both ways agree; there is no GPU here to time them on")
    print(
        "| batch | map | strided (as it is) | reductions | multiplied once |\n"
        "| --: | --- | --: | --: | --: |"
    )
    for batch in options.batch_sizes:
        whole = dict.fromkeys(("strided", "reductions", "once"), 0.0)
        for channels, side, number in BLOCKS:
            attention = RegionalChannelAttention(channels).to(device)
            x = torch.randn(batch, channels, side, side, device=device, dtype=torch.bfloat16)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            grad = torch.randn_like(x)

            def attend(attention: RegionalChannelAttention = attention, x: Tensor = x) -> None:
                with torch.autocast("cuda", torch.bfloat16):
                    attention(x).backward(grad)  # noqa: B023 - called before the next one

            def once(x: Tensor = x) -> None:
                (x * 0.5).backward(grad)  # noqa: B023

            found = {}
            for name, pool in (("strided", STRIDED), ("reductions", pool_by_reductions)):
                regional_attention.pool_regions = pool
                found[name] = milliseconds(attend)
            regional_attention.pool_regions = STRIDED
            found["once"] = milliseconds(once)
            for name, value in found.items():
                whole[name] += number * value
            cells = " | ".join(f"{value:.3f}" for value in found.values())
            print(f"| {batch} | {number} of {channels} x {side} x {side} | {cells} |")
        cells = " | ".join(f"{value:.1f}" for value in whole.values())
        print(f"| {batch} | all 33 | {cells} |")


if __name__ == "__main__":
    main()
