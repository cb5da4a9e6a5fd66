"""Continue a run with further images: with its weights, settings, and splits of its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from recame.config import Config, DataConfig
from recame.data.copies import copies_of
from recame.data.corrections import CHANGES
from recame.data.file_groups import groups_of
from recame.data.manifest import ManifestColumns, read_manifest
from recame.data.splits import draw_splits
from recame.errors import CheckpointError, ConfigError, DataError
from recame.inference.finished_run import recorded_data
from recame.names import counted, quoted
from recame.runs.folder import RunFolder

#: Settings that a run decided from its data, and that a continuing run keeps.
KEPT = (
    *("data.size", "data.tiles", "data.channels", "data.bit_depth", "data.calibrate"),
    *("augment.symmetry", "model.backbone", "model.stages"),
)
#: With fewer new groups or images than this, they cannot be split: all are used for training.
_SPLITS = 3
#: Share of the run's images that a folder must hold, by relative name, to count as the moved folder
#: of the run: new images often have the same names as old ones.
_MOVED = 0.5


def continuing_config(path: Path, *, add: bool) -> Config:
    """The settings for a run that continues another one.

    The requested settings of the run are requested again, those that it decided from its images are
    kept (`KEPT`), and training starts from its weights. Time, learning rate and lengths are planned
    again.

    Args:
        path: of the finished run.
        add: whether the run's images come from its manifest, and the source has only new ones.

    Raises:
        CheckpointError: there is no run, or it is not finished.
        ConfigError: the run is a student's.
    """
    run = RunFolder.open(path, finished=True)
    asked, decided = run.asked(), run.load_config()
    if decided.distill.teacher is not None:
        raise ConfigError(
            f"{path} is a student's run, which its teacher has taught: continue the teacher, "
            f"{decided.distill.teacher}, and distill it again."
        )
    values = decided.model_dump()
    changes: dict[str, Any] = {}
    for name in KEPT:
        section, key = name.split(".")
        changes[name] = values[section][key]
    changes |= {"model.pretrained": run.path.resolve(), "data.continues": run.path.resolve()}
    changes["data.replay"] = add
    if add:  # the manifest contains the corrections
        changes["data.corrections"] = None
    return asked.updated(changes)


def continued_table(source: Path, settings: DataConfig, seed: int) -> tuple[pd.DataFrame, str]:
    """A manifest in which the images of `data.continues` keep their splits, and a reason.

    Args:
        source: all images, or with `data.replay` the new ones.
        settings: they name the run.
        seed: for the splits of the new images.

    Raises:
        CheckpointError: the run has lost the list of its images.
        DataError: the source cannot be used, or holds none of the run's images.
    """
    assert settings.continues is not None
    run = RunFolder.open(settings.continues, finished=True)
    known = recorded_data(run, run.load_config())
    columns = ManifestColumns.of(settings)
    found = read_manifest(
        source, columns, min_classes=1 if settings.replay else 2, pages=settings.pages
    )
    if settings.replay:
        table, lost = _with_new(known, found, source, run.path), 0
        old = pd.Series([True] * len(known) + [False] * (len(table) - len(known)))
    else:
        table, old = found, _known(found, known, source, run.path)
        lost = len(known) - int(old.sum())
    split = _new_splits(table, old, settings, seed)
    new = split[~old].value_counts()
    told = ", ".join(f"{name} {count:,}" for name, count in new.items()) or "none"
    why = (
        f"data.continues = {run.path}: {counted(int(old.sum()))} of it keep their splits, and "
        f"{counted(int((~old).sum()))} are new ({told})"
    )
    if lost:
        why += f"; missing: {counted(lost)} of the run"
    return table.assign(split=split), why


def resumed_table(table: pd.DataFrame, run: RunFolder, config: Config) -> pd.DataFrame:
    """A manifest whose images keep the splits that an unfinished run drew for them.

    So a run can be resumed by a version that would draw its splits otherwise.

    Args:
        table: all images of the run's source; given splits stay, but for `train`, from which others
            may have been drawn.
        run: with the list of its images; if it is missing or damaged, splits are drawn anew.
        config: the run's settings.
    """
    try:
        known = recorded_data(run, config)
        changes = run.listed(run.corrections_path, CHANGES)
    except CheckpointError:
        return table
    left_out = {} if changes is None else dict(zip(changes["image"], changes["split"], strict=True))
    recorded = dict(zip(_keys(known), known["split"], strict=True))
    given = table["split"] if "split" in table else pd.Series("train", table.index, dtype=object)
    # No list names what the run could not read. If that was all of `val`, none is drawn again.
    unread = "train" if "val" in set(known["split"]) else "val"
    drawn = [recorded.get(key, left_out.get(key[0], unread)) for key in _keys(table)]
    found = pd.Series(drawn, table.index, dtype=object)
    return table.assign(split=given.where(given != "train", found))


def _keys(table: pd.DataFrame) -> Iterator[tuple[str, int]]:
    """A key for each row, also where rows name the same image."""
    return zip(table["image"], table.groupby("image").cumcount(), strict=True)


def _with_new(known: pd.DataFrame, found: pd.DataFrame, source: Path, run: Path) -> pd.DataFrame:
    """The run's images and the new ones that it does not have, each with a unique name."""
    labels = known.drop_duplicates("path").set_index("path")["label"]
    again = found["path"].isin(labels.index)
    other = found[again & (found["label"] != found["path"].map(labels))]
    if len(other):
        first = other.iloc[0]
        raise DataError(
            f"{source} labels {counted(len(other))} of {run} otherwise than that run does "
            f"({quoted(first['image'])} is {quoted(first['label'])} there and "
            f"{quoted(labels[first['path']])} in the run), and one label must be wrong. Correct "
            "the run's labels by --corrections, or remove these images."
        )
    new = found[~again]
    if new.empty:
        raise DataError(f"{source} holds no image that {run} does not know: there is nothing new.")
    if new["image"].isin(known["image"]).any():
        new = new.assign(image=f"{source.name if source.is_dir() else source.stem}/" + new["image"])
    return pd.concat([known, new], ignore_index=True)


def _known(
    found: pd.DataFrame, known: pd.DataFrame, source: Path, run: Path
) -> pd.Series:  # of bool
    """Whether each image belongs to the run; the run's splits are written into `found`."""
    for key, least in (("path", 1), ("image", _MOVED * len(known))):
        splits = known.drop_duplicates(key).set_index(key)["split"]
        old = found[key].isin(splits.index)
        if old.sum() >= least:
            given = found["split"] if "split" in found else pd.Series(None, found.index, object)
            found["split"] = found[key].map(splits).where(old, given)
            return old
    raise DataError(
        f"{source} holds none of the {counted(len(known))} of {run}, whose splits were to be kept: "
        "to train on these and on new ones give the new ones with --add, or leave --from out and "
        f"set model.pretrained={run}."
    )


def _new_splits(table: pd.DataFrame, old: pd.Series, settings: DataConfig, seed: int) -> pd.Series:
    """The splits of all images: old ones keep theirs, new ones have given or drawn ones.

    A new image of a group that the run has goes to the split of the group; without groups, a copy
    of an image that the run has goes to the split of that image.
    """
    groups = groups_of(table, settings.group_by)
    copies = copies_of(table) if groups is None else None
    split = (
        table["split"].copy() if "split" in table else pd.Series(None, table.index, dtype=object)
    )
    if (together := groups if copies is None else copies) is not None:
        place = split[old].groupby(together[old]).first()
        split = split.where(split.notna(), together.map(place))
    left = split.isna()
    if not left.any():
        return split
    by_name = table[left].sort_values("image", kind="stable")
    own = None if groups is None else groups[by_name.index]
    number = len(by_name) if own is None else own.nunique()
    try:
        if number < _SPLITS:
            raise DataError("too few to divide")
        made = draw_splits(
            by_name["label"],
            val_fraction=settings.val_fraction,
            test_fraction=settings.test_fraction,
            groups=own,
            copies=copies,
            seed=seed,
        )
    except DataError:  # training would lose a class, or there is only one new board
        made = pd.Series("train", by_name.index, dtype=object)
    return split.where(~left, made.reindex(split.index))
