"""What tells the unknown, kept beside `decisions.json`: the fitted scorer's arrays."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from recame.decisions.strangeness import Scorer
from recame.decisions.unknown import scorer_of_arrays
from recame.errors import CheckpointError
from recame.files import open_regular, write_whole

#: In a run's folder, or a bundle's.
UNKNOWN_FILE = "unknown.npz"


def save_scorer(path: Path, scorer: Scorer) -> dict[str, str]:
    """Write a scorer, whole or not at all.

    Args:
        path: of the file.
        scorer: fitted.

    Returns:
        What `load_scorer` must know of it.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **scorer.to_arrays())
    content = stream.getvalue()
    with write_whole(path, advice="Free some space.") as partial:
        partial.write_bytes(content)
    return {"scorer": scorer.name, "sha256": hashlib.sha256(content).hexdigest()}


def load_scorer(path: Path, known: dict[str, str]) -> Scorer:
    """The scorer that decisions were fitted with.

    Args:
        path: of the file.
        known: what `save_scorer` gave.

    Raises:
        CheckpointError: it is missing, damaged, or of another tuning.
    """
    way_out = "Take it from a copy, or fit the decisions anew: recame tune."
    try:
        with open_regular(path) as stream:
            content = stream.read()
        if hashlib.sha256(content).hexdigest() != known["sha256"]:
            raise ValueError("it is not what decisions.json was written with")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return scorer_of_arrays(known["scorer"], {name: arrays[name] for name in arrays})
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}, by which unknown images are told, cannot be used ({error}), and they would "
            f"pass as known ones. {way_out}"
        ) from error
