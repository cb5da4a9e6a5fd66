"""What state a run folder is in, from the standard library alone."""

from __future__ import annotations

import json
from pathlib import Path

from recame.errors import CheckpointError, ConfigError

#: The newest run.json that can be read.
_RUN_SCHEMA = 1


def check_weighting(run: Path, weighting: str) -> None:
    """Refuse a run whose experts are weighed anew for each set of images.

    Raises:
        ConfigError: `evaluation.weighting` is not `mean`.
    """
    if weighting != "mean":
        raise ConfigError(
            f"{run} was evaluated with evaluation.weighting={weighting}, which learns the experts' "
            "weights from all images that are judged together; images that come one by one would "
            "be decided differently. Set evaluation.weighting: mean in its config.yaml and "
            "evaluate it again: those figures then hold here."
        )


def check_finished(run: Path) -> None:
    """Refuse a folder without a finished run, before anything heavy is imported."""
    marker = run / "run.json"
    if not marker.is_file():
        raise CheckpointError(
            f"{run} holds no run and no bundle (no run.json, no bundle.json). Give the folder that "
            "`recame train ... --out FOLDER` or `recame export ... --out FOLDER` wrote."
        )
    try:
        facts = json.loads(marker.read_text(encoding="utf-8"))
        schema, state = facts.get("schema"), facts.get("state")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{marker} is damaged ({error}): train the run again.") from error
    if not isinstance(schema, int) or schema > _RUN_SCHEMA:
        raise CheckpointError(
            f"{run} is a run of schema {schema!r}; this version reads up to {_RUN_SCHEMA}. "
            "Update recame: pip install -U recame"
        )
    if state != "finished":
        raise CheckpointError(
            f"{run} is not finished: it was interrupted, or still trains. Continue it with: "
            f"recame train DATA --out {run} --resume"
        )
