from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import recame
from recame.cli.app import app
from recame.config import Config
from recame.decisions.document import signed
from recame.decisions.limits import Limits
from recame.decisions.promises import risk_of_each
from recame.decisions.scored import class_log_odds, logits_of
from recame.errors import CheckpointError, ConfigError, DataError, RecameError
from recame.files import read_json, write_json
from recame.reports.basis import compared

pytestmark = pytest.mark.usefixtures("trace_once")

#: Nothing is called unknown.
KNOWN = Limits.from_dict({"unknown_false_alarm": False})


@pytest.fixture(scope="module")
def labelled(write_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh images of the four classes, which the run has not seen."""
    counts = {"ok": 150, "scratch": 120, "dent": 120, "hole": 120}
    return write_images(tmp_path_factory.mktemp("tuning") / "fresh", counts, seed=7)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_tuned_run_decides_by_its_promises(run: Path, labelled: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    before = recame.load(run).fingerprint
    found = recame.tune(run, labelled, KNOWN, normal="ok", console=console)
    assert [promise.of for promise in found.promises] == ["scratch", "dent", "hole"]
    assert found.facts["comparisons"] == 1
    assert found.facts["risk"] == risk_of_each(0.95, promises=3)
    assert all(promise.images == 120 for promise in found.promises)

    model = recame.load(run)
    assert model.fingerprint != before
    assert model.decisions is not None
    assert model.decisions.policy.to_dict() == found.policy.to_dict()
    told = model.predict(labelled)
    temperature = read_json(run / "decisions.json")["calibration"]["temperature"]
    odds = class_log_odds(logits_of(np.stack([p.probabilities for p in told]), temperature))
    normal = model.label_space.index("ok")
    for prediction, row in zip(told, odds, strict=True):
        called = int(row.argmax())
        if called != normal:
            assert (prediction.action, prediction.reason) == ("automatic", "automatic")
        elif row[normal] > found.policy.release_above:
            assert (prediction.action, prediction.reason) == ("release", "released")
        else:
            assert (prediction.action, prediction.reason) == ("review", "below_release")
    released = [p.image for p in told if p.reason == "released"]
    escapes = sum(Path(image).parent.name != "ok" for image in released)
    assert escapes == sum(promise.beyond for promise in found.promises)

    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"Fitted to 510 labelled images of {labelled}; tuning number 1." in printed
    assert found.promises[0].sentence() in printed
    assert "Of 150 normal images" in printed
    rows = pd.read_csv(run / "frontier.csv")
    assert rows["escape_limit"].is_monotonic_increasing


def test_the_table_says_why_an_image_goes_to_a_person(
    run: Path, labelled: Path, tmp_path: Path
) -> None:
    recame.tune(run, labelled, KNOWN, normal="ok")
    values = read_json(run / "decisions.json")
    values["policy"]["release_above"] = "never"
    write_json(run / "decisions.json", signed(values))
    recame.predict(run, labelled, out=tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    held = [row for row in rows if row["action"] == "review"]
    assert len(held) == sum(row["prediction"] == "ok" for row in rows) > 100
    assert {row["reason"] for row in held} == {"below_release"}
    assert all(row["candidates"].startswith("ok") for row in held)
    others = [row for row in rows if row["action"] != "review"]
    assert {(row["action"], row["reason"], row["candidates"]) for row in others} == {
        ("automatic", "automatic", "")
    }


def test_each_tuning_on_the_same_images_spends_confidence(
    run: Path, labelled: Path, tmp_path: Path
) -> None:
    first = recame.tune(run, labelled, normal="ok")
    second = recame.tune(run, labelled, Limits.from_dict({"escape": 0.2}))  # named once
    assert (first.facts["tuning"], second.facts["tuning"]) == (1, 2)
    assert second.policy.normal == first.policy.normal
    few = tmp_path / "few"
    for name in ("ok", "scratch", "dent", "hole"):
        shutil.copytree(labelled / name, few / name, ignore=lambda _, names: names[:40])
    assert (
        recame.tune(run, few, normal="ok").facts["tuning"] == 3
    )  # whoever leaves some out has looked
    kept = read_json(run / "decisions.json")
    assert len(kept["tunings"]) == 3
    assert kept["tunings"][1]["limits"]["escape"] == {"default": 0.2}
    assert kept["schema"] == 4
    assert "temperature" in kept["calibration"]


def test_val_pays_for_the_models_that_it_chose_among(run: Path) -> None:
    found = recame.tune(run, normal="ok")
    settings = recame.load_config(run / "config.yaml")
    assert found.facts["comparisons"] == compared(recame.load_config(run / "asked.yaml"), settings)
    assert found.facts["comparisons"] > 1


def test_models_that_val_may_have_chosen_among() -> None:
    decided = {"data.size": 64, "data.tiles": 0, "augment.symmetry": "flips", "evaluation.views": 1}
    fixed = Config().updated({**decided, "run.keep": "last"})
    assert compared(fixed, fixed) == 1
    assert compared(fixed.updated({"augment.symmetry": "auto"}), fixed) == 4
    assert compared(fixed.updated({"data.size": "auto"}), fixed) == 3
    assert compared(fixed.updated({"data.size": "auto", "data.tiles": "auto"}), fixed) == 6
    assert compared(fixed.updated({"evaluation.views": "auto"}), fixed) == 3  # 1, 2, 4
    best = fixed.updated({"run.keep": "best_phase"})
    assert compared(best, best) == 2


def test_a_policy_belongs_to_its_weights(
    run: Path, labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recame.tune(run, labelled, normal="ok")
    values = read_json(run / "decisions.json")
    values["policy"]["holds_for"]["weights_sha256"] = "0" * 64
    write_json(run / "decisions.json", signed(values))
    assert recame.load(run).decisions is None
    assert "promises do not hold here" in caplog.text
    caplog.clear()
    assert recame.load(run, views=2).decisions is None
    assert "other weights, views or class biases" in caplog.text


def test_a_damaged_policy_is_refused(run: Path, labelled: Path) -> None:
    recame.tune(run, labelled, normal="ok")
    whole = read_json(run / "decisions.json")
    policy = {**whole["policy"], "release_above": "sometimes"}
    write_json(run / "decisions.json", signed({**whole, "policy": policy}))
    with pytest.raises(CheckpointError, match="recame tune"):
        recame.load(run)
    for part in ("promises", "tunings", "expected", "drift"):
        left = {k: v for k, v in whole.items() if k != part}
        write_json(run / "decisions.json", signed(left))
        with pytest.raises(CheckpointError, match=part):
            recame.load(run)


def test_an_edited_threshold_is_refused(run: Path, labelled: Path) -> None:
    recame.tune(run, labelled, normal="ok")
    values = read_json(run / "decisions.json")
    values["policy"]["release_above"] = -3.0
    write_json(run / "decisions.json", values)
    with pytest.raises(CheckpointError, match="is not as recame tune wrote it"):
        recame.load(run)


@pytest.mark.slow
def test_a_bundle_is_tuned_by_itself(run: Path, labelled: Path, tmp_path: Path) -> None:
    from recame.export.export import export

    bundle = export(run, tmp_path / "bundle", normal="ok").path
    with pytest.raises(ConfigError, match="holds no images: give labelled images"):
        recame.tune(bundle)
    found = recame.tune(bundle, labelled)
    assert found.policy.normal == recame.load(bundle).label_space.index("ok")
    model = recame.load(bundle)
    reasons = [each.reason for each in model.predict(labelled)]
    assert set(reasons) <= {"released", "below_release", "automatic"}
    # A run answers as its bundle does, and is not tuned by it.
    assert recame.load(run).decisions is None
    recame.tune(run, labelled, KNOWN, normal="ok")
    assert [each.reason for each in recame.load(run).predict(labelled)] == reasons
    # Another bundle in its place has promised nothing.
    kept = (bundle / "decisions.json").read_bytes()
    export(run, bundle, normal="ok", views=2, replace_bundle=True)
    assert recame.load(bundle).decisions is None
    (bundle / "decisions.json").write_bytes(kept)
    assert recame.load(bundle).decisions is None


def test_a_calibration_that_is_kept_anew_leaves_the_policy(run: Path, labelled: Path) -> None:
    from recame.decisions.calibration import Calibration, save_calibration

    recame.tune(run, labelled, normal="ok")
    before = read_json(run / "decisions.json")
    save_calibration(Calibration(1.5, before["calibration"]["fitted_on"]), run / "decisions.json")
    after = read_json(run / "decisions.json")
    assert after["calibration"]["temperature"] == 1.5
    assert after["policy"] == before["policy"]
    # A temperature has no part in what is released.
    reasons = [p.reason for p in recame.load(run).predict(labelled)]
    write_json(run / "decisions.json", before)
    again = [p.reason for p in recame.load(run).predict(labelled)]
    # But for the image that laid a threshold, by rounding: one of release, one of each class.
    thresholds = 1 + len(before["policy"]["automatic_above"])
    assert sum(one != other for one, other in zip(reasons, again, strict=True)) <= thresholds


def test_a_share_of_all_images_goes_to_people(run: Path, labelled: Path, tmp_path: Path) -> None:
    recame.tune(run, labelled, Limits.from_dict({"audit": 0.3}), normal="ok")
    model = recame.load(run)
    told = model.predict(labelled)
    drawn = [each for each in told if each.reason == "audit"]
    assert len(drawn) / len(told) == pytest.approx(0.3, abs=0.08)
    assert {each.action for each in drawn} == {"review"}
    # By content: alone, in a stream, and under another name.
    moved = tmp_path / "other-name.png"
    shutil.copy(drawn[0].image, moved)
    assert model.predict(moved)[0].reason == "audit"
    streamed = model.stream([each.image for each in told], checksums=False)
    assert [each.reason for each in streamed] == [each.reason for each in told]


def test_the_normal_class_is_proposed_and_never_assumed(run: Path, labelled: Path) -> None:
    with pytest.raises(ConfigError, match=r"ok looks like it\): recame tune .*run --normal ok"):
        recame.tune(run, labelled)
    assert "policy" not in json.loads((run / "decisions.json").read_text())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("escape: {default: 0.001}", "scratch 0.10% (120 images: it takes"),
        ("escape: {hloe: 0.1}", "escape names the class 'hloe'"),
        ("line_mix: estimate", "give its table, --lot lot.csv; or state the mix"),
        ("review: {per_hour: 9}", "but it is not known how many images come"),
        ("group: board", "no column 'board' to group images by"),
        ("escape: [", "cannot be read as limits"),
    ],
)
def test_limits_that_cannot_be_kept_change_nothing(
    run: Path, labelled: Path, tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    before = (run / "decisions.json").read_bytes()
    with pytest.raises((ConfigError, DataError)) as refused:
        recame.tune(run, labelled, path, normal="ok")
    assert told in str(refused.value)
    assert (run / "decisions.json").read_bytes() == before


def test_groups_count_by_a_column_of_the_table(run: Path, labelled: Path, tmp_path: Path) -> None:
    table = tmp_path / "boards.csv"
    paths = sorted(labelled.rglob("*.png"))
    rows = [f"{path},{path.parent.name},B{int(path.stem) // 3}" for path in paths]
    table.write_text("\n".join(["image,label,board", *rows]))
    found = recame.tune(run, table, Limits(group="board"), normal="ok")
    assert found.facts["unit"] == "board"
    assert found.facts["counts"] == {"ok": 50, "scratch": 40, "dent": 40, "hole": 40}
    assert read_json(run / "decisions.json")["tunings"][0]["limits"]["group"] == "board"


def test_what_made_the_model_and_what_repeats_is_left_out(
    run: Path, labelled: Path, defects: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    for name in ("ok", "scratch", "dent", "hole"):
        shutil.copytree(labelled / name, mixed / name)
        for path in (defects / name).iterdir():
            shutil.copy(path, mixed / name / f"seen-{path.name}")
        shutil.copy(labelled / name / "000.png", mixed / name / "again.png")
    console = Console(file=io.StringIO(), width=300)
    found = recame.tune(run, mixed, normal="ok", console=console)
    splits = pd.read_csv(run / "manifest.csv")["split"]
    assert found.facts["images"] == 510 + (splits == "test").sum()
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        f"{splits.isin(['train', 'val']).sum()} images of {mixed} left out: they trained" in printed
    )
    assert f"4 images of {mixed} left out: exact duplicates of others." in printed


def test_images_are_told_by_what_is_in_them(
    run: Path, labelled: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    recame.tune(run, labelled, normal="ok")
    counts = {"ok": 150, "scratch": 120, "dent": 120, "hole": 120}
    other = write_images(tmp_path / "fresh", counts, seed=8)  # of the same names
    assert recame.tune(run, other, normal="ok").facts["tuning"] == 1
    moved = tmp_path / "moved"
    shutil.copytree(labelled, moved)
    assert recame.tune(run, moved, normal="ok").facts["tuning"] == 2


def test_rows_of_train_and_val_calibrate_nothing(run: Path, labelled: Path, tmp_path: Path) -> None:
    rows = ["image,label,split"]
    for number, path in enumerate(sorted(labelled.rglob("*.png"))):
        rows.append(f"{path},{path.parent.name},{('train', 'val', 'test')[number % 3]}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    assert recame.tune(run, tmp_path / "set.csv", normal="ok").facts["images"] == 170


def test_images_that_people_saw_for_their_score_calibrate_nothing(
    run: Path, labelled: Path, tmp_path: Path
) -> None:
    def table(decisions: list[str], reasons: list[str]) -> Path:
        paths = sorted(labelled.rglob("*.png"))
        rows = [
            f"{path},{path.parent.name},{decisions[n % len(decisions)]},{reasons[n % len(reasons)]}"
            for n, path in enumerate(paths)
        ]
        (tmp_path / "set.csv").write_text("\n".join(["image,label,action,reason", *rows]))
        return tmp_path / "set.csv"

    with pytest.raises(DataError, match="510 images, all sent to people because of their score"):
        recame.tune(run, table(["review"], ["below_release"]), normal="ok")
    found = recame.tune(
        run, table(["review", "release", "release"], ["audit", "released", "released"]), normal="ok"
    )
    assert found.facts["images"] == 170
    found = recame.tune(
        run, table(["review", "release"], ["below_release", "released"]), normal="ok"
    )
    assert found.facts["images"] == 510


def test_rows_that_nobody_was_asked_for_calibrate_nothing(
    run: Path, labelled: Path, tmp_path: Path
) -> None:
    paths = sorted(labelled.rglob("*.png"))
    rows = [
        f"{path},{path.parent.name},review,{('over_budget', 'ambiguous')[n % 2]}"
        for n, path in enumerate(paths)
    ]
    (tmp_path / "set.csv").write_text("\n".join(["image,label,action,reason", *rows]))
    with pytest.raises(DataError, match="510 images, all sent to people because of their score"):
        recame.tune(run, tmp_path / "set.csv", normal="ok")


def test_the_review_budget_is_kept_with_the_decisions(
    run: Path, labelled: Path, tmp_path: Path
) -> None:
    asked = {"escape": 0.02, "review": {"per_hour": 30, "images_per_hour": 3000, "lot": "wafer"}}
    with pytest.raises(ConfigError, match="cannot promise"):
        recame.tune(run, labelled, Limits.from_dict(asked), normal="ok")
    asked["escape"] = 0.2
    found = recame.tune(run, labelled, Limits.from_dict(asked), normal="ok")
    assert (found.policy.review_budget, found.policy.lot_column) == (0.01, "wafer")
    kept = recame.load(run).decisions
    assert kept is not None
    assert (kept.policy.review_budget, kept.policy.lot_column) == (0.01, "wafer")
    assert read_json(run / "decisions.json")["tunings"][0]["limits"]["review"] == asked["review"]
    # What a model answers alone, and what a split shows, is of no lot.
    assert {each.reason for each in recame.load(run).predict(labelled)}.isdisjoint({"over_budget"})
    # Decisions of a version that knew no budget are read as they were.
    values = read_json(run / "decisions.json")
    del values["policy"]["review_budget"], values["policy"]["lot_column"]
    write_json(run / "decisions.json", signed(values))
    before = recame.load(run).decisions
    assert before is not None
    assert before.policy.review_budget is None


def test_a_run_and_its_bundle_hold_the_same_images(
    run: Path, labelled: Path, tmp_path: Path
) -> None:
    from recame.export.export import export

    bundle = export(run, tmp_path / "bundle", normal="ok").path
    limits = Limits.from_dict(
        {"escape": 0.2, "unknown_false_alarm": False, "review": {"share": 0.05}}
    )
    told = []
    for model in (run, bundle):
        recame.tune(model, labelled, limits, normal="ok")
        values = read_json(model / "decisions.json")
        values["policy"]["release_above"] = "never"
        write_json(model / "decisions.json", signed(values))
        summary = recame.predict(model, labelled, out=tmp_path / "out.csv")
        rows = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
        held = rows[rows["reason"] == "over_budget"]
        [lot] = summary.over_budget
        assert (lot.images, lot.places, lot.over) == (510, 25, len(held))
        assert (rows["action"] == "review").sum() == lot.people > 100
        assert held["note"].str.startswith("below_release; beyond the 25 of this lot's 510").all()
        told.append(held["image"].tolist())
    assert told[0] == told[1]


def test_a_run_without_val_needs_images(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(data__val_fraction=0.0, probe__enabled=False, finetune__epochs=1)
    bare = recame.train(defects, config, out=tmp_path / "bare").path
    with pytest.raises(DataError, match="has no val split"):
        recame.tune(bare, normal="ok")


class TestExport:
    """A bundle decides by its own answers, as its run's last tuning asked."""

    def bundle(self, run: Path, tmp_path: Path, *words: str) -> tuple[Path, str, int]:
        out = tmp_path / "bundle"
        found = CliRunner().invoke(app, ["export", str(run), "--out", str(out), *words])
        if isinstance(found.exception, RecameError):
            raise found.exception
        return out, " ".join(found.output.split()), found.exit_code

    def test_takes_limits_and_images_along(self, run: Path, labelled: Path, tmp_path: Path) -> None:
        limits = Limits.from_dict({"escape": 0.2, "unknown_false_alarm": 0.1})
        tuned = recame.tune(run, labelled, limits, normal="ok")
        out, told, code = self.bundle(run, tmp_path)
        assert code == 0
        assert "tuning number 2." in told  # one more look at the same images
        model = recame.load(out)
        assert model.decisions is not None
        assert {(p.of, p.limit) for p in model.decisions.promises} == {
            (p.of, p.limit) for p in tuned.promises
        }
        (look,) = read_json(run / "decisions.json")["exported"]
        assert look["bundle"] == str(out)
        assert recame.load(run).decisions is not None
        assert recame.tune(run, labelled, normal="ok").facts["tuning"] == 3
        released = {each.image for each in model.predict(labelled) if each.action == "release"}
        assert sum(Path(name).parent.name == "ok" for name in released) > 100

    def test_without_decisions_it_classifies(self, run: Path, tmp_path: Path) -> None:
        out, told, code = self.bundle(run, tmp_path)
        assert code == 0
        assert f"recame tune {run}" in told
        assert recame.load(out).decisions is None
        with pytest.raises(ConfigError, match=r"does not say which class is normal"):
            recame.tune(out, run=run)
        recame.tune(out, normal="ok", run=run)
        kept = recame.load(out).decisions
        assert kept is not None
        # `val` has chosen among models, which are paid for as the run pays for them.
        own = recame.tune(run, normal="ok").promises
        assert [(p.kind, p.of, p.images) for p in kept.promises] == [
            (p.kind, p.of, p.images) for p in own
        ]

    def test_asks_for_a_limit(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--max-escape 1\.5: the share of a defect class"):
            self.bundle(run, tmp_path, "--max-escape", "1.5")
        assert not (tmp_path / "bundle").exists()
        out, _, _ = self.bundle(run, tmp_path)
        before = (out / "bundle.json").read_bytes()
        with pytest.raises(ConfigError, match=r"cannot promise.*--undecided"):
            self.bundle(run, tmp_path, "--max-escape", "0.01", "--normal", "ok", "--force")
        assert (out / "bundle.json").read_bytes() == before  # what lay there stays
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "run"]

    def test_asks_for_it_of_the_run_s_images(
        self, run: Path, labelled: Path, tmp_path: Path
    ) -> None:
        recame.tune(run, labelled, Limits.from_dict({"audit": 0.1}), normal="ok")
        out, _, _ = self.bundle(run, tmp_path, "--max-escape", "0.3")
        kept = recame.load(out).decisions
        assert kept is not None
        assert {p.limit for p in kept.promises if p.kind == "escape"} == {0.3}
        assert kept.policy.audit == 0.1
        assert read_json(out / "decisions.json")["tunings"][0]["images"] == 510

    def test_of_another_run_is_refused(self, run: Path, tmp_path: Path) -> None:
        other = Path(shutil.copytree(run, tmp_path / "other-name"))
        out, _, _ = self.bundle(run, tmp_path)
        with pytest.raises(ConfigError, match="was exported from a run"):
            recame.tune(out, normal="ok", run=other)
        with pytest.raises(ConfigError, match="is a run itself"):
            recame.tune(run, normal="ok", run=other)

    def test_what_another_look_cannot_promise_is_said(
        self, run: Path, labelled: Path, tmp_path: Path
    ) -> None:
        recame.tune(run, labelled, Limits.from_dict({"escape": 0.2}), normal="ok")
        values = read_json(run / "decisions.json")
        values["tunings"][-1]["limits"]["escape"] = {"default": 0.001}
        write_json(run / "decisions.json", signed(values))
        with pytest.raises(ConfigError, match=r"cannot promise.*--undecided"):
            self.bundle(run, tmp_path)
        assert not (tmp_path / "bundle").exists()
        out, _, code = self.bundle(run, tmp_path, "--undecided")
        assert (code, recame.load(out).decisions) == (0, None)
