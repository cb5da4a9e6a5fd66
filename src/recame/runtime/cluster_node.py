"""Runs on a node of a cluster: open the bundle that was sent, and predict shards of files."""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from recame.data.image_file import decoders
from recame.errors import ConfigError, RecameError
from recame.machine import describe_machine, package_versions
from recame.runtime.bundle import open_bundle
from recame.runtime.opening import load
from recame.runtime.prediction import Prediction
from recame.runtime.predictor import Predictor
from recame.runtime.urls import UrlReader, is_url


@dataclass(frozen=True)
class Shipment:
    """What is sent to each node once.

    Attributes:
        files: of the bundle, including its document.
        fingerprint: of the bundle.
        cwd: folder to which relative names are relative.
        software: versions that affect pixels or digits; the node must have the same.
        threads: of the model.
        batch_size: images in a forward pass.
    """

    files: dict[str, bytes]
    fingerprint: str
    cwd: str
    software: str
    threads: int
    batch_size: int


@dataclass(frozen=True)
class Scored:
    """The result of a shard from a node.

    Attributes:
        node: its name.
        instructions: instruction sets of its processor, which may affect the last digits.
        found: a prediction for each file, in order; empty if the node refused.
        refusal: why the node refused; empty if it did not.
    """

    node: str
    instructions: str
    found: tuple[Prediction, ...] = ()
    refusal: str = ""


def software(form: str) -> str:
    """Names and versions of the software that affects pixels and digits for this bundle format."""
    runtimes = {"onnx": ("onnxruntime", "onnxruntime-gpu"), "openvino": ("openvino",)}[form]
    found = package_versions("recame", "numpy", *runtimes)
    return "; ".join((*(f"{name} {found[name]}" for name in found), decoders()))


#: The bundle that this process has loaded.
_LOADED: dict[tuple[str, int], Predictor] = {}


def score(shipment: Shipment, names: list[str], batch_size: int) -> Scored:
    """Predict a shard on this node; relative names are relative to the sender's folder."""
    node, instructions = platform.node(), " ".join(describe_machine()["instructions"])
    try:
        predictor = _loaded(shipment)
        if any(map(is_url, names)):
            predictor.reader = UrlReader(predictor.spec, predictor.reader.max_pixels)
        found = predictor.stream(
            [_found_at(name, shipment.cwd) for name in names],
            num_images=len(names),
            batch_size=batch_size,
            checksums=True,
        )
        named = zip(found, names, strict=True)
        return Scored(node, instructions, tuple(replace(item, image=name) for item, name in named))
    except RecameError as error:
        return Scored(node, instructions, refusal=str(error))


def _found_at(name: str, cwd: str) -> str:
    return name if is_url(name) else os.path.join(cwd, name)  # noqa: PTH118 - text, not paths


def _loaded(shipment: Shipment) -> Predictor:
    """Load the sent bundle and check its checksums, once per process."""
    key = shipment.fingerprint, shipment.threads
    if key not in _LOADED:
        with tempfile.TemporaryDirectory(prefix="recame-bundle-") as folder:
            for name, content in shipment.files.items():
                (Path(folder) / name).write_bytes(content)
            here = software(open_bundle(folder).format)
            if here != shipment.software:
                raise ConfigError(
                    f"it has {here}, but the sending machine has {shipment.software}, so rows "
                    "would differ: install the same versions on every node."
                )
            predictor = load(
                folder, threads=shipment.threads, batch_size=shipment.batch_size, device="cpu"
            )
        if predictor.fingerprint != shipment.fingerprint:
            raise ConfigError(
                "the bundle's decisions changed while it was being sent, so rows would differ: "
                "give the same command again."
            )
        _LOADED.clear()
        _LOADED[key] = predictor
    return _LOADED[key]
