"""Which runtime embeds images fastest for the probe, and are its features still the network's?

    python benchmarks/predicting/embedding.py [--sizes 64 128 224 96x320] [--rounds 5] [--out DIR]

The packaged network's pooled stages, as the probe and `recame inspect` read them, in eager torch,
in ONNX Runtime (what is taken), in OpenVINO, and in INT8 by either. They take turns, each for
whole batches of generated boards. Features are compared by the largest difference beside a
feature's size or 1, and by what a ridge classifier makes of them on images left out, as sizes are
chosen. Nothing else should run. `--out DIR` also writes `results-embedding.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from recame.config import height_width
from recame.contracts import Array, FloatArray
from recame.datasets.generated import SyntheticSpec, generate
from recame.inference.quantise import quantise_onnx, quantise_openvino
from recame.inference.separability import judge
from recame.machine import environment
from recame.models import PACKAGED_BACKBONE, FrozenForward, build_backbone, pretrained_mean_std
from recame.models.frozen_forward import quick_onnx

IMAGES, CALIBRATION, TIMED_PIXELS = 600, 200, 64 * 128 * 128
#: Pixels that pass at once, as in `FrozenForward`.
AT_ONCE = 1 << 17
Forward = Callable[[Tensor], Array]


class Pooled(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B, P): the mean of each channel of every stage but the first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        trunk = build_backbone(PACKAGED_BACKBONE, pretrained="package", in_channels=channels)
        self.stages = nn.ModuleList(trunk.stages)
        mean, std = pretrained_mean_std(PACKAGED_BACKBONE, "package", channels)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Pool."""
        maps, pooled = (images - self.mean) / self.std, []
        for number, stage in enumerate(self.stages):
            maps = stage(maps)
            if number:
                pooled.append(maps.mean((2, 3)))
        return torch.cat(pooled, 1)


def in_parts(run: Callable[[Array], Array], images: Tensor) -> Array:
    """A batch in parts whose maps stay in the caches."""
    pixels = images.numpy()
    step = max(1, AT_ONCE // (pixels.shape[-1] * pixels.shape[-2]))
    return np.concatenate([run(pixels[i : i + step]) for i in range(0, len(pixels), step)])


def onnx_forward(path: Path) -> Forward:
    """A graph in ONNX Runtime, with the options of `FrozenForward`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: in_parts(lambda part: session.run(None, {"images": part})[0], images)


def openvino_forward(path: Path) -> Forward:
    """A graph in OpenVINO, all cores on one part."""
    import openvino as ov

    core = ov.Core()
    properties = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(path), "CPU", properties).create_infer_request()

    def run(part: Array) -> Array:
        return np.array(request.infer([part], share_inputs=True)[0])

    return lambda images: in_parts(run, images)


def ways(model: Pooled, images: Tensor, folder: Path) -> dict[str, Forward]:
    """Every runtime, started."""
    graph, eight, other = folder / "fp32.onnx", folder / "int8.onnx", folder / "int8.xml"
    graph.write_bytes(quick_onnx(model, images[:4]))
    quantise_onnx(graph, eight, images[:CALIBRATION].numpy())
    quantise_openvino(graph, other, images[:CALIBRATION].numpy())
    eager = FrozenForward(model, images[:2], num_images=0)
    taken = FrozenForward(model, images[:2], num_images=10**9)
    assert taken.uses_graph
    assert not eager.uses_graph
    return {
        "torch": lambda batch: eager(batch)[0].numpy(),
        "ONNX Runtime, as taken": lambda batch: taken(batch)[0].numpy(),
        "OpenVINO": openvino_forward(graph),
        "ONNX Runtime, INT8": onnx_forward(eight),
        "OpenVINO, INT8": openvino_forward(other),
    }


def measured(size: str, rounds: int) -> list[dict[str, Any]]:
    """A row a runtime."""
    height, width = height_width(size)
    spec = SyntheticSpec(num_images=IMAGES, num_classes=6, imbalance=10, seed=3)
    drawn, table = generate(spec)
    boards = [cv2.resize(np.asarray(image), (width, height)) for image in drawn]
    images = torch.from_numpy(np.stack(boards)).reshape(len(boards), 1, height, width) / 255
    target = table["label"].astype("category").cat.codes.to_numpy().astype(np.int64)
    timed = images[: max(2, TIMED_PIXELS // (height * width))]
    with tempfile.TemporaryDirectory() as folder:
        runtimes = ways(Pooled(1).eval(), images, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in runtimes}
        for turn in range(rounds + 1):
            for name, run in runtimes.items():
                began = time.perf_counter()
                run(timed)
                if turn:  # the first is for what is made once
                    seconds[name].append(time.perf_counter() - began)
        features = {name: run(images) for name, run in runtimes.items()}
    expected = features["torch"]
    return [
        {
            "size": size,
            "runtime": name,
            "images_per_s": round(len(timed) / statistics.median(took), 1),
            "difference": float(f"{_difference(features[name], expected):.2g}"),
            "balanced_accuracy": round(_accuracy(features[name], target), 3),
        }
        for name, took in seconds.items()
    ]


def _difference(found: Array, expected: Array) -> float:
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


def _accuracy(features: FloatArray, target: Array) -> float:
    nothing = features[:0], target[:0]
    classes = int(target.max()) + 1
    return judge(features, target, *nothing, classes, enough=1).accuracy


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["64", "128", "224", "96x320"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    print("| px | runtime | images/s | of the fastest | features off by | ridge classifier |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    rows: list[dict[str, Any]] = []
    for size in asked.sizes:
        found = measured(size, asked.rounds)
        fastest = max(row["images_per_s"] for row in found)
        for row in found:
            share = row["images_per_s"] / fastest
            told = (f"{row['images_per_s']:.0f}", f"{share:.2f}", f"{row['difference']:.1g}")
            print("|", " | ".join((size, row["runtime"], *told)), f"| {row['balanced_accuracy']} |")
        rows += found
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"rows": rows, "environment": environment()}, indent=1)
        (asked.out / "results-embedding.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
