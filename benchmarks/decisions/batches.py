"""Is a batch of a product line that training never saw told without its name? On finished runs.

    python benchmarks/decisions/batches.py MANIFEST.csv RUN [RUN ...] [--out FILE]

A line's images differ from another's in how lines, pads and gaps of a board look, whatever the
defect; a network that was taught defects has learnt to overlook that, image by image, but not in
the mean of 50 images. Here a batch is its mean, after what is due to the called class has been
taken off, and its score is the distance to the nearest known line, in units of how images of one
line differ (Mahalanobis, shrunken as OAS has it). Four fifths of the known boards lay the lines'
means, the others the threshold: the score that 3 % of batches of known lines exceed.

- `features`: what the heads read. `style`: mean and spread over the places of each channel of the
  first stages of the run's network; `packaged style`: of the one that it started from.
- `whole`: in the space of all features. `told apart`: in the directions that tell the known lines
  apart (linear discriminants), where a new one has to lie elsewhere too. `hull`: there, from the
  nearest mixture of known lines.

`left out`: each line of `train` with enough images is left out in turn, beside `val` of the others,
which chooses among these. `new`: batches of `new_product_query` beside batches of `test`, which
judge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from places import stages_of
from scipy.optimize import nnls
from sklearn.covariance import OAS

from recame.contracts import Array, FloatArray, ensemble_logits
from recame.data.dataset import load_inspection_set
from recame.inference.finished_run import open_finished
from recame.inference.forward import evaluating
from recame.machine import environment

#: Images of a batch, batches drawn of each line, share of known batches above the threshold.
BATCH, DRAWS, ABOVE = 50, 100, 0.03
#: Stages whose channels' means and spreads are a style.
STYLE = (0, 1, 2, 3)
#: Lines that are left out in turn have so many images.
ENOUGH = 400
KINDS, SPACES = ("features", "style", "packaged style"), ("whole", "told apart", "hull")


class Images(NamedTuple):
    """Of N images: values (N, D) by kind, called class, line and board."""

    values: dict[str, FloatArray]
    called: Array
    line: Array
    board: Array

    def where(self, chosen: Array) -> Images:
        """Some of them."""
        values = {kind: rows[chosen] for kind, rows in self.values.items()}
        return Images(values, self.called[chosen], self.line[chosen], self.board[chosen])


def style(stages: list[torch.nn.Module], images: torch.Tensor) -> torch.Tensor:
    """Mean and log spread over places of the channels of some stages, (N, D)."""
    told, maps = [], images
    for number, stage in enumerate(stages[: max(STYLE) + 1]):
        maps = stage(maps)
        if number in STYLE:
            told += [maps.mean((2, 3)), torch.log(maps.std((2, 3)) + 1e-3)]
    return torch.cat(told, 1)


def seen_by(run: Path, manifest: Path) -> dict[str, Images]:
    """What the run makes of a table, by split; kept in its folder."""
    kept = run / "batches.npz"
    _, config, loaded = open_finished(run)
    data = load_inspection_set(
        manifest, config.data, seed=0, spec=loaded.spec, label_space=loaded.label_space
    )
    if not kept.exists():
        model, rows = loaded.model, data.table["row"].to_numpy()
        found: dict[str, list[Array]] = {kind: [] for kind in KINDS}
        called = []
        with evaluating(model), torch.inference_mode():
            networks = {
                "style": stages_of("network", model, loaded.spec),
                "packaged style": stages_of("packaged", model, loaded.spec),
            }
            for start in range(0, len(rows), 256):
                images = data.images(rows[start : start + 256])
                output = model(images)
                found["features"].append(output.features.flatten(1).numpy())
                called.append(ensemble_logits(output.logits.numpy()).argmax(1))
                for kind, stages in networks.items():
                    found[kind].append(style(stages, (images - model.mean) / model.std).numpy())
        arrays = {kind: np.concatenate(parts) for kind, parts in found.items()}
        np.savez(kept, called=np.concatenate(called), **arrays)
    with np.load(kept) as arrays:
        line, board = (data.table[n].astype(str).to_numpy() for n in ("product", "board"))
        everything = Images({kind: arrays[kind] for kind in KINDS}, arrays["called"], line, board)
    splits = data.table["split"].to_numpy()
    return {str(split): everything.where(splits == split) for split in dict.fromkeys(splits)}


def means_of(values: FloatArray, code: Array) -> FloatArray:
    """Mean of each group, (G, D)."""
    return np.stack([values[code == index].mean(0) for index in range(code.max() + 1)])


class Lines:
    """Known lines, in a space in which images of one differ by one in each direction."""

    def __init__(self, known: Images, kind: str, space: str) -> None:
        self.kind, self.space = kind, space
        values = known.values[kind].astype(np.float64)
        names, code = np.unique(known.line, return_inverse=True)
        rest = values - means_of(values, code)[code]
        self.of_class = np.zeros((int(known.called.max()) + 1, values.shape[1]))
        for index in np.unique(known.called):
            own = rest[known.called == index]
            self.of_class[index] = own.sum(0) / (len(own) + 10)
        values = self._without_class(known)
        means = means_of(values, code)
        spread = OAS(assume_centered=True).fit(values - means[code]).covariance_
        power, directions = np.linalg.eigh(spread)
        self.to_unit = directions / np.sqrt(power)
        if space != "whole":
            apart = (means - means.mean(0)) @ self.to_unit
            self.to_unit = self.to_unit @ np.linalg.svd(apart, full_matrices=False)[2][:-1].T
        self.means = means @ self.to_unit
        assert len(self.means) == len(names)

    def _without_class(self, of: Images) -> FloatArray:
        called = np.minimum(of.called, len(self.of_class) - 1)
        rows: FloatArray = of.values[self.kind].astype(np.float64) - self.of_class[called]
        return rows

    def place(self, of: Images) -> FloatArray:
        """Where images lie, (N, D)."""
        rows: FloatArray = self._without_class(of) @ self.to_unit
        return rows

    def score(self, batch: FloatArray) -> float:
        """Of a batch's places."""
        mean = batch.mean(0)
        if self.space == "hull":  # weights that sum to one, by a heavy row
            system = np.vstack([self.means.T, np.full((1, len(self.means)), 1e3)])
            return float(nnls(system, np.append(mean, 1e3))[1])
        return float(np.sqrt(((self.means - mean) ** 2).sum(1)).min())


def drawn(lines: Lines, of: Images, rng: np.random.Generator) -> FloatArray:
    """Scores of batches of each line that has enough images."""
    rows, scores = lines.place(of), list[float]()
    for name in np.unique(of.line):
        own = np.flatnonzero(of.line == name)
        chosen = [rng.choice(own, BATCH, replace=False) for _ in range(DRAWS * (len(own) >= BATCH))]
        scores += [lines.score(rows[each]) for each in chosen]
    return np.array(scores)


def flagged(reference: Images, known: Images, new: Images, kind: str, space: str) -> list[float]:
    """Share of the batches of known and of new lines whose score exceeds the threshold."""
    rng = np.random.default_rng(0)
    boards = np.unique(reference.board)
    held = np.isin(reference.board, rng.choice(boards, len(boards) // 5, replace=False))
    lines = Lines(reference.where(~held), kind, space)
    threshold = np.quantile(drawn(lines, reference.where(held), rng), 1 - ABOVE)
    return [float((drawn(lines, part, rng) > threshold).mean()) for part in (known, new)]


def judged(run: Path, manifest: Path) -> dict[str, Any]:
    """Everything of one run."""
    seen = seen_by(run, manifest)
    train, val = seen["train"], seen["val"]
    reference = Images(
        {kind: np.concatenate([train.values[kind], val.values[kind]]) for kind in KINDS},
        *(np.concatenate([getattr(part, n) for part in (train, val)]) for n in Images._fields[1:]),
    )
    told: dict[str, Any] = {"run": run.name}
    names, counts = np.unique(train.line, return_counts=True)
    for kind in KINDS:
        for space in SPACES:
            turns = [
                flagged(
                    train.where(train.line != name),
                    val.where(val.line != name),
                    reference.where(reference.line == name),
                    kind,
                    space,
                )
                for name in names[counts >= ENOUGH]
            ]
            beside, left_out = np.mean(turns, 0)
            known, new = flagged(reference, seen["test"], seen["new_product_query"], kind, space)
            shares = {"left out": left_out, "beside": beside, "new": new, "known": known}
            told[f"{kind}, {space}"] = {name: round(float(s), 4) for name, s in shares.items()}
            print(run.name, kind, space, told[f"{kind}, {space}"], flush=True)
    return told


def main() -> None:
    """Judge the runs, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/batches.json")
    options = parser.parse_args()
    found = [judged(run, options.manifest) for run in options.runs]
    text = json.dumps({"runs": found, "machine": environment()}, indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
