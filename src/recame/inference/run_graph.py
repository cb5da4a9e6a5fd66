"""The ONNX graph of a finished run: stored pixels to logits and features, without torch.

It is `graph/model.onnx` in the run's folder. `graph/graph.json` says from which weights it was
made, how well it agrees with torch, and the run's evaluation settings. Test-time augmentation,
temperature and decisions are not part of the graph.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import Array, FloatArray, PreprocessSpec
from recame.data.stored_views import stored_view
from recame.errors import CheckpointError, ConfigError, RecameError
from recame.files import open_regular, read_json, sha256, write_json, write_together
from recame.label_space import LabelSpace
from recame.runs.folder import RunFolder
from recame.runs.judging import Judging

logger = logging.getLogger(__name__)

GRAPH_SCHEMA = 1
GRAPH_DIR, GRAPH_FILE, GRAPH_DOCUMENT = "graph", "model.onnx", "graph.json"
#: Names of the graph's input and outputs.
INPUT, OUTPUTS = "images", ("logits", "features")

#: Pixels in one call; the activations of more would not fit a processor's cache.
_PIXELS_AT_ONCE = 4 * 128 * 128


@dataclass(frozen=True)
class KeptGraph:
    """A run's checked graph, and what is needed to predict with it.

    Attributes:
        graph: the ONNX file's bytes.
        checksum: their SHA-256.
        judging: the run's evaluation settings, as they are now.
        spec: how images are decoded.
        label_space: the C classes.
        weights_sha256: of the run's weights.
        steady: whether an image was measured to have the same output bits in batches of any size.
    """

    graph: bytes
    checksum: str
    judging: Judging
    spec: PreprocessSpec
    label_space: LabelSpace
    weights_sha256: str
    steady: bool


def save_graph(folder: RunFolder, graph: bytes, facts: dict[str, Any], judging: Judging) -> None:
    """Write a graph into a finished run's folder; both files, or neither.

    Args:
        folder: of the run, which holds its weights.
        graph: the ONNX file's bytes.
        facts: further facts of the document: parity, versions, speed.
        judging: the run's evaluation settings.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    described = _described(folder.path)
    document = {
        "schema": GRAPH_SCHEMA,
        "sha256": hashlib.sha256(graph).hexdigest(),
        **{name: described[name] for name in _BOUND},
        "settings": {"sha256": sha256(folder.path / _SETTINGS), **judging.to_dict()},
        **facts,
    }
    with write_together(folder.path / GRAPH_DIR, error=CheckpointError) as partial:
        (partial / GRAPH_FILE).write_bytes(graph)
        write_json(partial / GRAPH_DOCUMENT, document)


#: Parts of `model.json` from which the graph was made.
_BOUND = ("weights_sha256", "architecture", "preprocess")
_SETTINGS = "config.yaml"


def open_graph(folder: RunFolder) -> KeptGraph | None:
    """Open a finished run's graph for predictions on a CPU in full precision.

    Returns:
        None if the run has no graph or no weights. Also None, with a warning, if the graph is
        damaged, was made from other weights, or a file beside it was edited: torch is used then,
        and reports what is wrong with the run.

    Raises:
        ConfigError: the run's settings are missing or damaged, or a fixed setting was edited.
    """
    place = folder.path / GRAPH_DIR
    if not (place / GRAPH_DOCUMENT).exists() or not (folder.path / "model.safetensors").exists():
        return None
    try:
        document = read_json(place / GRAPH_DOCUMENT, newest=GRAPH_SCHEMA)
        with open_regular(place / GRAPH_FILE) as stream:
            graph = stream.read()
        checksum = hashlib.sha256(graph).hexdigest()
        if checksum != document["sha256"]:
            raise CheckpointError(f"its SHA-256 is {checksum[:12]}, not what {GRAPH_DOCUMENT} says")
        described = _described(folder.path)
        for name in _BOUND:
            if document[name] != described[name]:
                raise CheckpointError(f"it was made from another {name} than model.json says")
        weights = sha256(folder.path / "model.safetensors")
        if weights != described["weights_sha256"]:
            raise CheckpointError("model.safetensors is not what model.json describes")
        return KeptGraph(
            graph,
            checksum,
            _judging(folder, document["settings"]),
            PreprocessSpec.from_dict(described["preprocess"]),
            LabelSpace.from_dict(described["label_space"]),
            weights,
            document["parity"]["batch_difference"] == 0,
        )
    except ConfigError:
        raise  # torch needs the settings too
    except (RecameError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning(
            "%s cannot be used (%s): the run uses torch, slower.",
            place,
            " ".join(str(error).split())[:300],
        )
        return None


def _described(run: Path) -> dict[str, Any]:
    return read_json(run / "model.json")


def _judging(folder: RunFolder, noted: dict[str, Any]) -> Judging:
    """The noted evaluation settings; read again if the settings were edited, which is allowed."""
    values, path = dict(noted), folder.path / _SETTINGS
    if path.exists() and sha256(path) == values.pop("sha256"):
        return Judging.from_dict(values)
    return Judging.of(folder.load_config(), folder.path)


class RunGraph:
    """A run's graph in ONNX Runtime; several threads may call it at once.

    Args:
        graph: the ONNX file's bytes.
        threads: of each call.

    Raises:
        ImportError: ONNX Runtime is not installed.
        RuntimeError: it cannot open the graph.
    """

    def __init__(self, graph: bytes, *, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A waiting thread must not occupy the core that decodes images meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                graph, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has many error types
            raise RuntimeError(f"ONNX Runtime {ort.__version__} cannot open it: {error}") from error

    @property
    def num_classes(self) -> int:
        """C, from the graph's output shape."""
        return int(self._session.get_outputs()[0].shape[-1])

    def __call__(self, images: Array) -> tuple[FloatArray, FloatArray]:
        """One view of a batch.

        Args:
            images: (B, H, W, C) stored pixels, B >= 1.

        Returns:
            Logits (B, E, C) and features (B, E, D).
        """
        size = max(1, _PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
        parts = [
            self._session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(part)})
            for part in _parts(images, size)
        ]
        if len(parts) == 1:
            return parts[0][0], parts[0][1]
        logits, features = zip(*parts, strict=True)
        return np.concatenate(logits), np.concatenate(features)

    def averaged(
        self, images: Array, num_views: int, pieces: int = 1
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Compute softmax probabilities, averaged over the first `num_views` views.

        Args:
            images: (B, H, W, C) stored pixels, B >= 1.
            num_views: 1 to 8.
            pieces: number of tiles of each image, one below the other; each is flipped by itself.

        Returns:
            Probabilities of each expert (B, E, C) and of the ensemble (softmax of the mean logits)
            (B, C), and the features (B, E, D) of view 0.
        """
        experts: FloatArray | float = 0.0
        ensemble: FloatArray | float = 0.0
        for view in range(num_views):
            logits, seen = self(stored_view(images, view, pieces))
            experts = experts + _softmax(logits)
            ensemble = ensemble + _softmax(logits.mean(1))
            if view == 0:
                features = seen
        return np.divide(experts, num_views), np.divide(ensemble, num_views), features


def _parts(images: Array, size: int) -> Iterator[Array]:
    """Parts of up to `size` images; none has one image if others have several."""
    count = min(-(-len(images) // size), len(images) // min(2, size))
    yield from np.array_split(images, max(1, count))


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
