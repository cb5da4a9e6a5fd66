"""The results as CSV and Markdown, and a short table inside a README."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from recame.bench.tables.behaviour import CLUSTERS, FRONTIER, RECALLS
from recame.bench.tables.board import LEVEL, Board, Cell, boards, method_notes, notes, pooled_rows
from recame.bench.tables.contest import Contest
from recame.bench.tables.effects import all_effects, effects_table
from recame.bench.tables.effects_board import effects_notes, effects_sections
from recame.bench.tables.ranks import mean_ranks
from recame.bench.tables.results import METRICS, paired, summarise
from recame.errors import DataError
from recame.files import csv_text, write_text
from recame.metrics.registry import BY_NAME
from recame.pages.render import markdown_table


def write_tables(out: Path, contest: Contest) -> list[Path]:
    """Write `results.csv` (a row for each run and split), `summary.csv`, `paired.csv`, `table.md`.

    Also `recalls.csv`, `frontier.csv` and `clusters.csv` if the runs left their data (see
    `recame.bench.tables.behaviour`), and for a factorial plan `effects.csv` (of `effects_table`).

    Args:
        out: the folder.
        contest: the results.

    Returns:
        The files.

    Raises:
        DataError: a file cannot be written.
    """
    frame, reference = contest.frame, contest.reference
    pairs = pd.concat(
        [
            paired(frame, reference, name, split=split).assign(split=split, reference=reference)
            for split in sorted(set(frame["split"]))
            for name in METRICS
            if frame[name].notna().any()
        ],
        ignore_index=True,
    )
    texts = {
        "results.csv": csv_text(frame, index=False),
        "summary.csv": csv_text(summarise(frame), index=False, float_format="%.6g"),
        "paired.csv": csv_text(pairs, index=False, float_format="%.6g"),
        "table.md": table_markdown(contest),
    }
    found = contest.behaviour
    kept = {RECALLS: found.recalls, FRONTIER: found.frontier, CLUSTERS: found.clusters}
    for name, rows in kept.items():
        if len(rows):
            texts[name] = csv_text(rows, index=False, float_format="%.6g")
    if effects := all_effects(contest):
        texts["effects.csv"] = csv_text(effects_table(effects), index=False, float_format="%.6g")
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def table_markdown(contest: Contest) -> str:
    """All tables, effects, differences over all data, notes, and the methods' sources."""
    methods = contest.methods
    parts = [f"# {contest.plan.title}", contest.plan.description.strip()]
    for board in boards(contest):
        rows = [[_cell_text(cell) for cell in row] for row in board.rows]
        parts += [f"## {board.title}", markdown_table(board.heads, rows)]
    parts += _effects_markdown(contest)
    parts += _ranks_markdown(contest)
    if pooled := pooled_rows(contest):
        parts += [
            f"## Over all data sets, against {methods[contest.reference].title}",
            "The intervals hold for other seeds on these data sets, not for other data.",
            markdown_table(
                ("method", "pairs of runs", "balanced accuracy", "95 %"),
                [(name, n, _value(cell), cell.small) for name, n, cell in pooled],
            ),
        ]
    told = [*notes(contest), f"To make it again: `{contest.command}`"]
    parts += ["## How it was made", "\n".join(f"- {note}" for note in told)]
    listed = []
    for title, name, source, deviations in method_notes(methods):
        listed.append(f"- **{title}** (`{name}`): {source}")
        listed += [f"  - {deviation}" for deviation in deviations]
    parts += ["## Methods: sources and deviations", "\n".join(listed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _effects_markdown(contest: Contest) -> list[str]:
    """Tables of the effects of a factorial plan, and notes on them; else nothing."""
    sections = effects_sections(contest)
    if not sections:
        return []
    parts = ["## Which parts help?"]
    for section in sections:
        for board in section.boards:
            parts += [f"### {section.title}: {board.title}", board.finding]
            rows = [[_cell_text(c) for c in cells] for _, cells in (*board.parts, *board.pairs)]
            parts += [markdown_table(board.heads, rows)] if rows else []
    told = "\n".join(f"- {note}" for note in effects_notes(contest))
    return [*parts, "### How to read the effects", told]


def _ranks_markdown(contest: Contest) -> list[str]:
    """Mean ranks by balanced accuracy and tail recall; nothing with too few blocks or methods."""
    found = [mean_ranks(contest, name) for name in ("balanced_accuracy", "tail_recall")]
    shown = [ranks for ranks in found if ranks is not None]
    if not shown:
        return []
    names = list(shown[0].mean.index)
    told = "; ".join(
        f"by {BY_NAME[ranks.metric].title} {ranks.distance:.1f} (Friedman p {ranks.p:.2g})"
        for ranks in shown
    )
    rows = [
        (contest.methods[name].title, *(f"{ranks.mean[name]:.1f}" for ranks in shown))
        for name in names
    ]
    over = (
        f"Over {shown[0].blocks} blocks. A block is a seed if each seed has images of its own, "
        f"else a data set. Nemenyi's critical difference, 5 % for all pairs: {told}."
    )
    return [
        "## Mean ranks",
        over,
        markdown_table(("method", *(BY_NAME[ranks.metric].title for ranks in shown)), rows),
    ]


def _cell_text(cell: Cell) -> str:
    return f"{_value(cell)} ({cell.small})" if cell.small else _value(cell)


def _value(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{LEVEL} {text}" if cell.level else text


def headline(contest: Contest) -> str:
    """A short Markdown table for a README: two scores for each data set, and three costs.

    Returns:
        One row for each method but ablations, best mean over the data sets first; without a line
        break at its end.
    """
    contest = contest.without_ablations()
    own = [board for board in boards(contest) if contest.is_first_split(board.data, board.split)]
    columns = [
        (f"{board.title}: {head}", _column(board, head))
        for board in own
        for head in ("balanced accuracy", "tail")
        if head in board.heads
    ]
    for head in ("parameters, M", "training, images/s", "training, min"):  # of the first with it
        columns += [(head, _column(board, head)) for board in own if head in board.heads][:1]
    scores = pd.DataFrame([b.standings["balanced_accuracy"] for b in own]).mean()
    rows = [
        [
            contest.methods[name].title,
            *(_value(column.get(name, Cell("-"))) for _, column in columns),
        ]
        for name in map(str, scores.sort_values(ascending=False).index)
    ]
    return markdown_table(["method", *(head for head, _ in columns)], rows)


def _column(board: Board, head: str) -> dict[str, Cell]:
    at = board.heads.index(head)
    return {name: row[at] for name, row in zip(board.methods, board.rows, strict=True)}


def update_markdown(path: Path, name: str, text: str) -> None:
    """Replace the text between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.

    Args:
        path: a Markdown file; the rest of it stays the same.
        name: of the markers.
        text: the new text, without the markers.

    Raises:
        DataError: the file has no such pair of markers, or more than one.
    """
    before, first, last, after = around_markers(path, name)
    write_text(path, f"{before}{first}\n{text.strip()}\n{last}{after}")


def around_markers(path: Path, name: str) -> tuple[str, str, str, str]:
    """Split a file into the text before the first marker, both markers, and the text after them.

    Raises:
        DataError: as `update_markdown`, or the file cannot be read.
    """
    first, last = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    try:
        # Read bytes, so that line ends are not changed.
        old = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}), so no table can be put into it: check the path."
        ) from error
    before, opening, rest = old.partition(first)
    _, closing, after = rest.partition(last)
    if not (opening and closing) or old.count(first) + old.count(last) != 2:
        raise DataError(
            f"{path} needs {first} and {last}, once each and in this order, around the place of "
            "the table: add them."
        )
    return before, first, last, after
