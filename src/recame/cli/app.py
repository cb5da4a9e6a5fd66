"""The verbs. Heavy imports stand inside the functions, so that `recame --help` answers at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recame.cli.deciding import compare, monitor, tune, verify
from recame.cli.deploying import export, predict
from recame.cli.help_texts import WORDS, shown
from recame.cli.options import (
    BatchSize,
    Corrections,
    Epochs,
    Normal,
    Resume,
    Run,
    RunDevice,
    Seed,
    Settings,
    Size,
    TimeBudget,
    Verb,
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
    help="Train, evaluate and deploy classifiers for rare defects.",
    epilog=WORDS,
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
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder per class or with train/val/test, or a CSV/Parquet table.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="RUN",
            help="Run folder to write.",
            show_default="runs/<data>-<time>",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings (YAML); settings not in the file keep their defaults."
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Finished run to start from: its weights, settings and splits.",
        ),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="New images, trained on together with those of --from; instead of DATA.",
        ),
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
    """After Ctrl-C, say how to continue the run, if it has begun."""
    try:
        yield
    except KeyboardInterrupt:
        left = SystemExit(130)
        if (out / "run.json").exists():
            left.add_note(
                f"{out} keeps the finished part. Continue with: "
                f"{command('recame', verb, '--out', out, '--resume')}"
            )
        raise left from None


def _tell_trained(run: RunFolder, console: Console) -> None:
    """Print where a run lies; leave with exit code 1 if its training ended too early."""
    say(console, f"Run: {run.path}")
    for line in _next_steps(run):
        say(console, line)
    if run.stopped is not None:
        say(console, f"Training ended early: {run.stopped}", "yellow")
        raise typer.Exit(1)


def _next_steps(run: RunFolder) -> list[str]:
    """How to evaluate a run, by the splits that it has."""
    from recame.errors import RecameError
    from recame.inference.finished_run import recorded_data

    own = command("recame", "evaluate", run.path)
    splits = {"test"}
    with suppress(RecameError):  # evaluate tells
        splits = set(recorded_data(run, run.load_config())["split"])
    if "test" in splits:
        return [f"Next: {own}"]
    others = command("recame", "evaluate", run.path, "FOLDER")
    why = "the run has no test split: give labelled images that it was not trained on"
    lines = [f"Next: {others} ({why})"]
    if "val" in splits:
        lines.append(f"  or: {own} --split val (val chose the network: its figures are too good)")
    return lines


def distill(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Folder of the finished run that teaches."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Backbone of the student, any timm name.",
            show_default="first stages of the teacher's backbone",
        ),
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATA",
            help="Folder or table of further images without labels; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="RUN",
            help="Run folder to write.",
            show_default="RUN-student",
        ),
    ] = None,
    set_: Settings = None,
    size: Size = None,
    time_budget: TimeBudget = None,
    seed: Seed = None,
    resume: Resume = False,
) -> None:
    """Train one small network to answer as RUN's experts together; writes a run folder."""
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
        typer.Argument(
            metavar="DATA",
            help="Labelled images.",
            show_default="the data of the run",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate.")] = "test",
    name: Annotated[
        str | None,
        typer.Option(
            help="Name under which the figures are kept.", show_default="the split's; DATA's own"
        ),
    ] = None,
    views: Views = None,
    corrections: Corrections = None,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="TABLE",
            help="Also write the predictions here, .csv or .parquet.",
        ),
    ] = None,
    device: RunDevice = None,
    set_: Settings = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Also write the report page.")
    ] = True,
) -> None:
    """Evaluate RUN on labelled images: figures with intervals, by class, product and expert."""
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
        out=out,
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
        Path | None,
        typer.Option(metavar="RUN", help="Another run to compare with, image by image."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split to report on, or a name given to recame evaluate --name.")
    ] = "test",
) -> None:
    """Write RUN's report: an HTML page, its summary as Markdown, its figures as JSON."""
    from recame.reports.evaluate import report as write_report

    console = Console()
    files = write_report(run, split=split, against=against, console=console)
    say(console, f"Report: {files.html}")


def inspect(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder per class or with train/val/test, or a CSV/Parquet table.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="FOLDER",
            help="Folder to write.",
            show_default="inspection/<data>",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Finished run whose model computes the features of the images."
        ),
    ] = None,
    corrections: Corrections = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting, data.key=value; may be repeated."
        ),
    ] = None,
    size: Size = None,
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Decode images, or read only the table.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of every random number.")] = 0,
) -> None:
    """Check DATA before training: classes, clusters, duplicates, leaks, label errors."""
    from recame.cli.requests import inspect_request

    settings, out = inspect_request(data, out, run, corrections, set_ or [], size)

    from recame.inspection import inspect_set

    console = Console()
    inspect_set(
        data,
        data=settings,
        model=run,
        decode=decode,
        seed=seed,
        out=out,
        console=console,
    )
    say(console, f"Page: {out / 'inspection.html'}")


# In the order of the help.
for _verb in (
    *(inspect, synth, prepare, train, distill, evaluate, report, compare),
    *(tune, verify, export, latency, predict, monitor, bench, settings, doctor, cache),
):
    app.command(cls=Verb, **shown(_verb.__name__))(_verb)
