"""The verbs. Heavy imports live inside them: `recame --help` must answer at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recame.cli.deciding import compare, monitor, tune, verify
from recame.cli.help_texts import shown
from recame.cli.options import (
    BatchSize,
    Corrections,
    Device,
    Epochs,
    Model,
    Normal,
    Resume,
    Run,
    RunDevice,
    Seed,
    Settings,
    Size,
    TimeBudget,
    Views,
)
from recame.cli.research import bench, prepare, settings, synth
from recame.cli.upkeep import cache, doctor, latency
from recame.names import command
from recame.progress import say

if TYPE_CHECKING:
    from recame.runs.folder import RunFolder

app = typer.Typer(
    name="recame",
    help="Train, judge and deploy classifiers for rare defects.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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


def train(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(help="A folder per class, a folder with train/val/test, or a CSV/Parquet."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run folder to write.", show_default="runs/<data>-<time>"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings (YAML); what it leaves out keeps its default.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Finished run to continue: its weights, settings and splits."),
    ] = None,
    add: Annotated[
        Path | None, typer.Option(help="With --from and no DATA: new images beside that run's.")
    ] = None,
    corrections: Corrections = None,
    set_: Settings = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    size: Size = None,
    time_budget: TimeBudget = None,
    normal: Normal = None,
    seed: Seed = None,
    device: RunDevice = None,
    resume: Resume = False,
) -> None:
    """Train on DATA and write a run folder."""
    from recame.cli.requests import train_request

    short: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "size": size}
    short |= {"time_budget": time_budget, "normal": normal, "seed": seed, "device": device}
    source, settings, out = train_request(
        data, out, config, from_, add, corrections, set_ or [], short, resume
    )

    from recame.training.train import train as train_run

    console = Console()
    with _going_on("train", out):
        run = train_run(
            source, settings, out=out, resume=resume, console=console, started=context.obj
        )
    _tell_trained(run, console)


@contextmanager
def _going_on(verb: str, out: Path) -> Iterator[None]:
    """Let who is interrupted know how the run goes on, where it has begun."""
    try:
        yield
    except KeyboardInterrupt:
        left = SystemExit(130)
        if (out / "run.json").exists():
            left.add_note(
                f"{out} keeps what is done. Go on with: "
                f"{command('recame', verb, '--out', out, '--resume')}"
            )
        raise left from None


def _tell_trained(run: RunFolder, console: Console) -> None:
    """Print where a run lies, and leave with exit code 1 where its training ended too early."""
    say(console, f"Run: {run.path}")
    say(console, f"Next: {command('recame', 'evaluate', run.path)}")
    if run.stopped is not None:
        say(console, f"Training ended before its time: {run.stopped}", "yellow")
        raise typer.Exit(1)


def distill(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Argument(help="Folder of the finished run that teaches.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Any timm name.", show_default="the first stages of the teacher's"),
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="A folder or table of further images, no labels; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run folder to write.", show_default="RUN-student"),
    ] = None,
    set_: Settings = None,
    size: Size = None,
    time_budget: TimeBudget = None,
    seed: Seed = None,
    resume: Resume = False,
) -> None:
    """Teach one small network what RUN's experts decide together; leaves a run folder."""
    from recame.cli.requests import distill_request

    changes, out = distill_request(
        run, backbone, unlabelled or [], out, set_ or [], size, time_budget, seed, resume
    )

    from recame.training.student.distill import distill as distill_run

    console = Console()
    with _going_on("distill", out):
        student = distill_run(
            run,
            out=out,
            backbone=backbone,
            unlabelled=unlabelled or [],
            changes=changes,
            resume=resume,
            console=console,
            started=context.obj,
        )
    _tell_trained(student, console)


def evaluate(
    run: Run,
    data: Annotated[
        Path | None,
        typer.Argument(help="Labelled images.", show_default="those the run was trained from"),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split to judge.")] = "test",
    name: Annotated[
        str | None,
        typer.Option(
            help="Keep the figures under this name.", show_default="the split's; DATA's own"
        ),
    ] = None,
    views: Views = None,
    corrections: Corrections = None,
    device: RunDevice = None,
    set_: Settings = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Also write the report page.")
    ] = True,
) -> None:
    """Judge RUN on labelled images: headline numbers with intervals, classes, products, experts."""
    from recame.config import parse_settings
    from recame.reports.evaluate import evaluate as evaluate_run

    console = Console()
    result = evaluate_run(
        run,
        data,
        split=split,
        name=name,
        views=views,
        corrections=corrections,
        report=report,
        device=device,
        settings=parse_settings(set_ or []),
        console=console,
    )
    say(console, f"Written: {result.folder}")
    if result.report_error is not None:
        raise typer.Exit(1)


def report(
    run: Run,
    against: Annotated[
        Path | None, typer.Option(help="Another run, to compare with image by image.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Which split to report on, or the name of other data's figures.")
    ] = "test",
) -> None:
    """Write RUN's report: one HTML page, its summary as Markdown, its numbers as JSON."""
    from recame.reports.evaluate import report as write_report

    console = Console()
    files = write_report(run, split=split, against=against, console=console)
    say(console, f"Report: {files.html}")


def inspect(
    data: Annotated[
        Path, typer.Argument(help="A folder per class, a folder with splits, or a CSV/Parquet.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write.", show_default="inspection/<data>"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A finished run whose model embeds the images.")
    ] = None,
    corrections: Corrections = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting, data.key=value; may be repeated."),
    ] = None,
    size: Size = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Decode images, or read the table alone.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
) -> None:
    """Say what DATA is like before training: classes, clusters, duplicates, leaks, label errors."""
    from recame.cli.requests import inspect_request

    settings, out = inspect_request(data, out, run, corrections, set_ or [], size)

    from recame.inspection import inspect_set

    console = Console()
    inspect_set(
        data,
        data=settings,
        model=run,
        decode=images,
        seed=seed,
        out=out,
        console=console,
    )
    say(console, f"Page: {out / 'inspection.html'}")


def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, globs, tables or URLs.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="Table to write, .csv or .parquet; may be a URL.")
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
            "--out", "-o", help="Bundle to write.", show_default="RUN/bundle-<format>-<precision>"
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
        typer.Option(help="Labelled images to compare on.", show_default="a sample of the run's"),
    ] = None,
    with_: Annotated[
        str, typer.Option("--with", help="Further outputs: experts,features,attribution.")
    ] = "",
    max_escape: Annotated[
        float | None,
        typer.Option(
            help="Of each defect class, released at most.",
            show_default="the limits of recame tune RUN",
        ),
    ] = None,
    normal: Annotated[
        str | None, typer.Option(help="The normal class, if the run does not name it.")
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

    outputs = export_outputs(with_)
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


# In the order of the help.
for _verb in (
    *(inspect, synth, prepare, train, distill, evaluate, report, compare),
    *(tune, verify, export, latency, predict, monitor, bench, settings, doctor, cache),
):
    app.command(**shown(_verb.__name__))(_verb)
