"""Which labelled images decisions are fitted to, and how many models these images chose among."""

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

#: Most image sizes, and tiling options, that training compares if they are set to auto.
_SIZES, _TILES = 3, 2
#: Folder in a model's folder for tables that were given in memory.
_KEPT = "given"


@dataclass(frozen=True)
class Basis:
    """The labelled images that decisions are fitted to.

    Attributes:
        labelled: the images.
        told: the images, in words.
        comparisons: number of models from which they may have chosen one.
        source: where they are described, if not by the run itself.
        seen: contents of the images that trained or chose the model, which promise nothing.
        group: column whose values are counted instead of images, as in training.
        products: products in training; None: the run's table names fewer than two.
        product_column: the tables' column of products.
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
        """Return why these images can promise nothing after calibrating the model; else empty.

        A temperature changes no score, but class biases change the scores that limits depend on.
        """
        if calibration is None or not calibration.balanced or self.source is not None:
            return ""
        if calibration.fitted_on.get("split") != self.told:
            return ""
        return (
            f"Class biases were fitted to these images of {self.told}; promises need other images "
            "(--calibration, or data.calibrate in training)"
        )


def basis_of(
    folder: Path, origin: RunFolder | None, calibration: Given | None, console: Console
) -> Basis:
    """Find the images to which the decisions of a run or a bundle are fitted.

    Args:
        folder: of the model.
        origin: the run itself, or the run that the bundle was exported from; None: a bundle alone.
        calibration: labelled images that neither trained nor chose the model; a table in memory is
            kept beside the model. None: the run's own.
        console: for messages.

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


def made_of(folder: Path) -> frozenset[str]:
    """Contents of the images that trained or chose a run's model; none are known of a bundle's."""
    if find_bundle(folder):
        return frozenset()
    origin = RunFolder.open(folder, finished=True)
    manifest = recorded_data(origin, origin.load_config())
    return frozenset(contents_of(manifest["path"][manifest["split"].isin(["train", "val"])]))


def _of_bundle(folder: Path, calibration: Given | None, console: Console) -> Basis:
    if calibration is None:
        words = ("recame", "tune", folder, "--calibration", "DATA")
        raise ConfigError(
            f"{folder} is a bundle, which holds no images: give labelled images that neither "
            f"trained nor chose its model, {command(*words)}, or the run that it was exported "
            "from, --run."
        )
    say(console, "A bundle does not know its training images: make sure that none is among these")
    labelled = Labelled.read(calibration, console, keep=folder / _KEPT)
    return Basis(labelled, in_words(calibration), source=str(labelled.path.absolute()))


def _own(folder: RunFolder, manifest: pd.DataFrame, split: str) -> Labelled:
    """Images of the run's own table: those set aside, or else `val`, which chose the model."""
    table = manifest[(manifest["split"] == split) & manifest["label"].notna()]
    if table.empty:
        raise DataError(
            f"{folder.path} has no val split, and the images that trained it promise nothing: "
            "give other labelled images with --calibration."
        )
    path = folder.manifest_path
    return Labelled(table.reset_index(drop=True), path, str(path))


def origin_of(folder: Path, run: AnyPath | None) -> RunFolder | None:
    """Return the run whose images calibrate; None for a bundle without a run.

    Raises:
        ConfigError: a run is given for a run, or the bundle was not exported from this run.
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
            f"{folder} was exported from a run {document.get('run', {}).get('name')!r} with other "
            f"images than {run}: images that trained its model could then calibrate it. Give its "
            "own run, or labelled images with --calibration."
        )
    return origin


def _products(manifest: pd.DataFrame, column: str) -> list[str] | None:
    """The products in a run's training; None if its table names fewer than two."""
    if column not in manifest:
        return None
    rows = manifest[column][manifest["split"] == "train"]
    found = sorted({str(name) for name in rows.dropna() if str(name)})
    return found if len(found) > 1 else None


def compared(asked: Config, config: Config) -> int:
    """Largest number of models among which `val` may have chosen: the product of open choices.

    Args:
        asked: the settings before training, with `auto` for open choices.
        config: the settings that the run chose.
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
    """Count the earlier tunings on these images.

    Returns:
        Tunings of the model itself and, for a bundle, of its run and the run's other bundles.
    """
    own = earlier_tunings(path, contents)
    if origin is None or origin.decisions_path == path:
        return own, 0
    return own, earlier_tunings(origin.decisions_path, contents, besides=bundle)
