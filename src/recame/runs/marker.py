"""`run.json`, which marks a folder as a run; its facts are read with a check of their types."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from recame.errors import CheckpointError
from recame.files import read_json

RUN_SCHEMA = 1

_DAMAGED = "It is damaged: restore it from a copy of the run, or train the run again."
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("state", "data", "data_fingerprint", "started", "finished", "device"), str),
    "precision": str,
    **dict.fromkeys(("loss", "stopped"), (str, type(None))),
    **dict.fromkeys(("settings", "teacher", "unlabelled", "tables"), dict),
}

#: What binds files of the run to it: name -> the hashes that the file may have.
_BINDING = ("settings", "tables")


def read_marker(path: Path) -> dict[str, Any]:
    """What a `run.json` holds; what an older version did not know of is missing.

    Raises:
        CheckpointError: it is damaged, or of a newer schema.
    """
    facts = read_json(path, newest=RUN_SCHEMA, advice=_DAMAGED)
    for name, kind in _KINDS.items():
        if name in facts and not isinstance(facts[name], kind):
            raise CheckpointError(f"{path} says {name}: {facts[name]!r:.80}. {_DAMAGED}")
    for name in _BINDING:
        for file, known in facts.get(name, {}).items():
            if not isinstance(known, list) or not all(isinstance(text, str) for text in known):
                raise CheckpointError(f"{path} says {name}: {file}: {known!r:.80}. {_DAMAGED}")
    return facts


def fact(path: Path, name: str) -> str:
    """One fact that every run's `run.json` holds.

    Raises:
        CheckpointError: it does not.
    """
    value = read_marker(path).get(name)
    if value is None:
        raise CheckpointError(f"{path} does not say {name}. {_DAMAGED}")
    return str(value)


def identity(facts: dict[str, Any]) -> str | None:
    """A hash of a run's beginning: images' fingerprint, settings as asked, time.

    Returns:
        None for a run of the version before, which kept no hash of its settings.
    """
    if "settings" not in facts:
        return None
    asked = facts["settings"].get("asked.yaml")
    text = json.dumps([facts.get("data_fingerprint"), asked, facts.get("started")])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
