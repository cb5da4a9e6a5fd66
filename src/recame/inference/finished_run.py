"""Open a finished run: its settings, its model, and images as its network sees them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch

from recame.config import Config
from recame.contracts import AnyPath, Predictions
from recame.data.dataset import InspectionSet, load_inspection_set
from recame.data.manifest import read_recorded_manifest
from recame.inference.device import choose_device, judging_precision
from recame.inference.graph_session import start_graph
from recame.inference.predict import predict_split
from recame.inference.run_graph import RunGraph
from recame.models import LoadedModel, load_checkpoint
from recame.progress import Progress
from recame.runs.classes import check_classes
from recame.runs.folder import RunFolder
from recame.runs.settings import decided_views

#: Predictions of more images keep no features for the report.
_MOST_FEATURES = 5000


def images_to_judge(
    described: Path | pd.DataFrame,
    config: Config,
    loaded: LoadedModel,
    split: str,
    progress: Progress,
    *,
    corrections: Path | None = None,
) -> InspectionSet:
    """Read images as the run's network sees them; without splits, all images belong to `split`.

    `corrections` are applied to images of a path only. A table is the run's own manifest, which
    holds the run's corrections already.
    """
    by = corrections if isinstance(described, Path) else None
    return load_inspection_set(
        described,
        config.data.model_copy(update={"corrections": by}),
        seed=config.run.seed,
        spec=loaded.spec,
        label_space=loaded.label_space,
        split_if_absent=split,
        on_progress=progress,
    )


def open_finished(
    run: AnyPath,
    device: str | None = None,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[RunFolder, Config, LoadedModel]:
    """Open a finished run: its folder, settings and model.

    Args:
        run: the folder.
        device: None: the device of the settings, with the changes.
        changes: full names of settings to other values.

    Raises:
        CheckpointError: there is no run, it is not finished, or its classes differ from its
            model's.
    """
    folder = RunFolder.open(run, finished=True)
    config = folder.load_config().updated(dict(changes))
    place = device or choose_device(config.run.accelerator)
    loaded = load_checkpoint(folder.path, place)
    check_classes(folder.path, loaded.label_space)
    return folder, config, loaded


def recorded_data(folder: RunFolder, config: Config) -> pd.DataFrame:
    """Read the manifest that the run recorded, so that no image changes its split.

    Raises:
        CheckpointError: the manifest is missing, damaged, or changed.
    """
    path = folder.manifest_path
    return read_recorded_manifest(path, config.data.product_column, folder.digests(path))


def answering_graph(folder: RunFolder, config: Config) -> RunGraph | None:
    """The graph by which the run predicts on this machine; None if torch is used."""
    device = choose_device(config.run.accelerator)
    if device.type != "cpu" or judging_precision(folder, config, device) != "32":
        return None
    started = start_graph(folder, device="cpu", threads=torch.get_num_threads())
    return None if started is None else started[1]


def predict_run(
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    data: InspectionSet,
    split: str,
    progress: Progress,
    *,
    features: bool,
    all_features: bool = False,
) -> Predictions:
    """Predict a split with the run's settings, not calibrated; large splits keep no features.

    With `all_features` they do; features are needed to recognise unknown images. On a CPU, the
    run's graph is used, as in `recame predict`.
    """
    device = choose_device(config.run.accelerator)
    return predict_split(
        loaded.model,
        data,
        split,
        num_views=decided_views(config, folder.path),
        batch_size=config.evaluation.batch_size,
        device=device,
        precision=judging_precision(folder, config, device),
        graph=answering_graph(folder, config),
        on_progress=progress,
        # Features of a very large split would fill the memory; the report then uses a sample.
        with_features=all_features or (features and len(data.view(split)) <= _MOST_FEATURES),
        weighting=config.evaluation.weighting,
    )
