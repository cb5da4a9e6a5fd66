"""`recame compare`: may a new model replace the old one on the line?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from recame.config.files import read_settings
from recame.contracts import AnyPath
from recame.datasets.given import Given
from recame.decisions.flips import Answers
from recame.decisions.gate import GateResult, judge
from recame.decisions.gate_rules import GateRules
from recame.errors import ConfigError, DataError
from recame.files import csv_text, write_json, write_text
from recame.names import by_number, counted, quoted
from recame.progress import say
from recame.reports.labelled import Labelled
from recame.runtime.opening import load
from recame.runtime.prediction import Prediction
from recame.runtime.predictor import Predictor

#: Most flips that are printed.
_SHOWN = 10
_STYLES = {"passed": "green", "blocked": "red", "cannot_tell": "yellow"}


def compare(
    old: AnyPath,
    new: AnyPath,
    source: Given,
    *,
    rules: AnyPath | GateRules | Mapping[str, Any] | None = None,
    normal: str | None = None,
    out: AnyPath | None = None,
    console: Console | None = None,
) -> GateResult:
    """Compare two models, runs or bundles, by their decisions on the same images.

    A defect escapes if it is released, that is, decided to be of the normal class.

    Args:
        old: the folder of the model on the line.
        new: the folder of the model that may replace it.
        source: labelled images that trained neither model, given as for `train`: a folder per
            class, a table's path, a DataFrame, pairs of an image's path and its label, or a run.
        rules: a YAML file, its values, or the rules; None: `GateRules()`.
        normal: the normal class, if the models name none.
        out: a folder for `gate.json` and `flips.csv`; None: neither is written.
        console: where progress and the verdict go; silent if None.

    Raises:
        ConfigError: a rule is wrong, or the models do not agree on the normal class.
        RecameError: a model or the images cannot be used.
    """
    console = console or Console(quiet=True)
    asked = _read(rules)
    models = {"old": load(old), "new": load(new)}
    name = _normal(models, normal)
    labelled = Labelled.read(source, console)
    names = tuple(dict.fromkeys(n for m in models.values() for n in m.label_space.names))
    target = labelled.target(names)
    answers = {
        which: _answers(labelled.answers(model, console, f"the {which} model"), labelled, name)
        for which, model in models.items()
    }
    result = judge(
        asked,
        answers["old"],
        answers["new"],
        target,
        images=labelled.images,
        names=names,
        normal_index=names.index(name),
        products=labelled.column("product") if "product" in labelled.table else None,
    )
    _tell(result, console)
    if out is not None:
        folder = Path(out)
        write_json(folder / "gate.json", result.to_dict())
        flips = pd.DataFrame([flip._asdict() for flip in result.flips])
        write_text(folder / "flips.csv", csv_text(flips, index=False))
        say(console, f"Written: {folder / 'gate.json'}, {folder / 'flips.csv'}")
    return result


def _read(given: AnyPath | GateRules | Mapping[str, Any] | None) -> GateRules:
    """Read the rules from a YAML file, or take them as given."""
    if isinstance(given, GateRules):
        return given
    if given is None or isinstance(given, Mapping):
        return GateRules.from_dict(given or {})
    values = read_settings(Path(given), "rules", "--rules")
    if not isinstance(values, dict):
        raise ConfigError(f"{given} holds no rules by name, for instance escape_margin: 0.02")
    return GateRules.from_dict(values)


def _normal(models: dict[str, Predictor], given: str | None) -> str:
    """The class whose release lets a defect escape."""
    named = {
        which: given or model.label_space.normal or _tuned_normal(model)
        for which, model in models.items()
    }
    first, second = named["old"], named["new"]
    if first is None or first != second:
        raise ConfigError(
            f"The old model's normal class is {first!r} and the new one's {second!r}, so it is not "
            "clear which defects escape: name the normal class with --normal."
        )
    for which, model in models.items():
        if first not in model.label_space.names:
            raise ConfigError(
                f"The {which} model knows no class {first!r}; it has "
                f"{', '.join(map(quoted, model.label_space.names[:12]))}."
            )
    return first


def _tuned_normal(model: Predictor) -> str | None:
    kept = model.decisions
    if kept is None or kept.policy.normal is None:
        return None
    return kept.policy.names[kept.policy.normal]


def _answers(found: list[Prediction], labelled: Labelled, normal: str) -> Answers:
    labels = labelled.table["label"].to_numpy(object)
    released = np.array([each.stands and each.label == normal for each in found], np.bool_)
    right = np.array([each.label for each in found], object) == labels
    if not (labels != normal).any():
        raise DataError(
            f"{labelled.source} holds no defect, so it does not show whether defects escape: give "
            "images of the defects too."
        )
    return Answers(released & (labels != normal), right.astype(np.bool_))


def _tell(result: GateResult, console: Console) -> None:
    for row in result.rows:
        say(console, f"  {row.sentence}", _STYLES[row.verdict])
    for flip in result.flips[:_SHOWN]:
        say(console, f"  {flip.what}: {flip.image} ({quoted(flip.class_name)})")
    if (more := len(result.flips) - _SHOWN) > 0:
        verb = by_number(more, "is", "are")
        say(console, f"  and {counted(more, 'more image')} {verb} decided differently")
    say(console, result.sentence, _STYLES[result.verdict])
