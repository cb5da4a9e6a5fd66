"""What a client in any language must know about a bundle, in its document and in its graph.

`docs/bundle-format.md` explains the calculation behind each word; recame's own runtime does not
read the words. If a word changes its meaning, the schema number increases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import PreprocessSpec

INTERFACE_SCHEMA = 1

#: The meaning of the axes of each output.
_AXES = {
    "probabilities": ("image", "class"),
    "expert_probabilities": ("image", "expert", "class"),
    "features": ("image", "expert", "feature"),
    "attribution": ("image", "row", "column"),
}
#: Fields of the document that are also written into the graph, so that it can be used alone.
_IN_GRAPH = ("label_space", "preprocess", "interface", "calibration", "data_fingerprint", "recame")


def interface(spec: PreprocessSpec, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Describe how a file becomes the graph's input, and the graph's outputs a decision.

    Args:
        spec: how images are decoded for the graph.
        shapes: shape of each output for one image, without the batch axis.

    Examples:
        >>> grey = PreprocessSpec(48, 64, 1, 8, 255.0, (0.5,), (0.5,))
        >>> found = interface(grey, {"probabilities": (3,)})
        >>> found["input"]["shape"], found["input"]["channel_order"]
        ([None, 48, 64, 1], 'grey')
        >>> found["outputs"]["probabilities"]["shape"]
        [None, 3]
    """
    return {
        "schema": INTERFACE_SCHEMA,
        "described_in": "docs/bundle-format.md",
        "decode": {
            "steps": ["orientation", "box", "depth", "channels", "size"],
            "orientation": "exif",
            "alpha": "dropped",
            "to_16_bit": "times 257",
            "to_8_bit": "upper byte",
            "to_colour": "repeat",
            "to_grey": "(9798 R + 19235 G + 3735 B + 16384) >> 15",
        },
        "resize": {
            "rule": "pieces" if spec.tiles else spec.resize,
            "shrink": "area",
            "enlarge": "linear",
            "each_axis_alone": True,
            "pixel_centres": "half",
            "border": "repeat",
            "rounding": "nearest",
        },
        "input": {
            "name": "images",
            "type": spec.dtype.name,
            "layout": "NHWC",
            "shape": [None, spec.height, spec.width, spec.channels],
            "channel_order": "grey" if spec.channels == 1 else "RGB",
            "values": "stored",
            "normalised_by": "graph",
        },
        "outputs": {
            name: {
                "type": "float32",
                "axes": list(_AXES[name]),
                "shape": [None, *shape],
                "calibrated": False,
            }
            for name, shape in shapes.items()
        },
        "answer": {
            "probabilities": "softmax(scale * log(max(p, floor)) + bias)",
            "scale": "calibration.scale, else 1 / calibration.temperature",
            "bias": "calibration.bias, else 0",
            "floor": float(np.finfo(np.float32).tiny),
            "class": "the largest; the first of several",
            "actions": "decisions.json, where it lies beside",
        },
    }


def graph_metadata(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that is written into a graph, each field as JSON.

    Args:
        document: the part of `bundle.json` that is known before the graph is written.
    """
    return {f"recame.{name}": json.dumps(document[name], sort_keys=True) for name in _IN_GRAPH}


def write_metadata(graph: Path, words: Mapping[str, str]) -> None:
    """Write metadata into a graph's file: `metadata_props` of ONNX, `rt_info` of OpenVINO.

    The exporter's notes at the nodes of an ONNX graph are removed.

    Args:
        graph: `.onnx`, or `.xml` with its `.bin` beside it.
        words: name -> text.
    """
    if graph.suffix == ".onnx":
        import onnx

        model = onnx.load(graph)
        onnx.helper.set_model_props(model, dict(words))
        for node in model.graph.node:
            # The exporter's notes hold paths of source files on this machine.
            del node.metadata_props[:]
            node.doc_string = ""
        onnx.save(model, graph)
        return
    import openvino as ov

    core = ov.Core()
    # With memory mapping, the weights would be lost when their file is overwritten.
    core.set_property({"ENABLE_MMAP": False})
    model = core.read_model(graph)
    for name, text in words.items():
        model.set_rt_info(text, name.split("."))
    ov.save_model(model, graph, compress_to_fp16=False)  # 16-bit weights stay 16-bit
