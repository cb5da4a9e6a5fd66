"""Labelled images and a model's outputs for them, to tune, verify and compare runs or bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich.console import Console

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.data.file_part import readings
from recame.data.manifest import read_manifest
from recame.datasets.given import Given, given_path
from recame.decisions.document import short_contents
from recame.decisions.scored import Scored, logits_of
from recame.decisions.strangeness import Scorer
from recame.errors import ConfigError, DataError
from recame.files import sha256
from recame.names import counted, in_words, quoted
from recame.progress import progress_bars, say
from recame.runs.prediction_columns import CALLED, DECIDED, NAMED
from recame.runs.predictions import load_predictions
from recame.runtime.prediction import Prediction
from recame.runtime.predictor import Predictor

#: Splits that trained or chose a model.
_SEEN = ("train", "val")
#: Most images that a warning names.
_NAMED = 3


@dataclass(frozen=True)
class Labelled:
    """Images with labels.

    Attributes:
        table: N rows of `read_manifest`, each with a label.
        path: where they are described.
        source: the same in words.
    """

    table: pd.DataFrame
    path: Path
    source: str

    @classmethod
    def read(cls, given: Given, console: Console, *, keep: Path | None = None) -> Labelled:
        """Read a folder per class or a table; rows of the splits `train` and `val` are left out.

        From a table of decisions, only audited images are used: the others were looked at because
        of their score.

        Args:
            given: a path, a DataFrame, pairs of an image's path and its label, or a run.
            console: for messages about what is left out.
            keep: a folder in which a table given in memory is kept; None: it is not kept.

        Raises:
            DataError: there is no labelled image, or all were chosen by their score.
        """
        with ExitStack() as opened:
            folder = keep or Path(opened.enter_context(TemporaryDirectory()))
            path = opened.enter_context(given_path(given, folder))
            return cls._read(path, in_words(given), console)

    @classmethod
    def _read(cls, path: Path, source: str, console: Console) -> Labelled:
        if _is_of_predictions(path):
            # In this table, names may not be relative to it, and only some images have labels.
            found = load_predictions(path).predictions.table
            label = found["label"].where(found["label"] != "")
            table = found.assign(image=found["path"], label=label)
        else:
            table = read_manifest(path, min_classes=1)
        table = table[table["label"].notna()]
        if "split" in table:
            seen = table["split"].isin(_SEEN)
            if seen.any():
                told = f"{counted(int(seen.sum()))} of the splits train and val are left out"
                say(console, f"{source}: {told}, since such images train or choose models.")
            table = table[~seen]
        if table.empty:
            raise DataError(
                f"{source} holds no labelled image except those of train and val. Give labelled "
                "images that neither trained nor chose a model."
            )
        table = _not_chosen_by_score(table, source, console).reset_index(drop=True)
        return cls(table, path, source)

    @property
    def images(self) -> list[str]:
        """The names of the N images."""
        return [str(name) for name in self.table["image"]]

    def kept(self, rows: BoolArray) -> Labelled:
        """Select some of the images."""
        return replace(self, table=self.table[rows].reset_index(drop=True))

    def target(self, names: tuple[str, ...]) -> IntArray:
        """(N,) class indices.

        Raises:
            DataError: a label is none of the classes.
        """
        found = pd.Index(names).get_indexer(pd.Index(self.table["label"])).astype(np.int64)
        if (found < 0).any():
            unknown = sorted(set(self.table["label"][found < 0]))
            raise DataError(
                f"{self.source} has {counted(int((found < 0).sum()))} of "
                f"{', '.join(map(quoted, unknown[:8]))}, which the model does not know "
                f"({', '.join(map(quoted, names[:12]))}): correct the labels, or leave them out."
            )
        return found

    def column(self, name: str) -> list[str]:
        """Return a column as text.

        Raises:
            DataError: there is no column of that name.
        """
        if name not in self.table:
            columns = [str(each) for each in self.table if each not in ("path", "image")]
            raise DataError(
                f"{self.source} has no column {name!r} to group images by; it has "
                f"{', '.join(map(quoted, columns))}. Add the column, or name another one (group in "
                "the limits): images of one board or lot are not independent."
            )
        return [str(value) for value in self.table[name]]

    def answers(
        self, model: Predictor, console: Console, what: str, *, features: bool = False
    ) -> list[Prediction]:
        """Predict each image, in order, with checksums; `what` is the progress message."""
        paths = [str(path) for path in self.table["path"]]
        found: list[Prediction] = []
        with progress_bars(console) as progress:
            stream = model.stream(paths, num_images=len(paths), checksums=True, features=features)
            for prediction in stream:
                found.append(prediction)
                progress(what, len(found), len(paths))
        unread = [each for each in found if each.unreadable]
        if unread:
            named = ", ".join(each.image for each in unread[:_NAMED])
            count = "counts" if len(unread) == 1 else "count"
            told = (
                f"{counted(len(unread))} cannot be read, and {count} as sent to a person: {named}"
            )
            say(console, told, "yellow")
        return found


def _is_of_predictions(source: Path) -> bool:
    """Whether `recame predict` or `recame evaluate` wrote this file."""
    if source.is_dir() or source.suffix.lower() not in (".csv", ".parquet"):
        return False
    try:
        if source.suffix.lower() == ".csv":
            with source.open(encoding="utf-8-sig") as stream:
                first = stream.readline().strip()
            header = {name.strip('"') for part in first.split(";") for name in part.split(",")}
        else:
            from pyarrow import parquet

            header = set(parquet.read_schema(source).names)
    except (OSError, ValueError):  # reading it as a manifest reports the error
        return False
    return {*NAMED, *CALLED, *DECIDED} <= header


def _not_chosen_by_score(table: pd.DataFrame, source: str, console: Console) -> pd.DataFrame:
    """Select the audited images of a table of decisions; all if no image was sent to people."""
    if "action" not in table:
        return table
    reasons = table.get("reason", pd.Series("", table.index)).fillna("")
    audited = reasons == "audit"
    if audited.any():
        left = int((~audited).sum())
        if left:
            told = f"{counted(left)} that the audit has not drawn are left out"
            say(console, f"{source}: {told}: they may have been labelled because of their score.")
        return table[audited]
    if table["action"].isin(["review", "unknown"]).all():
        raise DataError(
            f"{source} holds {counted(len(table))}, all sent to people because of their score, "
            "so nothing is known about released images. Promises need images that were drawn "
            "whatever their score (audit in the limits of recame tune)."
        )
    return table


@dataclass(frozen=True)
class Judged:
    """Labelled images as a model scores them.

    Attributes:
        labelled: N images.
        scored: of the same.
        confidence: (N,) calibrated probability of the predicted class.
        contents: (N,) identifier of each image's content.
        probabilities: (N, C) calibrated.
    """

    labelled: Labelled
    scored: Scored
    confidence: FloatArray
    contents: tuple[str, ...]
    probabilities: FloatArray

    @property
    def called(self) -> IntArray:
        """(N,) index of the predicted class."""
        return np.asarray(np.nan_to_num(self.scored.logits, nan=-np.inf).argmax(1), np.int64)

    @property
    def sha256(self) -> str:
        """Identifies these images and labels, independent of their names and order."""
        rows = sorted(zip(self.contents, self.scored.target.tolist(), strict=True))
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def judged(
    model: Predictor,
    labelled: Labelled,
    console: Console,
    *,
    group: str | None,
    seen: Collection[str] = (),
    tuned: Collection[str] = (),
    scorer: Scorer | None = None,
) -> Judged:
    """Score labelled images, without exact duplicates and images that are not independent.

    Args:
        model: a loaded run or bundle.
        labelled: the images.
        console: for progress, and messages about what was left out.
        group: column whose values are counted instead of images.
        seen: contents of the images that trained or chose the model.
        tuned: of those to which its decisions were fitted, as `short_contents` shortens them.
        scorer: of how strange the images are to the model.

    Raises:
        ConfigError: the decisions were fitted to all of them.
        DataError: no image is left, a label is unknown, or the column is missing.
    """
    labelled.target(
        tuple(model.label_space.names)
    )  # refuse unknown labels before the images are predicted
    if group is not None:
        labelled.column(group)
    found = labelled.answers(model, console, "predicting", features=scorer is not None)
    contents = [content_of(each.sha256, each.image) for each in found]
    leaked = np.array([each in seen for each in contents], np.bool_)
    short = [short_contents([each])[0] for each in contents] if tuned else []
    spent = np.array([each in tuned for each in short] or [False] * len(contents), np.bool_)
    spent &= ~leaked
    related = np.zeros(len(contents), np.bool_)
    if group is not None:  # its other images are no independent witnesses
        groups = pd.Series(labelled.column(group))
        related = groups.isin(groups[leaked | spent]).to_numpy(np.bool_) & ~(leaked | spent)
    repeated = pd.Series(contents).duplicated().to_numpy(np.bool_) & ~(leaked | spent | related)
    reasons = (
        (leaked, "they trained or chose the model"),
        (spent, "the decisions were fitted to them"),
        (related, f"of the same {group} as these"),
        (repeated, "exact duplicates of others"),
    )
    for rows, why in reasons:
        if rows.any():
            told = f"{counted(int(rows.sum()))} of {labelled.source} left out: {why}."
            say(console, told, "yellow")
    kept = ~(leaked | spent | related | repeated)
    if not kept.any() and spent.any():
        raise ConfigError(
            f"{labelled.source} holds the images that the decisions were fitted to; they cannot "
            "verify the decisions. Give other images."
        )
    if not kept.any():
        raise DataError(f"All images of {labelled.source} trained or chose the model: give others.")
    labelled = labelled.kept(kept)
    probabilities = np.stack([each.probabilities for each in found])[kept]
    logits = logits_of(probabilities, model.temperature)
    strangeness = None
    if scorer is not None:
        strangeness = scorer.score(features_of(found)[kept], logits)
    scored = Scored(
        logits,
        labelled.target(tuple(model.label_space.names)),
        labelled.images,
        None if group is None else labelled.column(group),
        strangeness,
    )
    contents = list(np.array(contents, object)[kept])
    return Judged(labelled, scored, probabilities.max(1), tuple(contents), probabilities)


def features_of(found: Sequence[Prediction]) -> FloatArray:
    """(N, E, D) features of predictions; NaN if an image could not be read.

    Raises:
        DataError: the model gives no features.
    """
    first = next((each.features for each in found if each.features is not None), None)
    if first is None:
        raise DataError(
            "The model gives no features, which are needed to recognise unknown images: it is a "
            "bundle of an older version. Export it again."
        )
    nothing = np.full_like(first, np.nan)
    return np.stack([nothing if each.features is None else each.features for each in found])


def content_of(digest: str | None, name: str) -> str:
    """Identifier of an image's content: its file's checksum, and which part of the file it is."""
    if digest is None:  # it could not be opened
        return name
    file = next((file for file, _ in readings(name) if Path(file).is_file()), name)
    return digest + name[len(file) :]


def contents_of(paths: Iterable[str]) -> set[str]:
    """Identifiers of the contents of all files that still exist."""
    found, digests = set[str](), dict[str, str]()
    for name in paths:
        file = next((file for file, _ in readings(name) if Path(file).is_file()), None)
        if file is None:
            continue
        with suppress(OSError, DataError):
            if file not in digests:
                digests[file] = sha256(Path(file))
            found.add(digests[file] + name[len(file) :])
    return found
