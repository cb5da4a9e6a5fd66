"""The verbs. Heavy imports live inside them: `recame --help` must answer at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="recame",
    help="Train, judge and deploy classifiers for rare defects.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import recame

        typer.echo(f"recame {recame.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Argument(help="A folder per class, a folder with train/val/test, or a CSV/Parquet."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder to write. [runs/<data>-<time>]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings (YAML); what it leaves out keeps its default.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, section.key=value; may be repeated."),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="Time for the whole run: 90s, 15m, 1h30m.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random number.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
) -> None:
    """Train on DATA and write a run folder."""
    from recame.cli.requests import train_request

    request = train_request(data, out, config, set_ or [], time_budget, seed, resume)

    from recame.training import train as train_run

    console = Console()
    run = train_run(request.source, request.config, out=request.out, resume=resume, console=console)
    console.print(f"Run: {run.path}", highlight=False, soft_wrap=True)
    console.print(f"Next: recame evaluate {run.path}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[
        Path | None, typer.Argument(help="Labelled images. [those the run was trained from]")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split to judge.")] = "test",
) -> None:
    """Judge RUN on labelled images: headline numbers with intervals, classes, products, experts."""
    from recame.training import evaluate as evaluate_run

    console = Console()
    result = evaluate_run(run, data, split=split, console=console)
    console.print(f"Written: {result.folder}", highlight=False, soft_wrap=True)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders or globs.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Table to write, .csv or .parquet.")
    ] = Path("predictions.csv"),
) -> None:
    """Predict IMAGES with RUN; unreadable files are listed, not fatal."""
    from recame.training import predict as predict_images

    console = Console()
    table, broken = predict_images(run, images, out=out, console=console)
    if broken:
        console.print(f"[yellow]{len(broken)} files cannot be read:[/yellow]")
        for path, reason in broken[:20]:
            console.print(f"  {path}: {reason}", markup=False, highlight=False, soft_wrap=True)
        if len(broken) > 20:
            console.print(f"  and {len(broken) - 20} more")
    counts = table["prediction"].value_counts()
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    console.print(f"{len(table):,} images: {listed}", highlight=False, soft_wrap=True)
    console.print(f"Written: {out}", highlight=False, soft_wrap=True)
