"""Export a finished run as a bundle: graph, calibration, precision, parity check."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from recame.config import Config
from recame.contracts import AnyPath
from recame.data.dataset import InspectionSet
from recame.data.file_groups import group_of_each
from recame.data.sampling import balanced_sample
from recame.data.splits import CALIBRATE
from recame.decisions.calibration import (
    Calibration,
    fit_calibration,
    load_calibration,
    save_calibration,
    why_plain,
)
from recame.decisions.document import last_tuning
from recame.errors import ConfigError, DataError, ExportError, RecameError
from recame.export.interface import graph_metadata, interface, write_metadata
from recame.folders import folder_of
from recame.inference.finished_run import images_to_judge, open_finished, recorded_data
from recame.inference.graph import OPTIONAL_OUTPUTS, DeploymentGraph
from recame.inference.parity import Forward, Parity, check_parity, torch_forward
from recame.inference.predict import predict_split
from recame.inference.quantise import (
    calibration_size,
    check_packages,
    quantise_onnx,
    quantise_openvino,
    to_half,
    to_openvino,
)
from recame.inference.training_prior import prior_of_run
from recame.label_space import LabelSpace
from recame.machine import package_versions
from recame.models import LoadedModel
from recame.models.frozen_forward import export_onnx
from recame.names import counted
from recame.progress import Progress, progress_bars, relabelled, say
from recame.runs.folder import RunFolder
from recame.runs.settings import check_weighting
from recame.runtime.bundle import (
    MODEL_FILES,
    PRECISIONS,
    Bundle,
    assembling,
    open_bundle,
    write_document,
)
from recame.runtime.sessions import open_session

#: Real images that the parity check compares, unless --verify names images.
_PARITY_IMAGES = 1000

_PACKAGES = ("recame", "torch", "timm", "onnx", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class _Source:
    """An opened run."""

    folder: RunFolder
    config: Config
    loaded: LoadedModel
    data: InspectionSet
    label_space: LabelSpace
    views: int


def export(
    run: AnyPath,
    out: AnyPath | None = None,
    *,
    format: str = "onnx",  # noqa: A002 - the command's word
    precision: str = "fp32",
    views: int | None = None,
    verify: AnyPath | None = None,
    outputs: Sequence[str] = (),
    normal: str | None = None,
    replace_bundle: bool = False,
    finish: Callable[[Path, Path], object] | None = None,
    console: Console | None = None,
) -> Bundle:
    """Export a finished run as a bundle that runs without torch, or write nothing.

    The calibration is the one that training fitted. For other views or weights, and for a run of an
    older version, it is fitted to `val` here; if it fits the run's own settings, the run keeps it.
    It is stored beside the graph, whose own probabilities are not calibrated. The written graph is
    loaded again in its runtime, and its calibrated probabilities are compared with torch.

    Args:
        run: the run's folder.
        out: the bundle's folder; None: `bundle-<format>-<precision>` in the run.
        format: `onnx` or `openvino`.
        precision: `fp32`, `fp16` or `int8`.
        views: views of test-time augmentation in the graph, 1 to 8; None: as in the run's settings.
        verify: labelled images, all of which are compared; None: a sample of the run's images.
        outputs: further outputs of the graph, from `OPTIONAL_OUTPUTS`.
        normal: the normal class, if the run was trained without naming it.
        replace_bundle: whether a bundle in `out` is replaced.
        finish: called with the temporary folder of the complete bundle and its future folder; if it
            raises an error, `out` stays as it was.
        console: where progress and figures go; silent if None.

    Raises:
        ExportError: the graph's outputs differ from the network's, or it cannot be made or written.
        MissingDependencyError: a package of the `export` extra is not installed.
        RecameError: the run, its images or an argument cannot be used.
    """
    console = console or Console(quiet=True)
    _check_words(format, precision, views, outputs)
    check_packages(format, precision)
    run = folder_of(run)
    target = Path(out) if out is not None else run / f"bundle-{format}-{precision}"
    with (
        progress_bars(console) as progress,
        assembling(target, replace=replace_bundle) as folder,
        tempfile.TemporaryDirectory(prefix="recame-export-") as scratch,
    ):
        source = _open(run, views, normal, progress)
        calibration = _calibration(source, progress, console)
        # A bundle needs features to recognise unknown images.
        wanted = [name for name in OPTIONAL_OUTPUTS if name in {"features", *outputs}]
        model = source.loaded.model
        graph = DeploymentGraph(model, views=source.views, outputs=wanted).eval()
        progress("writing the graph", 0, 1)
        fp32 = Path(scratch) / "fp32.onnx"
        _trace(graph, source, fp32)
        _convert(fp32, folder / MODEL_FILES[format][0], precision, source)
        facts = _facts(source, graph, format, precision, calibration)
        write_metadata(folder / MODEL_FILES[format][0], graph_metadata(facts))
        progress("writing the graph", 1, 1)
        write_document(folder, facts)
        forward = _forward(open_bundle(folder))
        progress("checking parity", 0, 1)
        parity = _parity(source, forward, calibration, precision, verify, progress)
        if parity.failures:
            raise ExportError(_refusal(parity, precision))
        facts["parity"] = parity.to_dict()
        write_document(folder, facts)
        progress("checking parity", 1, 1)
        if finish is not None:
            finish(folder, target)
    bundle = open_bundle(target)
    _tell(bundle, parity, console)
    return bundle


def _check_words(
    format: str,  # noqa: A002
    precision: str,
    views: int | None,
    outputs: Sequence[str],
) -> None:
    for what, word, known in (
        ("format", format, tuple(MODEL_FILES)),
        ("precision", precision, PRECISIONS),
        *(("outputs", name, OPTIONAL_OUTPUTS) for name in outputs),
    ):
        if word not in known:
            raise ConfigError(f"--{what} {word!r} is unknown: choose {', '.join(known)}.")
    if views is not None and not 1 <= views <= 8:
        raise ConfigError(f"--views {views}: a square has 1 to 8 views.")


def _open(run: Path, views: int | None, normal: str | None, progress: Progress) -> _Source:
    folder, config, loaded = open_finished(run, device="cpu")
    check_weighting(run, config.evaluation.weighting)
    space = loaded.label_space
    label_space = space if normal is None else replace(space, normal=normal)
    data = images_to_judge(recorded_data(folder, config), config, loaded, "val", progress)
    asked = config.evaluation.views
    number = views or (1 if asked == "auto" else asked)
    height, width = loaded.spec.piece_size
    if number > 4 and height != width:
        raise ConfigError(
            f"--views {number}: images of {height} x {width} pixels cannot "
            "be rotated by 90 degrees. Ask for at most 4."
        )
    return _Source(folder, config, loaded, data, label_space, number)


def _calibration(source: _Source, progress: Progress, console: Console) -> Calibration:
    """The run's calibration; fitted on `val` if it has none for these views and weights."""
    folder, own = source.folder, source.config.evaluation.views
    answers = {**folder.answers(source.config), "views": source.views}
    calibration = None
    if source.views == own:
        num_classes = source.label_space.num_classes
        calibration = load_calibration(folder.decisions_path, answers, num_classes)
    if calibration is not None:
        say(console, calibration.sentence())
        return calibration
    val = None
    if "val" in source.data.splits:
        val = predict_split(
            source.loaded.model,
            source.data,
            "val",
            num_views=source.views,
            batch_size=source.config.evaluation.batch_size,
            device="cpu",
            on_progress=relabelled(progress, "calibrating"),
        )
    # With a normal class, named in training or in a tuning, `val` may later have to promise limits.
    named = (last_tuning(folder.decisions_path) or {}).get("normal")
    calibration = fit_calibration(
        val,
        answers,
        plain=why_plain(
            source.label_space.normal or named, set_aside=CALIBRATE in source.data.splits
        ),
        groups=None if val is None else group_of_each(val.table, source.config.data.group_by),
    )
    text = calibration.sentence()
    if source.views == own:
        try:
            save_calibration(calibration, folder.decisions_path)
            text += " It is kept with the run, which uses it from now on."
        except RecameError as error:
            text += f" Only the bundle has it; the run could not keep it: {error}"
    say(console, text)
    return calibration


def _trace(graph: DeploymentGraph, source: _Source, path: Path) -> None:
    """Write the fp32 ONNX graph."""
    spec = source.loaded.spec
    example = torch.from_numpy(np.zeros((2, spec.height, spec.width, spec.channels), spec.dtype))
    try:
        export_onnx(graph, example, path, output_names=["probabilities", *graph.outputs])
    except OSError as error:
        raise ExportError(
            f"The temporary folder {path.parent} cannot be written ({error.strerror or error}), "
            "but the graph is first written there: free space, or set TMPDIR to another folder."
        ) from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(
            f"{source.loaded.architecture.backbone} cannot become an ONNX graph "
            f"({type(error).__name__}: {reason}): choose another model.backbone, or update torch "
            "and onnxscript."
        ) from error


def _convert(fp32: Path, out: Path, precision: str, source: _Source) -> None:
    """Write the model's files in the format and precision of the bundle."""
    onnx = out.suffix == ".onnx"
    if precision == "int8":
        view, size = source.data.view("train"), calibration_size(source.label_space.num_classes)
        chosen = balanced_sample(view.targets, size, source.config.run.seed)
        images = np.asarray(source.data.cache.images[view.rows[chosen]])
        (quantise_onnx if onnx else quantise_openvino)(fp32, out, images)
    elif not onnx:
        to_openvino(fp32, out, half=precision == "fp16")
    elif precision == "fp16":
        to_half(fp32, out)
    else:
        out.write_bytes(fp32.read_bytes())


def _facts(
    source: _Source,
    graph: DeploymentGraph,
    format: str,  # noqa: A002
    precision: str,
    calibration: Calibration,
) -> dict[str, Any]:
    """The part of the document that is known before the graph has run."""
    architecture, attributes = source.loaded.architecture, "attribution" in graph.outputs
    return {
        "recame": version("recame"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "format": format,
        "precision": precision,
        "label_space": source.label_space.to_dict(),
        "preprocess": source.loaded.spec.to_dict(),
        "interface": interface(source.loaded.spec, graph.output_shapes()),
        "graph": {
            "input": "images",
            "outputs": ["probabilities", *graph.outputs],
            "views": source.views,
            "temperature": 1.0,
            "num_experts": architecture.num_experts,
            "num_classes": source.label_space.num_classes,
            "attribution_grid": list(graph.attribution_grid()) if attributes else None,
        },
        "calibration": calibration.to_dict(),
        "thresholds": {},
        "data_fingerprint": str(source.folder.info().get("data_fingerprint", "")),
        "run": {
            "name": source.folder.path.resolve().name,
            "seed": source.config.run.seed,
            "backbone": architecture.backbone,
            "architecture": architecture.to_dict(),
        },
        "versions": package_versions(*_PACKAGES),
        "parity": {},
        "max_pixels": source.config.data.max_pixels,
        "training_prior": prior_of_run(source.folder, source.config).to_dict(),
    }


def _forward(bundle: Bundle) -> Forward:
    """The bundle in its runtime, on the CPU: its graph, calibrated."""
    session = open_session(bundle, device="cpu", threads=torch.get_num_threads(), calls=1)
    return lambda images: session.run(images)["probabilities"]


def _parity(
    source: _Source,
    forward: Forward,
    calibration: Calibration,
    precision: str,
    verify: AnyPath | None,
    progress: Progress,
) -> Parity:
    """Compare the written graph with torch, on real and synthetic images."""
    data, seed, label_space = source.data, source.config.run.seed, source.label_space
    if verify is None:
        name = "val" if "val" in data.splits else "train"
        view = data.view(name)
        chosen = balanced_sample(view.targets, _PARITY_IMAGES, seed)
        rows, target = view.rows[chosen], view.targets[chosen]
    else:
        name = str(verify)
        data = images_to_judge(Path(verify), source.config, source.loaded, "verify", progress)
        rows, target = data.table["row"].to_numpy(), data.table["target"].to_numpy()
    if not len(rows):
        raise DataError("There is no image for comparing the graph with torch: give --verify DATA.")
    groups = label_space.quantile_groups()
    network = torch_forward(source.loaded.model, source.loaded.spec, source.views)
    return check_parity(
        forward,
        lambda images: calibration.apply(network(images)),
        data.cache.images,
        rows,
        target,
        precision=precision,
        tail=tuple((n, i) for i, n in enumerate(label_space.names) if groups[i] == "few"),
        spec=source.loaded.spec,
        source=name,
        seed=seed,
    )


def _refusal(parity: Parity, precision: str) -> str:
    advice = {
        "fp32": "Try the other --format, or another version of the runtime.",
        "fp16": "Export it with --precision fp32.",
        "int8": "Export it with the other --format, or with --precision fp32.",
    }
    return (
        f"The {precision} graph does not agree with the network: {'; '.join(parity.failures)}. "
        f"No bundle was written. Measured on {parity.sentence()}. {advice[precision]}"
    )


def _tell(bundle: Bundle, parity: Parity, console: Console) -> None:
    size = sum(facts["bytes"] for facts in bundle.document["files"].values()) / 1e6
    views = counted(bundle.views, "view")
    lines = [
        f"Exported {bundle.format} {bundle.precision}, {size:.1f} MB, {views}: "
        + ", ".join(bundle.outputs),
        f"Parity with torch on {parity.sentence()}",
    ]
    if bundle.precision == "fp16" and bundle.format == "onnx":
        lines.append("FP16 in ONNX is for GPUs: most CPUs run it slower than fp32.")
    for line in lines:
        say(console, line)
