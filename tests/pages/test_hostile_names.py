"""Names of classes, products, splits, files and methods that a browser or a terminal would read.

A page with such names has the same elements as one with plain names: what they say is text.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from recame.bench.plan.method import Method
from recame.config import DataConfig
from recame.contracts import Predictions
from recame.label_space import LabelSpace
from recame.names import printable
from recame.pages.drawing import figure_label

#: In the order of the hostile ones, where things are sorted by their names.
PLAIN = ("crack", "abrasion", "edge", "dent", "flake", "burr")
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "url(//evil.example/a.png)",
    "[/] [bold red]x[/bold] [link=http://evil.example]y[/link]",
    "{{ 7 * 7 }}{% raw %}</style></title>&amp;",
    "$\\frac{$ | `--> a\r\nb\u202e\x1b[31m",
)


@dataclass
class Told:
    """What a browser makes of a page: its elements, and what they would fetch or run."""

    elements: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.told, self.inside = Told(), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.told.elements.append((tag, tuple(sorted(name for name, _ in attrs))))
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}={value}"
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.told.addresses.append(value or "")
            if name == "style":
                self.told.code.append(value or "")
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("script", "style"):
            self.told.code.append(data)


def told(page: str) -> Told:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader.told


def check(page: str, plain: str, names: Sequence[str]) -> None:
    """A page with hostile names against the same one with plain names."""
    found, expected = told(page), told(plain)
    assert found.elements == expected.elements
    assert [text for text in found.code if "url(" in text.replace(" ", "")] == []
    # No name stands in a style or a script; only widths and places differ.
    assert [_unmeasured(c) for c in found.code] == [_unmeasured(c) for c in expected.code]
    assert found.addresses
    assert all(address.startswith(("data:image/", "#")) for address in found.addresses)
    ids = set(re.findall(r'<section id="([^"]+)"', page))
    assert {a[1:] for a in re.findall(r'href="([^"]*)"', page) if a.startswith("#")} == ids
    for name in names:  # and it can be read
        assert name.split("\r")[0][:12] in text_of(page), name
    # Nothing turns what stands beside a name, and every figure is XML that a browser draws.
    assert printable(page) == page
    for figure in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        assert ET.fromstring(base64.b64decode(figure)).tag.endswith("svg")


def _unmeasured(code: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "0", code)


def text_of(page: str) -> str:
    import html

    return html.unescape(re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", "", page, flags=re.DOTALL))


def predictions_of(names: Sequence[str]) -> tuple[Predictions, LabelSpace]:
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(4), 30)
    called = np.where(rng.random(120) < 0.7, target, rng.integers(0, 4, 120))
    soft = np.full((120, 4), 0.1, np.float32)
    soft[np.arange(120), called] = 0.7
    table = pd.DataFrame(
        {
            "image": [f"{names[i % 3]}/{i}.png" for i in range(120)],
            "product": [names[i % len(names)] for i in range(120)],
        }
    )
    space = LabelSpace(tuple(names[:4]), (200, 90, 40, 8), normal=names[0], critical=(names[2],))
    return Predictions(table, soft, np.repeat(soft[:, None], 2, 1), target), space


def report_page(names: Sequence[str], out: Path) -> str:
    from recame.metrics.evaluation import evaluate_predictions
    from recame.reports.draw import write_report
    from recame.reports.evidence import Evidence
    from recame.reports.gallery import choose_mistakes, describe_mistakes
    from recame.reports.run_report import Baseline, RunFacts, Setting, build_report

    predictions, space = predictions_of(names)
    rows = choose_mistakes(predictions, space)
    evidence = Evidence(tuple(describe_mistakes(predictions, rows, space, "product")), len(rows))
    facts = RunFacts(
        names[4],
        names[3],
        data=names[1],
        settings={"data": {"normal_class": names[0]}},
        changed=(Setting("data.normal_class", names[0], "auto"),),
        facts=(("data", names[5]),),
        commands=(f"recame evaluate '{names[2]}'",),
    )
    evaluation = evaluate_predictions(predictions, space, bootstrap=20)
    report = build_report(
        facts,
        evaluation,
        predictions,
        space,
        evidence,
        baseline=Baseline(names[5], predictions, space),
    )
    return write_report(report, out).html.read_text("utf-8")


def bench_page(names: Sequence[str], out: Path) -> str:
    from recame.bench.plan.plan import Plan
    from recame.bench.tables.bench_page import write_page
    from recame.bench.tables.contest import Contest
    from recame.bench.tables.results import METRICS

    methods = {
        f"m{i}": Method(f"m{i}", name, names[i - 1], "ablation", {}, (names[i - 2],))
        for i, name in enumerate(names)
    }
    plan = Plan.model_validate(
        {
            "name": names[0],
            "title": names[1],
            "description": names[2],
            "data": {"boards": {"title": names[3], "splits": ["test", names[4]]}},
            "methods": list(methods),
            "reference": "m0",
        }
    )
    rng = np.random.default_rng(0)
    rows = [
        {
            **dict.fromkeys(METRICS, np.nan),
            "data": "boards",
            "method": method,
            "seed": seed,
            "split": split,
            "balanced_accuracy": 0.5 + 0.05 * number + rng.normal(0, 0.01),
            "tail_recall": 0.4 + 0.05 * number + rng.normal(0, 0.01),
            "epochs": 5.0,
            "images_seen": 5000.0,
            "train_s": 60.0 + number,
            "evaluate_s": 1.0,
            "keep": names[5],
            "kept": names[5],
            "recame": names[0],
            "torch": names[1],
            "processor": names[2],
            "device": names[3],
            "threads": 2,
            "fingerprint": f"f{seed}",
        }
        for number, method in enumerate(methods)
        for seed in range(3)
        for split in ("test", names[4])
    ]
    command = f"recame bench '{names[1]}'"
    return write_page(out, Contest(pd.DataFrame(rows), methods, plan, {}, command)).read_text(
        "utf-8"
    )


def inspection_page(names: Sequence[str], out: Path) -> str:
    from recame.inspection import inspect_set

    rng = np.random.default_rng(0)
    (out / "images").mkdir(parents=True)
    rows = []
    for number in range(48):
        path = out / "images" / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(path)
        rows.append(
            {
                "image": f"{names[number % 3]}/{number}.png",
                "path": str(path),
                "label": names[number % 4],
                "split": ("train", "train", "val", "test")[number // 4 % 4],
                "product": names[number % len(names)],
                names[5]: names[number % 2],
            }
        )
    (out / "images" / "5.png").write_bytes(b"no image")
    (out / "images" / "9.png").write_bytes((out / "images" / "8.png").read_bytes())
    inspect_set(pd.DataFrame(rows), data=DataConfig(cache_dir=out / "cache"), out=out / "page")
    return (out / "page" / "inspection.html").read_text("utf-8")


@pytest.mark.parametrize("page", [report_page, bench_page, inspection_page])
def test_the_page_needs_no_network(
    page: Callable[[Sequence[str], Path], str], tmp_path: Path
) -> None:
    hostile, plain = (page(n, tmp_path / w) for n, w in ((HOSTILE, "hostile"), (PLAIN, "plain")))
    check(hostile, plain, HOSTILE[:4])


def test_a_terminal_shows_names_as_they_are(tmp_path: Path) -> None:
    from recame.inspection import inspect_set, print_inspection
    from recame.metrics.evaluation import evaluate_predictions
    from recame.reports.terminal import print_evaluation

    inspection_page(HOSTILE, tmp_path)  # prints nothing, but makes the images
    names = [f"{name}" for name in HOSTILE]
    table = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(48)],
            "path": [str(tmp_path / "images" / f"{i}.png") for i in range(48)],
            "label": [names[i % 4] for i in range(48)],
        }
    )
    predictions, space = predictions_of(HOSTILE)
    stream = io.StringIO()
    console = Console(file=stream, width=300)
    print_inspection(inspect_set(table, data=DataConfig(cache_dir=tmp_path / "cache")), console)
    evaluation = evaluate_predictions(predictions, space, bootstrap=20)
    print_evaluation(evaluation, console, f"{HOSTILE[3]} on {HOSTILE[3]}")
    shown = " ".join(stream.getvalue().split())  # long lines are folded
    assert shown.count(HOSTILE[3]) >= 3
    assert "\x1b[31m" not in shown


def test_a_figure_shows_what_cannot_be_seen() -> None:
    assert figure_label("a\x1b\n\u202eb", 30) == "a\\x1b\\n\\u202eb"
