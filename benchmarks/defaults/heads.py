"""How should heads on frozen features be fitted? Several ways, on the same draws of several sets.

    python benchmarks/defaults/heads.py [--deeppcb MANIFEST.csv] [--cifar cifar10_lt100.zip]
        [--cells MANIFEST.csv] [--elpv MANIFEST.csv] [--draws 5] [--sets NAME ...] [--ways WAY ...]
        [--adapt 0 0.5 1] [--runs DIR] [--out DIR]

The sets of `contest.py`, of their `train` and `val` alone; `--elpv` is the whole set of cells. A
draw keeps as many training images of each class as the set has and scores on the others: as many of
each class as `val` has. Features are those of the default's network, under the views that the set
bears, at the size that its files ask for. All ways see the same features, so differences are
paired. Features are kept in `--runs`. With `--adapt` each way is asked with such shares of the
set's own statistics in the batch norms.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from contest import makers
from robust_losses import Generalised, Smoothed
from run import HERE, write
from torch import Tensor
from torch.nn.functional import cross_entropy

import recame
from recame.config import SYMMETRIES
from recame.data.dataset import InspectionSet, load_inspection_set
from recame.data.proposal import native_size
from recame.data.transforms import dihedral_view
from recame.losses import LossFactory
from recame.machine import environment
from recame.models import ExpertHead, MultiExpertClassifier, adapt_batch_norms
from recame.models.initialisation import class_means
from recame.pages.render import markdown_table
from recame.training.phases.batch_norms import adapting_rows
from recame.training.phases.features import ProbeFeatures, fit_heads, probe_prior
from recame.training.planner import choose_size

#: Degrees of damage of solar cells (ELPV).
CELLS = ("functional", "possibly", "likely", "defective")


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
        loss: of the steps; None: the default's.
    """

    steps: int = 800
    views: int = 8
    share: float = 1.0
    hidden: int = 0
    penalty: float = 0.0
    shrinkage: float = 0.0
    loss: LossFactory | None = None


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
    "300 steps, balanced softmax alone": Way(300, loss=partial(Smoothed, share=0.0)),
    "300 steps, smoothed by 0.1": Way(300, loss=partial(Smoothed, share=0.1)),
    "300 steps, smoothed by 0.3": Way(300, loss=partial(Smoothed, share=0.3)),
    "300 steps, generalised cross-entropy 0.5": Way(300, loss=partial(Generalised, q=0.5)),
    "300 steps, generalised cross-entropy 0.8": Way(300, loss=partial(Generalised, q=0.8)),
}
#: Of sets whose classes are degrees of one thing: these, from the least to the largest.
DEGREES = {"cells": CELLS, "elpv": CELLS}
#: Means of the logits of several ways, each brought to a standard deviation of 2.
JOINED: dict[str, tuple[str, ...]] = {
    "300 steps and MLP": ("300 steps", "300 steps, MLP of 256"),
    "300 steps and L-BFGS": ("300 steps", "L-BFGS, penalty 0.001"),
    "300 steps, MLP and L-BFGS": ("300 steps", "300 steps, MLP of 256", "L-BFGS, penalty 0.001"),
}


def ways_of(name: str, classes: Sequence[str]) -> dict[str, Way]:
    """The ways to fit the heads of a set; more where its classes are degrees.

    Args:
        name: of the set.
        classes: in the order of their indices.
    """
    if name not in DEGREES:
        return WAYS
    order = [classes.index(degree) for degree in DEGREES[name]]
    return WAYS | {
        f"300 steps, smoothed by {share} to the next degrees": Way(
            300, loss=partial(Smoothed, share=share, order=order)
        )
        for share in (0.1, 0.3)
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
    ways: Mapping[str, Way],
    train: ProbeFeatures,
    judged: Tensor,
    num_classes: int,
    config: recame.Config,
) -> dict[str, Tensor]:
    """Way -> log probabilities (M, C) of `judged` (M, V, P), the mean of the views' answers."""
    logits: dict[str, Tensor] = {}
    for name, way in ways.items():
        seen = capped(train, way.share)
        seen = ProbeFeatures(seen.pooled[:, : way.views], seen.target)
        if way.steps:
            logits[name] = by_steps(way, seen, judged, num_classes, config)
        else:
            logits[name] = at_once(way, seen, judged, num_classes, float(config.objective.tau))
    for name, parts in JOINED.items():
        if not set(parts) <= set(logits):
            continue
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
    if way.loss is not None:
        objective = way.loss(counts.tolist(), 1, probe_prior(counts))
    else:
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


def adapted(data: InspectionSet, config: recame.Config, share: float) -> MultiExpertClassifier:
    """The default's network before the probe, with `share` of the set's batch norm statistics."""
    space = data.label_space
    model = MultiExpertClassifier.from_config(config, space.num_classes, spec=data.spec)
    adapt_batch_norms(model, [data.images(adapting_rows(data, seed=0))], share)
    return model.eval()


def of_draws(
    features: ProbeFeatures,
    ways: Mapping[str, Way],
    counts: np.ndarray,
    draws: int,
    config: recame.Config,
) -> list[dict[str, Any]]:
    """A row a draw and way: `draw`, `way`, `bacc`, `loss`."""
    target, rows = features.target.numpy(), []
    for draw, mask in enumerate(draws_of(target, counts, draws)):
        kept = torch.from_numpy(mask)
        train = ProbeFeatures(features.pooled[kept], features.target[kept])
        told = answers(ways, train, features.pooled[~kept], len(counts), config)
        for way, found in told.items():
            accuracy, loss = scored(found, features.target[~kept], len(counts))
            rows.append({"draw": draw, "way": way, "bacc": accuracy, "loss": loss})
    return rows


def main() -> None:
    """Write `heads.csv` (a row a set, draw and way) and `heads.md`, the means over the draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("deeppcb", "cifar", "cells", "elpv"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--ways", nargs="+", help="their names; all if left out")
    parser.add_argument("--adapt", type=float, nargs="+", default=[0.0])
    parser.add_argument("--runs", type=Path, default=Path("runs/heads"))
    parser.add_argument("--out", type=Path, default=HERE / "results-heads")
    given = parser.parse_args()
    facts = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))["sets"]
    views_of = {name: SYMMETRIES[told["symmetry"]] for name, told in facts.items()}
    views_of["elpv"] = views_of["cells"]
    data = {name: getattr(given, name) for name in ("deeppcb", "cifar", "cells")}
    sets = makers({name: path for name, path in data.items() if path is not None})
    rows: list[dict[str, Any]] = []
    for name in given.sets or sets:
        folder = given.runs / "sets" / name.replace(" ", "-")
        manifest = given.elpv if name == "elpv" else write(sets[name](), folder)
        images, config = set_of(manifest)
        space = images.label_space
        ways = {
            way: how
            for way, how in ways_of(name, space.names).items()
            if given.ways is None or way in given.ways
        }
        folder.mkdir(parents=True, exist_ok=True)
        for share in given.adapt:
            kept_at = folder / f"features-{images.spec.height}-{share}.pt"
            if not kept_at.exists():
                made = embedded(images, adapted(images, config, share), views_of[name])
                torch.save((made.pooled, made.target), kept_at)
            features = ProbeFeatures(*torch.load(kept_at))
            told = of_draws(features, ways, np.asarray(space.counts), given.draws, config)
            adapt = f", {share:g} of the set's statistics" if len(given.adapt) > 1 else ""
            rows += [{"set": name, **row, "way": f"{row['way']}{adapt}"} for row in told]
        print(pd.DataFrame(rows).query("set == @name").groupby("way", sort=False)["bacc"].mean())
    table = pd.DataFrame(rows)
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "heads.csv", index=False, float_format="%.4f")
    means = table.pivot_table("bacc", "way", "set", sort=False)
    means["mean"] = means.mean(axis=1, skipna=False)
    rows = [
        [way, *("" if np.isnan(value) else f"{value:.3f}" for value in row)]
        for way, row in means.iterrows()
    ]
    text = markdown_table(["way", *means], rows)
    (given.out / "heads.md").write_text(text + "\n", encoding="utf-8")
    (given.out / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
