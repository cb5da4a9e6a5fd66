"""What a training step of the bench's network takes with each part of the method, on a CPU.

    python benchmarks/objective/parts.py [--rounds 25] [--threads 1]

Forward pass, loss, backward pass and AdamW; batches of 64 images of 64 px, the first five stages of
EfficientNet-Lite0, 14 classes. All variants in turn, on the same images; medians of the rounds'
ratios to the first, with intervals. Writes results/parts.md. Run nothing beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from scipy.stats import binom

from recame.bench.plan.method import PLAIN, load_method
from recame.config import Config
from recame.contracts import PreprocessSpec
from recame.losses import Objective
from recame.machine import environment
from recame.models import Architecture, MultiExpertClassifier
from recame.pages.render import markdown_table
from recame.training.loop.allocation import freed_memory_kept

HERE = Path(__file__).parent
BATCH, SIZE, STAGES = 64, 64, 5
#: Training images of each class, 200 to 1.
COUNTS = torch.logspace(3, 0.7, 14).round().long()
METRIC_SETTINGS = (
    "contrastive_weight",
    "intra_weight",
    "intra_mode",
    "margin",
    "margin_mode",
    "normalise_features",
)
BARE = PLAIN | dict(load_method("bare", Path()).settings or {})
#: What the recipe has beside bare, by part.
RECAME = dict(load_method("recame", Path()).settings or {})
HARD = {"objective.hard_weight": RECAME["objective.hard_weight"]}
METRIC = {f"objective.{name}": RECAME[f"objective.{name}"] for name in METRIC_SETTINGS}
TWO = {"model.num_experts": 2, "model.shared_stages": STAGES - 2}
#: Name -> settings; every ratio is to the first.
VARIANTS = {
    "bare": BARE,
    "hard categories": BARE | HARD,
    "metric terms to clusters": BARE | METRIC,
    "regional attention": BARE | {"model.attention": "regional"},
    "a second expert": BARE | TWO,
    "hard categories, metric terms, a second expert": BARE | HARD | METRIC | TWO,
}


class Steps:
    """A network that is trained one step at a time.

    Args:
        settings: changes to recame's.
    """

    def __init__(self, settings: dict[str, object]) -> None:
        torch.manual_seed(0)
        config = Config().updated(settings)
        plan = config.model.model_copy(
            update={"backbone": "tf_efficientnet_lite0", "stages": STAGES}
        )
        spec = PreprocessSpec(SIZE, SIZE, 1, 8, 255.0, (0.5,), (0.2,))
        model = MultiExpertClassifier(Architecture.of(plan), len(COUNTS), spec)
        self.model = model.to(memory_format=torch.channels_last).train()
        self.objective = Objective.from_config(
            config,
            COUNTS.tolist(),
            num_experts=model.num_experts,
            prior=COUNTS.sqrt(),
            num_features=model.num_features,
        )
        parameters = [*model.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True)
        images = torch.rand(BATCH, 1, SIZE, SIZE)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.target = torch.multinomial(COUNTS.sqrt(), BATCH, replacement=True)

    def seconds(self) -> float:
        """What one step takes."""
        began = time.perf_counter()
        output = self.model(self.images)
        self.objective(output, self.target).total.backward()
        if self.objective.remembers:
            self.objective.remember(output, [(self.target, 1.0)])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def median_interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by the signs' binomial law (two of the sorted values)."""
    ordered, place = sorted(values), int(binom.ppf(0.025, len(values), 0.5)) - 1
    return ordered[max(0, place)], ordered[min(len(values) - 1, len(values) - 1 - place)]


def main() -> None:
    """Measure, write the table, print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    variants = {name: Steps(settings) for name, settings in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    with freed_memory_kept():
        for _ in range(2):
            for steps in variants.values():
                steps.seconds()
        for _ in range(options.rounds):
            for name, steps in variants.items():
                times[name].append(steps.seconds())
    first = times[next(iter(times))]
    rows = []
    for name, found in times.items():
        ratios = [own / other for own, other in zip(found, first, strict=True)]
        low, high = median_interval(ratios)
        span = f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        rows.append([name, f"{1000 * statistics.median(found):.0f}", span])
    facts = environment()
    told = f"torch {facts['packages']['torch']}, {facts['processor']}"
    table = markdown_table(["", "ms", "times bare: median (95 % interval)"], rows)
    lines = ["# A step of the bench's network with each part", "", table, ""]
    lines += [f"{options.rounds} rounds, threads: {options.threads}; {told}.", ""]
    path = HERE / "results" / "parts.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
