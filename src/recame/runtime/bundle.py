"""The bundle: a folder with a graph and everything needed to use it, checked before it is used."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recame.contracts import AnyPath, PreprocessSpec
from recame.decisions.calibration import Calibration
from recame.errors import CheckpointError, ConfigError, DataError, ExportError
from recame.files import read_json, sha256, write_json
from recame.folders import clear_beside, is_taken, moved_aside, new_folder, restore_folder
from recame.label_space import LabelSpace

#: Graphs of schema 1 divide by a temperature themselves; the outputs of schema 2 are calibrated by
#: the code that runs the graph.
BUNDLE_SCHEMA = 2

DOCUMENT_FILE = "bundle.json"

#: The files of a graph; the runtime opens the first one.
MODEL_FILES = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}

PRECISIONS = ("fp32", "fp16", "int8")

#: How often, and at which interval, to try again to open a bundle that is being replaced.
_TRIES, _APART_S = 20, 0.05

_UNUSABLE = (KeyError, TypeError, ValueError, OverflowError, AttributeError, DataError, ConfigError)


@dataclass(frozen=True)
class Bundle:
    """An exported model whose files were checked; it holds their content in memory.

    Attributes:
        path: the folder.
        format: `onnx` or `openvino`.
        precision: `fp32`, `fp16` or `int8`.
        label_space: its C classes.
        spec: how images are decoded for it.
        outputs: names of the graph's outputs, `probabilities` first.
        views: number of flips and rotations that the graph averages over.
        calibration: of the graph's probabilities; None: none, since the graph of an older version
            contains its temperature.
        temperature: of the calibration, or of such a graph.
        num_experts: E.
        thresholds: decision thresholds and how they were chosen; may be empty.
        max_pixels: an image file with more pixels is refused.
        document: the content of `bundle.json`.
        files: name -> bytes for each file of `MODEL_FILES`. The checked bytes are run, even if
            another bundle has replaced the folder since.
    """

    path: Path
    format: str
    precision: str
    label_space: LabelSpace
    spec: PreprocessSpec
    outputs: tuple[str, ...]
    views: int
    calibration: Calibration | None = field(compare=False)  # the document is compared
    temperature: float
    num_experts: int
    thresholds: dict[str, Any]
    max_pixels: int
    document: dict[str, Any]
    files: dict[str, bytes] = field(repr=False, compare=False, default_factory=dict)

    def __fspath__(self) -> str:
        """Let a bundle be used as a path."""
        return str(self.path)

    __str__ = __fspath__

    @property
    def model_path(self) -> Path:
        """The file that holds the graph."""
        return self.path / MODEL_FILES[self.format][0]

    @property
    def release_above(self) -> float | None:
        """Probability of the normal class that an image needs to be released; None: no threshold.

        Images that are predicted as normal with less go to review.
        """
        value = self.thresholds.get("normal", {}).get("release_above")
        return None if value is None else float(value)

    @property
    def steady(self) -> bool:
        """Whether an image was measured to have the same output bits in batches of any size."""
        return bool(self.document.get("parity", {}).get("batch_difference") == 0)

    @property
    def escape_at_most(self) -> float | None:
        """Upper limit of the escape rate, with 95 % confidence; None: not known."""
        normal = self.thresholds.get("normal", {})
        # The name in older versions.
        value = normal.get("escape_at_most", normal.get("escape_upper"))
        return None if value is None else float(value)


def is_bundle(path: Path) -> bool:
    """Whether the folder holds a bundle's document."""
    return (path / DOCUMENT_FILE).is_file()


def find_bundle(path: Path) -> bool:
    """Like `is_bundle`, but also works while the bundle is being replaced.

    If the machine stopped while a bundle was being replaced, the old bundle is restored.
    """
    for _ in range(_TRIES):
        if is_bundle(path) or moved_aside(path) is None:
            return is_bundle(path)
        time.sleep(_APART_S)
    with suppress(OSError):  # an export may have died while replacing it
        restore_folder(path)
    return is_bundle(path)


def open_bundle(path: AnyPath) -> Bundle:
    """Read a bundle and check that every file is as the export wrote it.

    If another bundle replaces it meanwhile, reading starts again.

    Args:
        path: the folder.

    Raises:
        CheckpointError: there is no bundle, it is of a newer schema, or a file is missing, damaged
            or edited.
    """
    folder = Path(path)
    for _ in range(_TRIES):
        before = _identity(folder)
        try:
            return _open(folder)
        except CheckpointError:
            if before is not None and before == _identity(folder):
                raise
            if before is None and not find_bundle(folder):
                raise
    return _open(folder)


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Identifies the document in the folder, to notice that it was replaced; None without one."""
    try:
        found = (folder / DOCUMENT_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _open(folder: Path) -> Bundle:
    document = _read_document(folder)
    try:
        bundle = _parse(folder, document)
        files = {}
        for name in MODEL_FILES[bundle.format]:
            facts = document["files"][name]
            files[name] = _checked(folder / name, int(facts["bytes"]), str(facts["sha256"]))
        return replace(bundle, files=files)
    except _UNUSABLE as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise _unusable(folder, reason) from error


@contextmanager
def assembling(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `out`, which becomes `out` only if the block succeeds.

    Args:
        out: the bundle's folder; must not exist, or be empty.
        replace: whether a bundle in `out` is replaced, once the new one is complete.

    Raises:
        ExportError: `out` holds something else, or the folder cannot be written.
    """
    # An earlier export may have been killed while it replaced a bundle.
    restore_folder(out)
    if is_taken(out) and not (replace and is_bundle(out)):
        told = (
            "already holds a bundle: replace it with --force, or"
            if is_bundle(out)
            else "exists and is no bundle, so it is not overwritten:"
        )
        raise ExportError(f"{out} {told} choose another --out.")
    if is_bundle(out):
        clear_beside(out)
    advice = "Free space there or choose another --out."
    with new_folder(out, replace=replace, advice=advice, error=ExportError) as partial:
        yield partial


def write_document(folder: Path, facts: dict[str, Any]) -> None:
    """Write `bundle.json` beside the model's files, with their checksums and its own.

    Args:
        folder: holds the files that `MODEL_FILES` names for `facts["format"]`.
        facts: every field but `schema`, `files` and `checksum`.
    """
    document = {
        "schema": BUNDLE_SCHEMA,
        **facts,
        "files": {
            name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
            for name in MODEL_FILES[facts["format"]]
        },
    }
    document["checksum"] = _checksum(document)
    write_json(folder / DOCUMENT_FILE, document, error=ExportError)


def _read_document(folder: Path) -> dict[str, Any]:
    """Read the document, and check its schema and its checksum."""
    if not is_bundle(folder):
        if aside := moved_aside(folder):
            raise CheckpointError(
                f"{folder} holds no bundle: an export was stopped while it replaced it. The bundle "
                f"is in {aside}: rename it back (mv), or export the run again."
            )
        raise CheckpointError(
            f"{folder} holds no bundle (no {DOCUMENT_FILE}): give the folder that "
            "`recame export RUN --out FOLDER` wrote."
        )
    document = read_json(
        folder / DOCUMENT_FILE,
        newest=BUNDLE_SCHEMA,
        advice="Copy the bundle again, or export the run again.",
    )
    if document.get("checksum") != _checksum(document):
        raise _unusable(
            folder,
            f"{DOCUMENT_FILE} does not match its own checksum: labels, thresholds or another "
            "field were changed after the export",
        )
    return document


def _parse(folder: Path, document: dict[str, Any]) -> Bundle:
    """Read the document's fields, and check that they agree."""
    graph, space = document["graph"], LabelSpace.from_dict(document["label_space"])
    calibration = None
    if "calibration" in document:
        calibration = Calibration.from_dict(document["calibration"], space.num_classes)
    bundle = Bundle(
        path=folder,
        format=document["format"],
        precision=document["precision"],
        label_space=space,
        spec=PreprocessSpec.from_dict(document["preprocess"]),
        outputs=tuple(str(name) for name in graph["outputs"]),
        views=int(graph["views"]),
        calibration=calibration,
        temperature=float(graph["temperature"] if calibration is None else calibration.temperature),
        num_experts=int(graph["num_experts"]),
        thresholds=dict(document["thresholds"]),
        max_pixels=int(document["max_pixels"]),
        document=document,
    )
    release, in_graph = bundle.release_above, float(graph["temperature"])
    _ = bundle.escape_at_most, bundle.steady  # raises an error if they are not numbers
    for is_right, reason in (
        (
            bundle.format in MODEL_FILES,
            f"format {bundle.format!r} is none of {', '.join(MODEL_FILES)}",
        ),
        (
            bundle.precision in PRECISIONS,
            f"precision {bundle.precision!r} is none of {', '.join(PRECISIONS)}",
        ),
        (
            int(graph["num_classes"]) == space.num_classes,
            (
                f"the label space names {space.num_classes} classes, but the graph has "
                f"{graph['num_classes']}"
            ),
        ),
        (
            bundle.outputs[:1] == ("probabilities",),
            f"the graph's first output is not probabilities ({graph['outputs']})",
        ),
        (0 < in_graph < math.inf, f"temperature {in_graph} is not above 0"),
        (
            calibration is None or in_graph == 1,
            f"the graph has a temperature of {in_graph}, and there is a calibration besides",
        ),
        (
            # A value just above 1 means that no image is released.
            release is None or (space.normal is not None and 0 <= release < 1.01),
            f"the threshold {release} of the normal class cannot be used",
        ),
    ):
        if not is_right:
            raise ValueError(reason)
    return bundle


def _checked(path: Path, size: int, expected: str) -> bytes:
    """Read a file, and check that its bytes are those that the export wrote."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _unusable(path.parent, f"{path.name} is missing") from None
    except OSError as error:
        raise _unusable(path.parent, f"{path.name} cannot be read: {error}") from error
    if len(content) != size:
        raise _unusable(path.parent, f"{path.name} has {len(content):,} bytes instead of {size:,}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise _unusable(
            path.parent,
            f"the content of {path.name} has changed: SHA-256 {digest[:12]} instead of "
            f"{expected[:12]}",
        )
    return content


def _unusable(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The bundle {folder} cannot be trusted ({reason}). Copy it again from where it was "
        "exported, or export the run again."
    )


def _checksum(document: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of all fields except the checksum itself."""
    fields = {name: value for name, value in document.items() if name != "checksum"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
