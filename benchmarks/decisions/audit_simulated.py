"""How soon the audit's alarms are raised, and how seldom they are false.

`python benchmarks/decisions/audit_simulated.py escapes|drift` prints Markdown tables: audited
images from the change of the escape rate to the alarm, by the monitor and by two simpler ones that
are as valid (the same bets, all of which begin with the first image; a single bet that follows the
rate seen so far, the aGRAPA of Waudby-Smith and Ramdas, JRSS-B 2024); false alarms of streams that
keep the promise, looked at after each of 10,000 images; drift of lots against calibration images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.decisions.audit import RATIOS, evidence
from recame.decisions.drift import DriftMonitor

RISK = 0.05
#: Shares of six classes, and where the last has twice as many.
MIX = np.array([0.7, 0.15, 0.06, 0.04, 0.03, 0.02])
MOVED = np.array([0.68, 0.15, 0.06, 0.04, 0.03, 0.04])
#: From escapes (S, n) and the limit to e-values (S, n).
Bet = Callable[[BoolArray, float], FloatArray]


def monitor(escaped: BoolArray, limit: float) -> FloatArray:
    """The monitor's e-values."""
    return evidence(np.zeros((len(escaped), len(RATIOS))), 0, escaped, limit)[1]


def all_at_once(escaped: BoolArray, limit: float) -> FloatArray:
    """Equal stakes on the same rates, all of which begin with the first image."""
    total = np.zeros(escaped.shape)
    for rate in limit * RATIOS:
        steps = np.where(escaped, np.log(rate / limit), np.log((1 - rate) / (1 - limit)))
        total += np.exp(np.cumsum(steps, 1)) / len(RATIOS)
    return total


def following(escaped: BoolArray, limit: float) -> FloatArray:
    """One stake that bets on what was seen so far (aGRAPA)."""
    before = np.arange(escaped.shape[1])
    hits = np.cumsum(escaped, 1) - escaped
    mean = (hits + limit) / (before + 1)
    gap = mean - limit
    bet = np.clip(gap / (mean * (1 - mean) + gap**2), 0, 0.5 / limit)
    values: FloatArray = np.exp(np.cumsum(np.log1p(bet * (escaped - limit)), 1))
    return values


def alarms(values: FloatArray) -> IntArray:
    """Image (S,), counted from 1, at which each stream raises the alarm; 0: never."""
    reached = values >= 1 / RISK
    found: IntArray = np.where(reached.any(1), reached.argmax(1) + 1, 0)
    return found


def told(first: IntArray, change: int) -> str:
    """Median and 90 % quantile of the delay, where there was no alarm before the change."""
    later = first[(first == 0) | (first > change)]
    delays = np.sort(np.where(later == 0, np.inf, later - change))
    ends = [delays[int(np.ceil(len(delays) * share)) - 1] for share in (0.5, 0.9)]
    return " / ".join("later" if np.isinf(end) else f"{end:.0f}" for end in ends)


def escapes(generator: np.random.Generator, streams: int) -> None:
    """Print the delays of the alarms, and how many are false."""
    bets: tuple[Bet, ...] = (monitor, all_at_once, following)
    print("| promised | true | after | monitor | all begin at once | following |")
    print("| --- | --- | --- | --- | --- | --- |")
    for limit, before, after, change, longest in (
        (0.02, 0.02, 0.04, 0, 3000),
        (0.01, 0.01, 0.02, 0, 5000),
        (0.02, 0.02, 0.03, 0, 6000),
        (0.02, 0.02, 0.10, 0, 500),
        (0.02, 0.02, 0.04, 5000, 5000),
        (0.02, 0.01, 0.04, 5000, 5000),
    ):
        drawn = generator.random((streams // 2, change + longest), np.float32)
        escaped = drawn < np.repeat([before, after], [change, longest]).astype(np.float32)
        cells = [told(alarms(bet(escaped, limit)), change) for bet in bets]
        since = f"{change:,} at {before:g}" if change else "0"
        print(f"| {limit:g} | {after:g} | {since} | {' | '.join(cells)} |")
    print("\n| promised and true | false alarms in 10,000 looks |")
    print("| --- | --- |")
    for limit in (0.02, 0.01):
        escaped = generator.random((streams, 10_000), np.float32) < limit
        print(f"| {limit:g} | {(alarms(monitor(escaped, limit)) > 0).mean():.4f} |")


def drifts(generator: np.random.Generator, lines: int) -> None:
    """Print how many lots it takes to see a drift that begins with the 11th, and false alarms."""
    print("| calibration images | drift | seen after (lots of 500) |")
    print("| --- | --- | --- |")
    change = 10
    for name, mix, shift in (("a class from 2 to 4 %", MOVED, 0.0), ("scores", MIX, -0.3)):
        for images in (1000, 5000):
            found = [alarm_of(generator, images, mix, shift, 30, change) for _ in range(lines)]
            print(f"| {images:,} | {name} | {told(np.array(found), change)} |")
    false = [alarm_of(generator, 1000, MIX, 0.0, 16, 0) > 0 for _ in range(3 * lines)]
    print(
        f"\nwithout a drift: an alarm within 16 lots in {np.mean(false):.3f} of {len(false)} lines"
    )


def alarm_of(
    generator: np.random.Generator,
    images: int,
    mix: FloatArray,
    shift: float,
    lots: int,
    change: int,
) -> int:
    """The lot, counted from 1, with which the alarm is raised; 0: none."""
    watched = DriftMonitor.of(*lot_of(generator, images, MIX, 0.0), list("abcdef"))
    for lot in range(1, lots + 1):
        now = (mix, shift) if lot > change else (MIX, 0.0)
        if watched.add(*lot_of(generator, 500, *now)):
            return lot
    return 0


def lot_of(
    generator: np.random.Generator, images: int, mix: FloatArray, shift: float
) -> tuple[IntArray, FloatArray]:
    """Classes that images are called, and their scores: normal logits, shifted by deviations."""
    logits = 3 + 2 * (generator.standard_normal(images) + shift)
    return generator.choice(len(mix), images, p=mix), 1 / (1 + np.exp(-logits))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("escapes", "drift"))
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began, generator = time.process_time(), np.random.default_rng(asked.seed)
    if asked.what == "drift":
        drifts(generator, asked.streams // 10)
    else:
        escapes(generator, asked.streams)
    print(f"\n{asked.streams:,} streams, {time.process_time() - began:.1f} s of one core")


if __name__ == "__main__":
    main()
