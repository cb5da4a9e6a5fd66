"""The docs' pages: each has its place, each link a target; the tutorials' commands run."""

from __future__ import annotations

import posixpath
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import recame
from recame.cli.help_texts import VERBS
from recame.config import Config
from recame.metrics.registry import METRICS

ROOT = Path(__file__).parents[1]
MAKING = ROOT / "docs" / "making"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
#: Pages of which parts are made from the code.
MADE = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if re.search("^<!-- made: ", page.read_text(encoding="utf-8"), re.MULTILINE)
]
LINES = re.MULTILINE
#: What a tutorial gives minutes for takes seconds here.
SHORT = {"4m": "12s", "epoch_size: 1600": "epoch_size: 64", "[0, 1]": "[0]"}
SMALL = {"num_images=1600": "num_images=260", "--seconds 0.5": "--seconds 0.1"}


def script(name: str) -> dict[str, Any]:
    before = list(sys.path)
    try:
        return runpy.run_path(str(MAKING / f"{name}.py"))
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return dict(script("build_site")["sources"]())


def in_nav(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from in_nav(each)


def anchors(text: str) -> set[str]:
    """What a page's headings can be led to by, as MkDocs names them."""
    text = re.sub(r"^```.*?^```", "", text, flags=LINES | re.DOTALL)
    found = re.findall(r"^#{1,6} (.*)$", text, LINES)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in found]
    slugs = (re.sub(r"[^\w\s-]", "", head).strip().lower() for head in plain)
    return {re.sub(r"[-\s]+", "-", slug) for slug in slugs}


def test_every_page_has_its_place_in_the_nav(sources: dict[str, str]) -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert [*map(next, map(iter, nav))] == ["Home", "Tutorials", "How-to", "Concepts", "Reference"]
    listed = list(in_nav(nav))
    assert len(listed) == len(set(listed))
    own = {name for name in sources if not name.startswith(("repository/", "decisions/0"))}
    assert own == set(listed)
    decisions = {name for name in sources if name.startswith("decisions/0")}
    assert all(
        f"]({name.rpartition('/')[2]})" in sources["decisions/index.md"] for name in decisions
    )


def test_every_link_has_a_target(sources: dict[str, str]) -> None:
    dead = []
    for name, text in sources.items():
        if name.startswith("repository/"):
            continue
        shown = re.sub(r"^```.*?^```", "", text, flags=LINES | re.DOTALL)
        for path, anchor in re.findall(r"\]\(([^)\s#:]*)(?:#([^)\s]*))?\)", shown):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            target = target if path else name
            if target not in sources and not (ROOT / "docs" / target).is_file():
                dead.append(f"{name}: {path}")
            elif anchor and target in sources and anchor not in anchors(sources[target]):
                dead.append(f"{name}: {path}#{anchor}")
    assert dead == []


def test_the_reference_names_everything(sources: dict[str, str]) -> None:
    shown = re.findall(r"^::: recame\.(\w+)$", sources["reference/python-api.md"], LINES)
    # `inspect_set` is `inspect` by an older name.
    assert sorted([*shown, "inspect_set"]) == sorted(recame.__all__)
    verbs = re.findall(r"^### recame (\w+)$", sources["reference/command-line.md"], LINES)
    assert verbs == list(VERBS)
    values = Config().model_dump(mode="json").items()
    keys = [
        f"`{section}.{key}`" for section, part in values if isinstance(part, dict) for key in part
    ]
    assert re.findall(r"^\| (`\w+\.\w+`) \|", sources["reference/settings.md"], LINES) == keys
    names = [f"`{metric.name}`" for metric in METRICS]
    assert re.findall(r"^\| (`\w+`) \|", sources["reference/metrics.md"], LINES) == names


@pytest.mark.parametrize("page", MADE, ids=lambda path: path.stem)
def test_pages_hold_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    current = script("reference")["filled"](text, ROOT, site=False)
    assert text == current, "run `python docs/making/reference.py`"


def test_a_default_and_a_range_are_told(sources: dict[str, str]) -> None:
    (row,) = re.findall(r"^\| `finetune.batch_size` .*$", sources["reference/settings.md"], LINES)
    assert f"`{Config().finetune.batch_size}`" in row
    assert "whole number from 1" in row
    takt, *_ = re.findall(
        r"^\| `--time-budget` TIME .*$", sources["reference/command-line.md"], LINES
    )
    assert takt.endswith("| 10m on a CPU, else none |")
    assert "| inspection/&lt;data> |" in sources["reference/command-line.md"]


def test_superseded_decisions_say_by_what(sources: dict[str, str]) -> None:
    rows = [line for line in sources["decisions/index.md"].splitlines() if line.startswith("| [0")]
    told = {row[3:7]: row for row in rows if "](" in row.rpartition(" | ")[2]}
    assert {"0006", "0008", "0010"} <= set(told)
    assert "| by [0011](0011-one-expert-where-time-is-short.md)" in told["0006"]


def test_pictures_are_drawn_by_the_script_for_both_grounds(sources: dict[str, str]) -> None:
    drawn = {
        f"{name}-{look}.svg" for name in script("figures")["FIGURES"] for look in ("light", "dark")
    }
    folder = ROOT / "docs" / "images" / "concepts"
    photographs = {f"attention-{look}.png" for look in ("light", "dark")}  # of `attention.py`
    assert {file.name for file in folder.iterdir()} == drawn | photographs
    shown = re.findall(
        r"images/concepts/([\w-]+\.\w+)#gh-(\w+)-mode-only", "".join(sources.values())
    )
    assert {name for name, _ in shown} == drawn | photographs
    assert all(Path(name).stem.endswith(f"-{ground}") for name, ground in shown)


def test_a_figure_of_the_accuracy_page_is_its_table_s(sources: dict[str, str]) -> None:
    parts = script("figures")["PARTS"]
    for place, model in enumerate(("A", "B"), 1):
        right = sum(row[place] for row in parts.values()) / sum(row[0] for row in parts.values())
        mean = sum(row[place] / row[0] for row in parts.values()) / len(parts)
        cells = [f"{value:.3f}" for value in (right, mean)]
        for cell, name in zip(cells, ("**accuracy**", "**balanced accuracy**"), strict=True):
            (row,) = re.findall(
                rf"^\| {re.escape(name)}.*$", sources["concepts/accuracy.md"], LINES
            )
            assert row.split("|")[2 + "AB".index(model)].strip() == cell


def test_the_answer_about_balanced_softmax_shows_the_committed_table(
    sources: dict[str, str],
) -> None:
    page, results = sources["reference/questions.md"], sources["results.md"]
    (row,) = re.findall(r"^\| balanced softmax \|.*$", page, LINES)
    told = [cell.strip() for cell in row.split("|")[2:-1]]
    table = results.partition("<!-- bench:peers -->")[2].partition("<!-- /bench:peers -->")[0]
    (full,) = re.findall(r"^\| balanced softmax \|.*$", table, LINES)
    assert all(cell in full for cell in told)
    assert len(told) == 3


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_shows_what_its_commands_print(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = script("tutorials")["commands"](text)
    told = [step.command.split()[1] for step in found if step.output]
    assert "<!-- machine -->The machine: " in text
    assert {"inspect", "train", "evaluate", "tune", "verify", "predict"} <= {
        *told
    } or "bench" in told


def test_a_page_is_renewed_by_its_commands_answers() -> None:
    page = "a\n\n```console\n$ recame x\nold\n$ recame y\n```\n\n```sh\n$ no\n```\n"
    told = script("tutorials")["renewed"](page, lambda command: command.upper()[-1])
    assert told == page.replace("old", "X").replace("$ recame y\n", "$ recame y\nY\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_the_commands_of_a_tutorial_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECAME_CACHE", str(tmp_path / "cache"))
    text = page.read_text(encoding="utf-8")
    for long, short in {**SHORT, **SMALL}.items():
        text = text.replace(long, short)
    making, folder = script("tutorials"), tmp_path / "work"
    folder.mkdir()
    for name, content in making["files"](text).items():
        (folder / name).write_text(content, encoding="utf-8")
    found = [making["run"](step.command, folder) for step in making["commands"](text)]
    if page.stem == "my-first-model":
        assert len(list((folder / "line").iterdir())) == 200
        assert "automatic" in found[-1] or "review" in found[-1]
    else:
        assert "balanced_softmax" in found[-1]
