"""Predict any number of image files into one table, in constant memory, resumable after a kill.

Finished rows go to `<out>.partial/` beside the table, a chunk at a time. A restart keeps the rows
of unchanged files and predicts the others. The table gets its name when the last image is done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from recame.contracts import AnyPath
from recame.data.image_table import USUAL, TableColumns
from recame.data.listing import list_with_columns
from recame.errors import ConfigError, DataError, MissingDependencyError
from recame.runtime.opening import load
from recame.runtime.partial_table import PartialTable, Scorer
from recame.runtime.prediction_summary import PredictionSummary
from recame.runtime.predictor import DEFAULT_BATCH
from recame.runtime.url_table import local_table, send
from recame.runtime.urls import UrlReader, is_url, list_names

if TYPE_CHECKING:
    from recame.datasets.given import Given

#: Default for the largest share of unreadable files.
MAX_UNREADABLE = 0.1

#: Called with (images done, images in all).
OnProgress = Callable[[int, int], None]


def predict(
    path: AnyPath,
    sources: Given | Sequence[AnyPath],
    *,
    out: AnyPath,
    resume: bool = True,
    max_unreadable: float = MAX_UNREADABLE,
    threads: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    views: int | None = None,
    ray: str | None = None,
    columns: TableColumns = USUAL,
    on_progress: OnProgress | None = None,
) -> PredictionSummary:
    """Predict files with a bundle or a run folder, and write a table.

    `recame.load(path).predict(...)` returns predictions in memory instead.

    Args:
        path: the bundle or the run folder.
        sources: files, folders, globs, tables of images, and URLs of files, folders and globs
            (`docs/cluster.md`); a DataFrame with the column `image`, whose further columns are
            kept; a list of (image path, label); or a run, whose images are predicted.
        out: the `.csv` or `.parquet` file to write, or its URL; see `predict_files`.
        resume: continue an interrupted prediction.
        max_unreadable: as for `predict_files`.
        threads: as for `load`.
        batch_size: as for `load`.
        device: as for `load`.
        views: as for `load`.
        ray: address of a Ray cluster that predicts with a bundle: `auto`, `local`, `HOST:6379` or
            `ray://HOST:10001`. `threads` is then the number of cores for each shard of files (auto:
            1), and `batch_size` is not measured (auto: 16).
        columns: names of the tables' columns of images and of boxes.
        on_progress: called with the number of finished images and of all images.

    Raises:
        RecameError: the model, a path or the cluster cannot be used, or no image is readable.
    """
    table = local_table(out)
    check_table(table)
    with contextlib.ExitStack() as opened:
        several = _paths(sources, columns, opened)
        scorer: Scorer
        if ray is None:
            scorer = load(path, threads=threads, batch_size=batch_size, device=device, views=views)
            if any(map(is_url, several)):
                scorer.reader = UrlReader(scorer.spec, scorer.reader.max_pixels)
        else:
            from recame.runtime.cluster import on_cluster

            size = DEFAULT_BATCH if batch_size == "auto" else batch_size
            cores = 1 if threads == "auto" else threads
            scorer = opened.enter_context(
                on_cluster(path, ray, threads=cores, batch_size=size, device=device, views=views)
            )
        summary = predict_files(
            scorer,
            several,
            table,
            resume=resume,
            max_unreadable=max_unreadable,
            columns=columns,
            on_progress=on_progress,
        )
    return send(summary, out)


def _paths(
    sources: Given | Sequence[AnyPath], columns: TableColumns, opened: contextlib.ExitStack
) -> list[Path | str]:
    """Sources as paths; data in memory become a temporary table."""
    paths: Any = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    if isinstance(paths, (list, tuple)) and all(
        isinstance(each, (str, os.PathLike)) and not hasattr(each, "manifest_path")
        for each in paths
    ):
        return [each if isinstance(each, str) else Path(each) for each in paths]
    from recame.datasets.given import given_path

    folder = Path(opened.enter_context(TemporaryDirectory()))
    return [opened.enter_context(given_path(sources, folder, columns.image))]  # type: ignore[arg-type]


def predict_files(
    predictor: Scorer,
    sources: Sequence[Path | str],
    out: AnyPath,
    *,
    resume: bool = True,
    max_unreadable: float = MAX_UNREADABLE,
    columns: TableColumns = USUAL,
    on_progress: OnProgress | None = None,
) -> PredictionSummary:
    r"""Predict any number of files in order; memory holds their names and a few batches.

    The table has one row per file and the same columns as that of `recame evaluate`
    (`recame.runs.prediction_columns`): the prediction, what is done with the image (`action`) and
    why (`reason`), and the further columns of a source table. A file that cannot be read has no
    probabilities; `note` says why. Bytes of a name that are not text are written as escapes,
    `\udcff` for FF (`recame.names.escaped`). In a CSV, a name that a spreadsheet would take for a
    formula starts with an apostrophe (`recame.names.cell_of`).

    A review budget is applied to each production lot. Images that go to a person because of their
    score, but for which no person has time, get the reason `over_budget`; `note` keeps their first
    reason.

    Args:
        predictor: from `load`, or from `recame.runtime.cluster.on_cluster`.
        sources: files, folders, globs and tables (`.csv`, `.parquet`) of images or boxes. Each
            image is predicted once. Images are sorted; those of a single table keep its order.
        out: the `.csv` or `.parquet` file to write; missing folders are made.
        resume: continue an interrupted prediction with the same model. New and changed files are
            predicted; rows of files that are no longer among the sources are dropped. False: start
            again.
        max_unreadable: share of the files, rounded up to whole files, that may be unreadable.
        columns: names of the tables' columns of images and of boxes.
        on_progress: called with the number of finished images and of all images.

    Raises:
        ConfigError: `out` has another suffix, or a share is outside [0, 1].
        UnreadableError: more files are unreadable, or all. The table is not written, and the next
            call continues; files that could not be opened are tried again.
        DataError: a source does not exist, no file is readable, the file cannot be written, or the
            interrupted prediction was made by another model or another version.
        MissingDependencyError: a `.parquet` file needs pyarrow, which is not installed.
    """
    out, began = Path(out), time.perf_counter()
    check_table(out)
    if not 0 <= max_unreadable <= 1:
        raise ConfigError(
            f"--max-unreadable {max_unreadable}: give a share of files in [0, 1], for example 0.1."
        )
    plain = not any("://" in str(source) for source in sources)
    listed = list_with_columns(sources, columns) if plain else list_names(sources, columns)
    names = listed.paths
    with _writable(out), PartialTable(out, predictor, listed, resume=resume) as partial:
        tell, done = on_progress or (lambda *_: None), len(names) - len(partial.todo)
        tell(done, len(names))
        stream = predictor.stream(
            (names[place] for place in partial.todo),
            num_images=len(names),
            batch_size=partial.batch_size,
            checksums=True,
        )
        while found := list(islice(stream, partial.chunk)):
            partial.add(found)
            partial.check_opened(max_unreadable)
            done += len(found)
            tell(done, len(names))
        return partial.finish(began, max_unreadable)


def check_table(path: Path) -> None:
    """Stop early if the table could not be written.

    Raises:
        ConfigError: the name ends neither in .csv nor in .parquet.
        MissingDependencyError: it ends in .parquet and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ConfigError(
            f"Predictions cannot be written as {path.name!r}: "
            "the name must end in .csv or .parquet."
        )
    if suffix == ".parquet":
        try:
            import pyarrow as pa  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                "pyarrow", "train", "to write .parquet (.csv needs nothing)"
            ) from error


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into an error with advice; finished rows stay."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        full = (
            error.errno in (errno.ENOSPC, errno.EDQUOT)
            if isinstance(error, OSError)
            else error.sqlite_errorcode == sqlite3.SQLITE_FULL
        )
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"Predictions cannot be written to {out}: {reason}. "
            f"{'Free some space' if full else 'Check the folder'} and give the same command, which "
            "continues where this one stopped, or choose another place."
        ) from error
