from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recame.contracts import Predictions
from recame.data.sampling import balanced_sample
from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.metrics.evaluation import evaluate_predictions
from recame.pages.render import image_picture
from recame.reports.draw import write_report
from recame.reports.evidence import Evidence, embed
from recame.reports.gallery import (
    Mistake,
    Neighbour,
    choose_mistakes,
    describe_mistakes,
)
from recame.reports.run_report import Baseline, RunFacts, Setting, build_report

SPACE = LabelSpace(
    ("ok", "open", "short", "spur"), (2000, 400, 90, 8), normal="ok", critical=("short",)
)


def predictions_of(target, called, confidence=0.7, experts=2, num_classes=4, **columns):
    target, called = np.asarray(target, np.int64), np.asarray(called)
    top = np.broadcast_to(np.asarray(confidence, np.float32), called.shape)
    rest = (1 - top)[:, None] / (num_classes - 1)
    soft = np.where(np.arange(num_classes) == called[:, None], top[:, None], rest)
    soft = soft.astype(np.float32)
    table = pd.DataFrame({"image": [f"img/{i}.png" for i in range(len(target))], **columns})
    return Predictions(table, soft, np.repeat(soft[:, None], experts, 1), target)


def report_of(predictions, space=SPACE, facts=None, **options):
    rows = choose_mistakes(predictions, space)
    evidence = Evidence(tuple(describe_mistakes(predictions, rows, space, "product")), len(rows))
    evaluation = evaluate_predictions(predictions, space, bootstrap=20)
    facts = facts or RunFacts("a <run>", "test")
    return build_report(facts, evaluation, predictions, space, evidence, **options)


def long_tail(images=300, seed=0, share=0.8, experts=2, **columns):
    rng = np.random.default_rng(seed)
    target = np.sort(rng.integers(0, 4, images))
    called = np.where(rng.random(images) < share, target, rng.integers(0, 4, images))
    return predictions_of(target, called, rng.uniform(0.4, 0.99, images), experts, **columns)


def levels(report):
    return {finding.text: finding.level for finding in report.findings}


def test_the_worst_mistakes_begin_with_critical_escapes():
    #                 right escape critical overkill wrong  unlabelled
    target = np.array([0, 1, 2, 0, 3, -1])
    called = np.array([0, 0, 0, 1, 1, 0])
    confidence = [0.99, 0.9, 0.5, 0.95, 0.6, 0.99]
    assert choose_mistakes(predictions_of(target, called, confidence), SPACE).tolist() == [
        2,
        1,
        3,
        4,
    ]


def test_one_pair_of_classes_leaves_room_for_others():
    target = np.array([1] * 20 + [2] * 2 + [3])
    called = np.array([2] * 20 + [1] * 2 + [1])
    confidence = np.linspace(0.99, 0.5, 23)
    chosen = choose_mistakes(predictions_of(target, called, confidence), SPACE, most=8)
    # Three of the first pair, all of the others; the places left go to the first pair again.
    assert chosen.tolist() == [0, 1, 2, 3, 4, 20, 21, 22]
    assert choose_mistakes(predictions_of([0, 1], [0, 1]), SPACE).tolist() == []
    assert choose_mistakes(predictions_of([], []), SPACE).tolist() == []


def test_mistakes_tell_what_kind_they_are():
    rows = np.array([0, 1, 2])
    predictions = predictions_of([2, 0, 3], [0, 1, 1], 0.7, product=["A", None, "B"])
    escape, overkill, other = describe_mistakes(predictions, rows, SPACE, "product")
    assert (escape.kind, escape.critical, escape.product) == ("escape", True, "A")
    assert (overkill.kind, overkill.critical, overkill.product) == ("overkill", False, "")
    assert (other.kind, other.true, other.called) == ("", "spur", "open")
    assert escape.confidence == pytest.approx(0.7)
    assert escape.true_probability == pytest.approx(0.1)
    assert escape.experts == (("ok", pytest.approx(0.7)),) * 2


def test_neighbours_that_agree_with_the_call_doubt_the_label():
    picture = image_picture(np.zeros((4, 4), np.uint8), "")
    near = tuple(Neighbour(f"{i}", "open", 0.9, picture) for i in range(5))
    mistake = Mistake("x", "", "spur", "open", 0.9, 0.0, "", False, (), neighbours=near)
    assert mistake.hint == "Its nearest training images are all open."
    twin = replace(mistake, neighbours=(replace(near[0], similarity=0.97), *near[1:]))
    assert twin.hint == "Training has nearly the same image as open: is the label right?"
    assert "yet it is called otherwise" in replace(mistake, true="open", called="spur").hint
    mixed = (*near[:4], replace(near[4], label="ok"))
    assert replace(mistake, neighbours=mixed).hint == ""


def test_a_sample_keeps_rare_classes_whole():
    target = np.repeat([0, 1, 2, -1], [9000, 500, 7, 40])
    rows = np.sort(balanced_sample(target, 100, seed=0))
    counts = [(target[rows] == c).sum() for c in (0, 1, 2, -1)]
    assert counts == [31, 31, 7, 31]
    assert (np.diff(rows) > 0).all()
    assert sorted(balanced_sample(target[:50], 100, seed=0).tolist()) == list(range(50))


def test_a_map_keeps_groups_apart():
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 40)
    features = rng.normal(0, 0.1, (80, 2, 16)) + group[:, None, None]
    features[..., 8:] -= 2 * group[:, None, None]
    found = embed(features, np.arange(80), 0)
    centres = [found.points[group == g].mean(0) for g in (0, 1)]
    spread = max(found.points[group == g].std(0).max() for g in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    assert "t-SNE" in found.method
    assert embed(features[:4], np.arange(4), 0) is None
    assert embed(features[:6, :1, :1], np.arange(6), 0).points.shape == (6, 2)


def test_the_judgement_names_the_weakest_class_and_the_escapes():
    target = np.repeat([0, 1, 2, 3], 100)
    called = target.copy()
    called[100:110] = 0  # ten escapes of open
    called[300:340] = 2  # forty spurs called short
    called[:5] = 1
    report = report_of(predictions_of(target, called))
    assert "On average 86.2% of a class's images are classified correctly" in report.lead
    assert "The weakest class is spur, 60 of 100 right" in report.lead
    assert "most of its errors are called short (40)" in report.lead
    said = levels(report)
    escape = next(text for text in said if "escapes" in text)
    assert escape.startswith("3.3% of the defects are called ok")
    assert "of the critical ones 0.0%" in escape
    assert said[escape] == "warn"
    overkill = next(text for text in said if "overkill" in text)
    assert overkill.startswith("5.0% of ok is called a defect")
    rare = next(text for text in said if text.startswith("The rare classes"))
    assert "(short, spur) reach a mean recall of 0.80, 12.5 points below" in rare


def test_the_judgement_does_not_say_most_of_a_few():
    target = np.repeat([0, 1, 2, 3], 100)
    called = target.copy()
    called[300:309] = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    lead = report_of(predictions_of(target, called)).lead
    assert "its errors are most often called ok (4 of 9)" in lead


def test_errors_of_confidence_do_not_cancel():
    target = np.repeat([0, 1, 2, 3], 100)
    called = target.copy()
    called[::4] = (called[::4] + 1) % 4  # one in four is wrong, sure or not
    sure = np.where(np.arange(400) % 8 < 4, 0.5, 0.99)
    said = levels(report_of(predictions_of(target, called, sure)))
    text = next(text for text in said if text.startswith("Confidences are"))
    assert "off by 0.25 on average, too high for some images and too low for others" in text
    assert said[text] == "warn"


def test_the_judgement_admits_what_it_cannot_tell():
    report = report_of(predictions_of([0, 0, 1, 1], [0, 0, 1, 0]))
    assert "too few images to evaluate the model" in report.lead
    assert "too few images to tell how weak" in report.lead
    said = levels(report)
    assert said["No image of short, spur in this split: left out of every mean."] == "warn"
    assert said["Too few images to tell the recall of ok (2 images), open (2 images)."] == "warn"
    assert any(text.startswith("Too uncertain on this split") for text in said)
    perfect = report_of(predictions_of(np.repeat([0, 1, 2, 3], 50), np.repeat([0, 1, 2, 3], 50)))
    assert "Every image of every class is classified correctly." in perfect.lead
    assert "a good result" in perfect.lead


def test_the_judgement_quotes_names_that_could_be_misread():
    space = LabelSpace((" X ", "a, b", "short", "spur"), (200, 40, 9, 8), normal=" X ")
    report = report_of(predictions_of([0, 0, 2, 2], [0, 0, 2, 0]), space)
    said = levels(report)
    assert said["No image of 'a, b', spur in this split: left out of every mean."] == "warn"
    assert "Too few images to tell the recall of ' X ' (2 images), short (2 images)." in said
    assert any(text.startswith("50.0% of the defects are called ' X ' (escapes") for text in said)


def test_a_baseline_is_judged_plainly():
    target = np.repeat([0, 1, 2, 3], 100)
    weak = target.copy()
    weak[320:] = 0
    good, bad = predictions_of(target, target), predictions_of(target, weak)
    better = report_of(good, baseline=Baseline("base", bad, SPACE))
    assert "Against base balanced accuracy is 20.0 points higher" in better.lead
    assert "a real difference" in better.lead
    worse = report_of(bad, baseline=Baseline("base", good, SPACE))
    assert "20.0 points lower" in worse.lead
    assert levels(worse)["Recall below base's (points): spur -80.0."] == "warn"
    same = report_of(good, baseline=Baseline("base", good, SPACE))
    assert "no real difference" in same.lead
    strangers = replace(bad, table=bad.table.assign(image=[f"z{i}" for i in range(400)]))
    other = report_of(good, baseline=Baseline("base", strangers, SPACE))
    assert "evaluated on other images" in other.lead


def test_a_run_without_time_to_fine_tune_is_named():
    reasons = ("finetune.enabled = False: 0.0 s are left for it, which is less than 8 steps",)
    report = report_of(long_tail(), facts=RunFacts("a", "test", reasons=reasons))
    assert report.findings[0].level == "warn"
    assert "too short to fine-tune" in report.findings[0].text
    assert "too short" not in report_of(long_tail()).findings[0].text


def test_the_three_files_hold_the_same_numbers(tmp_path):
    predictions = long_tail(product=["A", "B"] * 150)
    facts = RunFacts(
        "a <run>",
        "test",
        data="x.csv",
        settings={"model": {"num_experts": 2}},
        changed=(Setting("model.num_experts", 2, "auto"),),
        facts=(("seed", "3"),),
        commands=("recame train x.csv",),
        history=pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "loss/base": [2.0, 1.0]}),
        phases={"val_balanced_accuracy": {"probe": 0.5}, "kept": "probe"},
    )
    report = report_of(predictions, facts=facts, baseline=Baseline("b", long_tail(seed=1), SPACE))
    files = write_report(report, tmp_path / "out")
    page, markdown = files.html.read_text("utf-8"), files.markdown.read_text("utf-8")
    values = json.loads(files.json.read_text("utf-8"))
    assert values["schema"] == 1
    balanced = values["evaluation"]["balanced_accuracy"]["value"]
    assert f"{balanced:.3f}" in page
    assert f"| balanced accuracy | {balanced:.3f} |" in markdown
    assert values["judgement"] in markdown
    assert sum(cell[2] for cell in values["confusion"]["cells"]) == 300
    assert values["num_mistakes"] == len(values["worst_mistakes"]) or values["num_mistakes"] > 12
    assert values["comparison"]["images"] == 300 - values["comparison"]["left_out"]
    assert "a &lt;run&gt; on test" in page
    assert sorted(p.name for p in files.html.parent.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]
    columns = {
        line.count("|")
        for line in markdown.split("\n\n## Classes")[1].split("\n\n")[1].splitlines()
    }
    assert len(columns) == 1


@pytest.mark.parametrize("experts", [1, 3])
def test_single_experts_are_beside_the_ensemble_only_if_there_are_some(tmp_path, experts):
    page = write_report(report_of(long_tail(experts=experts)), tmp_path).html.read_text("utf-8")
    assert ('id="experts"' in page) == (experts > 1)
    assert ('id="products"' in page) is False


@pytest.mark.parametrize(
    ("target", "called"),
    [([2], [2]), ([2], [0]), ([0, 1, -1], [0, 1, 1]), ([3] * 30, [3] * 29 + [0])],
    ids=["one image", "one wrong image", "unlabelled", "one class"],
)
def test_small_and_odd_splits_get_a_page(tmp_path, target, called):
    predictions = predictions_of(target, called, product=["A"] * len(target))
    report = report_of(predictions, baseline=Baseline("b", predictions, SPACE))
    files = write_report(report, tmp_path)
    assert "</html>" in files.html.read_text("utf-8")
    assert json.loads(files.json.read_text("utf-8"))["evaluation"]["num_images"] == sum(
        t >= 0 for t in target
    )


def test_a_thousand_classes_are_capped_and_said_so(tmp_path):
    rng = np.random.default_rng(0)
    count = 1100
    names = tuple(f"class {i}" for i in range(count))
    space = LabelSpace(names, tuple(range(2 * count, count, -1)))
    target = np.repeat(np.arange(count), 3)
    called = np.where(rng.random(len(target)) < 0.7, target, rng.integers(0, count, len(target)))
    products = [f"p{i % 40}" for i in range(len(target))]
    predictions = predictions_of(target, called, 0.7, 2, count, product=products)
    files = write_report(report_of(predictions, space), tmp_path)
    page = files.html.read_text("utf-8")
    assert "The 60 classes of lowest recall, of 1,100" in page
    assert "1,100 classes are too many for a matrix" in page
    assert "the 25 products of lowest balanced accuracy, of 40" in page
    assert files.html.stat().st_size < 2_000_000
    assert "The 100 classes of lowest recall, of 1,100." in files.markdown.read_text("utf-8")


def test_an_old_report_survives_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    files = write_report(report_of(long_tail()), tmp_path)
    before = files.html.read_bytes()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DataError, match="No space left"):
        write_report(report_of(long_tail(seed=2)), tmp_path)
    assert files.html.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_report(report_of(long_tail()), tmp_path / name)
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
