"""Train and judge every method of this benchmark over several seeds; then write the table.

    python benchmarks/deeppcb_lt/run.py DATA/manifest.csv [--runs DIR] [--seeds 0 1 2] [--table]

A resumable queue: what is finished is not run again, what was interrupted is taken up.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import pandas as pd
from rich.console import Console

import recame
from recame.config import load_config
from recame.runs.folder import RunFolder

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "deeppcb_lt"
#: Method -> settings; all see the same number of epochs of the same number of images.
METHODS = {
    "cross-entropy, one network": "cross_entropy.yaml",
    "balanced softmax, one network": "balanced_softmax.yaml",
    "recame, two experts": "recame.yaml",
}
SPLITS = ("test", "new_product_query")
TAIL = ("pin_hole", "short", "copper")
COLUMNS = ("balanced_accuracy", "macro_f1", "tail_recall", "worst_class_recall", "accuracy")


def run_one(method: str, seed: int, manifest: Path, runs_dir: Path, console: Console) -> None:
    """Train (or resume) one run and judge it on every split that is not judged yet."""
    config = load_config(CONFIGS / METHODS[method]).updated({"run.seed": seed})
    out = runs_dir / f"{Path(METHODS[method]).stem}-seed{seed}"
    begun = (out / "run.json").exists()
    if not begun or not RunFolder.open(out).finished:
        recame.train(manifest, config, out=out, resume=begun, console=console)
    for split in SPLITS:
        if split not in json.loads((out / "metrics.json").read_text()):
            recame.evaluate(out, split=split, console=console)


def collect(seeds: list[int], runs_dir: Path) -> pd.DataFrame:
    """One row a finished method, seed and split."""
    rows = []
    for method, name in METHODS.items():
        for seed in seeds:
            out = runs_dir / f"{Path(name).stem}-seed{seed}"
            if not (out / "metrics.json").exists():
                continue
            metrics = json.loads((out / "metrics.json").read_text())
            info = json.loads((out / "run.json").read_text())
            duration = pd.Timestamp(info["finished"]) - pd.Timestamp(info["started"])
            for split in (s for s in SPLITS if s in metrics):
                row = {"method": method, "seed": seed, "split": split}
                row |= {column: metrics[split][column]["value"] for column in COLUMNS}
                recalls = {c["class"]: c["recall"] for c in metrics[split]["per_class"]}
                row |= {f"recall_{name}": recalls[name] for name in TAIL}
                row["train_s"] = duration.total_seconds()
                rows.append(row)
    return pd.DataFrame(rows)


def table(results: pd.DataFrame) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    columns = [*COLUMNS, *(f"recall_{name}" for name in TAIL)]
    lines = []
    for split in SPLITS:
        part = results[results["split"] == split]
        lines += [f"### `{split}`", ""]
        heads = ["method", "seeds", *columns, "minutes"]
        lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
        for method in METHODS:
            group = part[part["method"] == method]
            if group.empty:
                continue
            cells = [method, str(len(group))]
            for column in columns:
                spread = group[column].std(ddof=1) if len(group) > 1 else float("nan")
                cells.append(f"{group[column].mean():.3f} ± {spread:.3f}")
            cells.append(f"{group['train_s'].mean() / 60:.1f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the queue, then write results.csv and table.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/deeppcb_lt"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only collect what is finished")
    options = parser.parse_args()
    console = Console()
    if not options.table:
        for seed in options.seeds:
            for method in METHODS:
                console.rule(f"{method}, seed {seed}")
                run_one(method, seed, options.manifest, options.runs, console)
    results = collect(options.seeds, options.runs)
    (HERE / "results").mkdir(exist_ok=True)
    results.to_csv(HERE / "results" / "results.csv", index=False, float_format="%.5f")
    environment = json.loads(next(options.runs.glob("*/environment.json")).read_text())
    environment["platform"] = platform.machine()
    (HERE / "results" / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    (HERE / "results" / "table.md").write_text(table(results))
    console.print(table(results), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
