"""The verbs that need no images of the user: compare methods, generate or prepare a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recame.names import command


def bench(
    plan: Annotated[
        Path,
        typer.Argument(metavar="PLAN", help="The experiment: methods, data sets, seeds (YAML)."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="FOLDER",
            help="Folder to write runs and tables to.",
            show_default="runs/<plan>",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Path of a data set; may be repeated."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run only this method; may be repeated."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Run only this seed; may be repeated.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of runs at the same time.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of each run.", show_default="cores / workers"),
    ] = None,
    job_limit: Annotated[
        str, typer.Option(help="Longest time of a run; the next call continues a stopped run.")
    ] = "24h",
    gpu: Annotated[
        list[int] | None,
        typer.Option(help="Number of a GPU that the workers share; may be repeated."),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run on the Ray cluster at this address instead.")
    ] = None,
    costs: Annotated[
        bool | None,
        typer.Option(
            "--costs/--no-costs",
            help="Measure the costs of all methods again, or of none.",
            show_default="missing costs only",
        ),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing; write the tables of finished runs.")
    ] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write the headline table between the markers of this file."
        ),
    ] = None,
    elsewhere: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="results.csv with runs of this plan from another machine, which count as "
            "finished; may be repeated.",
        ),
    ] = None,
) -> None:
    """Compare methods under one protocol: run PLAN as a queue that can be stopped and resumed."""
    from recame.cli.requests import data_paths
    from recame.durations import parse_duration

    paths, job_limit_s = data_paths(data or []), parse_duration(job_limit)

    from recame.bench.command import Request, run_bench

    request = Request(
        plan,
        out or Path("runs") / plan.stem,
        paths,
        methods=tuple(method or ()),
        seeds=tuple(seed or ()),
        workers=workers,
        threads=threads,
        job_limit_s=job_limit_s,
        devices=tuple(gpu or ()),
        ray=ray,
        costs=costs,
        table=table,
        markdown=markdown,
        elsewhere=tuple(elsewhere or ()),
    )
    if not run_bench(request, Console()) and not table:
        raise typer.Exit(1)


def synth(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder to write.")],
    count: Annotated[int, typer.Option(help="Number of images in all splits together.")] = 8000,
    classes: Annotated[int, typer.Option(help="Number of classes, 2 to 14.")] = 14,
    products: Annotated[int, typer.Option(help="Number of product lines.")] = 12,
    size: Annotated[int, typer.Option(help="Side of an image in pixels, 32 to 256.")] = 64,
    imbalance: Annotated[
        float, typer.Option(help="Size of the largest class / size of the smallest, in train.")
    ] = 1000,
    clusters: Annotated[
        int | None,
        typer.Option(help="Number of appearance clusters of a head class.", show_default="6"),
    ] = None,
    cluster_skew: Annotated[
        float, typer.Option(help="Skew of their sizes: the k-th is proportional to k ** -skew.")
    ] = 0.0,
    unseen: Annotated[
        float, typer.Option(help="Share of val and test from clusters that train lacks.")
    ] = 0.2,
    permuted: Annotated[
        bool, typer.Option("--permuted", help="Let the seed decide which defects are rare.")
    ] = False,
    fine: Annotated[
        bool,
        typer.Option("--fine", help="Up to 30 finer classes: two kinds of most defects."),
    ] = False,
    tail_products: Annotated[
        int | None,
        typer.Option(help="Number of products with images of a tail class.", show_default="all"),
    ] = None,
    label_noise: Annotated[float, typer.Option(help="Share of wrong labels in train.")] = 0.0,
    exact_duplicates: Annotated[
        float, typer.Option(help="Share of train images that are exact duplicates.")
    ] = 0.0,
    near_duplicates: Annotated[
        float, typer.Option(help="Share of train images that are near duplicates.")
    ] = 0.0,
    leaks: Annotated[
        float, typer.Option(help="Share of val and test images that repeat a train image.")
    ] = 0.0,
    bit_depth: Annotated[int, typer.Option(help="Bits of each channel: 8 or 16.")] = 8,
    colour: Annotated[
        bool, typer.Option("--colour", help="Make colour images instead of grey ones.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Seed of every random number; another seed gives other images.")
    ] = 0,
) -> None:
    """Generate ICDefectSynth: images of IC defects as of an AOI, with planted clusters."""
    from recame.datasets.generated import SyntheticSpec, write
    from recame.progress import progress_bars, say

    spec = SyntheticSpec(
        num_images=count,
        num_classes=classes,
        num_products=products,
        size=size,
        imbalance=imbalance,
        clusters_per_class=clusters,
        cluster_skew=cluster_skew,
        unseen=unseen,
        permuted=permuted,
        fine=fine,
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
        manifest = write(spec, out, on_progress=report)
    say(console, f"Manifest: {manifest}")
    say(console, f"Ground truth: {out / 'truth.csv'}")


def prepare(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Name of a public data set.", show_default="lists all names"
        ),
    ] = None,
    raw: Annotated[
        Path | None,
        typer.Argument(
            metavar="RAW", help="Your copy of its files; not needed for a generated set."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="FOLDER",
            help="New or empty folder to write.",
            show_default="sets/<name>",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Replaces a published value; may be repeated."),
    ] = None,
) -> None:
    """Make the table of a public data set with its published split, from your copy of its files."""
    from recame.config import parse_settings
    from recame.datasets.registry import PUBLIC_SETS, public_set
    from recame.progress import progress_bars, say

    console = Console()
    if name is None:
        for key, known in PUBLIC_SETS.items():
            say(console, f"{key:22}{known.title}: needs {known.raw or 'nothing'}")
        return
    chosen, out = public_set(name), out or Path("sets") / name
    with progress_bars(console) as report:
        options = parse_settings(option or [])
        manifest = chosen.prepare(raw, out, on_progress=report, **options)
    say(console, f"Manifest: {manifest}")
    say(console, f"Next: {command('recame', 'inspect', manifest)}")


def settings(
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Print a JSON schema, with which editors complete a file."),
    ] = False,
) -> None:
    """Print every setting as YAML, with its default, its meaning and its allowed values."""
    import json

    from recame.config.template import settings_schema, settings_template

    typer.echo(json.dumps(settings_schema(), indent=2) if schema else settings_template(), nl=False)
