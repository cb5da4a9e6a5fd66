"""Arguments and options that several verbs share."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from recame.errors import ConfigError
from recame.names import quoted
from recame.short_names import SHORT

#: The model that a verb works on.
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A bundle, or the folder of a finished run.")
]

#: Settings of a run.
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting, section.key=value; may be repeated."
    ),
]
Epochs = Annotated[
    int | None, typer.Option(help=SHORT["epochs"].words, show_default="as the time allows")
]
BatchSize = Annotated[int | None, typer.Option(help=SHORT["batch_size"].words)]
Size = Annotated[
    str | None,
    typer.Option(metavar="PIXELS", help=SHORT["size"].words, show_default="chosen on val"),
]
Corrections = Annotated[
    Path | None,
    typer.Option(
        metavar="TABLE",
        help="Table of corrected labels, for example suspects.csv of recame inspect, filled in.",
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

#: Settings of inference.
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or tensorrt.")]
Views = Annotated[
    int | None,
    typer.Option(
        help="Test-time augmentation: average over 1, 2, 4 or 8 flips and rotations.",
        show_default="the run's own",
    ),
]

_A_SETTING = re.compile(r"[a-z_]+\.[a-z_]+=")


class Verb(TyperCommand):
    """A verb that says how a setting is given if one stands where an argument would."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words after the verb.

        Raises:
            ConfigError: a setting stands among them without `--set`.
        """
        takes_settings = any("--set" in each.opts for each in self.params)
        for before, word in pairwise(["", *args]):
            alone = not before.startswith("-") and not Path(word).exists()
            if takes_settings and alone and _A_SETTING.match(word):
                raise ConfigError(
                    f"{quoted(word)} looks like a setting, and settings stand after --set: write "
                    f"--set {word}"
                )
        return super().parse_args(ctx, args)
