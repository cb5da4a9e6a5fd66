"""README's own words run: its Python block, its commands, the files that it names.

The tables of `docs/results.md` are those that the committed results give, and README's are among
them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recame.cli import main
from recame.config import Config, parse_settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "howto" / "settings.md").read_text(encoding="utf-8")
MOST_LINES = 120

#: What README gives minutes for takes seconds here.
SHORT = {"10m": "6s", "20ms": "5s"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `images/` and `labelled/` (a folder per class) and `new_images/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECAME_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for label, count in (("good", 24), ("scratch", 10), ("void", 6)):
        for number in range(2 * count):
            image = rng.normal(110, 8, (40, 40))
            if label == "scratch":
                image[18:21] += 90
            if label == "void":
                image[12:26, 12:26] -= 80
            folder = tmp_path / ("images" if number < count else "labelled") / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02d}.png")
    (tmp_path / "new_images").mkdir()
    Image.fromarray(np.full((40, 40), 110, np.uint8)).save(tmp_path / "new_images" / "a.png")
    return tmp_path


def test_python_block_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    scope: dict[str, object] = {}
    exec(code.replace("10m", SHORT["10m"]), scope)
    assert "balanced accuracy" in capsys.readouterr().out
    assert scope["found"].image == "new_images/a.png"
    assert (workplace / "runs" / "first" / "model.safetensors").exists()


def test_commands_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    verbs = [line.split("#")[0].split() for line in commands if line.startswith("recame ")]
    assert [words[1] for words in verbs] == [
        *("inspect", "train", "evaluate", "predict"),
        *("tune", "export", "latency", "predict"),
    ]
    for words in verbs:
        if "latency" in words:
            words += ["--seconds", "0.05", "--batches", "1,4"]
        monkeypatch.setattr(sys, "argv", [SHORT.get(word, word) for word in words])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
    assert (workplace / "inspection" / "images" / "inspection.html").exists()
    assert (workplace / "runs" / "first" / "evaluation" / "test" / "report.html").exists()
    for name in ("predictions.csv", "decisions.csv"):
        text = (workplace / name).read_text()
        assert text.startswith("image,path,prediction,confidence,p_")
        assert text.count("\n") == 2


def test_tables_are_those_of_the_committed_results() -> None:
    from recame.bench.plan.plan import load_plan, plan_methods
    from recame.bench.tables.contest import Contest
    from recame.bench.tables.results import collect
    from recame.bench.tables.table import headline

    tables = re.findall(r"<!-- bench:(\w+) -->\n(.*?)\n<!-- /bench:\1 -->", RESULTS, re.DOTALL)
    assert [name for name, _ in tables] == ["peers", "peers_long", "cpu", "cpu_time"]
    for name, text in tables:
        plans = ROOT / "benchmarks" / "plans"
        plan = load_plan(plans / f"{name}.yaml")
        kept = ROOT / "benchmarks" / "results" / name
        costs = kept / "costs.json"
        measured = json.loads(costs.read_text()) if costs.exists() else {}
        methods = plan_methods(plan, plans)
        assert text == headline(Contest(collect(kept), methods, plan, measured))


def test_it_is_short_and_its_rows_are_rows_of_the_results() -> None:
    assert len(README.splitlines()) <= MOST_LINES
    table = README.partition("| on `test`, in % |")[2].partition("\n\n")[0].splitlines()[2:]
    told = {line.replace("≈ ", "").replace("**", "") for line in RESULTS.splitlines()}
    for row in table:
        assert any(line.startswith(row) for line in told), row
    assert len(table) == 6


def test_named_settings_exist() -> None:
    named = re.findall(r"`([a-z]+\.[a-z_]+=[^`]+)`", README + RESULTS + SETTINGS)
    named = [name for name in named if "critical" not in name]  # needs the class to exist
    assert len(named) >= 15
    changed = Config().updated(parse_settings(named))
    assert changed != Config()


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_named_places_exist(page: Path) -> None:
    places = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [p for p in places if "://" not in p and not (page.parent / p.split("#")[0]).exists()]
    assert missing == []
