"""The verbs of decisions: tune, verify, compare with an old model, monitor."""

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
            help="Labelled images that were used neither to train nor to choose a model.",
            show_default="the run's calibrate split, or val",
        ),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Required limits (YAML).",
            show_default="the smallest escape limits that the images promise",
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="The class that may be released, if MODEL names none."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run from which the bundle MODEL was exported: its images are used."
        ),
    ] = None,
    lot: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="Needed for line_mix: estimate. MODEL's predictions of a lot, without labels.",
        ),
    ] = None,
) -> None:
    """Fit MODEL's decision thresholds to labelled images, with promised limits."""
    from recame.reports.tuning import tune as tune_model

    console = Console()
    tune_model(model, calibration, limits, normal=normal, run=run, lot=lot, console=console)
    say(console, f"Page: {model / 'decisions.html'}")


def verify(
    model: Model,
    labelled: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Labelled images that were used neither to train nor to tune MODEL.",
        ),
    ],
) -> None:
    """Verify MODEL's promised limits on new images: exit code 0 they hold, 1 broken, 3 too few."""
    from recame.reports.verifying import verify as verify_model

    raise typer.Exit(verify_model(model, labelled, console=Console()).exit_code)


def compare(
    old: Annotated[
        Path, typer.Argument(metavar="OLD", help="The model on the line: a run or a bundle.")
    ],
    new: Annotated[
        Path,
        typer.Argument(metavar="NEW", help="The model that may replace it: a run or a bundle."),
    ],
    labelled: Annotated[
        Path, typer.Argument(metavar="DATA", help="Labelled images that trained neither model.")
    ],
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rules that NEW must meet (YAML).")
    ] = None,
    normal: Normal = None,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"), metavar="FOLDER", help="Folder for gate.json and flips.csv."
        ),
    ] = None,
) -> None:
    """Decide whether NEW may replace OLD: exit code 0 it may, 1 it is worse, 3 too few images."""
    from recame.reports.comparing import compare as compare_models

    console = Console()
    found = compare_models(old, new, labelled, rules=rules, normal=normal, out=out, console=console)
    raise typer.Exit(found.exit_code)


def monitor(
    model: Model,
    table: Annotated[
        Path,
        typer.Argument(
            metavar="LOT", help="Table of predictions of a lot, with labels of the audited images."
        ),
    ],
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of the monitor's state.", show_default="MODEL/monitor.json"
        ),
    ] = None,
) -> None:
    """Watch a line lot by lot: exit code 1 if escapes exceed a promised limit."""
    from recame.reports.monitoring import monitor as watch

    raise typer.Exit(watch(model, table, state=state, console=Console()).exit_code)
