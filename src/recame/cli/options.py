"""What several verbs take, each said once; which of it a verb takes stands in its function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: What a verb works on.
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
Model = Annotated[Path, typer.Argument(help="A bundle, or the folder of a finished run.")]

#: How a run is trained.
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting, section.key=value; may be repeated."),
]
Size = Annotated[
    str | None,
    typer.Option(help="Pixels of the images: a side, or height x width, as 128x512."),
]
Corrections = Annotated[
    Path | None,
    typer.Option(help="Table of corrected labels, as suspects.csv of recame inspect, filled in."),
]
TimeBudget = Annotated[str | None, typer.Option(help="Time for the whole run: 90s, 15m, 1h30m.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random number.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")]

#: How a model is run.
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or tensorrt.")]
Views = Annotated[
    int | None,
    typer.Option(
        help="Test-time flips and turns, averaged: 1, 2, 4 or 8.", show_default="the run's own"
    ),
]
