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
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Also write the report page.")
    ] = True,
) -> None:
    """Judge RUN on labelled images: headline numbers with intervals, classes, products, experts."""
    from recame.training import evaluate as evaluate_run

    console = Console()
    result = evaluate_run(run, data, split=split, report=report, console=console)
    console.print(f"Written: {result.folder}", highlight=False, soft_wrap=True)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    against: Annotated[
        Path | None, typer.Option(help="Another run, to compare with image by image.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which split to report on.")] = "test",
) -> None:
    """Write RUN's report: one HTML page, its summary as Markdown, its numbers as JSON."""
    from recame.training import report as write_report

    console = Console()
    files = write_report(run, split=split, against=against, console=console)
    console.print(f"Report: {files.html}", highlight=False, soft_wrap=True)


@app.command()
def inspect(
    data: Annotated[
        Path, typer.Argument(help="A folder per class, a folder with splits, or a CSV/Parquet.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write. [inspection/<data>]")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A finished run whose model embeds the images.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, data.key=value; may be repeated."),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Decode images, or read the table alone.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
) -> None:
    """Say what DATA is like before training: classes, clusters, duplicates, leaks, label errors."""
    from recame.cli.requests import inspect_request

    request = inspect_request(data, out, run, set_ or [])

    from recame.evaluation.inspection import inspect_set
    from recame.models import load_checkpoint

    console = Console()
    model = None if run is None else load_checkpoint(run)
    inspect_set(
        request.source,
        data=request.config.data,
        model=model,
        decode=images,
        seed=seed,
        out=request.out,
        console=console,
    )
    console.print(f"Page: {request.out / 'inspection.html'}", highlight=False, soft_wrap=True)


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


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="New or empty folder to write.")],
    images: Annotated[int, typer.Option(help="Images of all splits together.")] = 8000,
    classes: Annotated[int, typer.Option(help="Classes, 2 to 14.")] = 14,
    products: Annotated[int, typer.Option(help="Product lines.")] = 12,
    size: Annotated[int, typer.Option(help="Side in pixels, 32 to 256.")] = 64,
    imbalance: Annotated[float, typer.Option(help="Largest over smallest class in train.")] = 1000,
    clusters: Annotated[
        int | None, typer.Option(help="Clusters that a head class fills. [6]")
    ] = None,
    tail_products: Annotated[
        int | None, typer.Option(help="Products a tail class is scattered over. [all]")
    ] = None,
    label_noise: Annotated[float, typer.Option(help="Share of wrong train labels.")] = 0.0,
    exact_duplicates: Annotated[float, typer.Option(help="Share of repeated train images.")] = 0.0,
    near_duplicates: Annotated[float, typer.Option(help="Share of near-repeated ones.")] = 0.0,
    leaks: Annotated[
        float, typer.Option(help="Share of val and test images that repeat a train image.")
    ] = 0.0,
    bit_depth: Annotated[int, typer.Option(help="8 or 16.")] = 8,
    colour: Annotated[bool, typer.Option("--colour", help="Colour instead of grey.")] = False,
    seed: Annotated[int, typer.Option(help="Another seed gives other images.")] = 0,
) -> None:
    """Generate ICDefectSynth: AOI-like images of IC defects with planted clusters."""
    from recame.data.synthetic import SyntheticSpec, write
    from recame.evaluation.progress import progress_bars

    spec = SyntheticSpec(
        num_images=images,
        num_classes=classes,
        num_products=products,
        size=size,
        imbalance=imbalance,
        clusters_per_class=clusters,
        tail_products=tail_products,
        label_noise=label_noise,
        exact_duplicates=exact_duplicates,
        near_duplicates=near_duplicates,
        leaks=leaks,
        bit_depth=bit_depth,
        colour=colour,
        seed=seed,
    )
    console = Console()
    with progress_bars(console) as report:
        manifest = write(spec, out, on_progress=lambda done, all_: report("drawing", done, all_))
    console.print(f"Manifest: {manifest}", highlight=False, soft_wrap=True)
    console.print(f"Planted truth: {out / 'truth.csv'}", highlight=False, soft_wrap=True)
