"""What tells the unknown, kept beside `decisions.json`: the fitted scorer's arrays."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recame.decisions.strangeness import Scorer
from recame.decisions.unknown import scorer_of_arrays
from recame.errors import CheckpointError
from recame.files import file_name, open_regular, write_whole

#: How its files are called in a run's folder, or a bundle's: by their content, so that decisions
#: and scorer change at one moment, that of `decisions.json`.
UNKNOWN_FILES = "unknown-*.npz"


def save_scorer(folder: Path, scorer: Scorer) -> dict[str, str]:
    """Write a scorer, whole or not at all, beside those of earlier decisions.

    Args:
        folder: of the run or bundle.
        scorer: fitted.

    Returns:
        What `load_scorer` must know of it.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **scorer.to_arrays())
    content = stream.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    name = UNKNOWN_FILES.replace("*", digest[:12])
    with write_whole(folder / name, advice="Free some space.") as partial:
        partial.write_bytes(content)
    return {"scorer": scorer.name, "sha256": digest, "file": name}


def remove_others(folder: Path, known: Mapping[str, str] | None) -> None:
    """Remove scorers of decisions that are no more.

    Args:
        folder: of the run or bundle.
        known: what `save_scorer` gave for the one that counts; None: none does.
    """
    for path in folder.glob(UNKNOWN_FILES):
        if known is None or path.name != known["file"]:
            path.unlink(missing_ok=True)


def load_scorer(folder: Path, known: Mapping[str, str]) -> Scorer:
    """The scorer that decisions were fitted with.

    Args:
        folder: of the run or bundle.
        known: what `save_scorer` gave.

    Raises:
        CheckpointError: it is missing, damaged, or of another tuning.
    """
    way_out = "Take it from a copy, or fit the decisions anew: recame tune."
    path = folder / UNKNOWN_FILES
    try:
        path = folder / file_name(known["file"])
        with open_regular(path) as stream:
            content = stream.read()
        if hashlib.sha256(content).hexdigest() != known["sha256"]:
            raise ValueError("it is not what decisions.json was written with")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return scorer_of_arrays(known["scorer"], {name: arrays[name] for name in arrays})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}, by which unknown images are told, cannot be used ({error}), and they would "
            f"pass as known ones. {way_out}"
        ) from error
