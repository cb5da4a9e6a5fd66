"""A set that is made anew for each seed: its folders, its refusals, and a bench from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from recame.bench.command import Request, open_bench, write_results
from recame.bench.costs import measure
from recame.bench.plan.plan import Bench
from recame.bench.queue.job import run_job
from recame.bench.tables.results import collect
from recame.errors import ConfigError, DataError

#: A generated set of 60 training images, drawn in a moment.
CHIPS: dict[str, Any] = {
    "builder": "ic_defect_synth_100",
    "data_seed": "block",
    "options": {
        "num_images": 105,
        "num_classes": 3,
        "num_products": 3,
        "imbalance": 8,
        "size": 32,
        "val_per_class": 5,
        "test_per_class": 10,
    },
}
SETTINGS: dict[str, Any] = {
    "data.size": 32,
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "augment.symmetry": "flips",
    "finetune.epochs": 1,
    "finetune.batch_size": 16,
    "evaluation.views": 1,
    "evaluation.bootstrap": 20,
    "run.accelerator": "cpu",
}
OWN_SET = """
from pathlib import Path

def prepare(out: Path, seed: int = 0) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.csv").write_text(f"image,label\\n{seed}.png,ok\\n")
    return out / "manifest.csv"
"""
QUIET = Console(quiet=True)


def write_plan(folder: Path, **changes: Any) -> Path:
    (folder / "bare.yaml").write_text("title: Bare\nsource: this project\n")
    values: dict[str, Any] = {
        "title": "parts",
        "seeds": [3, 4],
        "data": {"chips": CHIPS},
        "methods": ["bare.yaml"],
        "settings": SETTINGS,
    }
    path = folder / "parts.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def opened(plan: Path, out: Path, **data: Path) -> Bench:
    return open_bench(Request(plan, out, data), QUIET)


def test_each_seed_has_images_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    bench = opened(write_plan(tmp_path), out)
    assert bench.sources == {
        ("chips", seed): out / "data" / "chips" / f"seed{seed}" / "manifest.csv" for seed in (3, 4)
    }
    tables = [pd.read_csv(path) for path in bench.sources.values()]
    assert [len(table) for table in tables] == [105, 105]
    counts = [table["split"].value_counts().to_dict() for table in tables]
    assert counts[0] == counts[1] == {"train": 60, "test": 30, "val": 15}
    assert not tables[0].equals(tables[1])
    specs = [json.loads((path.parent / "spec.json").read_text()) for path in bench.sources.values()]
    assert [spec["seed"] for spec in specs] == [3, 4]
    assert bench.data == ["chips"]
    assert [job.key for job in bench.jobs()] == ["chips/bare/seed3", "chips/bare/seed4"]


def test_what_is_drawn_already_is_used_as_it_is(tmp_path: Path) -> None:
    plan, out = write_plan(tmp_path), tmp_path / "out"
    first = opened(plan, out).sources
    written = {path: path.stat().st_mtime_ns for path in first.values()}
    again = opened(write_plan(tmp_path, seeds=[3, 4, 5]), out).sources
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert list(again)[:2] == list(first)
    assert again["chips", 5].exists()


def test_a_set_of_one_s_own_gets_the_seed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_SET)
    data = {"own": {"builder": "own.py", "data_seed": "block"}, "chips": {**CHIPS}}
    data["fixed"] = {"builder": "own.py"}
    bench = opened(write_plan(tmp_path, data=data), tmp_path / "out")
    assert [bench.sources["own", s].read_text().split("\n")[1] for s in (3, 4)] == [
        "3.png,ok",
        "4.png,ok",
    ]
    assert bench.sources["fixed", 3] == bench.sources["fixed", 4]
    assert bench.sources["fixed", 3].read_text().endswith("0.png,ok\n")
    assert bench.data == ["own", "chips", "fixed"]


def test_of_a_published_set_the_boards_are_drawn_anew(tmp_path: Path) -> None:
    rows = [
        {"image": f"images/{n}.png", "label": "ok" if n % 3 else "dent", "board": n // 4}
        for n in range(60)
    ]
    table = pd.DataFrame(rows).assign(split=["train"] * 48 + ["test"] * 12)
    (tmp_path / "raw").mkdir()
    table.to_csv(tmp_path / "raw" / "manifest.csv", index=False)
    plan = write_plan(
        tmp_path,
        data={"boards": {"builder": "deeppcb_lt", "data_seed": "block"}, "chips": CHIPS},
    )
    bench = opened(plan, tmp_path / "out", boards=tmp_path / "raw" / "manifest.csv")
    drawn = [pd.read_csv(bench.sources["boards", seed]) for seed in (3, 4)]
    assert not drawn[0].equals(drawn[1])
    for one, seed in zip(drawn, (3, 4), strict=True):
        assert (one["split"] == "test").sum() == 12
        folder = bench.sources["boards", seed].parent
        assert (folder / one["image"][0]).resolve().parent == tmp_path / "raw" / "images"
    assert opened(plan, tmp_path / "other").data == ["chips"]  # no raw copy at hand


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_seed": "block"}, "no builder: the images of a manifest or a folder are given"),
        (
            {"builder": "cifar10_lt", "data_seed": "block", "path": "raw"},
            "builder=cifar10_lt, whose images are published, and there are no others",
        ),
        ({**CHIPS, "path": "chips"}, "has the path chips, where one set lies"),
        ({**CHIPS, "options": {"seed": 7}}, r"options\.seed=7, but a block's seed is the plan's"),
        ({"builder": "still.py", "data_seed": "block"}, r"prepare\(out\) of .* takes no `seed`"),
        ({**CHIPS, "data_seed": "each"}, "data_seed: Input should be 'fixed' or 'block'"),
        ({**CHIPS, "options": {"colours": True}}, "no option 'colours'.*choose from num_images"),
    ],
)
def test_what_cannot_be_drawn_anew_is_refused(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "still.py").write_text("def prepare(out):\n    return out\n")
    with pytest.raises(ConfigError, match=message):
        opened(write_plan(tmp_path, data={"chips": entry}), tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()


def test_one_path_cannot_stand_for_all_seeds(defects: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"where one set lies\. Leave one of the two out"):
        opened(write_plan(tmp_path), tmp_path / "out", chips=defects)


@pytest.mark.parametrize("first", ["fixed", "block"])
def test_a_bench_does_not_mix_both(first: str, tmp_path: Path) -> None:
    second = "block" if first == "fixed" else "fixed"
    entry = {**CHIPS, "data_seed": first}
    opened(write_plan(tmp_path, data={"chips": entry}), tmp_path / "out")
    entry["data_seed"] = second
    with pytest.raises(DataError, match=r"choose another --out|choose a new folder"):
        opened(write_plan(tmp_path, data={"chips": entry}), tmp_path / "out")


def test_costs_are_measured_on_the_first_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = opened(write_plan(tmp_path), tmp_path / "out")
    asked: list[tuple[str, Path]] = []

    def sized(subjects: list[measure.Subject], **_: object) -> dict[str, Any]:
        asked.extend((subject.key, subject.source) for subject in subjects)
        return {"rows": {}}

    monkeypatch.setattr(measure, "measure_side_by_side", sized)
    measure.measure_all(bench)
    assert asked == [("chips/bare", bench.sources["chips", 3])]


@pytest.mark.slow
def test_a_factorial_plan_from_end_to_end(tmp_path: Path) -> None:
    """2 x 2 combinations on two blocks: runs, resume, tables, effects by hand."""
    factors = {
        "mixup": {"settings": {"augment.mixup": 0.4}},
        "balanced": {"settings": {"objective.base": "balanced_softmax"}, "title": "logits"},
    }
    plan = write_plan(
        tmp_path,
        factorial={"base": "bare", "factors": factors},
        endpoints=["balanced_accuracy", "tail_unseen"],
    )
    request = Request(plan, tmp_path / "out", {})
    bench = open_bench(request, QUIET)
    jobs = bench.jobs()
    assert len(jobs) == 8
    for job in jobs[:-1]:
        run_job(bench, job)
    files = {path.name: path for path in write_results(bench, request)}
    partial = pd.read_csv(files["effects.csv"])
    assert set(partial["blocks"]) == {1}
    assert partial["se"].isna().all()
    assert "left out as incomplete: seed 4 (lacks 1 of 4 runs)" in files["table.md"].read_text()

    bench = open_bench(request, QUIET)  # resumed: finds its blocks and its results
    kept = {job.key: bench.result_path(job).read_bytes() for job in jobs[:-1]}
    for job in bench.jobs():
        run_job(bench, job)
    assert {job.key: bench.result_path(job).read_bytes() for job in jobs[:-1]} == kept
    files = {path.name: path for path in write_results(bench, request)}
    frame = collect(bench.path)
    assert frame.groupby("seed")["fingerprint"].nunique().tolist() == [1, 1]
    assert frame["fingerprint"].nunique() == 2
    found = pd.read_csv(files["effects.csv"]).set_index(["metric", "effect"])
    for metric in ("balanced_accuracy", "tail_unseen"):
        means = frame.groupby("method")[metric].mean()
        by_hand = means[["mixup", "mixup+balanced"]].mean() - means[["bare", "balanced"]].mean()
        assert found.loc[(metric, "mixup"), "estimate"] == pytest.approx(by_hand, abs=1e-6)
    assert found["freedom"].unique().tolist() == [8 - 2 - 3]
    assert frame["tail_unseen"].between(0, 1).all()
    result = json.loads(bench.result_path(jobs[0]).read_text())
    assert result["splits"]["test"]["tail_unseen"]["value"] == pytest.approx(
        frame.query("method == 'bare' and seed == 3")["tail_unseen"].item()
    )
    text = files["table.md"].read_text()
    assert "## Which parts help?" in text
    assert "Every combination of mixup and logits: 4 runs a block." in text
    assert (
        "A block is a seed of the training, which also draws the images of chips. 2 compl" in text
    )
    assert "The images of chips are generated anew for each seed" in text
    page = files["page.html"].read_text()
    assert page.count("Which parts help?") == 2  # in the contents and over its section
    assert not np.isnan(found["p_holm"].iloc[0])
