"""Write src/recame/data/finder.onnx: the first three stages of the packaged EfficientNet-Lite0.

    python benchmarks/tiles/make_finder.py

What finds unusual places needs no torch then, and is the same for every run. Batch norms are folded
into the convolutions, padding is that of TensorFlow for sides that are multiples of eight, and
weights are kept as 16-bit floats. `tests/data/test_tiles.py` compares it with the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from recame.models.pretrained import PACKAGED_BACKBONE, create_timm_model

OUT = Path(__file__).parents[2] / "src" / "recame" / "data" / "finder.onnx"
#: Stages of stride 2, 4 and 8.
STAGES = 3
#: Where a pixel of 0 to 255 lies, of TensorFlow Lite.
MEAN, STD = 127.0, 128.0


class Writer:
    """Nodes and weights of the graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        """The name of a constant."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of a node's output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, conv: Any, norm: Any) -> str:
        """A convolution with the batch norm and the activation behind it."""
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
        weight = (conv.weight.detach() * scale.view(-1, 1, 1, 1)).numpy()
        bias = (norm.bias - norm.running_mean * scale).detach().numpy()
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        before, after = divmod(kernel - stride, 2)
        y = self.add(
            "Conv",
            x,
            self.add("Cast", self.constant(weight, np.float16), to=onnx.TensorProto.FLOAT),
            self.constant(bias),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[before] * 2 + [before + after] * 2,
            group=conv.groups,
        )
        if type(norm.act).__name__ == "ReLU6":
            y = self.add("Clip", y, self.constant(0.0), self.constant(6.0))
        return y

    def block(self, x: str, block: Any) -> str:
        """A block of the network."""
        y = x
        names = ("conv_pw", "conv_dw", "conv_pwl")
        if not hasattr(block, "conv_pwl"):
            names = ("conv_dw", "conv_pw", "")
        for name, norm in zip(names, ("bn1", "bn2", "bn3"), strict=True):
            if name:
                y = self.conv(y, getattr(block, name), getattr(block, norm))
        return self.add("Add", x, y) if block.has_skip else y


def main() -> None:
    """Write the graph."""
    network: Any = create_timm_model(PACKAGED_BACKBONE, "package", 3).eval()
    writer = Writer()
    # Grey stands for three equal colours.
    x = writer.add("Cast", "pixels", to=onnx.TensorProto.FLOAT)
    x = writer.add("Sub", x, writer.constant(MEAN))
    x = writer.add("Div", x, writer.constant(STD))
    x = writer.add("Expand", x, writer.constant([1, 3, 1, 1], np.int64))
    x = writer.conv(x, network.conv_stem, network.bn1)
    for stage in network.blocks[:STAGES]:
        for block in stage:
            x = writer.block(x, block)
    writer.nodes.append(helper.make_node("Identity", [x], ["features"]))
    graph = helper.make_graph(
        writer.nodes,
        "finder",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, [1, "c", "h", "w"])],
        [helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, [1, 40, "y", "x"])],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    OUT.write_bytes(model.SerializeToString())
    print(f"{OUT}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
