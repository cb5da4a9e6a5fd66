"""Which head do frozen features want? Several, on the same draws of several kinds of sets.

    python benchmarks/defaults/heads.py [--deeppcb MANIFEST.csv] [--cifar cifar10_lt100.zip]
        [--cells MANIFEST.csv] [--draws 10] [--sets NAME ...] [--runs DIR] [--out DIR]

The sets of `contest.py`, of their `train` and `val` alone. A draw keeps as many training images of
each class as the set has and scores on the others: as many of each class as `val` has. Features are
those of the default's network, under the views that the set bears, at the size that its files ask
for. All heads see the same features, so differences are paired.
"""

from __future__ import annotations

import argparse
import copy
import json
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
from recame.models import MultiExpertClassifier
from recame.training.phases.features import ProbeFeatures, fit_heads, probe_prior
from recame.training.planner import choose_size

#: Of the linear head: mean loss + so much / 2 x the squared weights, on normalised features.
STRENGTHS = (1e-3, 1e-2, 1e-1)
#: Steps of the probe where time is short, and where it is not.
STEPS = (300, 1000)


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


def linear(train: ProbeFeatures, strength: float) -> tuple[Tensor, Tensor]:
    """Weights (C, P) and biases (C,) of the minimum of balanced softmax, by L-BFGS."""
    views = train.pooled.shape[1]
    inputs, target = train.pooled.flatten(0, 1), train.target.repeat_interleave(views)
    counts = torch.bincount(train.target).float()
    prior = (counts / counts.sum()).log()
    weights = torch.zeros(len(counts), inputs.shape[1], requires_grad=True)
    biases = torch.zeros(len(counts), requires_grad=True)
    solver = torch.optim.LBFGS([weights, biases], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        fit = cross_entropy(inputs @ weights.T + biases + prior, target)
        total = fit + strength / 2 * weights.square().sum()
        total.backward()
        return total

    solver.step(loss)  # type: ignore[arg-type]
    return weights.detach(), biases.detach()


def answers(
    train: ProbeFeatures, judged: Tensor, model: MultiExpertClassifier, config: recame.Config
) -> dict[str, Tensor]:
    """Head -> log probabilities (M, C) of `judged` (M, V, P), the mean of the views' answers."""
    mean, std = train.pooled.flatten(0, 1).mean(0), train.pooled.flatten(0, 1).std(0, correction=0)
    scaled = ProbeFeatures((train.pooled - mean) / std.clamp_min(1e-6), train.target)
    inputs = (judged - mean) / std.clamp_min(1e-6)
    found: dict[str, Tensor] = {}
    counts = torch.bincount(train.target).numpy()
    for steps in STEPS:
        head = copy.deepcopy(model.head)
        objective = recame.Objective.from_config(
            config,
            counts.tolist(),
            num_experts=1,
            prior=probe_prior(counts),
            num_features=model.num_features,
            fixed_features=True,
        )
        settings = config.probe.model_copy(update={"steps": steps})
        fit_heads(head, train, objective, settings, num_experts=1, seed=0)
        with torch.inference_mode():
            logits = head(judged.flatten(0, 1)[:, None]).logits[:, 0]
        found[f"cosine, {steps} steps"] = logits.reshape(*judged.shape[:2], -1)
    for strength in STRENGTHS:
        weights, biases = linear(scaled, strength)
        found[f"linear, L2 {strength:g}"] = inputs @ weights.T + biases
    told = {
        name: logits.softmax(-1).mean(1).clamp_min(1e-12).log() for name, logits in found.items()
    }
    for strength in STRENGTHS:
        pair = (f"cosine, {STEPS[-1]} steps", f"linear, L2 {strength:g}")
        told[" + ".join(pair)] = (told[pair[0]] + told[pair[1]]) / 2
    return told


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
    """Write `heads.csv` (a row a set, draw and head) and `heads.md`, the means over the draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("deeppcb", "cifar", "cells"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--draws", type=int, default=10)
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
        model = MultiExpertClassifier.from_config(config, space.num_classes, spec=images.spec)
        features = embedded(images, model.eval(), SYMMETRIES[facts[name]["symmetry"]])
        target, counts = features.target.numpy(), np.asarray(space.counts)
        for draw, mask in enumerate(draws_of(target, counts, given.draws)):
            kept = torch.from_numpy(mask)
            train = ProbeFeatures(features.pooled[kept], features.target[kept])
            for head, found in answers(train, features.pooled[~kept], model, config).items():
                accuracy, loss = scored(found, features.target[~kept], space.num_classes)
                row = {"set": name, "draw": draw, "head": head}
                rows.append({**row, "bacc": accuracy, "loss": loss})
        print(pd.DataFrame(rows).query("set == @name").groupby("head", sort=False)["bacc"].mean())
    table = pd.DataFrame(rows)
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "heads.csv", index=False, float_format="%.4f")
    means = table.pivot_table("bacc", "head", "set", sort=False)
    means["mean"] = means.mean(axis=1)
    text = [f"| head | {' | '.join(means)} |", "| --- |" + " ---: |" * means.shape[1]]
    for head, row in means.iterrows():
        text.append(f"| {head} | {' | '.join(f'{value:.3f}' for value in row)} |")
    (given.out / "heads.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    (given.out / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
