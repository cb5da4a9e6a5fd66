"""Is an unseen defect told by its place? Scorers that read maps, beside those that read averages.

    python benchmarks/decisions/unknown.py --sets "synth small" --seeds 0 --runs DIR --out DIR
    python benchmarks/decisions/places.py DIR [--seeds 0] [--out FILE]

The runs are those of `unknown.py`, each without one defect class. Its images are ranked against the
known test images, by what the maps of a network have at each place, not by their mean:

- `patch`: the strangest place, by the distance to the nearest place of a training image (PatchCore,
  Roth et al., CVPR 2022): maps of two stages, smoothed over 3 x 3 places, side by side.
- `own place`: the same against the same place of the training images (PaDiM's thought, Defard et
  al., 2021), as boards are imaged alike.
- `maxima`: cosine distance of each channel's largest value to that of the nearest training image.
- `odd place`: where the image differs most from normal ones, what does that place look like? The
  distance of its values to those that the nearest training image has at its oddest place.
- `odd and unsure`: ranks of `odd place` and `max_logit` added.

`network` has the maps of the run's own network, `packaged` those of the one that it started from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional
from unknown import NORMAL, without

from recame.contracts import Array, FloatArray, ensemble_logits
from recame.data.dataset import load_inspection_set
from recame.decisions.unknown import fit_scorer
from recame.inference.finished_run import open_finished
from recame.inference.forward import evaluating
from recame.machine import environment
from recame.metrics.statistics import area_under_roc
from recame.models import PACKAGED_BACKBONE
from recame.models.backbone import build_backbone

#: Stages whose maps lie side by side, and training images and places that are remembered.
STAGES, IMAGES, PLACES = (2, 3), 1000, 12000


class Seen(NamedTuple):
    """Of N images: maps (N, C, h, w), features, logits and targets."""

    maps: Tensor
    features: FloatArray
    logits: FloatArray
    target: Array


def stages_of(which: str, model: nn.Module, spec: Any) -> list[nn.Module]:
    """Of the run's first network, or of the one that it started from."""
    if which == "network":
        return list(model.stages(0))  # type: ignore[operator]
    packaged = build_backbone(PACKAGED_BACKBONE, pretrained="package", in_channels=spec.channels)
    return list(packaged.eval().stages)


def maps_of(stages: list[nn.Module], images: Tensor) -> Tensor:
    """Maps of two stages at the first one's size, each smoothed and of unit spread."""
    kept, maps = [], images
    for number, stage in enumerate(stages[: STAGES[-1] + 1]):
        maps = stage(maps)
        if number in STAGES:
            kept.append(functional.avg_pool2d(maps, 3, 1, 1, count_include_pad=False))
    side = kept[0].shape[-2:]
    return torch.cat(
        [kept[0], *(functional.interpolate(m, side, mode="bilinear") for m in kept[1:])], 1
    )


def seen_by(which: str, run: Path, source: Path) -> dict[str, Seen]:
    """What the run makes of a table's images, by split."""
    _, config, loaded = open_finished(run)
    data = load_inspection_set(
        source,
        config.data,
        seed=config.run.seed,
        spec=loaded.spec,
        label_space=loaded.label_space,
        split_if_absent="left out",
        labels="optional",
    )
    model, found = loaded.model, {}
    rows, target = data.table["row"].to_numpy(), data.table["target"].to_numpy()
    parts = data.table["split"].to_numpy()
    with evaluating(model), torch.inference_mode():
        stages = stages_of(which, model, loaded.spec)
        for part in dict.fromkeys(parts):
            own = np.flatnonzero(parts == part)
            if part == "val":
                continue
            maps, features, logits = [], [], []
            for start in range(0, len(own), 128):
                images = data.images(rows[own[start : start + 128]])
                output = model(images)
                maps.append(maps_of(stages, (images - model.mean) / model.std))
                features.append(output.features.float().numpy())
                logits.append(output.logits.float().numpy())
            found[str(part)] = Seen(
                torch.cat(maps), np.concatenate(features), np.concatenate(logits), target[own]
            )
    return found


def places(maps: Tensor) -> Tensor:
    """(N, h * w, C)."""
    return maps.flatten(2).transpose(1, 2)


def nearest(rows: Tensor, memory: Tensor) -> Tensor:
    """Distance of each row (N, C) to the nearest of the memory (M, C)."""
    return torch.cat([torch.cdist(part, memory).amin(1) for part in rows.split(4096)])


def spread_of(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each channel, (1, C, 1, 1)."""
    return maps.mean((0, 2, 3), keepdim=True), maps.std((0, 2, 3), keepdim=True) + 1e-6


def some(number: int, most: int) -> Tensor:
    """Which rows are remembered."""
    return torch.randperm(number, generator=torch.Generator().manual_seed(0))[:most]


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1."""
    return functional.normalize(rows, dim=1)


def scores_by_place(train: Seen, parts: dict[str, Seen], normal: int) -> dict[str, dict[str, Any]]:
    """Scorer -> part -> scores."""
    mean, std = spread_of(train.maps)
    known = (train.maps[some(len(train.maps), IMAGES)] - mean) / std
    good = (train.maps[torch.from_numpy(train.target == normal)] - mean) / std
    memory, own = places(known), places(good)
    flat = memory.flatten(0, 1)
    flat = flat[some(len(flat), PLACES)]
    good_flat = own.flatten(0, 1)
    good_flat = good_flat[some(len(good_flat), PLACES)]

    def oddest(maps: Tensor) -> Tensor:
        """Values of the places that are least like a normal image's, weighted by how much."""
        rows = places(maps)
        far = nearest(rows.flatten(0, 1), good_flat).reshape(rows.shape[:2])
        weights = torch.softmax(far / far.std() * 4, 1)
        return unit((weights[..., None] * rows).sum(1))

    everything = (train.maps - mean) / std
    odd_known, top_known = oddest(everything), unit(everything.amax((2, 3)))
    told: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        maps = (part.maps - mean) / std
        rows = places(maps)
        far = nearest(rows.flatten(0, 1), flat).reshape(rows.shape[:2])
        there = torch.stack(
            [nearest(rows[:, place], memory[:, place]) for place in range(rows.shape[1])], 1
        )
        found = {
            "patch": far.amax(1),
            "own place": there.amax(1),
            "maxima": nearest(unit(maps.amax((2, 3))), top_known),
            "odd place": nearest(oddest(maps), odd_known),
        }
        for scorer, values in found.items():
            told.setdefault(scorer, {})[name] = values.double().numpy()
    return told


def judged(run: Path, known: Path, strange: Path) -> dict[str, float]:
    """AUROC of the class left out, by each scorer."""
    areas: dict[str, float] = {}
    for which in ("network", "packaged"):
        seen = {**seen_by(which, run, known), **seen_by(which, run, strange)}
        _, _, loaded = open_finished(run)
        normal = loaded.label_space.normal_index
        assert normal is not None
        parts = {name: seen[name] for name in ("test", "left out")}
        scores = scores_by_place(seen["train"], parts, normal)
        train = seen["train"]
        for scorer in ("max_softmax", "max_logit", "knn"):
            fitted = fit_scorer(scorer, train.features, train.logits, train.target)
            scores[scorer] = {
                name: fitted.score(part.features, part.logits) for name, part in parts.items()
            }
        ranks = {
            scorer: rankdata(np.concatenate([values["test"], values["left out"]]))
            for scorer, values in scores.items()
        }
        cut = len(parts["test"].target)
        for scorer, others in (("odd place", "max_logit"), ("patch", "max_logit")):
            together = ranks[scorer] + ranks[others]
            scores[f"{scorer} and unsure"] = {"test": together[:cut], "left out": together[cut:]}
        right = ensemble_logits(parts["test"].logits).argmax(1) == parts["test"].target
        areas["accuracy of known classes"] = float(
            np.mean([right[parts["test"].target == c].mean() for c in set(parts["test"].target)])
        )
        for scorer, values in scores.items():
            told = scorer if scorer.startswith(("max_", "knn")) else f"{which}: {scorer}"
            areas[told] = float(area_under_roc(values["test"], values["left out"]) or 0)
    return areas


def main() -> None:
    """Judge every run that is there, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/places.json")
    options = parser.parse_args()
    cases = []
    for name, normal in NORMAL.items():
        slug = name.replace(" ", "-")
        manifest = options.runs / "sets" / slug / "manifest.csv"
        if not manifest.exists():
            continue
        for left_out in sorted(set(pd.read_csv(manifest)["label"]) - {normal}):
            for seed in options.seeds:
                run = options.runs / f"{slug}-{left_out}-{seed}"
                if (run / "model.safetensors").exists():
                    areas = judged(run, *without(manifest, left_out))
                    cases.append({"set": name, "left_out": left_out, "seed": seed, "auroc": areas})
                    print(name, left_out, seed, {k: round(v, 3) for k, v in areas.items()})
    for name in dict.fromkeys(case["set"] for case in cases):
        own = pd.DataFrame([case["auroc"] for case in cases if case["set"] == name])
        print(f"\n{name}, mean of {len(own)} runs\n{own.mean().round(3).to_string()}")
    text = json.dumps({"cases": cases, "machine": environment()}, indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
