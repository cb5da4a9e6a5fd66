"""`recame verify`: do promised limits hold on new labelled images?"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from recame.contracts import AnyPath
from recame.datasets.given import Given
from recame.decisions.document import DECISIONS_FILE, save_verification
from recame.decisions.verification import Verification
from recame.decisions.verification import verify as verify_scores
from recame.errors import ConfigError, DataError
from recame.folders import folder_of
from recame.names import in_words, quoted
from recame.progress import say
from recame.reports.basis import made_of
from recame.reports.deciding import promises_of
from recame.reports.labelled import Labelled, judged
from recame.runtime.opening import load

_STYLES = {"holds": "green", "broken": "red", "too few": "yellow"}


def verify(folder: AnyPath, source: Given, *, console: Console | None = None) -> Verification:
    """Verify the promises of a run or bundle on images that neither trained nor tuned it.

    Images that did are left out and counted; if the limits count groups, so are the others of
    their groups. A bundle does not know which images trained it.

    Each verification is noted in its `decisions.json`.

    Args:
        folder: of the run or bundle.
        source: labelled images, given as for `train`: a folder per class, a table's path, a
            DataFrame, pairs of an image's path and its label, or a run.
        console: where progress and outcomes go; silent if None.

    Raises:
        ConfigError: nothing is promised, or the decisions were fitted to all these images.
        RecameError: the model or the images cannot be used.
    """
    console = console or Console(quiet=True)
    model = load(folder)
    kept = promises_of(model, folder)
    labelled = Labelled.read(source, console)
    found = judged(
        model,
        labelled,
        console,
        group=kept.group,
        seen=made_of(folder_of(folder)),
        tuned=kept.contents,
        scorer=kept.scorer,
    )
    if found.sha256 in kept.images:
        raise ConfigError(
            f"{in_words(source)} holds the images that the decisions were fitted to; they cannot "
            "verify the decisions. Give other images."
        )
    verification = verify_scores(
        found.scored, kept.policy, kept.promises, mix=kept.mix, confidence=kept.confidence
    )
    if not verification.rows:
        raise DataError(
            f"{folder} makes no promise that could be verified: its images were too few."
        )
    for row in verification.rows:
        say(console, f"  {row.sentence(kept.group or 'image')}", _STYLES[row.outcome])
    told = {
        "holds": "All promises hold",
        "broken": "A promise is broken: do not release by these decisions",
        "too few": "Too few images to tell",
    }[verification.outcome]
    say(console, f"{told} ({kept.confidence:.0%} confidence).")
    open_ = [promise.of for promise in kept.promises if promise.limit is None]
    if open_:
        named = ", ".join(map(quoted, dict.fromkeys(open_)))
        say(console, f"Nothing is promised of {named}, so nothing was verified of it.", "yellow")
    save_verification(Path(folder) / DECISIONS_FILE, verification, found.sha256)
    return verification
