"""The results as one HTML page: scores with intervals, sortable tables, accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from recame.bench.plan.method import Method
from recame.bench.tables.behaviour_figures import behaviour_figure, cluster_figure
from recame.bench.tables.bench_figures import (
    KIND_COLOURS,
    cost_figure,
    effects_figure,
    rank_figure,
    score_figure,
)
from recame.bench.tables.board import (
    LEVEL,
    Board,
    boards,
    method_notes,
    notes,
    percent,
    pooled_rows,
)
from recame.bench.tables.contest import Contest
from recame.bench.tables.curves import curves_figure
from recame.bench.tables.effects_board import effects_notes, effects_sections
from recame.bench.tables.ranks import mean_ranks
from recame.files import write_text
from recame.metrics.registry import BY_NAME
from recame.pages.render import figure_picture, render_page


def bench_html(contest: Contest) -> str:
    """The page as one HTML document that needs no network."""
    methods, plan = contest.methods, contest.plan
    found = boards(contest)
    pooled = pooled_rows(contest)
    shown = [_shown(board, contest) for board in found]
    effects = _effects(contest)
    curves = _curves(contest)
    ranks = _ranks(contest)
    counted = {
        "method": len(methods),
        "data set": contest.shown["data"].nunique(),
        "seed": contest.shown["seed"].nunique(),
    }
    return render_page(
        "recame.bench",
        "bench.html.j2",
        title=plan.title,
        eyebrow="recame bench",
        version=version("recame"),
        footer=f"Written by recame {version('recame')}; docs/bench.md says how.",
        subtitle=", ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in counted.items()),
        description=plan.description.strip(),
        findings=[_finding(board, methods) for board in found],
        effects=effects,
        effects_notes=effects_notes(contest),
        boards=shown,
        curves=curves,
        ranks=ranks,
        reference=methods[contest.reference].title,
        reference_name=contest.reference,
        pooled=pooled,
        notes=notes(contest),
        command=contest.command,
        methods=method_notes(methods),
        contents=[
            *([("effects", "Which parts help?")] if effects else []),
            *((board["anchor"], board["title"]) for board in shown),
            *([("curves", "With more training")] if curves else []),
            *([("ranks", "Ranks")] if ranks else []),
            *([("all", "Over all data sets")] if pooled else []),
            ("made", "How it was made"),
            ("methods", "Methods"),
        ],
    )


def _finding(board: Board, methods: Mapping[str, Method]) -> str:
    """Which method is first on a data set, and which ones are not distinguishable from it."""
    table = board.standings
    best, *others = board.methods
    level = [methods[m].title for m in others if table.loc[m, "level_balanced_accuracy"]]
    text = (
        f"{board.title}: {methods[best].title} is first with "
        f"{percent(table['balanced_accuracy'].iloc[0])} % balanced accuracy"
    )
    if not others:
        return f"{text}."
    if pd.isna(table["best_high"].iloc[0]):  # no comparison has an error
        return f"{text}. One seed decides little: run more seeds."
    if not level:
        several = " with two seeds or more" if (table["n"] < 2).any() else ""
        return f"{text}, significantly better than every other method{several}."
    return f"{text}; not distinguishable from it ({LEVEL}): {', '.join(level)}."


def _shown(board: Board, contest: Contest) -> dict[str, Any]:
    drawn = behaviour_figure(board, contest)
    cells = cluster_figure(board, contest)
    kinds = {contest.methods[name].group for name in board.methods}
    return {
        "anchor": f"{board.data}-{board.split}",
        "title": board.title,
        "tables": [
            _table(board, slice(1, board.num_scores)),
            _table(board, slice(board.num_scores, None)),
        ],
        "kinds": [(kind, colour) for kind, colour in KIND_COLOURS.items() if kind in kinds],
        "scores": figure_picture(
            score_figure(board, contest),
            f"Balanced accuracy and tail recall on {board.title} with intervals",
        ),
        "behaviour": None
        if drawn is None
        else figure_picture(
            drawn,
            f"Recall by training count, accuracy under other class shares, and the trade-off of "
            f"tail and other classes on {board.title}",
        ),
        "clusters": None
        if cells is None
        else figure_picture(
            cells, f"Recall on {board.title} by training images of a cluster, and by product"
        ),
        "cost": figure_picture(
            cost_figure(board, contest), f"Balanced accuracy against cost on {board.title}"
        )
        if contest.is_first_split(board.data, board.split) and contest.cost_rows()
        else None,
    }


def _table(board: Board, columns: slice) -> dict[str, Any]:
    """A table of the methods' names and some of the board's columns."""
    return {
        "heads": (board.heads[0], *board.heads[columns]),
        "rows": [
            (name, (row[0], *row[columns]))
            for name, row in zip(board.methods, board.rows, strict=True)
        ],
    }


def _effects(contest: Contest) -> list[dict[str, Any]]:
    """One section for each data set and split of a factorial plan; else none."""
    factorial = contest.plan.factorial
    if factorial is None:
        return []
    return [
        {
            "anchor": section.anchor,
            "title": section.title,
            "boards": section.boards,
            "figure": figure_picture(
                effects_figure(section, factorial),
                f"The effect of each part on {section.title} with its interval",
            )
            if any(board.parts for board in section.boards)
            else None,
        }
        for section in effects_sections(contest)
    ]


def _curves(contest: Contest) -> list[dict[str, Any]]:
    """One picture for each data set that the plan trains for several lengths."""
    found = []
    for name, entry in contest.plan.data.items():
        figure = None if entry.of else curves_figure(contest, name)
        if figure is not None:
            title = entry.title or name
            text = f"Learning curves of the methods on {title}"
            found.append({"title": title, "figure": figure_picture(figure, text)})
    return found


def _ranks(contest: Contest) -> list[dict[str, Any]]:
    """Mean ranks by balanced accuracy and by tail recall; none with too few blocks or methods."""
    found = []
    for metric in ("balanced_accuracy", "tail_recall"):
        ranks = mean_ranks(contest, metric)
        if ranks is not None:
            title = BY_NAME[metric].title
            text = f"Mean ranks of the methods by {title}"
            picture = figure_picture(rank_figure(ranks, contest), text)
            found.append({"title": title, "ranks": ranks, "figure": picture})
    return found


def write_page(out: Path, contest: Contest) -> Path:
    """Write `page.html`; no half-written file is left behind.

    Args:
        out: the folder.
        contest: the results.

    Raises:
        DataError: the file cannot be written.
    """
    path = out / "page.html"
    write_text(path, bench_html(contest))
    return path
