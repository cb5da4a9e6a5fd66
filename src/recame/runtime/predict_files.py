"""Any number of image files -> one table, in constant memory, resumable after a kill.

Finished rows go to `<out>.partial/` beside the table, a chunk at a time. A restart keeps every
whole chunk there, cuts what is half-written, goes on behind it, and puts the table in place when
the last image is done.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from recame.data.listing import list_image_names
from recame.errors import ConfigError, DataError, MissingDependencyError
from recame.runtime.partial_table import PartialTable
from recame.runtime.predictor import Predictor, load

#: Called with (images done, images in all).
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictionSummary:
    """What `predict_files` did.

    Attributes:
        out: the table.
        num_images: images predicted, those of an interrupted start included.
        num_resumed: files that an interrupted start had done.
        counts: images of each predicted class, most frequent first.
        num_review: images that the threshold of the normal class holds back for review.
        num_unreadable: files without a prediction.
        unreadable: the first twenty of them, each with its reason.
        unreadable_path: the table of all of them (`image, reason`), None where there is none.
        seconds: of this start.
    """

    out: Path
    num_images: int
    num_resumed: int
    counts: dict[str, int]
    num_review: int
    num_unreadable: int
    unreadable: tuple[tuple[str, str], ...]
    unreadable_path: Path | None
    seconds: float


def predict(
    path: Path | str,
    sources: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    resume: bool = True,
    threads: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> PredictionSummary:
    """Predict files with a bundle or a run folder, and write a table.

    `recame.load(path).predict(...)` answers in memory instead.

    Args:
        path: the bundle or the run folder.
        sources: files, folders and globs.
        out: the `.csv` or `.parquet` file to write; see `predict_files`.
        resume: go on where an interrupted start left off.
        threads: as for `load`.
        batch_size: as for `load`.
        device: as for `load`.
        on_progress: called with images done and images in all.

    Raises:
        RecameError: the model or a path cannot be used, or no image is readable.
    """
    check_table(Path(out))
    predictor = load(path, threads=threads, batch_size=batch_size, device=device)
    several = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    return predict_files(predictor, several, out, resume=resume, on_progress=on_progress)


def predict_files(
    predictor: Predictor,
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    resume: bool = True,
    on_progress: OnProgress | None = None,
) -> PredictionSummary:
    """Predict any number of files in order; memory holds their names and a few batches.

    The table has one row a readable image: `image, prediction, confidence, decision,
    p_<class>...`, and where the model gives them `expert<k>_p_<class>...`. Files that cannot be
    read go to `<out's stem>_unreadable.csv` (`image, reason`). Both are put in place at the end.

    Args:
        predictor: from `load`.
        sources: files, folders and globs; each file once, sorted.
        out: the `.csv` or `.parquet` file to write; missing folders are made.
        resume: go on where an interrupted start with the same model and files left off; False
            starts afresh.
        on_progress: called with images done and images in all.

    Raises:
        ConfigError: another suffix.
        DataError: a source does not exist, no file is readable, the place cannot be written, or
            what an interrupted start left is of another model or other files.
        MissingDependencyError: a `.parquet` file is asked for without pyarrow.
    """
    out, began = Path(out), time.perf_counter()
    check_table(out)
    names = list_image_names(sources)
    with _writable(out):
        partial = PartialTable.open(out, predictor, names, resume=resume)
        with partial:
            done = partial.num_resumed
            if on_progress is not None:
                on_progress(done, len(names))
            stream = predictor.stream(
                islice(names, done, None), num_images=len(names), batch_size=partial.batch_size
            )
            while found := list(islice(stream, partial.chunk)):
                partial.add(found)
                done += len(found)
                if on_progress is not None:
                    on_progress(done, len(names))
        if not partial.num_images:
            partial.remove()
            told = "; ".join(f"{name}: {reason}" for name, reason in partial.unreadable[:3])
            raise DataError(f"None of {len(names)} images can be read ({told}): check the files.")
        unreadable_path = partial.finish()
    return PredictionSummary(
        out=out,
        num_images=partial.num_images,
        num_resumed=partial.num_resumed,
        counts=dict(partial.counts.most_common()),
        num_review=partial.num_review,
        num_unreadable=partial.num_unreadable,
        unreadable=tuple(partial.unreadable),
        unreadable_path=unreadable_path,
        seconds=time.perf_counter() - began,
    )


def check_table(path: Path) -> None:
    """Refuse what could not be written, before hours of work rather than after.

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
    """A full disk or a read-only place is the user's to mend; what is done stays."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error.strerror or error)
        raise DataError(
            f"Predictions cannot be written to {out}: {reason}. "
            f"{'Free some space' if full else 'Check the folder'} and start again, which goes on "
            "where this stopped, or choose another place."
        ) from error
