"""A run's classes on disk: `label_space.json`, beside the description of the model."""

from __future__ import annotations

from pathlib import Path

from recame.errors import CheckpointError, RecameError
from recame.files import read_json
from recame.label_space import LabelSpace

_WAY_OUT = "Restore it from a copy of the run, or remove it: model.json holds the same classes."


def load_classes(run: Path) -> LabelSpace:
    """Read the classes of a run from `label_space.json`, or if that is missing from `model.json`.

    Raises:
        CheckpointError: the file is damaged; says which.
    """
    path = run / "label_space.json"
    if not path.exists():
        path = run / "model.json"
        values = read_json(path).get("label_space")
        way_out = "Restore it from a copy of the run."
    else:
        values = read_json(path, advice=f"It was edited or damaged. {_WAY_OUT}")
        way_out = _WAY_OUT
    try:
        if not isinstance(values, dict):
            raise CheckpointError("It names no classes.")
        return LabelSpace.from_dict(values)
    except RecameError as error:
        raise CheckpointError(f"{path} cannot be used. {error} {way_out}") from error


def check_classes(run: Path, of_model: LabelSpace) -> None:
    """Refuse a run whose `label_space.json` is damaged, or names other classes than its model.

    Raises:
        CheckpointError: the file is damaged, or the classes differ; says how.
    """
    if not (run / "label_space.json").exists():
        return
    found = load_classes(run)
    if found != of_model:
        facts = ("names", "counts", "normal", "critical")
        pairs = [(name, getattr(found, name), getattr(of_model, name)) for name in facts]
        told = "; ".join(f"{n}: {a!r:.80}, there {b!r:.80}" for n, a, b in pairs if a != b)
        raise CheckpointError(
            f"{run / 'label_space.json'} and model.json name different classes ({told}), so "
            "answers would have wrong names or groups: one of the files was edited. Restore both "
            "from a copy of the run."
        )
