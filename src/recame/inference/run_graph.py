"""The graph that a finished run keeps: one view of stored pixels -> logits and features, no torch.

It lies in the run's folder as `graph/model.onnx`, and `graph/graph.json` says of which weights it
is, how it agreed with torch, and how the run judges. Views, temperature and decisions stay outside.
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
#: The graph's input and outputs.
INPUT, OUTPUTS = "images", ("logits", "features")

#: Pixels that pass at once: the activations of more leave a processor's cache.
_PIXELS_AT_ONCE = 4 * 128 * 128


@dataclass(frozen=True)
class KeptGraph:
    """A run's graph that is whole and belongs to the run's weights, and what answering needs.

    Attributes:
        graph: the ONNX file's bytes.
        checksum: their SHA-256.
        judging: how the run's images are judged, by its settings as they are now.
        spec: how images are decoded.
        label_space: the C classes.
        weights_sha256: of the run's weights.
        steady: whether it was measured to give an image the same bits in batches of any size.
    """

    graph: bytes
    checksum: str
    judging: Judging
    spec: PreprocessSpec
    label_space: LabelSpace
    weights_sha256: str
    steady: bool


def save_graph(folder: RunFolder, graph: bytes, facts: dict[str, Any], judging: Judging) -> None:
    """Keep a graph with a finished training's other files; both files, or neither.

    Args:
        folder: of the run, which holds its weights.
        graph: the ONNX file's bytes.
        facts: what else the document tells: parity, versions, speed.
        judging: by the run's settings.

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


#: What of `model.json` the graph was made from.
_BOUND = ("weights_sha256", "architecture", "preprocess")
_SETTINGS = "config.yaml"


def open_graph(folder: RunFolder) -> KeptGraph | None:
    """A finished run's graph for answers on a CPU in full precision.

    Returns:
        None where the run keeps none, or no weights. Where it is torn, of other weights, or a file
        beside it was edited, a warning says so: torch answers then, and judges what is wrong with
        the run.

    Raises:
        ConfigError: the run's settings are missing, damaged, or edited where they may not be.
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
                raise CheckpointError(f"it was made from another {name} than model.json tells")
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
        raise  # torch asks the settings too
    except (RecameError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning(
            "%s cannot be used (%s): the run answers in torch, slower.",
            place,
            " ".join(str(error).split())[:300],
        )
        return None


def _described(run: Path) -> dict[str, Any]:
    return read_json(run / "model.json")


def _judging(folder: RunFolder, noted: dict[str, Any]) -> Judging:
    """As noted; read again where the settings were edited, as they may be."""
    values, path = dict(noted), folder.path / _SETTINGS
    if path.exists() and sha256(path) == values.pop("sha256"):
        return Judging.from_dict(values)
    return Judging.of(folder.load_config(), folder.path)


class RunGraph:
    """A run's graph in ONNX Runtime; several threads may call it at once.

    Args:
        graph: the ONNX file's bytes.
        threads: of a call.

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
        # A thread that waits must not burn the core that decodes images meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                graph, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of many kinds of its own
            raise RuntimeError(f"ONNX Runtime {ort.__version__} cannot open it: {error}") from error

    @property
    def num_classes(self) -> int:
        """C, as the graph declares it."""
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
        """Softmax probabilities, averaged over the first `num_views` views.

        Args:
            images: (B, H, W, C) stored pixels, B >= 1.
            num_views: 1 to 8.
            pieces: of each image, one below the other; views turn each by itself.

        Returns:
            Of each expert (B, E, C), of the ensemble (softmax of the mean logits) (B, C), and the
            features (B, E, D) of the untouched image.
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
    """Parts of up to `size`, none of one image alone where others are of several."""
    count = min(-(-len(images) // size), len(images) // min(2, size))
    yield from np.array_split(images, max(1, count))


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
