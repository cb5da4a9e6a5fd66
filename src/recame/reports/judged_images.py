"""Which images a run was judged on, and by what: the note that lies beside its predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recame.config import Config
from recame.data.stored_views import NUM_VIEWS
from recame.errors import CheckpointError, ConfigError
from recame.files import read_json, write_json
from recame.names import counted
from recame.runs.folder import RunFolder
from recame.short_names import in_full

#: Beside predictions: which images and weights they are of.
JUDGED = "judged.json"
PREDICTIONS = "predictions.parquet"
#: Settings that may be others when a run is judged: how images are read, and how it is computed.
JUDGING = (
    *(f"data.{name}_column" for name in ("image", "label", "split", "product")),
    *(f"data.{name}" for name in ("encoding", "box_columns", "pages")),
    *(f"data.{name}" for name in ("max_broken_fraction", "max_pixels", "cache_dir")),
    *("evaluation.batch_size", "evaluation.bootstrap", "run.accelerator", "run.precision"),
)


def judging_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that change how a finished run is judged.

    Args:
        given: whole names, or `device`, to values; None says nothing.

    Raises:
        ConfigError: one is unknown, ill-typed, or decided by training.
    """
    found = in_full(given)
    Config().updated(found)
    if foreign := [name for name in found if name not in JUDGING]:
        raise ConfigError(
            f"{foreign[0]} was decided when the run was trained, and another value would judge "
            f"another model: only {', '.join(JUDGING)} may be others (and views)."
        )
    return found


@dataclass(frozen=True)
class JudgedImages:
    """Which images figures are of, and what they were judged by, as `judged.json` tells.

    Attributes:
        source: where other images than the run's own are described, absolute; None: the run's.
        split: which split of them.
        weights: SHA-256 of the weights that judged; empty where the version before did.
        views: test-time views that were asked for; None: the run's own.
        decided: `KeptPolicy.sha256` of the decisions that decided; empty where none did.
        settings: those of the run that were others then, see `JUDGING`.
    """

    source: str | None
    split: str
    weights: str
    views: int | None = None
    decided: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: RunFolder, name: str) -> JudgedImages | None:
        """What lies under a name; None if nothing was judged under it."""
        place = folder.evaluation_dir(name)
        if not any((place / file).exists() for file in (JUDGED, PREDICTIONS)):
            return None
        values = read_json(place / JUDGED) if (place / JUDGED).exists() else {}
        source, split = values.get("source"), values.get("split", name)
        weights = values.get("weights", "")
        if not all(isinstance(value, str) for value in (source or "", split, weights)):
            raise CheckpointError(
                f"{place / JUDGED} does not say which images were judged (source {source!r}, split "
                f"{split!r}): it was edited or damaged. Judge them again after removing {place}."
            )
        if (views := values.get("views")) is not None and views not in NUM_VIEWS:
            raise CheckpointError(
                f"{place / JUDGED} tells of {views!r} views: it was edited or damaged. Judge the "
                f"images again after removing {place}."
            )
        settings = values.get("settings", {})
        return cls(source, split, weights, views, str(values.get("decided", "")), settings)

    def write(self, place: Path) -> None:
        """Note it beside the predictions."""
        write_json(place / JUDGED, asdict(self))

    def words(self) -> str:
        """As an error names it."""
        words = f"split {self.split} of {self.source or 'the run itself'}"
        return words if self.views is None else f"{words} with {counted(self.views, 'view')}"

    def config(self, own: Config) -> Config:
        """The run's settings with those that judged."""
        views = {} if self.views is None else {"evaluation.views": self.views}
        return own.updated({**self.settings, **views})
