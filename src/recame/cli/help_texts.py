"""What the help of each verb says beside its options: group, examples, meaning of exit codes."""

from __future__ import annotations

from typing import Any, NamedTuple

DATA, TRAIN, EVALUATE, DEPLOY, RESEARCH, MACHINE = (
    "Data",
    "Train",
    "Evaluate",
    "Deploy and decide",
    "Research",
    "This machine",
)


#: What the words in capitals mean in the help of all verbs.
WORDS = (
    "RUN is the folder that recame train writes. BUNDLE is the exported model that recame export "
    "writes. MODEL is a RUN or a BUNDLE. DATA is a folder with one folder per class, a folder with "
    "train/val/test, or a table (CSV, Parquet) with the columns image and label. recame VERB "
    "--help shows examples and exit codes."
)


class Verb(NamedTuple):
    """A verb's place in the help.

    Attributes:
        panel: the group that it stands in.
        examples: commands as people type them.
        exits: exit code -> its meaning, beside 0 (done) and 2 (refused, with the reason).
    """

    panel: str
    examples: tuple[str, ...]
    exits: dict[int, str] = {}  # noqa: RUF012 - read only


#: In the order of the help.
VERBS = {
    "inspect": Verb(DATA, ("recame inspect images/", "recame inspect table.csv --no-decode")),
    "synth": Verb(DATA, ("recame synth icdefects/ --count 8000 --classes 14",)),
    "prepare": Verb(
        DATA,
        (
            "recame prepare",
            "recame prepare cifar100_lt raw/ --out sets/cifar100_lt --option imbalance=50",
        ),
    ),
    "train": Verb(
        TRAIN,
        (
            "recame train images/ --out runs/first --time-budget 10m --normal good",
            "recame train table.csv --epochs 20 --batch-size 64 --size 128 --device cuda",
            "recame train --out runs/first --resume",
        ),
        {
            1: "training ended early with the last good weights",
            3: "more images are unreadable than data.max_broken_fraction allows",
            130: "interrupted; --resume continues",
        },
    ),
    "distill": Verb(
        TRAIN,
        ("recame distill runs/first --out runs/small --time-budget 10m",),
        {
            1: "training ended early with the last good weights",
            130: "interrupted; --resume continues",
        },
    ),
    "evaluate": Verb(
        EVALUATE,
        (
            "recame evaluate runs/first",
            "recame evaluate runs/first night_shift/ --name nights --device cpu",
            "recame evaluate runs/first table.csv --set data.label_column=defect",
        ),
        {
            1: "the figures are written, but the report could not be drawn",
            3: "more images are unreadable than data.max_broken_fraction allows",
        },
    ),
    "report": Verb(EVALUATE, ("recame report runs/second --against runs/first",)),
    "compare": Verb(
        EVALUATE,
        ("recame compare runs/first runs/second labelled/ --out gate/",),
        {0: "NEW may replace OLD", 1: "NEW is worse", 3: "too few images to tell"},
    ),
    "tune": Verb(DEPLOY, ("recame tune runs/first --calibration labelled/ --limits limits.yaml",)),
    "verify": Verb(
        DEPLOY,
        ("recame verify runs/first fresh_labelled/",),
        {0: "all promises hold", 1: "a promise is broken", 3: "too few images to tell"},
    ),
    "export": Verb(
        DEPLOY,
        (
            "recame export runs/small --out bundle",
            "recame export runs/small --out bundle --format openvino --precision int8",
        ),
    ),
    "latency": Verb(
        DEPLOY,
        ("recame latency bundle --takt 20ms",),
        {1: "the model is slower than the takt time allows"},
    ),
    "predict": Verb(
        DEPLOY,
        (
            "recame predict bundle new_images/ --out decisions.csv",
            "recame predict runs/first table.csv --set data.image_column=file",
        ),
        {3: "more files are unreadable than --max-unreadable allows; call again to continue"},
    ),
    "monitor": Verb(
        DEPLOY,
        ("recame monitor bundle lot-7.csv",),
        {1: "more escapes than promised"},
    ),
    "bench": Verb(
        RESEARCH,
        ("recame bench benchmarks/plans/small.yaml --workers 2",),
        {1: "some runs failed; call again to retry them"},
    ),
    "settings": Verb(MACHINE, ("recame settings > settings.yaml",)),
    "doctor": Verb(MACHINE, ("recame doctor",)),
    "cache": Verb(MACHINE, ("recame cache", "recame cache --clear")),
}


def shown(name: str) -> dict[str, Any]:
    """Arguments of `typer` for a verb: its group, and the end of its help.

    Args:
        name: the verb.
    """
    verb = VERBS[name]
    exits = {0: "done", 2: "refused: the reason is the last line"} | verb.exits
    told = ", ".join(f"{code} {what}" for code, what in sorted(exits.items()))
    # typer begins a new line only after a blank one.
    lines = ["Examples:", *(f"  $ {example}" for example in verb.examples), f"Exit codes: {told}."]
    return {"name": name, "rich_help_panel": verb.panel, "epilog": "\n\n".join(lines)}
