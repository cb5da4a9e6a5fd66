"""Predict with a bundle on the nodes of a Ray cluster, in shards of files; results stay in order.

`on_cluster` returns the same as a `Predictor`, so `predict_files` handles the rows (order, tables,
continuing after a kill) as on one machine.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from recame.contracts import AnyPath
from recame.data.decode import Image
from recame.data.image_file import open_named
from recame.decisions.document import DECISIONS_FILE, load_policy
from recame.decisions.kept_scorer import UNKNOWN_FILES
from recame.errors import ConfigError, DataError
from recame.names import counted
from recame.runtime.bundle import DOCUMENT_FILE, Bundle, find_bundle, open_bundle
from recame.runtime.cluster_node import Scored, Shipment, score, software
from recame.runtime.opening import answers_of, fingerprint_of
from recame.runtime.prediction import Prediction
from recame.runtime.predictor import DEFAULT_BATCH
from recame.runtime.ray_connection import connected

#: Fewest images in a shard; a shard is predicted again if its node dies.
SHARD_IMAGES = 256
#: How often a shard may lose its node or its process.
_RETRIES = 3
_POLL_S = 1.0
#: How long to wait if no node is available.
_NO_NODE_S = 60.0

_Shard = TypeVar("_Shard")
_Sent = TypeVar("_Sent")
_Done = TypeVar("_Done")


@contextmanager
def on_cluster(
    path: AnyPath,
    address: str,
    *,
    threads: int = 1,
    batch_size: int = DEFAULT_BATCH,
    device: str = "auto",
    views: int | None = None,
) -> Iterator[ClusterScorer]:
    """Connect to a cluster, and send it a bundle.

    Each node predicts shards of files, one at a time for each `threads` of its cores. A shard whose
    node or process dies is predicted again on any free node; nodes that join later take part.

    Args:
        path: the bundle.
        address: as for `recame.runtime.ray_connection.connected`.
        threads: cores for each shard.
        batch_size: images in a forward pass.
        device: `auto` or `cpu`, which are the same here.
        views: as in the bundle, or None.

    Raises:
        MissingDependencyError: ray is not installed.
        CheckpointError: there is no bundle, or it is damaged.
        ConfigError: a run folder, another device, other views or a number below 1 is given, no
            cluster answers, or no node has so many cores.
    """
    if min(threads, batch_size) < 1:
        raise ConfigError(f"threads={threads}, batch_size={batch_size}: give numbers above 0.")
    if device not in ("auto", "cpu"):
        raise ConfigError(
            f"device={device!r}: --ray predicts only on the nodes' CPUs. Leave --device out."
        )
    if not find_bundle(Path(path)) and (Path(path) / "run.json").exists():
        raise ConfigError(
            f"{path} is a run, but --ray needs a bundle, whose files are sent to the nodes: "
            f"make one with `recame export {path}`."
        )
    bundle = open_bundle(path)
    if views not in (None, bundle.views):
        raise ConfigError(
            f"views={views}: the bundle {path} has {bundle.views} in its graph. Export the run "
            "again with other --views."
        )
    with connected(address, "to predict on a cluster") as ray:
        yield ClusterScorer(ray, bundle, threads=threads, batch_size=batch_size)


class ClusterScorer:
    """Predicts like a `Predictor` of the same bundle; `on_cluster` makes one.

    It has the bundle's fingerprint, so a table that was started on one machine can be continued.
    """

    def __init__(self, ray: Any, bundle: Bundle, *, threads: int, batch_size: int) -> None:
        # Read once, so that all nodes decide with the same thresholds as this machine.
        decisions = bundle.path / DECISIONS_FILE
        beside = (decisions, *bundle.path.glob(UNKNOWN_FILES))
        kept = {path.name: path.read_bytes() for path in beside if path.exists()}
        fitted = load_policy(decisions, answers_of(bundle), bundle.label_space.names)
        self.label_space, self.fingerprint = bundle.label_space, fingerprint_of(bundle, fitted)
        self.policy = None if fitted is None else fitted.policy
        self._ray, self._threads, self._batch_size = ray, threads, batch_size
        self._instructions: set[str] = set()
        if not self._slots():
            raise ConfigError(
                f"A shard needs {threads} cores, which no node of the cluster has: use fewer "
                "(--threads), or add a node."
            )
        self._shipped = ray.put(
            Shipment(
                files={
                    **bundle.files,
                    DOCUMENT_FILE: json.dumps(bundle.document).encode(),
                    **kept,
                },
                fingerprint=self.fingerprint,
                cwd=str(Path.cwd()),
                software=software(bundle.format),
                threads=threads,
                batch_size=batch_size,
            )
        )
        self._task = ray.remote(score).options(
            num_cpus=threads, max_retries=_RETRIES, name="recame predict"
        )

    def batch_size_for(self, num_images: int) -> int:
        """The batch size of a stream of images; it is not measured on a cluster."""
        return self._batch_size

    def stream(
        self,
        images: Iterable[Image],
        *,
        num_images: int | None = None,
        batch_size: int | None = None,
        checksums: bool = False,
    ) -> Iterator[Prediction]:
        """Predict files on the nodes, in order, some shards ahead, with their checksums.

        Raises:
            ConfigError: a node has other software versions.
            DataError: a shard failed, its files are not on the node, or no node is left.
        """
        size = batch_size or self._batch_size
        shards = shards_of(map(str, images), size)

        def send(names: list[str]) -> Any:
            return self._task.remote(self._shipped, names, size)

        for found in in_order(shards, send, self._receive, self._ahead, self._cancel):
            yield from found

    def _slots(self) -> int:
        """Number of shards that the present nodes can predict at once."""
        alive = (node["Resources"] for node in self._ray.nodes() if node["Alive"])
        return sum(int(node.get("CPU", 0.0) // self._threads) for node in alive)

    def _ahead(self) -> int:
        """Number of shards that may be in progress besides the one that is waited for."""
        return 2 * max(1, self._slots())

    def _receive(self, flight: Any, names: list[str]) -> tuple[Prediction, ...]:
        """Wait for the predictions of a shard."""
        seen = time.monotonic()
        while not self._ray.wait([flight], timeout=_POLL_S)[0]:
            if self._slots():
                seen = time.monotonic()
            elif time.monotonic() - seen > _NO_NODE_S:
                raise DataError(
                    f"No node of the cluster has had {self._threads} free cores for "
                    f"{_NO_NODE_S:.0f} s: start nodes and give the same command, which continues "
                    "where this one stopped."
                )
        try:
            scored: Scored = self._ray.get(flight)
        except self._ray.exceptions.RayError as error:
            raise DataError(_failure(self._ray, error, names)) from error
        if scored.refusal:
            raise ConfigError(f"Node {scored.node} predicts nothing: {scored.refusal}")
        self._warn_of_others(scored.instructions)
        for item in scored.found:
            if item.unreadable and item.sha256 is None and _opens(item.image):
                raise DataError(
                    f"{item.image} is on this machine, but node {scored.node} cannot read it "
                    f"({item.error}), so rows would depend on the node: put the images on a disk "
                    "that all nodes share, under the same path, and give the same command again."
                )
        return scored.found

    def _cancel(self, flight: Any) -> None:
        self._ray.cancel(flight, force=True)

    def _warn_of_others(self, instructions: str) -> None:
        self._instructions.add(instructions)
        if len(self._instructions) == 2:
            warnings.warn(
                "The nodes' processors have different instruction sets "
                f"({'; '.join(sorted(self._instructions))}): the last digits of a probability may "
                "depend on the node. If tables must be equal, use nodes of one kind.",
                stacklevel=2,
            )


def shards_of(names: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """Split names into shards of whole batches, with `SHARD_IMAGES` names or a few more.

    Examples:
        >>> [len(shard) for shard in shards_of(map(str, range(600)), 100)]
        [300, 300]
    """
    remaining, length = iter(names), batch_size * -(-SHARD_IMAGES // batch_size)
    while shard := list(islice(remaining, length)):
        yield shard


def in_order(
    shards: Iterable[_Shard],
    send: Callable[[_Shard], _Sent],
    receive: Callable[[_Sent, _Shard], _Done],
    ahead: Callable[[], int],
    cancel: Callable[[_Sent], object],
) -> Iterator[_Done]:
    """Send shards and yield their results in order.

    Besides the shard that is waited for, as many are in progress as `ahead` allows. Shards that
    are no longer needed are cancelled.
    """
    flights: deque[tuple[_Sent, _Shard]] = deque()
    try:
        for shard in shards:
            flights.append((send(shard), shard))
            while len(flights) > ahead():
                yield receive(*flights[0])
                flights.popleft()
        while flights:
            yield receive(*flights[0])
            flights.popleft()
    finally:
        for flight, _ in flights:
            cancel(flight)


def _opens(name: str) -> bool:
    try:
        open_named(Path(name))[0].close()
    except (OSError, ValueError):
        return False
    return True


def _failure(ray: Any, error: Exception, names: list[str]) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = lines[-1] if isinstance(error, ray.exceptions.RayTaskError) else lines[0]
    return (
        f"The cluster gave up {counted(len(names), 'file')}, {names[0]} to {names[-1]} "
        f"({type(error).__name__}: {told}). Finished rows are kept: check these files and the "
        "nodes' memory, and give the same command, which continues there."
    )
