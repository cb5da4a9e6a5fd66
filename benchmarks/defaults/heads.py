"""How should heads on frozen features be fitted? Several ways, on the same draws of several sets.

    python benchmarks/defaults/heads.py [--deeppcb MANIFEST.csv] [--cifar cifar10_lt100.zip]
        [--cells MANIFEST.csv] [--draws 5] [--sets NAME ...] [--runs DIR] [--out DIR]

The sets of `contest.py`, of their `train` and `val` alone. A draw keeps as many training images of
each class as the set has and scores on the others: as many of each class as `val` has. Features are
those of the default's network, under the views that the set bears, at the size that its files ask
for. All ways see the same features, so differences are paired. Features are kept in `--runs`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from contest import makers
from run import HERE, write
from torch import Tensor
from torch.nn.functional import cross_entropy

import recame
from recame.config import SYMMETRIES
from recame.data.dataset import InspectionSet, load_inspection_set
from recame.data.proposal import native_size
from recame.data.transforms import dihedral_view
from recame.machine import environment
from recame.models import ExpertHead, MultiExpertClassifier
from recame.models.initialisation import class_means
from recame.pages.render import markdown_table
from recame.training.phases.features import ProbeFeatures, fit_heads, probe_prior
from recame.training.planner import choose_size


@dataclass(frozen=True)
class Way:
    """A way to fit the heads.

    Attributes:
        steps: of the optimiser; 0: a linear head is fitted whole, by `penalty` or `shrinkage`.
        views: first so many flips and turns of each image.
        share: of the images; the most frequent classes are cut first, as the probe does.
        hidden: width of an MLP before the classifier.
        penalty: factor of the sum of squared weights, of balanced softmax by L-BFGS.
        shrinkage: of the covariance within classes, of linear discriminants; their class means
            are moved towards the mean of all, as if two images more lay there.
    """

    steps: int = 800
    views: int = 8
    share: float = 1.0
    hidden: int = 0
    penalty: float = 0.0
    shrinkage: float = 0.0


WAYS: dict[str, Way] = {
    "80 steps": Way(80),
    "150 steps": Way(150),
    "300 steps": Way(300),
    "800 steps": Way(),
    "300 steps, 4 views": Way(300, views=4),
    "300 steps, half of the images": Way(300, share=0.5),
    "300 steps, MLP of 256": Way(300, hidden=256),
    "L-BFGS, penalty 0.001": Way(0, penalty=1e-3),
    "L-BFGS, penalty 0.01": Way(0, penalty=1e-2),
    "linear discriminants, shrunken": Way(0, shrinkage=0.3),
}
#: Means of the logits of several ways, each brought to a standard deviation of 2.
JOINED: dict[str, tuple[str, ...]] = {
    "300 steps and MLP": ("300 steps", "300 steps, MLP of 256"),
    "300 steps and L-BFGS": ("300 steps", "L-BFGS, penalty 0.001"),
    "300 steps, MLP and L-BFGS": ("300 steps", "300 steps, MLP of 256", "L-BFGS, penalty 0.001"),
}


def set_of(manifest: Path) -> tuple[InspectionSet, recame.Config]:
    """The images of a set at the size that their files ask for, with the settings of one expert."""
    table = pd.read_csv(manifest, dtype={"label": str})
    size, _ = choose_size(
        native_size([manifest.parent / each for each in table["image"]], context=2)
    )
    one = {"data.size": size, "model.num_experts": 1, "objective.tau": 1.5}
    config = recame.Config().updated(one)
    return load_inspection_set(manifest, config.data, seed=0), config


@torch.inference_mode()
def embedded(data: InspectionSet, model: MultiExpertClassifier, views: int) -> ProbeFeatures:
    """Features of all images of `train` and `val`, under `views` flips and turns."""
    table = data.table[data.table["split"].isin(["train", "val"])]
    rows, parts = table["row"].to_numpy(), []
    for start in range(0, len(rows), 64):
        images = data.images(rows[start : start + 64])
        seen = [dihedral_view(images, view, data.spec.pieces) for view in range(views)]
        parts.append(torch.stack([model.pooled_single(each) for each in seen], 1))
    return ProbeFeatures(
        torch.cat(parts), torch.from_numpy(table["target"].to_numpy(np.int64, copy=True))
    )


def draws_of(target: np.ndarray, counts: np.ndarray, number: int) -> list[np.ndarray]:
    """(N,) masks of the training images of each draw: `counts` of each class, others are scored."""
    found = []
    for seed in range(number):
        rng, mask = np.random.default_rng(seed), np.zeros(len(target), bool)
        for label, count in enumerate(counts):
            mask[rng.permutation(np.flatnonzero(target == label))[:count]] = True
        found.append(mask)
    return found


def capped(train: ProbeFeatures, share: float) -> ProbeFeatures:
    """`share` of the images: the most frequent classes are cut to a common number."""
    counts = torch.bincount(train.target)
    caps = torch.arange(1, int(counts.max()) + 1)
    kept = torch.minimum(counts[None], caps[:, None]).sum(1)
    cap = int(caps[kept <= share * len(train.target)].max()) if share < 1 else int(counts.max())
    place = torch.stack([(train.target[:i] == t).sum() for i, t in enumerate(train.target)])
    return ProbeFeatures(train.pooled[place < cap], train.target[place < cap])


def answers(
    train: ProbeFeatures, judged: Tensor, num_classes: int, config: recame.Config
) -> dict[str, Tensor]:
    """Way -> log probabilities (M, C) of `judged` (M, V, P), the mean of the views' answers."""
    logits: dict[str, Tensor] = {}
    for name, way in WAYS.items():
        seen = capped(train, way.share)
        seen = ProbeFeatures(seen.pooled[:, : way.views], seen.target)
        if way.steps:
            logits[name] = by_steps(way, seen, judged, num_classes, config)
        else:
            logits[name] = at_once(way, seen, judged, num_classes, float(config.objective.tau))
    for name, parts in JOINED.items():
        centred = [logits[part] - logits[part].mean(-1, keepdim=True) for part in parts]
        logits[name] = torch.stack([2 * each / each.std() for each in centred]).mean(0)
    return {
        name: found.softmax(-1).mean(1).clamp_min(1e-12).log() for name, found in logits.items()
    }


def by_steps(
    way: Way, seen: ProbeFeatures, judged: Tensor, num_classes: int, config: recame.Config
) -> Tensor:
    """Logits (M, V, C) of heads trained as the probe trains them."""
    own = config.updated({"model.hidden": way.hidden, "probe.steps": way.steps})
    torch.manual_seed(0)  # ways of one width begin with the same weights
    head = ExpertHead(
        1,
        seen.pooled.shape[-1],
        num_classes,
        classifier=own.model.classifier,
        cosine_scale=own.model.cosine_scale,
        hidden=way.hidden,
        dropout=own.model.dropout,
        standardise=own.model.standardise,
    )
    counts = torch.bincount(seen.target).numpy()
    objective = recame.Objective.from_config(
        own,
        counts.tolist(),
        num_experts=1,
        prior=probe_prior(counts),
        num_features=head.classifier.weight.shape[-1],
        fixed_features=way.hidden == 0,
    )
    fit_heads(head, seen, objective, own.probe, num_experts=1, seed=0)
    with torch.inference_mode():
        logits = head(judged.flatten(0, 1)[:, None]).logits[:, 0]
    return logits.reshape(*judged.shape[:2], -1)


def at_once(way: Way, seen: ProbeFeatures, judged: Tensor, num_classes: int, tau: float) -> Tensor:
    """Logits (M, V, C) of a linear head on standardised features, fitted to all views at once."""
    flat = seen.pooled.flatten(0, 1)
    mean, std = flat.mean(0), flat.std(0, correction=0).clamp_min(1e-5)
    features, judged = (seen.pooled - mean) / std, (judged - mean) / std
    counts, (_, views, width) = torch.bincount(seen.target), features.shape
    if way.shrinkage:
        means = class_means(features.mean(1), seen.target, num_classes)
        share = (counts / (counts + 2))[:, None]
        means = share * means + (1 - share) * means.mean(0)
        off = (features - means[seen.target][:, None]).flatten(0, 1)
        within = (1 - way.shrinkage) * off.T @ off / len(off)
        within += way.shrinkage * float(off.square().mean()) * torch.eye(width)
        weight = torch.linalg.solve(within.double(), means.T.double()).float()
        return judged @ weight - (means.T * weight).sum(0) / 2
    weight = torch.zeros(width, num_classes, requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    target, prior = seen.target.repeat_interleave(views), tau * (counts / counts.sum()).log()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features.flatten(0, 1) @ weight + bias + prior
        total = cross_entropy(logits, target) + way.penalty * weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return (judged @ weight + bias).detach()


def scored(log_probabilities: Tensor, target: Tensor, num_classes: int) -> tuple[float, float]:
    """Balanced accuracy, and balanced log loss after the best temperature of all images."""
    groups = [target == label for label in range(num_classes)]
    right = log_probabilities.argmax(1) == target
    losses = [
        torch.stack([cross_entropy(log_probabilities[g] * scale, target[g]) for g in groups]).mean()
        for scale in (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
    ]
    return float(np.mean([float(right[g].float().mean()) for g in groups])), float(min(losses))


def main() -> None:
    """Write `heads.csv` (a row a set, draw and way) and `heads.md`, the means over the draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("deeppcb", "cifar", "cells"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--out", type=Path, default=HERE / "results-heads")
    given = parser.parse_args()
    facts = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))["sets"]
    data = {name: getattr(given, name) for name in ("deeppcb", "cifar", "cells")}
    sets = makers({name: path for name, path in data.items() if path is not None})
    rows: list[dict[str, Any]] = []
    for name in given.sets or sets:
        manifest = write(sets[name](), given.runs / "sets" / name.replace(" ", "-"))
        images, config = set_of(manifest)
        space = images.label_space
        kept_at = manifest.parent / f"features-{images.spec.height}.pt"
        if not kept_at.exists():
            model = MultiExpertClassifier.from_config(config, space.num_classes, spec=images.spec)
            made = embedded(images, model.eval(), SYMMETRIES[facts[name]["symmetry"]])
            torch.save((made.pooled, made.target), kept_at)
        features = ProbeFeatures(*torch.load(kept_at))
        target, counts = features.target.numpy(), np.asarray(space.counts)
        for draw, mask in enumerate(draws_of(target, counts, given.draws)):
            kept = torch.from_numpy(mask)
            train = ProbeFeatures(features.pooled[kept], features.target[kept])
            told = answers(train, features.pooled[~kept], space.num_classes, config)
            for way, found in told.items():
                accuracy, loss = scored(found, features.target[~kept], space.num_classes)
                row = {"set": name, "draw": draw, "way": way}
                rows.append({**row, "bacc": accuracy, "loss": loss})
        print(pd.DataFrame(rows).query("set == @name").groupby("way", sort=False)["bacc"].mean())
    table = pd.DataFrame(rows)
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "heads.csv", index=False, float_format="%.4f")
    means = table.pivot_table("bacc", "way", "set", sort=False)
    means["mean"] = means.mean(axis=1)
    rows = [[way, *(f"{value:.3f}" for value in row)] for way, row in means.iterrows()]
    text = markdown_table(["way", *means], rows)
    (given.out / "heads.md").write_text(text + "\n", encoding="utf-8")
    (given.out / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
