"""By which rule should `val` choose what the default keeps? Several rules, on the same runs.

    python benchmarks/defaults/kept.py [--times 1m 5m] [--draws 2]
        [--data deeppcb=MANIFEST.csv cifar=ARCHIVE.zip cells=MANIFEST.csv] [--only TEXT ...]
        [--processor-time] [--runs DIR] [--out DIR]

Each run trains the default on a set of `tuning_sets`. What each of its networks says of `val` and
`test` under each number of views stays in `--runs`. Of all these images a `val` with as many images
of each class as the real one is drawn forty times; each rule chooses by it and is judged by the
rest, so differences between rules are paired. `rules.json` has a row for each run, and `table.md`
the means and the differences to the first rule with 95 % intervals over runs. What is finished is
not run again; rules are asked anew each time.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ask import trained
from contest import keep
from rich.console import Console
from run import HERE, write
from scipy.stats import t as student
from tuning_sets import tuning_sets

from recame.contracts import Predictions
from recame.decisions.temperature import BELIEVED, calibrated, fit_temperature
from recame.durations import parse_duration
from recame.inference.finished_run import images_to_judge, open_finished, recorded_data
from recame.machine import environment
from recame.metrics.statistics import balanced_accuracy, class_means, paired_difference
from recame.pages.render import markdown_table
from recame.training.phases import choice
from recame.training.phases.candidates import Candidates
from recame.training.phases.price import NOMINAL_MACS_PER_S, Option, macs

DRAWS = 40


class Remembered(Candidates):
    """Candidates that stay in memory after the run that chose among them."""

    last_made: Candidates

    def __init__(self, *phases: Any, **ensembles: Any) -> None:
        super().__init__(*phases, **ensembles)
        Remembered.last_made = self


def run(name: str, made: Callable, settings: dict, runs: Path, console: Console) -> Path:
    """Train the default, and write what its candidates say of `val` and `test`."""
    found = runs / f"{name}.npz"
    if found.exists():
        return found
    choice.Candidates = Remembered  # type: ignore[misc]
    manifest, out = write(made(), runs.resolve() / "sets" / name.split("@", 1)[1]), runs / name
    shutil.rmtree(out, ignore_errors=True)  # its candidates are gone
    trained(manifest, settings, out, console)
    folder, config, loaded = open_finished(out)
    images = images_to_judge(recorded_data(folder, config), config, loaded, "test", lambda *_: None)
    candidates, device = Remembered.last_made, next(loaded.model.parameters()).device
    views = {"square": 8, "flips": 4, "mirror": 2, "none": 1}[config.augment.symmetry]
    how = {"num_views": views, "batch_size": 64, "device": device, "precision": "32"}
    kept: dict[str, np.ndarray] = {}
    for split in ("val", "test"):
        for option, predicted in candidates.predict(images, split, **how).items():
            cost = macs(candidates.network(option.network)) * option.views
            kept[f"{split}/{option.network}/{option.views}"] = predicted.probabilities
            kept[f"macs/{option.network}/{option.views}"] = np.array(cost)
            kept[f"{split}/target"] = predicted.target
    keep_npz(found, kept)
    return found


def keep_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write whole or not at all."""
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)


class Asked:
    """What the options of one run say of all held-out images."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as held:
            self.target = np.concatenate([held["val/target"], held["test/target"]])
            self.counts = np.bincount(held["val/target"], minlength=int(self.target.max()) + 1)
            keys = [key.split("/")[1:] for key in held if key.startswith("macs/")]
            options = [Option(network, int(views)) for network, views in keys]
            self.cost = {o: float(held[f"macs/{o.network}/{o.views}"]) for o in options}
            self.said = {
                o: np.concatenate([held[f"{s}/{o.network}/{o.views}"] for s in ("val", "test")])
                for o in sorted(options, key=lambda o: self.cost[o])
            }

    def vals(self) -> Iterator[np.ndarray]:
        """(N,) masks of the images of each drawn `val`."""
        rng = np.random.default_rng(0)
        for _ in range(DRAWS):
            mask = np.zeros(len(self.target), bool)
            for label, count in enumerate(self.counts):
                mask[rng.permutation(np.flatnonzero(self.target == label))[:count]] = True
            yield mask

    def losses(self, val: np.ndarray) -> dict[Option, np.ndarray]:
        """(N,) log losses of each option, with the temperature that `val` gives it."""
        found = {}
        for option, said in self.said.items():
            scores = np.log(np.maximum(said[val].astype(np.float64), 1e-30))
            fitted = float(np.clip(fit_temperature(scores, self.target[val]), *BELIEVED))
            right = calibrated(said, fitted)[np.arange(len(said)), self.target]
            found[option] = -np.log(np.fmax(right, 1e-7))
        return found

    def predicted(self, val: np.ndarray) -> dict[Option, Predictions]:
        """Of each option, as `choice.choose` asks for them."""
        said = {option: each[val] for option, each in self.said.items()}
        blank, target = pd.DataFrame(index=range(int(val.sum()))), self.target[val]
        return {o: Predictions(blank, p, p[:, None], target) for o, p in said.items()}


def affordable(asked: Asked, least: float) -> list[Option]:
    """Options within a limit of images/s, cheapest first."""
    limit = NOMINAL_MACS_PER_S / least if least else math.inf
    cheapest, *dearer = asked.said
    return [cheapest, *(option for option in dearer if asked.cost[option] <= limit)]


def least_loss(
    options: list[Option], losses: Mapping[Option, np.ndarray], target: np.ndarray
) -> Option:
    """The option with the least balanced log loss."""
    return min(options, key=lambda each: class_means(losses[each], target).mean())


def preferring(network: str, margin: float) -> Callable:
    """`network`, unless the log loss of another is lower by `margin` standard errors."""

    def rule(asked: Asked, val: np.ndarray, losses: dict, options: list[Option]) -> Option:
        target = asked.target[val]
        seen = {option: each[val] for option, each in losses.items()}
        best = least_loss(options, seen, target)
        own = [option for option in options if option.network == network]
        if not own:
            return best
        preferred = least_loss(own, seen, target)
        more, error = paired_difference(seen[preferred] - seen[best], target)
        return preferred if more <= margin * error else best

    return rule


def by_accuracy(asked: Asked, val: np.ndarray, losses: dict, options: list[Option]) -> Option:
    """The network by docs/decisions/0008, of those that the limit allows; its views by log loss."""
    target, predicted = asked.target[val], asked.predicted(val)
    most = {option.network: option for option in options}  # dearest last
    seen = {option: each[val] for option, each in losses.items()}
    chosen = choice.choose({name: predicted[option] for name, option in most.items()})
    return least_loss([each for each in options if each.network == chosen], seen, target)


#: Rule -> least images per second, and the choice.
RULES: dict[str, tuple[float, Callable]] = {
    "least log loss": (20, preferring("", 0)),
    "least log loss, at any cost": (0, preferring("", 0)),
    "least log loss, 10 images/s": (10, preferring("", 0)),
    "joined, unless worse by 0.5 errors": (20, preferring("joined", 0.5)),
    "joined, unless worse by 1 error": (20, preferring("joined", 1)),
    "joined, unless worse by 2 errors": (20, preferring("joined", 2)),
    "joined, unless worse by 1 error, at any cost": (0, preferring("joined", 1)),
    "fine-tuned, unless worse by 1 error": (20, preferring("finetune", 1)),
    "joined": (20, preferring("joined", math.inf)),
    "joined, at any cost": (0, preferring("joined", math.inf)),
    "fine-tuned": (20, preferring("finetune", math.inf)),
    "probe": (20, preferring("probe", math.inf)),
    "by accuracy, as 0008": (20, by_accuracy),
}


def rows_of(asked: Asked) -> Iterator[dict[str, Any]]:
    """For each rule: accuracy and log loss on the rest, images/s, and how often what was kept."""
    found: dict[str, list[tuple[float, float, float, str]]] = {name: [] for name in RULES}
    for val in asked.vals():
        losses, rest = asked.losses(val), ~val
        target = asked.target[rest]
        for name, (least, rule) in RULES.items():
            option = rule(asked, val, losses, affordable(asked, least))
            right = asked.said[option][rest].argmax(1) == target
            loss = float(class_means(losses[option][rest], target).mean())
            speed = NOMINAL_MACS_PER_S / asked.cost[option]
            found[name].append((balanced_accuracy(right, target), loss, speed, option.network))
    for name, each in found.items():
        accuracy, loss, speed, networks = zip(*each, strict=True)
        kept = pd.Series(networks).value_counts().to_dict()
        yield {
            "rule": name,
            "balanced_accuracy": float(np.mean(accuracy)),
            "log_loss": float(np.mean(loss)),
            "images_per_s": float(1 / np.mean(1 / np.array(speed))),
            "kept": {str(network): int(count) for network, count in kept.items()},
        }


def table_of(rows: pd.DataFrame) -> str:
    """Means by rule, and differences to the first with intervals over runs."""
    first, text = next(iter(RULES)), ["# By which rule should val choose what is kept?", ""]
    for budget, found in rows.groupby("time", sort=False):
        wide = found.pivot_table("balanced_accuracy", "rule", ["set", "draw"])
        loss = found.groupby("rule")["log_loss"].mean()
        cost = found.groupby("rule")["images_per_s"].agg(lambda each: 1 / (1 / each).mean())
        sets = wide.T.groupby(level="set").mean().T
        lines = []
        for rule in RULES:
            gaps, told = 100 * (wide.loc[rule] - wide.loc[first]), ""
            if rule != first and len(gaps) > 1:
                half = student.ppf(0.975, len(gaps) - 1) * gaps.std() / math.sqrt(len(gaps))
                low, high = gaps.mean() - half, gaps.mean() + half
                told = f"{gaps.mean():+.1f} ({low:+.1f} to {high:+.1f})"
            scores = [f"{score:.3f}" for score in (wide.loc[rule].mean(), *sets.loc[rule])]
            lines.append([rule, *scores, told, f"{loss[rule]:.3f}", f"{cost[rule]:.0f}"])
        head = ["rule", "mean", *sets.columns, "to the first, points", "log loss", "images/s"]
        text += [f"## {budget}, {wide.shape[1]} runs", "", markdown_table(head, lines, left=1), ""]
    return "\n".join(text)


def main() -> None:
    """Run what is left, ask the rules, and write their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", nargs="+", default=["1m", "5m"])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT")
    parser.add_argument("--runs", type=Path, default=Path("runs/kept"))
    parser.add_argument("--out", type=Path, default=HERE / "results-kept")
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        time.monotonic = time.perf_counter = time.process_time
    data = {name: Path(path) for name, _, path in (each.partition("=") for each in options.data)}
    rows, console = [], Console()
    for draw, budget in product(range(options.draws), options.times):
        for name, made in tuning_sets(data, draw).items():
            job = f"{budget}@{name}@{draw}".replace(" ", "-")
            if options.only and not any(text in job for text in options.only):
                continue
            console.rule(job)
            settings = {"run.seed": draw, "run.time_budget_s": parse_duration(budget)}
            asked = Asked(run(job, made, settings, options.runs, console))
            facts = {"time": budget, "set": name, "draw": draw}
            rows += [{**facts, **row} for row in rows_of(asked)]
            if options.only:
                continue  # another call is at work beside this one
            keep(options.out / "rules.json", rows)
            keep(options.out / "environment.json", environment())
            (options.out / "table.md").write_text(table_of(pd.DataFrame(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
