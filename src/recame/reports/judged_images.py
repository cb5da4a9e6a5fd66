"""Which images, labels, weights and settings figures are of, and the name under which they lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from recame.config import Config
from recame.data.corrections import CHANGES, LEFT_OUT, corrected
from recame.data.stored_views import NUM_VIEWS
from recame.errors import CheckpointError, ConfigError
from recame.files import read_json, write_json
from recame.inference.finished_run import recorded_data
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
        corrections: table of labels that people corrected since, absolute; None: none was given.
        settings: those of the run that were others then, see `JUDGING`.
    """

    source: str | None
    split: str
    weights: str
    views: int | None = None
    decided: str = ""
    corrections: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: RunFolder, name: str) -> JudgedImages | None:
        """What lies under a name; None if nothing was judged under it."""
        place = folder.evaluation_dir(name)
        if not any((place / file).exists() for file in (JUDGED, PREDICTIONS)):
            return None
        values = read_json(place / JUDGED) if (place / JUDGED).exists() else {}
        source, split = values.get("source"), values.get("split", name)
        weights, corrections = values.get("weights", ""), values.get("corrections")
        texts = (source or "", split, weights, corrections or "")
        if not all(isinstance(value, str) for value in texts):
            by = "" if corrections is None else f", corrections {corrections!r}"
            raise CheckpointError(
                f"{place / JUDGED} does not say which images were judged (source {source!r}, split "
                f"{split!r}{by}): it was edited or damaged. Judge them again after removing "
                f"{place}."
            )
        if (views := values.get("views")) is not None and views not in NUM_VIEWS:
            raise CheckpointError(
                f"{place / JUDGED} tells of {views!r} views: it was edited or damaged. Judge the "
                f"images again after removing {place}."
            )
        decided, settings = str(values.get("decided", "")), values.get("settings", {})
        return cls(source, split, weights, views, decided, corrections, settings)

    def write(self, place: Path) -> None:
        """Note it beside the predictions."""
        write_json(place / JUDGED, asdict(self))

    def words(self) -> str:
        """As an error names it."""
        words = f"split {self.split} of {self.source or 'the run itself'}"
        words += "" if self.corrections is None else f" as corrected by {self.corrections}"
        return words if self.views is None else f"{words} with {counted(self.views, 'view')}"

    def config(self, own: Config) -> Config:
        """The run's settings with those that judged."""
        views = {} if self.views is None else {"evaluation.views": self.views}
        return own.updated({**self.settings, **views})

    def images(self, folder: RunFolder, config: Config) -> tuple[Path | pd.DataFrame, pd.DataFrame]:
        """Where the images are described, and what of their labels people have corrected.

        Other images than the run's are corrected where they are read (`images_to_judge`).

        Raises:
            CheckpointError: the run no longer knows its images.
            DataError: the corrections contradict each other or the images.
        """
        settings = config.data.model_copy(update={"corrections": self.corrections_path})
        if self.source is not None:
            return Path(self.source), pd.DataFrame(columns=list(CHANGES))
        earlier = folder.listed(folder.corrections_path, CHANGES)
        left_out = [] if earlier is None else earlier["image"][earlier["is"] == LEFT_OUT].tolist()
        return corrected(recorded_data(folder, config), settings, left_out=left_out)

    @property
    def corrections_path(self) -> Path | None:
        """The table of corrections."""
        return None if self.corrections is None else Path(self.corrections)


def usual_name(judged: JudgedImages) -> str:
    """The split's name; another source's own, and its split's where that is none of `test`."""
    name = judged.split
    if judged.source is not None:
        path = Path(os.path.normpath(judged.source))  # `..` is no name
        own = path.name if path.is_dir() else path.stem
        name = own if judged.split == "test" else f"{own}-{judged.split}"
    name += "" if judged.corrections is None else "-corrected"
    return name if judged.views is None else f"{name}-{judged.views}-views"


def check_name(folder: RunFolder, name: str, judged: JudgedImages) -> None:
    """Refuse for other images, views or labels a name that belongs to the run's own."""
    own = {"train", "val", "test"}
    if judged.source is None and judged.views is None and judged.corrections is None:
        return
    with suppress(CheckpointError):  # other images are what a run without its own is judged by
        own |= set(recorded_data(folder, folder.load_config())["split"].dropna())
    if name in own:
        raise ConfigError(
            f"{judged.words()} would be judged under the name {name!r}, which is that of the run's "
            "own split: its figures would be overwritten. Give another with --name."
        )


def check_free(folder: RunFolder, name: str, judged: JudgedImages) -> None:
    """Refuse to overwrite other images' figures."""
    there = JudgedImages.read(folder, name)
    if there is not None and there.words() != judged.words():
        raise ConfigError(
            f"{folder.evaluation_dir(name)} holds the figures of {there.words()}, and those of "
            f"{judged.words()} would overwrite them. Give another name with --name, or remove that "
            "folder."
        )
