"""Which labelled images decisions are fitted to, and what these have chosen before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from recame.config import SYMMETRIES, Config
from recame.contracts import AnyPath
from recame.data.splits import CALIBRATE
from recame.datasets.given import Given
from recame.decisions.calibration import Calibration
from recame.decisions.document import earlier_tunings
from recame.errors import ConfigError, DataError
from recame.inference.finished_run import recorded_data
from recame.names import command, in_words
from recame.progress import say
from recame.reports.labelled import Labelled, contents_of
from recame.runs.folder import RunFolder
from recame.runtime.bundle import find_bundle, open_bundle

#: Sizes, and tiles or none, that are compared where they are left open, at most.
_SIZES, _TILES = 3, 2
#: Folder of a model for tables that were given in memory.
_KEPT = "given"


@dataclass(frozen=True)
class Basis:
    """What decisions are fitted to.

    Attributes:
        labelled: the images.
        told: which they are, in words.
        comparisons: models of which they may have chosen one.
        source: where they are described, if not by the run itself.
        seen: contents of the images that made the model, which promise nothing.
        group: column whose values count instead of images, as training has it.
        products: that trained the model; None: its table names fewer than two.
        product_column: what tables call them.
    """

    labelled: Labelled
    told: str
    comparisons: int = 1
    source: str | None = None
    seen: frozenset[str] = frozenset()
    group: str | None = None
    products: list[str] | None = None
    product_column: str = "product"

    def fitted(self, calibration: Calibration | None) -> str:
        """Why these images can promise nothing by probabilities that they calibrated, or empty.

        A temperature moves no score; biases of classes move the scores that limits are laid by.
        """
        if calibration is None or not calibration.balanced or self.source is not None:
            return ""
        if calibration.fitted_on.get("split") != self.told:
            return ""
        return (
            f"Biases of classes were fitted to these images of {self.told}: others promise "
            "(--calibration, or data.calibrate in training)"
        )


def basis_of(
    folder: Path, origin: RunFolder | None, calibration: Given | None, console: Console
) -> Basis:
    """Images for the decisions of a run, or of a bundle.

    Args:
        folder: of the model.
        origin: the run that it is, or that it was exported from; None: a bundle alone.
        calibration: labelled images that made nothing, of which a table in memory is kept beside
            the model; None: the run's own.
        console: where is told what cannot be known.

    Raises:
        ConfigError: nothing is given for a bundle.
        DataError: the run has no images that did not train it.
    """
    if origin is None:
        return _of_bundle(folder, calibration, console)
    config = origin.load_config()
    manifest = recorded_data(origin, config)
    made = manifest["path"][manifest["split"].isin(["train", "val"])]
    facts: dict[str, Any] = {
        "group": config.data.group_by,
        "products": _products(manifest, config.data.product_column),
        "product_column": config.data.product_column,
    }
    if calibration is not None:
        labelled = Labelled.read(calibration, console, keep=folder / _KEPT)
        facts |= {"source": str(labelled.path.absolute()), "seen": frozenset(contents_of(made))}
        return Basis(labelled, in_words(calibration), **facts)
    if (manifest["split"] == CALIBRATE).any():
        seen = frozenset(contents_of(made))
        return Basis(_own(origin, manifest, CALIBRATE), CALIBRATE, seen=seen, **facts)
    chosen = compared(origin.asked(), config)
    return Basis(_own(origin, manifest, "val"), "val", comparisons=chosen, **facts)


def _of_bundle(folder: Path, calibration: Given | None, console: Console) -> Basis:
    if calibration is None:
        words = ("recame", "tune", folder, "--calibration", "DATA")
        raise ConfigError(
            f"{folder} is a bundle, which holds no images: give labelled ones that neither trained "
            f"nor chose its model, {command(*words)}, or the run that it was exported from, --run."
        )
    say(console, "A bundle does not tell by which images it was made: see that none is among these")
    labelled = Labelled.read(calibration, console, keep=folder / _KEPT)
    return Basis(labelled, in_words(calibration), source=str(labelled.path.absolute()))


def _own(folder: RunFolder, manifest: pd.DataFrame, split: str) -> Labelled:
    """Images of the run's own table: those that choose nothing, or those that chose the model."""
    table = manifest[(manifest["split"] == split) & manifest["label"].notna()]
    if table.empty:
        raise DataError(
            f"{folder.path} has no val split, and the images that trained it promise nothing: "
            "give labelled images that did not, with --calibration."
        )
    path = folder.manifest_path
    return Labelled(table.reset_index(drop=True), path, str(path))


def origin_of(folder: Path, run: AnyPath | None) -> RunFolder | None:
    """The run whose images calibrate; None of a bundle without one.

    Raises:
        ConfigError: a run is given for a run, or one that the bundle was not exported from.
    """
    if not find_bundle(folder):
        if run is not None:
            raise ConfigError(f"--run {run}: {folder} is a run itself, and has its own images.")
        return RunFolder.open(folder, finished=True)
    if run is None:
        return None
    origin, document = RunFolder.open(Path(run), finished=True), open_bundle(folder).document
    facts = (origin.info().get("data_fingerprint"), origin.path.resolve().name)
    if (document.get("data_fingerprint"), document.get("run", {}).get("name")) != facts:
        raise ConfigError(
            f"{folder} was exported from a run {document.get('run', {}).get('name')!r} of other "
            f"images than {run}: images that made its model could calibrate it. Give its own run, "
            "or labelled images with --calibration."
        )
    return origin


def _products(manifest: pd.DataFrame, column: str) -> list[str] | None:
    """The products that trained a run; None where its table names fewer than two."""
    if column not in manifest:
        return None
    rows = manifest[column][manifest["split"] == "train"]
    found = sorted({str(name) for name in rows.dropna() if str(name)})
    return found if len(found) > 1 else None


def compared(asked: Config, config: Config) -> int:
    """How many models `val` may have chosen among, at most: what was left open, multiplied.

    Args:
        asked: the settings with `auto` where the run decided.
        config: as the run decided.
    """
    number = 1
    if asked.data.size == "auto":
        number *= _SIZES
        number *= _TILES if asked.data.tiles == "auto" else 1
    if asked.augment.symmetry == "auto":
        number *= len(SYMMETRIES)
    if asked.evaluation.views == "auto":
        most = SYMMETRIES[config.augment.symmetry] if config.augment.symmetry != "auto" else 8
        number *= most.bit_length()
    phases = 1 + config.finetune.enabled + config.retrain.enabled - (not config.probe.enabled)
    if config.run.keep in ("best_on_val", "best_phase"):
        number *= max(1, phases) + (2 if config.judges_joined else 0)
    return number


def looks_before(
    path: Path, origin: RunFolder | None, bundle: str, contents: Sequence[str]
) -> tuple[int, int]:
    """How often decisions were fitted to these images before.

    Returns:
        Those of the model itself, and, of a bundle, those of its run and the run's other bundles.
    """
    own = earlier_tunings(path, contents)
    if origin is None or origin.decisions_path == path:
        return own, 0
    return own, earlier_tunings(origin.decisions_path, contents, besides=bundle)
