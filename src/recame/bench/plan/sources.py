"""A plan's data sets on this machine: manifests at hand, or built from a local raw copy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from recame.bench.plan.plan import DataEntry, Plan
from recame.errors import ConfigError, DataError
from recame.progress import Progress, progress_bars, relabelled, say

#: Called with (raw copy or None, folder to write, progress); returns the manifest.
Build = Callable[[Path | None, Path, Progress], Path]


def find_sources(
    plan: Plan, given: dict[str, Path], folder: Path, out: Path, console: Console
) -> dict[str, Path]:
    """Where each data set lies, built now where that is needed.

    A set that needs data which are not at hand is left out, and said so, as long as one is left.

    Args:
        plan: what is compared.
        given: data set -> path, from the command line; overrules the plan's.
        folder: what the plan's paths are relative to.
        out: the bench's folder; sets that are built lie in its `data/`.
        console: where progress goes.

    Returns:
        Data set -> manifest or folder, absolute.

    Raises:
        ConfigError: a name is unknown, or no set is at hand.
        DataError: a set cannot be built.
    """
    if unknown := set(given) - set(plan.data):
        raise ConfigError(
            f"--data names {', '.join(sorted(unknown))}; the plan has {', '.join(plan.data)}."
        )
    found = {}
    for name, entry in plan.data.items():
        path = given.get(name) or (entry.path and folder / entry.path)
        source = _source(name, entry, path, folder, out / "data" / name, console)
        if source is None:
            say(
                console,
                f"{name} is left out: its data are not at hand; give --data {name}=PATH",
                "yellow",
            )
        else:
            found[name] = source.resolve()
    if not found:
        raise ConfigError(
            f"Plan {plan.name}: no data set is at hand; give --data NAME=PATH for one of "
            f"{', '.join(plan.data)}."
        )
    return found


def _source(
    name: str, entry: DataEntry, path: Path | None, folder: Path, out: Path, console: Console
) -> Path | None:
    if path is not None:
        if not path.exists():
            raise DataError(f"Data set {name}: there is nothing at {path}; check the path.")
        manifest = path / "manifest.csv"
        # What is given for a set that could be built may be the built set already.
        if entry.builder is None or path.suffix in {".csv", ".parquet"} or manifest.exists():
            return manifest if manifest.exists() else path
    if entry.builder is None:
        return None
    build, needs_raw = _builder(name, entry, folder)
    if needs_raw and path is None:
        return None
    with progress_bars(console) as report:
        try:
            return build(path, out, relabelled(report, f"building {name}"))
        except TypeError as error:
            raise ConfigError(
                f"Data set {name}: its builder does not take {entry.options} ({error})."
            ) from error


def _builder(name: str, entry: DataEntry, folder: Path) -> tuple[Build, bool]:
    """What makes a set, and whether it needs a raw copy.

    A user's own file defines `prepare(out)` or `prepare(raw, out)`.
    """
    from recame.datasets.registry import public_set

    assert entry.builder is not None
    if not entry.builder.endswith(".py"):
        known = public_set(entry.builder)
        return (
            lambda raw, out, tell: known.prepare(raw, out, on_progress=tell, **entry.options),
            bool(known.raw),
        )
    file = folder / entry.builder
    space: dict[str, Any] = {"__name__": f"recame_set_{file.stem}", "__file__": str(file)}
    try:
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), space)  # noqa: S102
    except Exception as error:
        raise ConfigError(f"Data set {name}: {file} cannot be run ({error!r}).") from error
    prepare = space.get("prepare")
    if not callable(prepare):
        raise ConfigError(f"Data set {name}: {file} defines no function prepare(out).")
    needs_raw = "raw" in inspect.signature(prepare).parameters
    return (
        lambda raw, out, _: Path(prepare(*([raw] if needs_raw else []), out, **entry.options)),
        needs_raw,
    )
