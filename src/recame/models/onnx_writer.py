"""Build an ONNX graph node by node, with its constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from recame.contracts import Array
from recame.models.recorded_graph import Recording, Repeated, UnrecordableError, Value

#: Version of the operators; the first with `Gelu`.
_OPSET, _IR_VERSION = 20, 9


class OnnxWriter:
    """Nodes and constants of a graph that grows."""

    def __init__(self, recording: Recording) -> None:
        import onnx

        self._onnx, self._recording = onnx, recording
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._tensors: dict[int, str] = {}
        self._kept: list[Tensor] = []
        #: Names of the values, by number.
        self.names: dict[int, str] = {recording.images.number: "images"}

    def name(self, value: Any) -> str:
        """The name of an input: a value's, a constant's, a number's."""
        if isinstance(value, Value):
            if value.number not in self.names:
                raise UnrecordableError("a kernel's further results are used")
            return self.names[value.number]
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                self._kept.append(value)  # keep it alive, so that no other object gets its id
                own = self._recording.names.get(id(value), f"constant_{len(self._tensors)}")
                self._tensors[id(value)] = self._store(own, value.detach().contiguous().numpy())
            return self._tensors[id(value)]
        if isinstance(value, Repeated):
            count = self.add("Shape", "images", start=0, end=1)
            rest = self.array(list(value.row.shape[1:]))
            return self.add("Expand", value.row, self.add("Concat", count, rest, axis=0))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return self.array(np.float32(value))
        raise UnrecordableError(f"{type(value).__name__} where a number or tensor belongs")

    def array(self, values: Array | np.generic | Sequence[int]) -> str:
        """Add a constant; equal constants are stored once."""
        array = np.asarray(values, None if isinstance(values, (np.ndarray, np.generic)) else "i8")
        words = "_".join(map(str, (array.dtype, *array.shape, *array.ravel().tolist())))
        return self._store(words, array)

    def _store(self, name: str, values: Array) -> str:
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(values, name)
        return name

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        words = [word if isinstance(word, str) else self.name(word) for word in inputs]
        name = f"v{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, words, [name], **attributes))
        return name

    def model(self, output_names: Sequence[str]) -> bytes:
        """The finished graph."""
        helper, outputs = self._onnx.helper, self._recording.outputs
        for name, value in zip(output_names, outputs, strict=True):
            self._nodes.append(helper.make_node("Identity", [self.name(value)], [name]))
        graph = helper.make_graph(
            self._nodes,
            "network",
            [self._declared("images", self._recording.images)],
            [
                self._declared(name, value)
                for name, value in zip(output_names, outputs, strict=True)
            ],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        return bytes(model.SerializeToString())

    def _declared(self, name: str, value: Value) -> Any:
        helper = self._onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(str(value.dtype).removeprefix("torch.")))
        shape = [size if isinstance(size, int) else "batch" for size in value.shape]
        return helper.make_tensor_value_info(name, kind, shape)
