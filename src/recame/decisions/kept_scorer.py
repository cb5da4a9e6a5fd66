"""Files of the fitted scorer that recognises unknown images, kept beside `decisions.json`."""

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

#: Its files in the folder of a run or a bundle. They are named by their content, so that decisions
#: and scorer change at the same moment, when `decisions.json` is replaced.
UNKNOWN_FILES = "unknown-*.npz"


def save_scorer(folder: Path, scorer: Scorer) -> dict[str, str]:
    """Write a scorer, whole or not at all, beside those of earlier decisions.

    Args:
        folder: of the run or bundle.
        scorer: the fitted scorer.

    Returns:
        What `load_scorer` needs to find it.

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
    """Remove the scorers of earlier decisions.

    Args:
        folder: of the run or bundle.
        known: what `save_scorer` returned for the present scorer; None: there is none.
    """
    for path in folder.glob(UNKNOWN_FILES):
        if known is None or path.name != known["file"]:
            path.unlink(missing_ok=True)


def load_scorer(folder: Path, known: Mapping[str, str]) -> Scorer:
    """Load the scorer that the decisions were fitted with.

    Args:
        folder: of the run or bundle.
        known: what `save_scorer` returned.

    Raises:
        CheckpointError: it is missing, damaged, or belongs to another tuning.
    """
    way_out = "Take it from a copy, or fit the decisions again: recame tune."
    path = folder / UNKNOWN_FILES
    try:
        path = folder / file_name(known["file"])
        with open_regular(path) as stream:
            content = stream.read()
        if hashlib.sha256(content).hexdigest() != known["sha256"]:
            raise ValueError("it is not the file that decisions.json belongs to")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return scorer_of_arrays(known["scorer"], {name: arrays[name] for name in arrays})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}, which recognises unknown images, cannot be used ({error}), so unknown images "
            f"would pass as known ones. {way_out}"
        ) from error
