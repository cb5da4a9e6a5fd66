"""A plan's data sets on this machine: given manifests, or sets built from a local raw copy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from recame.bench.plan.data_entry import DataEntry
from recame.bench.plan.plan import Plan
from recame.errors import ConfigError, DataError
from recame.progress import Progress, progress_bars, relabelled, say

#: Called with (raw copy or None, folder to write, progress); returns the manifest.
Build = Callable[[Path | None, Path, Progress], Path]


def find_sources(
    plan: Plan, given: dict[str, Path], folder: Path, out: Path, console: Console
) -> dict[tuple[str, int], Path]:
    """Find each data set, and build it if needed.

    A set whose data are missing is left out with a message, unless no set would be left.

    Args:
        plan: the plan.
        given: data set -> path, from the command line; overrides the plan's.
        folder: the plan's paths are relative to it.
        out: the bench's folder. Built sets lie in its `data/`, sets that are made anew for each
            seed in `data/NAME/seedN/`.
        console: where progress goes.

    Returns:
        Data set and seed of the plan -> manifest or folder, absolute.

    Raises:
        ConfigError: a name is unknown, a set cannot be made anew for each seed, or the data of all
            sets are missing.
        DataError: a set cannot be built.
    """
    own = {name: entry for name, entry in plan.data.items() if entry.of is None}
    if unknown := set(given) - set(own):
        raise ConfigError(
            f"--data names {', '.join(sorted(unknown))}; the plan has {', '.join(own)}."
        )
    for name, entry in own.items():
        if entry.data_seed == "block":
            _check_block(plan, name, entry, given.get(name))
    found: dict[tuple[str, int], Path] = {}
    for name, entry in own.items():
        path = given.get(name) or (entry.path and folder / entry.path)
        place = out / "data" / name
        if entry.data_seed == "block":
            made = _made_anew(name, entry, plan.seeds, path, folder, place, console)
        else:
            source = _source(name, entry, path, folder, place, console)
            made = None if source is None else dict.fromkeys(plan.seeds, source)
        if made is None:
            say(
                console,
                f"{name} is left out: its data are not at hand; give --data {name}=PATH",
                "yellow",
            )
        else:
            found |= {(name, seed): source.resolve() for seed, source in made.items()}
    if not found:
        raise ConfigError(
            f"Plan {plan.name}: no data set is at hand; give --data NAME=PATH for one of "
            f"{', '.join(own)}."
        )
    again = {name: entry.of for name, entry in plan.data.items() if entry.of is not None}
    return found | {
        (name, seed): found[root, seed]
        for name, root in again.items()
        for seed in plan.seeds
        if (root, seed) in found
    }


def _check_block(plan: Plan, name: str, entry: DataEntry, given: Path | None) -> None:
    """Refuse `data_seed: block` of a set that has no other images to draw."""
    from recame.datasets.registry import PUBLIC_SETS

    known, path = PUBLIC_SETS.get(entry.builder or ""), given or entry.path
    if entry.builder is None:
        told = "no builder: the images of a manifest or a folder are given. Name a builder that "
        told += "makes them, or leave data_seed out"
    elif known and known.raw and known.group:
        return  # its training images are resampled
    elif known and known.raw:
        told = f"builder={entry.builder}, whose images are published, and there are no others. "
        told += "Leave data_seed out, or take a set that is generated"
    elif known and path is not None:
        told = f"the path {path}, where one set lies. Leave one of the two out"
    elif "seed" in entry.options:
        told = f"options.seed={entry.options['seed']!r}, but a block's seed is the plan's. Leave "
        told += "it out"
    else:
        return
    raise ConfigError(
        f"Plan {plan.name}: data set {name} is to be made anew for each seed (data_seed=block) and "
        f"has {told}."
    )


def _made_anew(
    name: str,
    entry: DataEntry,
    seeds: tuple[int, ...],
    path: Path | None,
    folder: Path,
    place: Path,
    console: Console,
) -> dict[int, Path] | None:
    """Seed -> the manifest that the builder makes with it; None if the raw copy is missing.

    Published images do not depend on a seed: there, the groups in `train` are resampled.
    """
    from recame.datasets.public.resampled import resample_groups
    from recame.datasets.registry import PUBLIC_SETS

    if (place / "manifest.csv").exists():
        raise DataError(
            f"{place} holds the set {name} from before its data_seed was block, and results of "
            "the two cannot be compared: choose another --out."
        )
    known = PUBLIC_SETS.get(entry.builder or "")
    if known and known.raw:
        whole = _source(name, entry, path, folder, place / "published", console)
        if whole is None:
            return None
        whole = whole / "manifest.csv" if whole.is_dir() else whole
        return {s: resample_groups(whole, place / f"seed{s}", known.group, s) for s in seeds}
    made = {}
    for seed in seeds:
        block = entry.model_copy(update={"options": {**entry.options, "seed": seed}})
        label = f"building {name}, seed {seed}"
        source = _built(name, block, path, folder, place / f"seed{seed}", console, label)
        if source is None:
            return None
        made[seed] = source
    return made


def _source(
    name: str, entry: DataEntry, path: Path | None, folder: Path, out: Path, console: Console
) -> Path | None:
    if path is not None:
        if not path.exists():
            raise DataError(
                f"Data set {name}: there is nothing at {path.absolute()}. Check the path; that of "
                "--data starts from the folder in which you call recame bench."
            )
        manifest = path / "manifest.csv"
        # The path given for a set with a builder may be the set as built before.
        if entry.builder is None or path.suffix in {".csv", ".parquet"} or manifest.exists():
            return manifest if manifest.exists() else path
    if entry.builder is None:
        return None
    return _built(name, entry, path, folder, out, console, f"building {name}")


def _built(
    name: str,
    entry: DataEntry,
    path: Path | None,
    folder: Path,
    out: Path,
    console: Console,
    label: str,
) -> Path | None:
    """The manifest that the set's builder writes; None if its raw copy is missing."""
    build, needs_raw = _builder(name, entry, folder)
    if needs_raw and path is None:
        return None
    with progress_bars(console) as report:
        try:
            return build(path, out, relabelled(report, label))
        except TypeError as error:
            raise ConfigError(
                f"Data set {name}: its builder does not take {entry.options} ({error})."
            ) from error


def _builder(name: str, entry: DataEntry, folder: Path) -> tuple[Build, bool]:
    """The function that makes a set, and whether it needs a raw copy.

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
    words = inspect.signature(prepare).parameters
    if entry.data_seed == "block" and "seed" not in words:
        raise ConfigError(
            f"Data set {name}: data_seed=block hands each seed of the plan to the builder, and "
            f"prepare({', '.join(words)}) of {file} takes no `seed`, so all its sets would be the "
            "same: add a parameter `seed`, or leave data_seed out."
        )
    needs_raw = "raw" in words
    return (
        lambda raw, out, _: Path(prepare(*([raw] if needs_raw else []), out, **entry.options)),
        needs_raw,
    )
