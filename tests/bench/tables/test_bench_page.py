from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.bench_figures import cost_figure, score_figure
from recame.bench.tables.bench_page import write_page
from recame.bench.tables.board import boards
from recame.bench.tables.contest import Contest
from recame.bench.tables.results import METRICS

METHODS = {
    "cheap": Method("cheap", "Cheap & cheerful", "Nobody, 2020"),
    "twin": Method("twin", "Twin", "Somebody, 2021", "several experts", {}, ("Two, not three.",)),
    "worse": Method("worse", "Worse", "Nobody, 2022", "several experts"),
}
PLAN = Plan.model_validate(
    {
        "name": "p",
        "title": "Three methods",
        "data": {"boards": {"title": "Boards"}, "dies": {"title": "Dies"}},
        "methods": list(METHODS),
        "reference": "cheap",
    }
)
VALUES = {"cheap": 0.6, "twin": 0.7, "worse": 0.58}
MINUTES = {"cheap": 10.0, "twin": 20.0, "worse": 21.0}
MACS = {"cheap": 10_000_000, "twin": 20_000_000, "worse": 30_000_000}
COSTS = {"rows": {f"{data}/{name}": {"macs": MACS[name]} for data in PLAN.data for name in MACS}}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            **dict.fromkeys(METRICS, np.nan),
            "data": data,
            "method": method,
            "seed": seed,
            "split": "test",
            "balanced_accuracy": value + rng.normal(0, 0.01),
            "tail_recall": value - 0.2 + rng.normal(0, 0.01),
            "epochs": 5.0,
            "images_seen": 5000.0,
            "train_s": 60 * MINUTES[method],
            "evaluate_s": 1.0,
            "keep": "last",
            "recame": "0.1.0",
            "torch": "2.15.0",
            "processor": "P",
            "device": "cpu",
            "threads": 2,
            "fingerprint": f"{data}{seed}",
        }
        for data in PLAN.data
        for method, value in VALUES.items()
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [v or "" for k, v in attrs if k in {"src", "href"}]
        if tag not in {"meta", "img", "br", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_one_whole_file(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = write_page(tmp_path, Contest(frame, METHODS, PLAN, COSTS, "recame bench p.yaml"))
    assert path == tmp_path / "page.html"
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    # Scores and costs of two data sets, ranks by balanced accuracy and by the tail.
    assert reader.counts["img"] == 2 * 2 + 2
    assert "6 blocks; critical difference" in text
    assert reader.counts["table"] == 2 * 2 + 1  # and the pooled differences
    assert all(a.startswith(("data:image/svg+xml;base64,", "#")) for a in reader.addresses)
    assert "Cheap &amp; cheerful" in text
    assert "Cheap & cheerful" not in text
    assert "Two, not three." in text
    assert "<pre>recame bench p.yaml</pre>" in text
    assert "the weights after the last epoch, for all methods" in text


def test_every_number_can_be_sorted_by(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = write_page(tmp_path, Contest(frame, METHODS, PLAN, COSTS))
    row = re.search(r"<tr><td class=\"left\">Twin.*?</tr>", path.read_text(encoding="utf-8"))
    assert row is not None
    values = [float(value) for value in re.findall(r'data-value="([^"]+)"', row[0])]
    own = frame[(frame["data"] == "boards") & (frame["method"] == "twin")]
    assert values[0] == 3
    assert values[1] == pytest.approx(own["balanced_accuracy"].mean())


def test_scores_run_from_best_to_worst(frame: pd.DataFrame) -> None:
    contest = Contest(frame, METHODS, PLAN, COSTS)
    figure = score_figure(boards(contest)[0], contest)
    first, tail, difference = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    labels = dict(zip(names, first.get_yticks(), strict=True))
    assert labels == {"Twin": 2, "Cheap & cheerful": 1, "Worse": 0}
    means = first.collections[-1].get_offsets()
    own = frame[frame["data"] == "boards"].groupby("method")["balanced_accuracy"].mean()
    assert means[:, 0].tolist() == pytest.approx((100 * own[["twin", "cheap", "worse"]]).tolist())
    assert len(tail.collections[0].get_offsets()) == 9
    assert "to Cheap & cheerful" in difference.get_xlabel()


def test_the_line_joins_what_no_cheaper_method_equals(frame: pd.DataFrame) -> None:
    contest = Contest(frame, METHODS, PLAN, COSTS)
    board = boards(contest)[0]
    figure = cost_figure(board, contest)
    minutes, work = figure.axes
    assert minutes.lines[0].get_xdata().tolist() == [10, 20]
    assert work.lines[0].get_xdata().tolist() == [10, 20]
    assert [t.get_text() for t in minutes.texts] == ["Twin", "Cheap & cheerful"]
    timed = replace(contest, plan=PLAN.model_copy(update={"equal": "time", "pace": "cheap"}))
    (only,) = cost_figure(board, timed).axes
    assert only.get_xlabel().startswith("one decision")
    unmeasured = replace(contest, costs={})
    assert len(cost_figure(boards(unmeasured)[0], unmeasured).axes) == 1  # the minutes alone


def test_costs_that_differ_by_chance_are_equal(frame: pd.DataFrame) -> None:
    near = frame.assign(train_s=frame["train_s"].where(frame["method"] != "worse", 590.0))
    contest = Contest(near, METHODS, PLAN)
    minutes = cost_figure(boards(contest)[0], contest).axes[0]
    assert minutes.lines[0].get_xdata().tolist() == [10, 20]


def test_one_seed_of_the_first_decides_little(frame: pd.DataFrame, tmp_path: Path) -> None:
    few = frame[(frame["method"] != "twin") | (frame["seed"] == 0)]  # twin is first
    contest = Contest(few, METHODS, PLAN)
    text = write_page(tmp_path, contest).read_text(encoding="utf-8")
    assert "Twin is first" in text
    assert text.count("One seed decides little: run more seeds.") == 2
    assert "not distinguishable from it" not in text


def test_one_seed_and_one_data_set(frame: pd.DataFrame, tmp_path: Path) -> None:
    one = frame[(frame["seed"] == 0) & (frame["data"] == "dies")]
    plan = PLAN.model_copy(update={"seeds": (0,)})
    text = write_page(tmp_path, Contest(one, METHODS, plan)).read_text(encoding="utf-8")
    assert "3 methods, 1 data set, 1 seed<" in text
    assert "one seed: no interval" in text
    assert "Over all data sets" not in text
    assert "nan" not in re.sub(r"base64,[^\"]+", "", text).lower()
