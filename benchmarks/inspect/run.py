"""What `recame inspect` recovers of what was planted, and how long it takes.

    python benchmarks/inspect/run.py [--images 10000] [--seeds 0 1 2] [--rows 1000000]

Generates ICDefectSynth sets with planted clusters, label errors, duplicates and leaks, inspects
each, and compares with the truth table; then times a manifest of many rows without images.
Writes results.json and results.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from recame.config import DataConfig
from recame.datasets.generated import SyntheticSpec, write
from recame.inspection import Inspection, inspect_set, save_inspection
from recame.inspection.checks.duplicates import Duplicates
from recame.inspection.checks.label_errors import LabelErrors
from recame.inspection.checks.structure import Structure
from recame.machine import environment

HERE = Path(__file__).parent


def planted(images: int, seed: int, folder: Path) -> tuple[Inspection, pd.DataFrame, float]:
    """Generate, inspect with everything (page included), and give the truth table beside it."""
    spec = SyntheticSpec(
        num_images=images,
        seed=seed,
        label_noise=0.03,
        exact_duplicates=0.005,
        near_duplicates=0.01,
        leaks=0.05,
    )
    manifest = write(spec, folder / f"set{seed}")
    truth = pd.read_csv(manifest.parent / "truth.csv", keep_default_na=False)
    start = time.perf_counter()
    data = DataConfig(cache_dir=folder / "cache")
    inspection = inspect_set(manifest, data=data, seed=seed, out=folder / f"out{seed}")
    return inspection, truth, time.perf_counter() - start


def cluster_scores(inspection: Inspection, truth: pd.DataFrame) -> pd.DataFrame:
    """Per class: clusters planted and found in train (effective numbers), and their agreement."""
    structure, embedded = inspection[Structure], inspection.embedded
    assert embedded is not None
    label = inspection.table["label"].to_numpy()[embedded.rows]
    right = label == truth["true_label"].to_numpy()[embedded.rows]
    cluster = truth["cluster"].to_numpy()[embedded.rows]
    train = (inspection.table["split"] == "train").to_numpy()[embedded.rows]
    rows = []
    for name, kind, effective in structure.classes[["class", "kind", "effective"]].itertuples(
        index=False
    ):
        own = right & (label == name)
        share = pd.Series(cluster[own & train]).value_counts(normalize=True).to_numpy()
        rows.append(
            {
                "class": name,
                "train": int((own & train).sum()),
                "planted": float(np.exp(-(share * np.log(share)).sum())),
                "found": effective,
                "ari": adjusted_rand_score(cluster[own], structure.cluster[own]),
                "ami": adjusted_mutual_info_score(cluster[own], structure.cluster[own]),
                "kind": kind,
            }
        )
    return pd.DataFrame(rows)


def hygiene_scores(inspection: Inspection, truth: pd.DataFrame) -> dict[str, float]:
    """Precision and recall of duplicates, near-duplicates, leaks and suspect labels."""
    duplicates, table = inspection[Duplicates], inspection.table
    source = truth["duplicate_of"].where(truth["duplicate_of"] != "", truth["image"]).to_numpy()
    kind = truth["duplicate_kind"].to_numpy()
    near = duplicates.near
    first, second = near["first"].to_numpy(int), near["second"].to_numpy(int)
    same = source[first] == source[second]
    crossing = (near["split"] != near["other_split"]).to_numpy()
    seen = set(first) | set(second)
    planted_near = np.flatnonzero(kind == "near")
    leaks = planted_near[table["split"].to_numpy()[planted_near] != "train"]
    wrong = (table["label"] != truth["true_label"]).to_numpy()
    suspects = inspection[LabelErrors].suspects["table_row"].to_numpy(int)
    hits = wrong[suspects]
    exact = set(np.flatnonzero(kind == "exact"))
    scores = {
        "exact_recall": len(exact & set(duplicates.equal["table_row"])) / len(exact),
        "near_precision": float(same.mean()),
        "near_recall": float(np.mean([row in seen for row in planted_near])),
        "leak_precision": float(same[crossing].mean()),
        "leak_recall": float(np.mean([row in seen for row in leaks])),
        "planted_label_errors": int(wrong.sum()),
        "suspects": len(suspects),
        "suspect_precision": float(hits.mean()),
        "suspect_recall": float(hits.sum() / wrong.sum()),
    }
    return scores | {f"precision_at_{k}": float(hits[:k].mean()) for k in (10, 25, 50, 100)}


def time_rows(rows: int, folder: Path) -> dict[str, float]:
    """Read and audit a manifest of many rows without opening an image, page included."""
    rng = np.random.default_rng(0)
    labels = np.array([f"class {i}" for i in range(40)])
    weight = 0.8 ** np.arange(40)
    number = np.arange(rows)
    table = pd.DataFrame(
        {
            "image": [f"images/{i:07d}.png" for i in number],
            "label": labels[rng.choice(40, rows, p=weight / weight.sum())],
            "product": np.char.add("P", rng.integers(0, 200, rows).astype(str)),
            "board": np.char.add("B", (number // 30).astype(str)),
            "split": np.where(number % 300 < 240, "train", "test"),
        }
    )
    path = folder / "many.csv"
    table.to_csv(path, index=False)
    start = time.perf_counter()
    inspection = inspect_set(path, decode=False)
    save_inspection(inspection, folder / "many")
    return {"rows": rows, "seconds": time.perf_counter() - start}


def markdown(results: dict) -> str:
    """The results as a page of tables."""
    lines = ["# What `recame inspect` recovers", "", f"Made by `{results['command']}`.", ""]
    lines += ["| seed | " + " | ".join(results["runs"][0]["scores"]) + " | seconds |"]
    lines += ["| --- |" + " --- |" * (len(results["runs"][0]["scores"]) + 1)]
    for run in results["runs"]:
        cells = [f"{value:.3g}" for value in run["scores"].values()]
        lines.append(f"| {run['seed']} | {' | '.join(cells)} | {run['seconds']:.0f} |")
    lines += ["", f"Clusters, seed {results['runs'][0]['seed']} (effective numbers in train):", ""]
    lines += ["| class | train | planted | found | ARI | AMI | kind |", "| --- |" + " --- |" * 6]
    for row in results["runs"][0]["clusters"]:
        lines.append(
            f"| {row['class']} | {row['train']:,} | {row['planted']:.1f} | {row['found']:.1f} | "
            f"{row['ari']:.2f} | {row['ami']:.2f} | {row['kind']} |"
        )
    steps = ", ".join(f"{k} {v:.1f} s" for k, v in results["runs"][0]["steps"].items())
    rows = results["rows"]
    lines += ["", f"Steps, seed {results['runs'][0]['seed']}: {steps}.", ""]
    lines += [f"{rows['rows']:,} manifest rows without images: {rows['seconds']:.1f} s.", ""]
    machine = results["environment"]
    lines.append(
        f"{machine['processor']}, {machine['cpu_threads']} threads, {machine['platform']}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1_000_000)
    chosen = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in chosen.seeds:
            inspection, truth, seconds = planted(chosen.images, seed, folder)
            clusters = cluster_scores(inspection, truth)
            scores = {
                "mean_ari": float(clusters["ari"].mean()),
                "mean_ami": float(clusters["ami"].mean()),
                **hygiene_scores(inspection, truth),
            }
            runs.append(
                {
                    "seed": seed,
                    "scores": scores,
                    "seconds": seconds,
                    "steps": inspection.seconds,
                    "clusters": clusters.to_dict("records"),
                }
            )
            print(seed, f"{seconds:.0f} s", {k: round(v, 3) for k, v in scores.items()}, flush=True)
        rows = time_rows(chosen.rows, folder)
        print(rows, flush=True)
    seeds = " ".join(map(str, chosen.seeds))
    results = {
        "command": f"python benchmarks/inspect/run.py --images {chosen.images} --seeds {seeds}",
        "runs": runs,
        "rows": rows,
        "environment": environment(),
    }
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (HERE / "results.md").write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
