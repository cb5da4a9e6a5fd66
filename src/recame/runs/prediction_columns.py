"""The columns of the predictions table, which `recame evaluate` and `recame predict` write alike.

    image, path, prediction, confidence, p_<class>...,
    action, reason, note, candidates, unknown_score, sha256,
    label, split, <further columns of the manifest>..., expert<k>_p_<class>...

No pandas here: the machine on a line has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence

from recame.machine import package_versions

PREDICTIONS_SCHEMA = 2

#: Where Parquet's metadata keeps the schema version, the classes and the model.
SCHEMA_KEY, CLASSES_KEY, MODEL_KEY = b"recame.schema", b"recame.classes", b"recame.model"
_VERSION_KEY = b"recame.version"

#: Of the file, and what it is called.
NAMED = ("image", "path")
CALLED = ("prediction", "confidence")
#: What is done with it, why, and by which words; its bytes' checksum.
DECIDED = ("action", "reason", "note", "candidates", "unknown_score", "sha256")
LABELLED = ("label", "split")
#: Columns of numbers beside those of probabilities.
NUMBERS = ("confidence", "unknown_score")

_EXPERT = re.compile(r"expert\d+_p_(.+)", re.DOTALL)


def prediction_columns(
    classes: Sequence[str], manifest: Sequence[str] = (), num_experts: int = 0
) -> list[str]:
    """All columns, in order.

    Args:
        classes: names of the C classes, in the order of the probabilities.
        manifest: further columns, as `kept_columns` names them.
        num_experts: whose own probabilities are known.

    Examples:
        >>> prediction_columns(["ok"], ["lot"], 1)[:6]
        ['image', 'path', 'prediction', 'confidence', 'p_ok', 'action']
    """
    return [
        *(*NAMED, *CALLED, *probability_columns(classes), *DECIDED, *LABELLED, *manifest),
        *expert_columns(classes, num_experts),
    ]


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Of the ensemble."""
    return [f"p_{name}" for name in classes]


def expert_columns(classes: Sequence[str], num_experts: int) -> list[str]:
    """Of each expert's own probabilities, its number from 0 on."""
    return [f"expert{k}_p_{name}" for k in range(num_experts) for name in classes]


def kept_columns(manifest: Collection[str], classes: Sequence[str]) -> dict[str, str]:
    """Names of a manifest's further columns here: a name that recame uses becomes `manifest_...`.

    Args:
        manifest: their names.
        classes: names of the classes.

    Examples:
        >>> kept_columns(["lot", "action", "p_ok", "p_lot"], ["ok"])
        {'lot': 'lot', 'action': 'manifest_action', 'p_ok': 'manifest_p_ok', 'p_lot': 'p_lot'}
    """
    taken = {*NAMED, *CALLED, *DECIDED, *LABELLED, *probability_columns(classes)}

    def ours(name: str) -> bool:
        expert = _EXPERT.fullmatch(name)
        return name in taken or (expert is not None and expert[1] in classes)

    kept: dict[str, str] = {}
    free = {name for name in manifest if not ours(name)}
    for name in manifest:
        called = name
        while (called != name and called in free) or ours(called):
            called = f"manifest_{called}"
        kept[name] = called
        free.add(called)
    return kept


def class_names(columns: Sequence[str]) -> tuple[str, ...]:
    """The classes of a table without metadata: a CSV, of this schema or of the first.

    Returns:
        Empty where the columns are those of no predictions table.
    """
    names: list[str] = []
    if "confidence" not in columns:
        return ()
    first = list(columns).index("confidence") + 1
    for column in columns[first:]:
        # The first schema had what was decided between the two, where the line wrote it.
        if column.startswith("p_"):
            names.append(column.removeprefix("p_"))
        elif names or column not in ("decision", "reason"):
            break
    return tuple(names)


def table_metadata(classes: Sequence[str], model: str) -> dict[bytes, bytes]:
    """The metadata of a Parquet table of predictions.

    Args:
        classes: names of the C classes.
        model: fingerprint of the model.
    """
    return {
        SCHEMA_KEY: str(PREDICTIONS_SCHEMA).encode(),
        CLASSES_KEY: json.dumps(list(classes)).encode(),
        MODEL_KEY: model.encode(),
        _VERSION_KEY: package_versions("recame")["recame"].encode(),
    }


def told_classes(metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    """The classes that `table_metadata` noted; empty in a table of the first schema."""
    found = json.loads(metadata.get(CLASSES_KEY, b"[]"))
    return tuple(str(name) for name in found)
