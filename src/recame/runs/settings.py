"""Reads a run's settings from disk, and refuses damaged or edited ones."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recame.errors import CheckpointError, ConfigError

if TYPE_CHECKING:  # which need pydantic and YAML
    from recame.config import Config

#: Settings of a run that may be edited: how and where it is evaluated.
EDITABLE = ("evaluation", "run.accelerator", "run.precision", "data.cache_dir")

#: Settings that older runs do not have -> the values that describe what these runs did.
_OF_OLDER_RUNS: dict[str, dict[str, Any]] = {
    "data": {"calibrate": 0.0},
    "probe": {"adapt_batch_norm": 0.0},
    "finetune": {"frozen_stages": 0},
    "evaluation": {"least_images_per_s": None},
}


def settings_digest(settings: dict[str, Any]) -> str:
    """SHA-256 of all settings except the editable ones, as in their file."""
    decisive = copy.deepcopy(settings)
    for name in EDITABLE:
        section, _, key = name.partition(".")
        if not key:
            decisive.pop(section, None)
        elif isinstance(decisive.get(section), dict):
            decisive[section].pop(key, None)
    text = json.dumps(decisive, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def load_run_settings(path: Path, known: Sequence[str] | None) -> Config:
    """Read a file of settings that a run wrote.

    Args:
        path: `config.yaml` or `asked.yaml`.
        known: what `settings_digest` may be; None: of a run of the version before.

    Raises:
        ConfigError: the file is missing or damaged, or what trained the run was edited.
    """
    from recame.config import parse_config, read_settings

    if not path.exists():
        raise ConfigError(
            f"{path} is missing, so it is unknown with which settings the run was trained. Restore "
            "it from a copy of the run, or train the run again."
        )
    values = read_settings(path)
    if not isinstance(values, dict) or "run" not in values:  # the last section
        raise ConfigError(
            f"{path} is empty or cut off, and missing settings would silently become the defaults. "
            "Restore the file from a copy of the run, or train the run again."
        )
    config = parse_config(_completed(values), str(path), warn_of_old_names=False)
    if known is not None and settings_digest(values) not in known:
        raise ConfigError(
            f"{path} was edited (run.json has another hash), so it does not say with which "
            f"settings the run was trained. Only {', '.join(EDITABLE)} may be edited: restore the "
            "other settings, or train a new run with --config."
        )
    return config


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, completed by those that its version did not have."""
    values = copy.deepcopy(values)
    for section, known in _OF_OLDER_RUNS.items():
        if isinstance(values.get(section), dict):
            values[section] = {**known, **values[section]}
    return values


def with_auto(config: Config, reasons: Sequence[str]) -> Config:
    """Settings with `auto` where one of the reasons, `section.key = value: why`, decided them."""
    from recame.config import Config as Default

    default = Default().model_dump()
    names = (reason.split(" = ")[0].split(".") for reason in reasons)
    open_names = (n for n in names if len(n) == 2 and default.get(n[0], {}).get(n[1]) == "auto")
    return config.updated(dict.fromkeys(map(".".join, open_names), "auto"))


def decided_views(config: Config, run: Path) -> int:
    """The test-time views of a run's settings.

    Raises:
        ConfigError: the views are `auto`, which no finished run has.
    """
    if config.evaluation.views == "auto":
        raise ConfigError(
            f"{run / 'config.yaml'} has evaluation.views: auto, so it is unclear how images are "
            "evaluated: write 1, 2, 4 or 8 there."
        )
    return config.evaluation.views


def load_reasons(path: Path) -> list[str]:
    """Read why settings were decided as they are, one sentence each; empty if none was noted.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        noted = json.loads(path.read_bytes()) if path.exists() else []
        if not isinstance(noted, list) or not all(isinstance(text, str) for text in noted):
            raise TypeError("it holds no list of sentences")
    except (OSError, ValueError, TypeError, RecursionError) as reason:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({reason}). It was edited or damaged: remove it; only "
            "the reasons for the settings are lost."
        ) from reason
    return noted


def check_weighting(run: Path, weighting: str) -> None:
    """Refuse a run whose expert weights are learned for each set of images.

    Raises:
        ConfigError: `evaluation.weighting` is not `mean`.
    """
    if weighting != "mean":
        raise ConfigError(
            f"{run} was evaluated with evaluation.weighting={weighting}, which learns the experts' "
            "weights from all images that are evaluated together; single images would be decided "
            "differently. Set evaluation.weighting: mean in its config.yaml and evaluate it again; "
            "the new figures then hold here."
        )
