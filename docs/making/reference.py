"""What pages of the reference say that is made from the code: verbs, settings, metrics, errors.

    python docs/making/reference.py      # write it into the pages again; a test says when to

It stands in the pages, so that they are whole where no site is built. The Python API alone is made
by the site, from docstrings.
"""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from recame import errors
from recame.cli.app import app
from recame.cli.help_texts import VERBS
from recame.config.allowed import allowed
from recame.config.settings import Config
from recame.config.template import settings_schema
from recame.metrics.registry import METRICS, Metric

#: The public names of the Python page, under the question that they answer.
GROUPS = {
    "From images to a model on the line": (
        "inspect", "synth", "train", "evaluate", "report", "tune", "verify",
        "compare", "distill", "export_bundle", "measure_latency", "load", "predict", "monitor",
    ),
    "What they return": (
        "Inspection", "RunFolder", "Evaluation", "Tuned", "Bundle", "Predictor", "Prediction",
        "PredictionSummary", "LatencyReport", "Predictions",
    ),
    "Judge any model": ("evaluate_probabilities", "load_predictions", "LabelSpace"),
    "Settings": ("Config", "load_config", "Limits", "SyntheticSpec", "PreprocessSpec"),
    "The method in your own loop": (
        "MultiExpertClassifier", "Architecture", "Objective", "ExpertOutput", "LossResult",
    ),
    "Compare methods": ("run_bench", "BenchRequest"),
    "Errors": ("RecameError",),
}  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as Markdown."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        cells = [_plain(" ".join(cell.split())) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plain(cell: str) -> str:
    """A cell that ends no column, and begins no element of HTML beside code."""
    parts = cell.replace("|", "\\|").split("`")
    return "`".join(
        [part.replace("<", "&lt;") if n % 2 == 0 else part for n, part in enumerate(parts)]
    )


def command_line() -> str:
    """Every verb with its options, in the order and groups of `recame --help`."""
    found: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = []
    panel = ""
    for name, verb in VERBS.items():
        if verb.panel != panel:
            panel = verb.panel
            parts.append(f"## {panel}\n")
        parts.append(_verb(name, found[name], verb.examples, verb.exits))
    return "\n".join(parts)


def _verb(name: str, command: Any, examples: tuple[str, ...], exits: dict[int, str]) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    words = " ".join(
        each.name.upper() if each.required else f"[{each.name.upper()}]" for each in arguments
    )
    text = f"### recame {name}\n\n{command.help}\n\n```sh\n" + "\n".join(examples) + "\n```\n\n"
    text += table(
        (f"`recame {name} {words}`".replace(" `", "`"), "meaning", "default"),
        ((_option(each), each.help or "", _default(each)) for each in command.params),
    )
    if exits:
        told = "; ".join(f"{code}: {what}" for code, what in sorted(exits.items()))
        text += f"\nExit codes: {told}.\n"
    return text


def _option(option: Any) -> str:
    if option.param_type_name == "argument":
        return f"`{option.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    return f"{names} {option.metavar}" if option.metavar else names


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return option.show_default
    if option.required:
        return "must be given"
    if option.default is None or option.default is False or option.default == "":
        return ""
    if option.default is True:
        return "yes"
    return f"`{option.default}`"


def settings() -> str:
    """Every setting of `recame train`, a table a section."""
    schema, defaults = settings_schema(), Config().model_dump(mode="json")
    parts = []
    for section, values in defaults.items():
        if not isinstance(values, dict):
            continue
        described = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
        rows = (
            (f"`{section}.{name}`", f"`{_shown(value)}`", allowed(said), said["description"])
            for name, value in values.items()
            for said in [described["properties"][name]]
        )
        heads = ("setting", "default", "may be", "meaning")
        parts.append(f"## {section}\n\n{described['description']}\n\n{table(heads, rows)}")
    return "\n".join(parts)


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def python() -> str:
    """The public names, whose docstrings are the page."""
    parts = []
    for heading, names in GROUPS.items():
        parts += [f"## {heading}\n", *(f"::: recame.{name}\n" for name in names)]
    return "\n".join(parts)


def metrics() -> str:
    """The registry as a table."""
    heads = ("name", "meaning", "better", "shown", "interval", "no value where")
    rows = (
        (
            f"`{metric.name}`",
            metric.meaning,
            "lower" if metric.lower_is_better else "higher",
            {"headline": "everywhere", "summary": "all but the tiles of the report"}.get(
                metric.level, "terminal and files"
            ),
            _interval(metric),
            metric.absent,
        )
        for metric in METRICS
    )
    return table(heads, rows)


def _interval(metric: Metric) -> str:
    if metric.share is not None:
        return "Wilson"
    return "none" if metric.name == "ece" else "resampled"


def error_table() -> str:
    """Every error that is raised on purpose, with its exit code."""
    found = [
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.RecameError)
    ]
    rows = (
        (f"`{each.__name__}`", (each.__doc__ or "").strip().split("\n\n")[0], str(each.exit_code))
        for each in found
    )
    return table(("error", "means", "exit code"), rows)


def decisions(folder: Path) -> str:
    """The decisions with what has superseded each, as their own pages say."""
    rows = []
    for page in sorted(folder.glob("[0-9]*.md")):
        text = page.read_text(encoding="utf-8")
        number, _, title = text.partition("\n")[0].removeprefix("# ").partition(" ")
        found = re.search(r"^\*Superseded (.*)\*$", text, re.MULTILINE)
        told = found[1].strip() if found else ""
        told = re.sub(r"[.]$", "", told)
        rows.append((f"[{number.strip(',')}]({page.name})", title.lstrip("· "), told))
    return table(("", "decision", "superseded"), rows)


def result_rows(summary: Path, methods: dict[str, str]) -> str:
    """Balanced accuracy on test of some methods of a committed table, in %, as Markdown.

    Args:
        summary: `summary.csv` of a bench.
        methods: words for a method -> its name there.
    """
    sets = {
        "generated": "generated IC defects",
        "deeppcb_lt": "DeepPCB-LT",
        "cifar10_lt": "CIFAR-10-LT (JPEG)",
    }
    with summary.open(encoding="utf-8", newline="") as file:
        found = {
            (row["method"], row["data"]): f"{float(row['mean']):.1%} ± {float(row['sd']):.1%}"
            for row in csv.DictReader(file)
            if row["split"] == "test" and row["metric"] == "balanced_accuracy"
        }
    rows = [
        (words, *(found[method, data].replace("%", "") for data in sets))
        for words, method in methods.items()
    ]
    return table(("", *sets.values()), rows)


#: What stands between `<!-- made: NAME -->` and `<!-- /made -->` on a page.
MADE: dict[str, Callable[[Path], str]] = {
    "command line": lambda _: command_line(),
    "settings": lambda _: settings(),
    "python": lambda _: python(),
    "metrics": lambda _: metrics(),
    "errors": lambda _: error_table(),
    "decisions": lambda root: decisions(root / "docs" / "decisions"),
    "balanced softmax": lambda root: result_rows(
        root / "benchmarks" / "results" / "peers" / "summary.csv",
        {
            "balanced softmax": "balanced_softmax",
            "ReCAME-Net's published objective (two experts)": "recame_reference",
            "`bare`: square-root sampling and balanced softmax": "bare",
            "`recame`": "recame",
        },
    ),
}


#: What only the site can show.
ON_SITE = ("python",)
_MARKED = re.compile(r"<!-- made: (.*?) -->\n(?:.*?<!-- /made -->\n)?", re.DOTALL)


def filled(text: str, root: Path, *, site: bool = True) -> str:
    """A page with what is made from the code between its markers, in place of what stood there.

    Args:
        text: Markdown.
        root: of the repository.
        site: also what only the site can show.
    """

    def made(found: re.Match[str]) -> str:
        if found[1] in ON_SITE and not site:
            return found[0]
        return f"<!-- made: {found[1]} -->\n\n{MADE[found[1]](root).strip()}\n\n<!-- /made -->\n"

    return _MARKED.sub(made, text)


def main() -> None:
    """Write every page again whose made parts have changed."""
    root = Path(__file__).parents[2]
    for page in sorted((root / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, root, site=False)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(root))


if __name__ == "__main__":
    main()
