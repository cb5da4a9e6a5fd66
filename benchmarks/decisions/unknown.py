"""By what does a run tell images that it knows from those that it cannot: scorers in one table.

    python benchmarks/decisions/unknown.py [--deeppcb MANIFEST.csv] [--time-budget 90s]
        [--seeds 0 1 2] [--sets NAME ...] [--limit CLASSES] [--runs DIR] [--out DIR] [--table]
        [--generated MANIFEST.csv] [--classes NAME ...]

Each defect class in turn is left out: a run with default settings never sees it. Then its images,
and foreign ones (noise, black, saturated, handwritten digits, the other set), are ranked against
the known test images. Training images fit a scorer. Two fifths of each class's test images, which
chose nothing, lay its threshold; the others are judged: how many false alarms, how many strangers
are found, and what share of them would be released as normal without the rule and with it.

The sets are the small ones of `benchmarks/defaults/run.py`, and with `--generated` one of
`recame synth`. A resumable queue: each set, class and
seed leaves a JSON file in OUT/cases. Features and logits are of the images as they are, not of
turned views. Nothing else should run: training has a time budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console

import recame
from recame.contracts import Array, BoolArray, FloatArray, IntArray, ensemble_logits
from recame.decisions.unknown import SCORERS, fit_scorer, fit_unknown_threshold, is_unknown
from recame.durations import parse_duration
from recame.files import write_json
from recame.label_space import LabelSpace
from recame.machine import environment
from recame.metrics.statistics import area_under_roc

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "defaults"))
from run import Labelled, deeppcb, digits, synth, write  # noqa: E402
from single_threshold import single_threshold  # noqa: E402

#: Of a class's test images, those that lay thresholds.
CALIBRATION = 0.4
LIMITS = {"limit": 0.05, "tail_limit": 0.1, "risk": 0.05}
#: Share of the known defects that may pass as normal, as bundles had it.
MAX_ESCAPE = 0.01
#: Foreign images of each kind.
FOREIGN = 100
NORMAL = {"synth small": "normal", "deeppcb small": "false_call", "generated": "normal"}


class Answers(NamedTuple):
    """What a run makes of N images: (N, E, D), (N, E, C), and (N,) with -1 for strangers."""

    features: FloatArray
    logits: FloatArray
    target: IntArray


def foreign(shape: tuple[int, ...], others: Mapping[str, list[Array]]) -> Iterator[Array]:
    """Images of a shape that no camera of the line takes; see `foreign_kinds`."""
    rng = np.random.default_rng(0)
    for _ in range(FOREIGN):
        yield rng.integers(0, 256, shape, np.uint8)
    for level in (0, 255):  # a little noise of the sensor, so that they are not one image
        for _ in range(FOREIGN):
            yield np.clip(rng.normal(level, 2, shape), 0, 255).astype(np.uint8)
    for pixels in others.values():
        yield from pixels


def foreign_kinds(others: Mapping[str, list[Array]]) -> list[str]:
    """Kind of each image of `foreign`."""
    kinds = [kind for kind in ("noise", "black", "saturated") for _ in range(FOREIGN)]
    return kinds + [kind for kind, pixels in others.items() for _ in pixels]


def read(manifest: Path) -> Labelled:
    """A set that lies on the disk."""
    table = pd.read_csv(manifest)
    for name, label, split in zip(table["image"], table["label"], table["split"], strict=True):
        yield np.asarray(Image.open(manifest.parent / name)), label, split


def drawn_from(images: Labelled) -> list[Array]:
    """Test images of another set, of all its classes alike."""
    pixels = [image for image, _, split in images if split == "test"]
    return [pixels[i] for i in np.random.default_rng(0).permutation(len(pixels))[:FOREIGN]]


def write_foreign(folder: Path, others: Mapping[str, list[Array]], like: Path) -> Path:
    """Write foreign images in the shape of a set's first image, with a table of their kinds."""
    manifest = folder / "manifest.csv"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    shape = np.asarray(Image.open(like)).shape
    names = []
    for number, pixels in enumerate(foreign(shape, others)):
        names.append(f"{number:05d}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    pd.DataFrame({"image": names, "kind": foreign_kinds(others)}).to_csv(manifest, index=False)
    return manifest


def without(manifest: Path, left_out: str) -> tuple[Path, Path]:
    """Tables beside a set's own: all but a class, with a calibration split; and its test images."""
    table = pd.read_csv(manifest)
    known = table[table["label"] != left_out].copy()
    test = known["split"] == "test"
    place = known[test].groupby("label").cumcount()
    images = known[test].groupby("label")["label"].transform("size")
    known.loc[place.index[place < CALIBRATION * images], "split"] = "calibration"
    strange = table[(table["label"] == left_out) & (table["split"] == "test")][["image"]]
    paths = manifest.with_name(f"without-{left_out}.csv"), manifest.with_name(f"{left_out}.csv")
    known.to_csv(paths[0], index=False)
    strange.to_csv(paths[1], index=False)
    return paths


def answers_of(
    run: Path, known: Path, strange: Path, foreign_images: Path
) -> tuple[dict[str, Answers], LabelSpace]:
    """Features and logits by the run: of its splits by name, `left out`, and each foreign kind."""
    import torch

    from recame.data.dataset import load_inspection_set
    from recame.inference.finished_run import open_finished
    from recame.inference.forward import evaluating

    _, config, loaded = open_finished(run)
    device = next(loaded.model.parameters()).device
    found: dict[str, Answers] = {}
    for source in (known, strange, foreign_images):
        data = load_inspection_set(
            source,
            config.data,
            seed=config.run.seed,
            spec=loaded.spec,
            label_space=loaded.label_space,
            split_if_absent="left out",
            labels="optional",
        )
        rows, seen, said = data.table["row"].to_numpy(), [], []
        with evaluating(loaded.model), torch.inference_mode():
            for start in range(0, len(rows), 128):
                output = loaded.model(data.images(rows[start : start + 128]).to(device))
                seen.append(output.features.float().cpu().numpy())
                said.append(output.logits.float().cpu().numpy())
        features, logits = np.concatenate(seen), np.concatenate(said)
        target = data.table["target"].to_numpy()
        parts = data.table["kind" if "kind" in data.table else "split"].to_numpy()
        for name in dict.fromkeys(parts):
            of = parts == name
            found[str(name)] = Answers(features[of], logits[of], target[of])
    return found, loaded.label_space


def tail_of(space: LabelSpace) -> BoolArray:
    """Classes of fewer than 20 training images, or the rarest third where that divides none."""
    few = np.array(space.groups()) == "few"
    return few if few.any() and not few.all() else np.array(space.quantile_groups()) == "few"


def probabilities(logits: FloatArray) -> FloatArray:
    """Of the ensemble (N, C), from (N, E, C)."""
    together = ensemble_logits(logits)
    likely = np.exp(together - together.max(1, keepdims=True))
    shares: FloatArray = likely / likely.sum(1, keepdims=True)
    return shares


def judge(answers: Mapping[str, Answers], space: LabelSpace) -> dict[str, Any]:
    """Every scorer on one run's answers."""
    normal, tail = space.normal_index, tail_of(space)
    assert normal is not None
    train, calibration, test = (answers[name] for name in ("train", "calibration", "test"))
    strange = {k: a for k, a in answers.items() if k not in ("train", "val", "calibration", "test")}
    threshold = single_threshold(
        probabilities(calibration.logits), calibration.target, normal, max_escape=MAX_ESCAPE
    )

    def passing(logits: FloatArray) -> BoolArray:
        likely = probabilities(logits)
        sure: BoolArray = likely[:, normal] >= threshold
        return sure & (likely.argmax(1) == normal)

    passes = {name: passing(part.logits) for name, part in strange.items()}
    good = test.target == normal
    good_passes = passing(test.logits)[good]
    rare = tail[test.target]
    scorers = {}
    for name in SCORERS:
        if name == "disagreement" and train.logits.shape[1] < 2:
            continue
        scorer = fit_scorer(name, *train)
        known = scorer.score(*test[:2])
        laid = fit_unknown_threshold(
            scorer.score(*calibration[:2]), calibration.target, tail, **LIMITS
        )
        scores = {kind: scorer.score(*part[:2]) for kind, part in strange.items()}
        unknown = {kind: is_unknown(values, laid.threshold) for kind, values in scores.items()}
        alarms = is_unknown(known, laid.threshold)
        scorers[name] = {
            "bytes": scorer.num_bytes,
            "auroc": {kind: area_under_roc(known, values) for kind, values in scores.items()},
            "found": {kind: float(of.mean()) for kind, of in unknown.items()},
            "released": {k: float((passes[k] & ~of).mean()) for k, of in unknown.items()},
            "false_alarms": float(alarms.mean()),
            "tail_false_alarms": float(alarms[rare].mean()) if rare.any() else None,
            "normal_released": float((good_passes & ~alarms[good]).mean()),
            "threshold": laid.to_dict(),
        }
    return {
        "released_without": {kind: float(of.mean()) for kind, of in passes.items()},
        "normal_released_without": float(good_passes.mean()),
        "num_experts": train.logits.shape[1],
        "features": int(np.prod(train.features.shape[1:])),
        "scorers": scorers,
    }


def run_case(
    manifest: Path, foreign_images: Path, case: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Train without a class, and judge every scorer."""
    slug = case["set"].replace(" ", "-")
    known, strange = without(manifest, case["left_out"])
    out = options.runs / f"{slug}-{case['left_out']}-{case['seed']}"
    config = recame.Config().updated(
        {
            "data.normal_class": NORMAL[case["set"]],
            "run.seed": case["seed"],
            "run.time_budget_s": parse_duration(options.time_budget),
        }
    )
    begun = (out / "run.json").exists()
    recame.train(known, config, out=out, resume=begun, console=Console())
    return {**case, **judge(*answers_of(out, known, strange, foreign_images))}


def mean_of(values: list[float | None]) -> str:
    """Mean of what is known, as a cell."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known else ""


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown, with an empty one behind."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)] + [""]


def ranked(of: list[dict[str, Any]], kinds: list[str]) -> list[str]:
    """How well each scorer ranks strangers above known images."""
    rows = []
    for scorer in SCORERS:
        runs = [case for case in of if scorer in case["scorers"]]
        areas = [(case["left_out"], case["scorers"][scorer]["auroc"]) for case in runs]
        classes = dict.fromkeys(left_out for left_out, _ in areas)
        each = [
            float(np.mean([area["left out"] for name, area in areas if name == left_out]))
            for left_out in classes
        ]
        ends = [mean_of([value]) for value in (min(each, default=None), max(each, default=None))]
        means = [mean_of([area.get(kind) for _, area in areas]) for kind in kinds]
        rows.append([scorer, str(len(runs)), *ends, *means])
    return table(["scorer", "runs", "worst class", "best class", *kinds], rows)


def decided(of: list[dict[str, Any]], kinds: list[str]) -> list[str]:
    """What becomes of images at each scorer's threshold."""

    def released(results: list[dict[str, Any]], key: str) -> list[str]:
        shares = [result[key] for result in results]
        foreign_ones = [share.get(kind) for share in shares for kind in kinds if kind != "left out"]
        return [mean_of([share["left out"] for share in shares]), mean_of(foreign_ones)]

    good = mean_of([case["normal_released_without"] for case in of])
    rows = [["no rule", "", "", "", good, "", *released(of, "released_without")]]
    for scorer in SCORERS:
        found = [case["scorers"][scorer] for case in of if scorer in case["scorers"]]
        laid = sum(one["threshold"]["threshold"] is not None for one in found)
        alarms = ("false_alarms", "tail_false_alarms", "normal_released")
        cells = [mean_of([one[key] for one in found]) for key in alarms]
        cells.append(mean_of([one["found"]["left out"] for one in found]))
        rows.append([scorer, f"{laid} of {len(found)}", *cells, *released(found, "released")])
    heads = ["scorer", "laid", "false alarms", "of the tail", "normal released"]
    heads += ["left out: found", "left out: released", "foreign: released"]
    return table(heads, rows)


def tables(cases: list[dict[str, Any]]) -> str:
    """Two tables a set, as Markdown: how well scorers rank, and what their thresholds do."""
    lines: list[str] = []
    for name in dict.fromkeys(case["set"] for case in cases):
        of = [case for case in cases if case["set"] == name]
        kinds = list(dict.fromkeys(kind for case in of for kind in case["released_without"]))
        classes = len({case["left_out"] for case in of})
        lines += [f"### {name}: {classes} classes left out in turn, {len(of)} runs", ""]
        lines += ["AUROC: the left-out class with the least and the largest, then means", ""]
        lines += ranked(of, kinds)
        lines += [f"At the threshold ({LIMITS}), share of the images", "", *decided(of, kinds)]
    return "\n".join(lines)


def main() -> None:
    """Run the queue, write results.json and table.md, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deeppcb", type=Path)
    parser.add_argument("--time-budget", default="90s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=list(NORMAL), default=list(NORMAL))
    parser.add_argument("--generated", type=Path, help="the table of a set of `recame synth`")
    parser.add_argument("--limit", type=int, help="left-out classes of each set, for a short try")
    parser.add_argument("--classes", nargs="+", help="left out, of those that the set has")
    parser.add_argument("--runs", type=Path, help="default: runs/unknown-BUDGET")
    parser.add_argument("--out", type=Path, help="default: results-BUDGET beside this file")
    parser.add_argument("--table", action="store_true", help="only of the cases that are there")
    options = parser.parse_args()
    options.runs = options.runs or Path(f"runs/unknown-{options.time_budget}")
    out = options.out or HERE / f"results-{options.time_budget}"
    makers: dict[str, Callable[[], Labelled]] = {"synth small": synth}
    if options.deeppcb:
        makers["deeppcb small"] = lambda: deeppcb(options.deeppcb)
    if options.generated:
        makers["generated"] = lambda: read(options.generated)
    if not options.table:
        run_queue(makers, options, out)
    cases = [json.loads(path.read_text()) for path in sorted((out / "cases").glob("*.json"))]
    write_json(out / "results.json", {"cases": cases, "environment": environment()})
    text = tables(cases)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def run_queue(
    makers: Mapping[str, Callable[[], Labelled]], options: argparse.Namespace, out: Path
) -> None:
    """Every case that has left no file yet, a seed of all classes after the other."""
    (out / "cases").mkdir(parents=True, exist_ok=True)
    names = [name for name in makers if name in options.sets]
    ready = {}
    for name in names:
        folder = options.runs / "sets" / name.replace(" ", "-")
        manifest = write(makers[name](), folder)
        others = {"digits": digits, **{o: make for o, make in makers.items() if o != name}}
        table = pd.read_csv(manifest)
        foreign_images = write_foreign(
            folder.with_name(f"{folder.name}-foreign"),
            {kind: drawn_from(make()) for kind, make in others.items()},
            folder / table["image"][0],
        )
        counts = table.loc[table["split"] == "train", "label"].value_counts()
        defects = [label for label in counts.index if label != NORMAL[name]]
        if options.classes:
            defects = [label for label in defects if label in options.classes]
        ready[name] = manifest, foreign_images, defects[: options.limit]
    for seed in options.seeds:
        for name, (manifest, foreign_images, defects) in ready.items():
            for left_out in defects:
                kept = out / "cases" / f"{name.replace(' ', '-')}-{left_out}-{seed}.json"
                if not kept.exists():
                    print(f"{name} without {left_out}, seed {seed}", flush=True)
                    case = {"set": name, "left_out": left_out, "seed": seed}
                    write_json(kept, run_case(manifest, foreign_images, case, options))


if __name__ == "__main__":
    main()
