"""What a client in any language must know of a bundle: in its document, and in the graph itself.

`docs/bundle-format.md` tells the arithmetic behind each word; recame's own runtime does not read
them. A word that changes its meaning gets another number of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import PreprocessSpec

INTERFACE_SCHEMA = 1

#: What the axes of an output are.
_AXES = {
    "probabilities": ("image", "class"),
    "expert_probabilities": ("image", "expert", "class"),
    "features": ("image", "expert", "feature"),
    "attribution": ("image", "row", "column"),
}
#: Fields of the document that a graph tells of itself, so that it can be read without it.
_IN_GRAPH = ("label_space", "preprocess", "interface", "calibration", "data_fingerprint", "recame")


def interface(spec: PreprocessSpec, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """How a file becomes the graph's input, and the graph's outputs an answer.

    Args:
        spec: how images are decoded for the graph.
        shapes: of each output for one image, without the axis of the batch.

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
    """What a graph says of itself, each field as JSON.

    Args:
        document: all of `bundle.json` that is known before the graph is written.
    """
    return {f"recame.{name}": json.dumps(document[name], sort_keys=True) for name in _IN_GRAPH}


def write_metadata(graph: Path, words: Mapping[str, str]) -> None:
    """Write words into a graph's file: `metadata_props` of ONNX, `rt_info` of OpenVINO.

    What an exporter has noted at the nodes of an ONNX graph is left out.

    Args:
        graph: `.onnx`, or `.xml` with its `.bin` beside it.
        words: name -> text.
    """
    if graph.suffix == ".onnx":
        import onnx

        model = onnx.load(graph)
        onnx.helper.set_model_props(model, dict(words))
        for node in model.graph.node:
            # The exporter notes where on this machine each line of the sources lies.
            del node.metadata_props[:]
            node.doc_string = ""
        onnx.save(model, graph)
        return
    import openvino as ov

    core = ov.Core()
    # Weights that are read from the file while it is written would be lost.
    core.set_property({"ENABLE_MMAP": False})
    model = core.read_model(graph)
    for name, text in words.items():
        model.set_rt_info(text, name.split("."))
    ov.save_model(model, graph, compress_to_fp16=False)  # weights of 16 bits stay so
