"""What several verbs take, each said once; which of it a verb takes stands in its function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recame.short_names import SHORT

#: What a verb works on.
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A bundle, or the folder of a finished run.")
]

#: How a run is trained.
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting, section.key=value; may be repeated."
    ),
]
Epochs = Annotated[int | None, typer.Option(help=SHORT["epochs"].words, show_default="by the time")]
BatchSize = Annotated[int | None, typer.Option(help=SHORT["batch_size"].words)]
Size = Annotated[
    str | None,
    typer.Option(metavar="PIXELS", help=SHORT["size"].words, show_default="tried out on val"),
]
Corrections = Annotated[
    Path | None,
    typer.Option(
        metavar="TABLE",
        help="Table of corrected labels, as suspects.csv of recame inspect, filled in.",
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help=SHORT["time_budget"].words, show_default="10m on a CPU, else none"
    ),
]
Normal = Annotated[str | None, typer.Option(metavar="CLASS", help=SHORT["normal"].words)]
Seed = Annotated[int | None, typer.Option(help=SHORT["seed"].words)]
RunDevice = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help=SHORT["device"].words)
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")]

#: How a model is run.
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or tensorrt.")]
Views = Annotated[
    int | None,
    typer.Option(
        help="Test-time flips and turns, averaged: 1, 2, 4 or 8.", show_default="the run's own"
    ),
]
