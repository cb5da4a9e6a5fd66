"""`recame verify`: do a run's promised limits hold on new labelled images?"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from recame.decisions.document import save_verification
from recame.decisions.verification import Verification
from recame.decisions.verification import verify as verify_scores
from recame.errors import ConfigError, DataError
from recame.names import command
from recame.progress import say
from recame.reports.labelled import Labelled, judged
from recame.runtime.opening import load

_STYLES = {"holds": "green", "broken": "red", "too few": "yellow"}


def verify(run: Path | str, source: Path | str, *, console: Console | None = None) -> Verification:
    """Judge the promises of a run's decisions by labelled images that neither trained nor tuned.

    Each look is noted in the run's `decisions.json`.

    Args:
        run: the run's folder.
        source: labelled images: a folder per class, or a table.
        console: where progress and outcomes go; silent if None.

    Raises:
        ConfigError: the run promises nothing, or these images tuned it.
        RecameError: the run or the images cannot be used.
    """
    console = console or Console(quiet=True)
    model = load(run)
    kept = model.decisions
    if kept is None:
        raise ConfigError(
            f"{run} has no decisions that hold for its answers, so nothing is promised that could "
            f"be verified: fit them first with {command('recame', 'tune', Path(run))}."
        )
    found = judged(model, Labelled.read(source, console), console, group=kept.group)
    if found.sha256 in kept.images:
        raise ConfigError(
            f"{source} holds the images that the decisions were fitted to, which cannot verify "
            "them: give others."
        )
    verification = verify_scores(
        found.scored, kept.policy, kept.promises, mix=kept.mix, confidence=kept.confidence
    )
    if not verification.rows:
        raise DataError(f"{run} makes no promise that could be verified: its images were too few.")
    for row in verification.rows:
        say(console, f"  {row.sentence(kept.group or 'image')}", _STYLES[row.outcome])
    told = {
        "holds": "All promises hold",
        "broken": "A promise is broken: do not release by these decisions",
        "too few": "Too few images to tell",
    }[verification.outcome]
    say(console, f"{told} ({kept.confidence:.0%} confidence).")
    save_verification(Path(run) / "decisions.json", verification, found.sha256)
    return verification
