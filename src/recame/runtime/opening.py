"""Open a model for predictions: a bundle, or a finished run by its graph or in torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from recame.contracts import AnyPath
from recame.decisions.calibration import decided_by, load_calibration
from recame.decisions.document import DECISIONS_FILE, KeptPolicy, load_policy
from recame.errors import ConfigError
from recame.folders import folder_of
from recame.inference.graph_session import open_graph_session
from recame.inference.torch_session import TorchSession
from recame.machine import usable_cores
from recame.runtime.bundle import Bundle, find_bundle, open_bundle
from recame.runtime.predictor import Predictor
from recame.runtime.sessions import Session, open_session


def load(
    path: AnyPath,
    *,
    threads: int | Literal["auto"] = "auto",
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    views: int | None = None,
    decide: bool = True,
) -> Predictor:
    """Load a bundle (`recame export`), which needs no torch, or a run folder.

    A run folder predicts with its ONNX graph, which needs no torch either. It uses torch if it has
    no graph, and on a GPU.

    Args:
        path: the folder.
        threads: CPU threads of the model; `auto`: all cores that the process may use.
        batch_size: images in a forward pass; `auto`: measured at the first long stream.
        device: `auto`, `cpu`, `cuda`, `tensorrt` (ONNX bundles), or a device of OpenVINO.
        views: views of test-time augmentation, for a run folder only: 1, 2, 4 or 8; None: as in the
            run, to which its calibration was fitted. With other views, the probabilities are not
            calibrated.
        decide: whether to use the decisions of `recame tune`; False: every image is booked as its
            predicted class.

    Raises:
        CheckpointError: there is no bundle and no finished run, or it is damaged.
        ConfigError: a number is below 1, the device does not exist, or `views` is given for a
            bundle, whose graph fixes them.
        MissingDependencyError: a package that this model needs is not installed.
    """
    for name, value in (("threads", threads), ("batch_size", batch_size)):
        if value != "auto" and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r} is not a number above 0: leave it out for auto.")
    folder = folder_of(path)
    size = None if batch_size == "auto" else batch_size
    if not find_bundle(folder):
        cores = None if threads == "auto" else threads
        return _load_run(folder, cores, size, device, views, decide=decide)
    bundle = open_bundle(folder)
    if views not in (None, bundle.views):
        raise ConfigError(
            f"views={views}: the bundle {folder} has {bundle.views} in its graph, to which its "
            "calibration and thresholds were fitted. Export the run again with other --views, or "
            "give the run's folder."
        )
    cores = usable_cores() if threads == "auto" else threads

    def start(calls: int) -> Session:
        return open_session(bundle, device=device, threads=cores, calls=calls)

    answers = answers_of(bundle)
    names = bundle.label_space.names
    fitted = load_policy(folder / DECISIONS_FILE, answers, names) if decide else None
    return Predictor(
        start(1),
        bundle.label_space,
        release_above=bundle.release_above,
        max_pixels=bundle.max_pixels,
        fingerprint=fingerprint_of(bundle, fitted),
        facts={
            "model": str(folder),
            "format": bundle.format,
            "precision": bundle.precision,
            "escape_at_most": bundle.escape_at_most,
            "policy": None if fitted is None else fitted.policy.to_dict(),
        },
        threads=cores,
        batch_size=size,
        reopen=start,
        answers=answers,
        decisions=fitted,
        calibration=bundle.calibration,
        temperature=bundle.temperature,
    )


def answers_of(bundle: Bundle) -> dict[str, object]:
    """Identifies the outputs for which a bundle's decisions hold."""
    return {"bundle": str(bundle.document["checksum"])}


def fingerprint_of(bundle: Bundle, decisions: KeptPolicy | None) -> str:
    """Identifies a bundle together with its decisions."""
    checksum = str(bundle.document["checksum"])
    if decisions is None:
        return checksum
    return _sha256(f"{checksum} {decisions.sha256}")


def _load_run(
    folder: Path,
    threads: int | None,
    size: int | None,
    device: str,
    views: int | None,
    *,
    decide: bool,
) -> Predictor:
    cores = threads or usable_cores()
    quick = open_graph_session(folder, device=device, threads=cores, views=views)
    session = quick or TorchSession(folder, device=device, threads=threads, views=views)
    names = session.label_space.names
    calibration = load_calibration(folder / DECISIONS_FILE, session.answers, len(names))
    if calibration is not None:
        session.calibrate = calibration.apply
    answers = decided_by(session.answers, calibration)
    fitted = load_policy(folder / DECISIONS_FILE, answers, names) if decide else None
    policy = None if fitted is None else fitted.policy
    # `answers` contains the checksums of the weights and of class biases.
    described = f"{answers} {session.precision} {calibration}"
    described += "" if fitted is None else f" {fitted.sha256}"
    if quick is not None:
        described += f" {quick.kept.checksum}"
    return Predictor(
        session,
        session.label_space,
        release_above=None,
        max_pixels=session.max_pixels,
        fingerprint=_sha256(described),
        facts={
            "model": str(folder),
            "format": "run",
            "precision": session.precision,
            "views": session.num_views,
            "policy": None if policy is None else policy.to_dict(),
        },
        threads=session.threads if isinstance(session, TorchSession) else cores,
        batch_size=size,
        reopen=None if quick is None else lambda calls: quick.reopened(cores, calls),
        answers=answers,
        decisions=fitted,
        calibration=calibration,
        temperature=1.0 if calibration is None else calibration.temperature,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
