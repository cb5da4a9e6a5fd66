"""Turns the arguments of a verb into one checked request, before heavy imports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from recame.config import Config, DataConfig, load_config, parse_settings
from recame.errors import ConfigError, DataError
from recame.names import usual_run_dir
from recame.short_names import in_full


def train_request(
    data: Path | None,
    out: Path | None,
    config: Path | None,
    from_: Path | None,
    add: Path | None,
    corrections: Path | None,
    settings: list[str],
    short: dict[str, Any],
    resume: bool,
) -> tuple[Path, Config, Path]:
    """Check the arguments and merge the settings: file, then --set, then the options.

    Args:
        data: as given.
        out: as given.
        config: a file of settings.
        from_: finished run to start from.
        add: new images beside that run's.
        corrections: table of labels that people have corrected.
        settings: the texts of `--set`.
        short: the options that are settings, by their short names; None if an option is not given.
        resume: as given.

    Returns:
        The data, the settings and the run folder to write.

    Raises:
        ConfigError: options contradict each other, or a setting is wrong.
        DataError: no data is given, or it does not exist.
    """
    if resume:
        given = config or from_ or add or corrections or settings or in_full(short)
        options = (
            "--config, --from, --add, --corrections, --set, --epochs, --batch-size, --size, "
            "--normal, --device"
        )
        out = _resumed(out, "RUN", options, given)
        from recame.runs.folder import RunFolder

        return data or RunFolder.open(out).source, Config(), out
    if add is not None:
        data = _added(data, from_, add)
    if data is None:
        raise DataError(
            "No data given, so there is nothing to train on: recame train FOLDER (or a CSV/Parquet "
            "table)."
        )
    _check_exists(data)
    if out is None and "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError(
            "No --out given: each process that torchrun starts would name the run folder by its "
            "own clock. Give --out a folder that all processes can see."
        )
    changes = parse_settings(settings) | in_full({**short, "data.corrections": corrections})
    chosen = _start(config, from_, add=add is not None).updated(changes)
    return data, chosen, (out or usual_run_dir(data))


def _added(data: Path | None, from_: Path | None, add: Path) -> Path:
    """The new images, which are trained on together with those of `--from`."""
    if from_ is None or data is not None:
        what = "--from names no run with the old ones" if from_ is None else f"DATA is {data}"
        raise ConfigError(
            f"--add {add} gives only new images, but {what}: recame train --from RUN --add NEW, "
            "or recame train DATA --from RUN if DATA holds old and new images."
        )
    return add


def _start(config: Path | None, from_: Path | None, *, add: bool) -> Config:
    """The settings before `--set` and the options change them."""
    if from_ is None:
        return load_config(config) if config else Config()
    if config is not None:
        raise ConfigError(
            f"--from {from_} brings the settings of that run, but --config {config} gives others: "
            "leave out --config, and change single settings with --set."
        )
    from recame.training.continuing import continuing_config

    return continuing_config(from_, add=add)


def distill_request(
    run: Path | None,
    backbone: str | None,
    unlabelled: list[Path],
    out: Path | None,
    settings: list[str],
    size: str | None,
    time_budget: str | None,
    seed: int | None,
    resume: bool,
) -> tuple[dict[str, Any], Path]:
    """Check the arguments and merge the changes to the student's settings.

    Returns:
        The changes and the run folder to write.

    Raises:
        ConfigError: options contradict each other, or a setting is wrong.
        DataError: the run or a folder of images does not exist.
    """
    if resume:
        given = backbone or unlabelled or settings or size or time_budget or seed is not None
        return {}, _resumed(out, "STUDENT", "--backbone, --unlabelled, --set, --size", given)
    if run is None:
        raise ConfigError(
            "No teacher given, so there is nothing to learn from: recame distill RUN, with the "
            "folder of a finished run."
        )
    for path in unlabelled:
        _check_exists(path)
    changes = parse_settings(settings) | in_full(
        {"time_budget": time_budget, "seed": seed, "distill.size": size}
    )
    if backbone is not None and changes.get("model.backbone", backbone) != backbone:
        raise ConfigError(
            f"--backbone {backbone} contradicts --set model.backbone={changes['model.backbone']}: "
            "give one of them."
        )
    # Wrong settings are refused before anything is loaded; those of network and loss depend on the
    # teacher, and are checked later.
    Config().updated(
        {k: v for k, v in changes.items() if not k.startswith(("model.", "objective."))}
    )
    return changes, out or run.with_name(f"{run.resolve().name}-student")


def inspect_request(
    data: Path,
    out: Path | None,
    run: Path | None,
    corrections: Path | None,
    settings: list[str],
    size: str | None,
) -> tuple[DataConfig, Path]:
    """Check the arguments; `--set` changes the settings of `--run`.

    Returns:
        The settings of the data and the folder to write.

    Raises:
        ConfigError: a setting is wrong, or does not belong to the data.
        DataError: the data does not exist.
    """
    _check_exists(data)
    changes = parse_settings(settings) | in_full({"size": size, "data.corrections": corrections})
    if foreign := [name for name in changes if not name.startswith("data.")]:
        raise ConfigError(
            f"{foreign[0]} has no effect on an inspection: leave it out; --set takes only "
            "data.key=value here."
        )
    start = Config()
    if run is not None:
        from recame.runs.folder import RunFolder

        # The run's corrections belong to its own data, which may not be this data.
        start = RunFolder.open(run).load_config().updated({"data.corrections": None})
    config = start.updated(changes).data
    if out is None:
        from recame.inspection.saving import inspection_dir

        out = inspection_dir(data)
    return config, out


#: Name in `--outputs` -> name of the output of a bundle's graph.
EXPORT_OUTPUTS = {
    "experts": "expert_probabilities",
    "features": "features",
    "attribution": "attribution",
}


def check_max_escape(share: float | None) -> None:
    """Refuse an impossible escape limit before a bundle is made.

    Raises:
        ConfigError: the share does not lie in (0, 1).
    """
    if share is not None and not 0 < share < 1:
        raise ConfigError(
            f"--max-escape {share}: the share of a defect class that may be released must lie "
            "above 0 and below 1, for example 0.02; no number of images can promise 0."
        )


def export_outputs(words: str) -> tuple[str, ...]:
    """The further outputs of the graph that `recame export --outputs` names, with commas between.

    Raises:
        ConfigError: a word is unknown.
    """
    names = [word.strip() for word in words.split(",") if word.strip()]
    for name in names:
        if name not in EXPORT_OUTPUTS:
            raise ConfigError(
                f"--outputs {name!r} is unknown: choose from {', '.join(EXPORT_OUTPUTS)}."
            )
    return tuple(EXPORT_OUTPUTS[name] for name in names)


def _resumed(out: Path | None, name: str, options: str, given: object) -> Path:
    """The run to continue, which keeps its settings."""
    if out is None:
        raise ConfigError(f"--resume needs the run to continue: add --out {name}.")
    if given:
        raise ConfigError(
            f"--resume continues with the run's own settings: leave out {options}, --time-budget "
            "and --seed."
        )
    return out


#: Setting that `recame predict --set` takes -> name of the same option of a prediction.
_PREDICTING = {
    "data.image_column": "image_column",
    "data.box_columns": "box_columns",
    "evaluation.views": "views",
    "evaluation.batch_size": "batch_size",
}


def predict_request(settings: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Merge options and settings of a prediction; an option overrides the same setting.

    Args:
        settings: the texts of `--set`.
        options: values by their names in `_PREDICTING`; None if an option is not given.

    Raises:
        ConfigError: a setting is wrong, or has no effect on a prediction.
    """
    changes = parse_settings(settings)
    if foreign := [name for name in changes if name not in _PREDICTING]:
        raise ConfigError(
            f"{foreign[0]} has no effect on a prediction, as a trained run keeps its settings: "
            f"leave it out; --set takes {', '.join(_PREDICTING)} here."
        )
    config = Config().updated(changes)  # refuses wrong values
    for name in changes:
        section, _, key = name.partition(".")
        value = getattr(getattr(config, section), key)
        if options[_PREDICTING[name]] is None:
            none = "none" if name == "data.box_columns" else None  # null means: no boxes
            options[_PREDICTING[name]] = none if value in ("auto", None) else value
    return options


def _check_exists(data: Path) -> None:
    if not data.exists():
        raise DataError(f"No data at {data}: the path does not exist. Check the spelling.")


def data_paths(pairs: list[str]) -> dict[str, Path]:
    """Convert `NAME=PATH` texts to a mapping.

    Raises:
        ConfigError: a text has another form.
    """
    for pair in pairs:
        if not all(pair.partition("=")):
            raise ConfigError(
                f"--data {pair!r} does not name a data set and its path: write --data NAME=PATH."
            )
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}
