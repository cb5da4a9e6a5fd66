"""The verbs that bring a model to the line: predict with it, and write it as a bundle."""

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
            help="Images that pass the network at once.",
            show_default="chosen by measuring; with --ray 16",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cores that an answer may use.",
            show_default="every core; with --ray one a shard",
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
        bool, typer.Option("--fresh", help="Forget what an interrupted prediction has done.")
    ] = False,
    max_unreadable: Annotated[
        float, typer.Option(help="Share of unreadable files; exit code 3 if there are more.")
    ] = 0.1,
    image_column: Annotated[
        str | None, typer.Option(help="Of a table: the images' paths.", show_default="image")
    ] = None,
    box_columns: Annotated[
        str | None,
        typer.Option(
            help="Of a table: left, top, width, height of boxes; or none.",
            show_default="x,y,width,height",
        ),
    ] = None,
) -> None:
    """Predict IMAGES with MODEL; killed and called again, it goes on where it stopped."""
    from recame.cli.predicting import print_summary, progress_bar, table_columns
    from recame.runtime import predict as predict_images

    console = Console()
    given: dict[str, Any] = {"image_column": image_column, "box_columns": box_columns}
    given |= {"views": views, "batch_size": batch_size}
    if set_:  # settings are known where one trains, not on a line's machine
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
        typer.Option(help="Test-time views in the graph, 1 to 8.", show_default="the run's"),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Labelled images to compare on.",
            show_default="a sample of the run's",
        ),
    ] = None,
    outputs_: Annotated[
        str,
        typer.Option(
            "--outputs",
            metavar="NAMES",
            help="Further ones of the graph: experts,features,attribution.",
        ),
    ] = "",
    max_escape: Annotated[
        float | None,
        typer.Option(
            help="Of each defect class, released at most.",
            show_default="the limits of recame tune RUN",
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="The normal class, if the run does not name it."),
    ] = None,
    undecided: Annotated[
        bool, typer.Option("--undecided", help="Leave the decisions of recame tune out.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the bundle that lies in --out.")
    ] = False,
) -> None:
    """Write RUN as a bundle that runs without torch; refuse it if it answers otherwise."""
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
