"""Record to which images, labels, weights and settings figures belong, and under which name."""

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

#: File beside predictions that says to which images and weights they belong.
JUDGED = "judged.json"
PREDICTIONS = "predictions.parquet"
#: Settings that may be changed when a run is evaluated: how images are read and computed.
JUDGING = (
    *(f"data.{name}_column" for name in ("image", "label", "split", "product")),
    *(f"data.{name}" for name in ("encoding", "box_columns", "pages")),
    *(f"data.{name}" for name in ("max_broken_fraction", "max_pixels", "cache_dir")),
    *("evaluation.batch_size", "evaluation.bootstrap", "run.accelerator", "run.precision"),
)


def judging_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check settings that change how a finished run is evaluated.

    Args:
        given: full names, or `device`, to values; None: not given.

    Raises:
        ConfigError: a setting is unknown, has a wrong type, or is fixed by training.
    """
    found = in_full(given)
    Config().updated(found)
    if foreign := [name for name in found if name not in JUDGING]:
        raise ConfigError(
            f"{foreign[0]} was fixed when the run was trained, and another value would evaluate "
            f"another model: only {', '.join(JUDGING)} and views can be changed."
        )
    return found


@dataclass(frozen=True)
class JudgedImages:
    """The images that were evaluated, and with what; the content of `judged.json`.

    Attributes:
        source: absolute path where images other than the run's own are described; None: the run's.
        split: which split of them.
        weights: SHA-256 of the weights; empty if an older version evaluated them.
        views: requested views of test-time augmentation; None: as in the run.
        decided: `KeptPolicy.sha256` of the decisions that were used; empty: none.
        corrections: absolute path of a table of corrected labels; None: none was given.
        settings: settings of the run that were changed, see `JUDGING`.
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
        """Read the record of a name; None if nothing was evaluated under it."""
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
                f"{place / JUDGED} does not say which images were evaluated (source {source!r}, "
                f"split {split!r}{by}): it was edited or damaged. Remove {place} and evaluate them "
                "again."
            )
        if (views := values.get("views")) is not None and views not in NUM_VIEWS:
            raise CheckpointError(
                f"{place / JUDGED} says {views!r} views: it was edited or damaged. Remove {place} "
                "and evaluate the images again."
            )
        decided, settings = str(values.get("decided", "")), values.get("settings", {})
        return cls(source, split, weights, views, decided, corrections, settings)

    def write(self, place: Path) -> None:
        """Write the record beside the predictions."""
        write_json(place / JUDGED, asdict(self))

    def words(self) -> str:
        """Describe the images, for errors."""
        words = f"split {self.split} of {self.source or 'the run itself'}"
        words += "" if self.corrections is None else f" as corrected by {self.corrections}"
        return words if self.views is None else f"{words} with {counted(self.views, 'view')}"

    def config(self, own: Config) -> Config:
        """The run's settings with the changes of this evaluation."""
        views = {} if self.views is None else {"evaluation.views": self.views}
        return own.updated({**self.settings, **views})

    def images(self, folder: RunFolder, config: Config) -> tuple[Path | pd.DataFrame, pd.DataFrame]:
        """Return where the images are described, and the labels that people have corrected.

        Images other than the run's own are corrected when they are read (`images_to_judge`).

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
    """The default name: the split's; for another source its own, with the split unless `test`."""
    name = judged.split
    if judged.source is not None:
        path = Path(os.path.normpath(judged.source))  # so that `..` is resolved
        own = path.name if path.is_dir() else path.stem
        name = own if judged.split == "test" else f"{own}-{judged.split}"
    name += "" if judged.corrections is None else "-corrected"
    return name if judged.views is None else f"{name}-{judged.views}-views"


def check_name(folder: RunFolder, name: str, judged: JudgedImages) -> None:
    """Refuse the name of one of the run's own splits for other images, views or labels."""
    own = {"train", "val", "test"}
    if judged.source is None and judged.views is None and judged.corrections is None:
        return
    with suppress(CheckpointError):  # a run may have lost its own images
        own |= set(recorded_data(folder, folder.load_config())["split"].dropna())
    if name in own:
        raise ConfigError(
            f"{judged.words()} would be evaluated under the name {name!r}, which is that of the "
            "run's own split: its figures would be overwritten. Give another name with --name."
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
