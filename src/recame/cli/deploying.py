"""The verbs that bring a model to the line: predict, and export as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from recame.cli.options import Device, Model, Run, Settings, Views
from recame.names import command
from recame.progress import say


def predict(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES", help="Image files, folders, globs, tables or URLs."),
    ],
    out: Annotated[
        str,
        typer.Option(
            *("--out", "-o"),
            metavar="TABLE",
            help="Table to write, .csv or .parquet; may be a URL.",
        ),
    ] = "predictions.csv",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images that pass through the network at once.",
            show_default="chosen by measuring; with --ray 16",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="CPU cores for each batch.",
            show_default="all cores; with --ray one for each shard",
        ),
    ] = None,
    device: Device = "auto",
    views: Views = None,
    set_: Settings = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Ray cluster: auto, local, HOST:6379 or ray://HOST:10001."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start again, without an interrupted prediction's rows.")
    ] = False,
    max_unreadable: Annotated[
        float,
        typer.Option(help="Largest share of unreadable files, 0 to 1; above it, exit code 3."),
    ] = 0.1,
    image_column: Annotated[
        str | None,
        typer.Option(help="Column of a table with the images' paths.", show_default="image"),
    ] = None,
    box_columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of a table with left, top, width, height of boxes; or none.",
            show_default="x,y,width,height",
        ),
    ] = None,
) -> None:
    """Predict IMAGES with MODEL; an interrupted prediction continues when called again."""
    from recame.cli.predicting import print_summary, progress_bar, table_columns
    from recame.runtime import predict as predict_images

    console = Console()
    given: dict[str, Any] = {"image_column": image_column, "box_columns": box_columns}
    given |= {"views": views, "batch_size": batch_size}
    if set_:  # settings are checked by packages for training, which a line's machine lacks
        from recame.cli.requests import predict_request

        given = predict_request(set_, given)
    columns = table_columns(given["image_column"], given["box_columns"])
    with progress_bar(console) as advance:
        summary = predict_images(
            model,
            images,
            out=out,
            resume=not fresh,
            max_unreadable=max_unreadable,
            threads=threads or "auto",
            batch_size=given["batch_size"] or "auto",
            device=device,
            views=given["views"],
            ray=ray,
            columns=columns,
            on_progress=advance,
        )
    print_summary(summary, console)


def export(
    run: Run,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="BUNDLE",
            help="Bundle to write.",
            show_default="RUN/bundle-<format>-<precision>",
        ),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="onnx or openvino.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    views: Annotated[
        int | None,
        typer.Option(
            help="Test-time augmentation in the graph: 1, 2, 4 or 8 flips and rotations.",
            show_default="the run's",
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images on which graph and PyTorch are compared.",
            show_default="a sample of the run's images",
        ),
    ] = None,
    outputs_: Annotated[
        str,
        typer.Option(
            "--outputs",
            metavar="NAMES",
            help="Further outputs of the graph: experts,features,attribution.",
        ),
    ] = "",
    max_escape: Annotated[
        float | None,
        typer.Option(
            help="Largest share of each defect class that may be released.",
            show_default="the limits of recame tune RUN",
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="The normal class, if the run names none."),
    ] = None,
    undecided: Annotated[
        bool, typer.Option("--undecided", help="Leave out the decisions of recame tune.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle in --out.")
    ] = False,
) -> None:
    """Write RUN as a bundle that needs no torch; refused if its answers differ from PyTorch's."""
    from recame.cli.requests import check_max_escape, export_outputs

    outputs = export_outputs(outputs_)
    check_max_escape(max_escape)

    from recame.export.export import export as export_run
    from recame.reports.tuning import tune_export

    console = Console()

    def decide(folder: Path, place: Path) -> None:
        named = place.absolute()
        tune_export(folder, run, max_escape, normal=normal, named=named, console=console)

    bundle = export_run(
        run,
        out,
        format=format_,
        precision=precision,
        views=views,
        verify=verify,
        outputs=outputs,
        normal=normal,
        replace_bundle=force,
        finish=None if undecided else decide,
        console=console,
    )
    say(console, f"Bundle: {bundle.path}")
    say(console, f"Next: {command('recame', 'latency', bundle.path)}")
    say(console, f"Next: {command('recame', 'predict', bundle.path, 'FOLDER')}")
