"""How often the gate passes, blocks and cannot tell, on drawn retrainings whose truth is known.

`python benchmarks/decisions/gate_simulated.py [--draws 2000]` prints two Markdown tables.

The first judges whole test sets by all rows together: a normal class and six defect classes of so
many images each, on two products that are judged as well; the first defect class is critical. Old
and new model differ on each image independently: so many points of a class's defects escape under
the new model alone, and so many under the old alone; likewise for calls that are wrong without an
escape. `discordance` is the sum of the two for escapes of the critical class.

The second says exactly, for the critical class alone at its level of Holm's first step, how often a
rise by two points is shown, by the discordance: it depends on nothing else. With c critical classes
that level is 0.045 / c. `phi` is the correlation of the two models' escapes that belongs to it.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import NormalDist

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.decisions.gate_rules import GateRules, overall, verdicts
from recame.decisions.paired_rates import change_interval, worse_p_value

DEFECTS, PRODUCTS = 6, 2
RULES = GateRules(critical=("first",), products=True)
#: Points of images that are called wrong, without an escape, by one of the two models alone.
WRONG = 0.02


def draw(
    images: int,
    rise: float,
    discordance: float,
    draws: int,
    generator: np.random.Generator,
    wrong: float = WRONG,
) -> tuple[IntArray, IntArray]:
    """Discordant images (draws, products, classes, 2), for escapes and for wrong calls.

    Class 0 is normal, class 1 critical; the other defects are equally good, with the same
    discordance.
    """
    escapes = np.zeros((draws, PRODUCTS, 1 + DEFECTS, 2), np.int64)
    calls = np.zeros_like(escapes)
    for index in range(1 + DEFECTS):
        change = rise if index == 1 else 0.0
        share = 0.0 if index == 0 else discordance
        rates = [(share + change) / 2, (share - change) / 2, wrong, wrong]
        drawn = generator.multinomial(
            images // PRODUCTS, [*rates, 1 - sum(rates)], size=(draws, PRODUCTS)
        )
        escapes[:, :, index] = drawn[..., :2]
        calls[:, :, index] = drawn[..., :2] + drawn[..., 2:4]
    return escapes, calls


def p_values_of(counts: IntArray, images: IntArray) -> FloatArray:
    """P-values (S, R) of counts (S, R, 2); 1 where they are too large to block at any level."""
    rows = np.concatenate([counts, np.broadcast_to(images[:, None], counts[..., :1].shape)], -1)
    worse, better = counts[..., 0], counts[..., 1]
    rows[worse - better < 1.5 * np.sqrt(worse + better)] = (0, 0, 1)
    found, place = np.unique(rows.reshape(-1, 3), axis=0, return_inverse=True)
    values = np.array([worse_p_value(*row) for row in found.tolist()])
    return values[place].reshape(counts.shape[:-1])


def judged(escapes: IntArray, calls: IntArray, images: int) -> IntArray:
    """Codes (draws,) of the gate, by the rows that `recame.decisions.gate.judge` asks."""
    each = images // PRODUCTS
    rows = [
        (escapes.sum((1, 2)), images * DEFECTS, False, True),
        *((escapes.sum(1)[:, i], images, i == 1, i == 1) for i in range(1, 1 + DEFECTS)),
        *((calls.sum(1)[:, i], images, False, False) for i in range(1 + DEFECTS)),
    ]
    for product in range(PRODUCTS):
        rows.append((escapes[:, product].sum(1), each * DEFECTS, False, False))
        rows.append((escapes[:, product, 1], each, False, False))
    counts = np.stack([row[0] for row in rows], 1)
    totals = np.array([row[1] for row in rows])
    low, high = change_interval(counts[..., 0], counts[..., 1], totals, RULES.confidence)
    p_values = p_values_of(counts, totals)
    means = [balanced(calls.sum(1), images), *(balanced(calls[:, k], each) for k in (0, 1))]
    low, high, p_values = (
        np.concatenate([part, np.stack([mean[i] for mean in means], 1)], 1)
        for i, part in enumerate((low, high, p_values))
    )
    strict = np.array([row[2] for row in rows] + [False] * 3)
    required = np.array([row[3] for row in rows] + [True, False, False])
    totals = np.concatenate([totals, np.array([images, each, each]) * (1 + DEFECTS)])
    margins = np.full(len(totals), 0.02)
    codes, _ = verdicts(RULES, (low, high), p_values, totals, margins, strict)
    return overall(codes, required)


def balanced(calls: IntArray, images: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Interval and p-value (draws,) of the fall of balanced accuracy, as the gate has them."""
    fall = (calls[..., 0] - calls[..., 1]) / images
    variance = (calls.sum(-1) / images - fall**2) * images + 0.5
    error = np.sqrt((variance / (images + 1) / images).sum(1)) / fall.shape[1]
    mean, normal = fall.mean(1), NormalDist()
    half = normal.inv_cdf(RULES.confidence) * error
    p_values = np.array([1 - normal.cdf(z) if z > 0 else 1.0 for z in mean / error])
    return mean - half, mean + half, p_values


def shown(images: int, rise: float, discordance: float, level: float) -> float:
    """Exact probability that a rise is shown at a level, and not shown to be below the margin."""
    most = int(images * discordance + 9 * np.sqrt(images * discordance + 1)) + 5
    counts = np.arange(most + 1)
    worse, better = (part.ravel() for part in np.meshgrid(counts, counts, indexing="ij"))
    worse, better = (part[worse + better <= most] for part in (worse, better))
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, images + 1)))])
    same = images - worse - better
    chance = logs[images] - logs[worse] - logs[better] - logs[same]
    rates = (discordance + rise) / 2, (discordance - rise) / 2, 1 - discordance
    with np.errstate(divide="ignore", invalid="ignore"):
        for count, rate in zip((worse, better, same), rates, strict=True):
            chance = chance + np.where(count > 0, count * np.log(rate), 0.0)
    likely = (chance > np.log(1e-9)) & (worse > better)
    worse, better, chance = worse[likely], better[likely], np.exp(chance[likely])
    _, high = change_interval(worse, better, images, RULES.confidence)
    pairs = zip(worse.tolist(), better.tolist(), strict=True)
    p_values = np.array([worse_p_value(b, c, images) for b, c in pairs])
    return float(chance[(p_values <= level) & (high >= RULES.escape_margin)].sum())


def phi(old: float, new: float, discordance: float) -> float:
    """Correlation of two models' escapes; NaN where no such pair exists."""
    both = (old + new - discordance) / 2
    if both < 0 or both > old:
        return float("nan")
    return (both - old * new) / float(np.sqrt(old * (1 - old) * new * (1 - new)))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.process_time()
    drawn = partial(draw, draws=asked.draws, generator=np.random.default_rng(asked.seed))
    print("| images a class | rise | discordance | wrong alone | passed | blocked | cannot tell |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for images, rise, discordance, wrong in (
        *((600, 0.0, discordance, WRONG) for discordance in (0.01, 0.02, 0.03, 0.04, 0.05)),
        (600, 0.0, 0.02, 0.05),
        *((600, 0.02, discordance, WRONG) for discordance in (0.024, 0.03, 0.04)),
        (2000, 0.0, 0.03, WRONG),
        (2000, 0.01, 0.03, WRONG),
        *((20, rise, 0.03, WRONG) for rise in (0.0, 0.02)),
    ):
        codes = judged(*drawn(images, rise, discordance, wrong=wrong), images)
        shares = " | ".join(f"{(codes == code).mean():.3f}" for code in (0, 1, 3))
        print(f"| {images} | {rise:g} | {discordance:g} | {wrong:g} | {shares} |")
    print("\n| discordance | phi, 2 to 4 % | phi, 5 to 7 % | 1 critical class | 2 | 4 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for discordance in (0.02, 0.024, 0.028, 0.032, 0.036, 0.04, 0.05, 0.058):
        powers = [shown(600, 0.02, discordance, 0.045 / count) for count in (1, 2, 4)]
        pairs = [phi(old, old + 0.02, discordance) for old in (0.02, 0.05)]
        cells = [discordance, *(f"{value:.2f}" for value in pairs), *(f"{p:.3f}" for p in powers)]
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"\n{asked.draws:,} draws, {time.process_time() - began:.1f} s of one core")


if __name__ == "__main__":
    main()
