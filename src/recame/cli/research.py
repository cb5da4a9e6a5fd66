"""The verbs that need no inspection images of one's own: compare methods, generate a set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recame.names import command


def bench(
    plan: Annotated[
        Path,
        typer.Argument(metavar="PLAN", help="The comparison: methods, data sets, seeds (YAML)."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="FOLDER",
            help="Folder for runs and tables.",
            show_default="runs/<plan>",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where a data set lies; may be repeated."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this method; may be repeated.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a run.", show_default="cores / workers")
    ] = None,
    job_limit: Annotated[
        str, typer.Option(help="A run is stopped after so long; the next call goes on with it.")
    ] = "24h",
    gpu: Annotated[
        list[int] | None, typer.Option(help="A GPU that the workers share; may be repeated.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run on the Ray cluster at this address instead.")
    ] = None,
    costs: Annotated[
        bool | None,
        typer.Option(
            "--costs/--no-costs",
            help="Measure again what each method costs, or not at all.",
            show_default="what is missing",
        ),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Only write the tables of what is finished.")
    ] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also put the headline table between this file's markers."
        ),
    ] = None,
    elsewhere: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="results.csv of this plan's runs made elsewhere: they count as done; may be "
            "repeated.",
        ),
    ] = None,
) -> None:
    """Compare methods under one protocol: PLAN as a queue that can be stopped and resumed."""
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
    count: Annotated[int, typer.Option(help="Images of all splits together.")] = 8000,
    classes: Annotated[int, typer.Option(help="Classes, 2 to 14.")] = 14,
    products: Annotated[int, typer.Option(help="Product lines.")] = 12,
    size: Annotated[int, typer.Option(help="Side in pixels, 32 to 256.")] = 64,
    imbalance: Annotated[float, typer.Option(help="Largest over smallest class in train.")] = 1000,
    clusters: Annotated[
        int | None, typer.Option(help="Clusters that a head class fills.", show_default="6")
    ] = None,
    cluster_skew: Annotated[
        float, typer.Option(help="How unevenly it fills them: the k-th as k ** -skew.")
    ] = 0.0,
    unseen: Annotated[
        float, typer.Option(help="Share of val and test of clusters that train lacks.")
    ] = 0.2,
    permuted: Annotated[
        bool, typer.Option("--permuted", help="The seed decides which defects are rare.")
    ] = False,
    fine: Annotated[
        bool, typer.Option("--fine", help="Up to 30 finer classes: defects in two kinds each.")
    ] = False,
    tail_products: Annotated[
        int | None,
        typer.Option(help="Products a tail class is scattered over.", show_default="all"),
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
    say(console, f"Planted truth: {out / 'truth.csv'}")


def prepare(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A public set.", show_default="all are listed"),
    ] = None,
    raw: Annotated[
        Path | None,
        typer.Argument(metavar="RAW", help="Your copy of its files; a generated set needs none."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            *("--out", "-o"),
            metavar="FOLDER",
            help="New or empty folder.",
            show_default="sets/<name>",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="In place of a published value; may be repeated."),
    ] = None,
) -> None:
    """Make a table of a public set by its published split, from your copy of its files."""
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
        bool, typer.Option("--schema", help="As JSON schema, by which an editor completes a file.")
    ] = False,
) -> None:
    """Print every setting with its default, what it means and what it may be, as YAML."""
    import json

    from recame.config.template import settings_schema, settings_template

    typer.echo(json.dumps(settings_schema(), indent=2) if schema else settings_template(), nl=False)
