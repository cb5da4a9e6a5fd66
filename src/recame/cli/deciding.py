"""The verbs of decisions: fitted, verified, and a new model against the old one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recame.cli.options import Model, Normal
from recame.progress import say


def tune(
    model: Model,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images that trained and chose nothing.",
            show_default="a run's calibrate, or its val",
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What is asked (YAML).", show_default="the smallest escapes"
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS", help="The class that may be released, where MODEL names none."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="That the bundle MODEL was exported from: its images."),
    ] = None,
    lot: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="For line_mix: estimate: MODEL's predictions of a lot, without labels.",
        ),
    ] = None,
) -> None:
    """Fit MODEL's decisions to labelled images, with limits that are promised."""
    from recame.reports.tuning import tune as tune_model

    console = Console()
    tune_model(model, calibration, limits, normal=normal, run=run, lot=lot, console=console)
    say(console, f"Page: {model / 'decisions.html'}")


def verify(
    model: Model,
    labelled: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Labelled images that neither trained nor tuned MODEL."
        ),
    ],
) -> None:
    """Judge MODEL's promised limits by new images: exit code 0 they hold, 1 broken, 3 too few."""
    from recame.reports.verifying import verify as verify_model

    raise typer.Exit(verify_model(model, labelled, console=Console()).exit_code)


def compare(
    old: Annotated[
        Path, typer.Argument(metavar="OLD", help="The model on the line: a run or a bundle.")
    ],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The one that may take its place.")],
    labelled: Annotated[
        Path, typer.Argument(metavar="DATA", help="Labelled images that trained neither.")
    ],
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What NEW has to show (YAML).")
    ] = None,
    normal: Normal = None,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"), metavar="FOLDER", help="A folder for gate.json and flips.csv."
        ),
    ] = None,
) -> None:
    """Say whether NEW may replace OLD: exit code 0 it may, 1 it is worse, 3 too few to tell."""
    from recame.reports.comparing import compare as compare_models

    console = Console()
    found = compare_models(old, new, labelled, rules=rules, normal=normal, out=out, console=console)
    raise typer.Exit(found.exit_code)


def monitor(
    model: Model,
    table: Annotated[
        Path,
        typer.Argument(
            metavar="LOT", help="Predictions of a lot, with people's labels of audited images."
        ),
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the monitors are kept.", show_default="MODEL/monitor.json"
        ),
    ] = None,
) -> None:
    """Watch a line lot by lot: exit code 1 where escapes exceed what was promised."""
    from recame.reports.monitoring import monitor as watch

    raise typer.Exit(watch(model, table, state=state, console=Console()).exit_code)
