"""Write a recorded network as an ONNX graph: one or a few operators for each torch kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recame.models.onnx_writer import OnnxWriter
from recame.models.recorded_graph import Batch, Recording, Repeated, UnrecordableError, Value


def write_onnx(recording: Recording, output_names: Sequence[str]) -> bytes:
    """Write the graph, weights included.

    Args:
        recording: of a network that maps one batch; the graph's input is `images`, of any number.
        output_names: one for each output.

    Raises:
        UnrecordableError: it has a kernel, or a call of one, that this module cannot write.
    """
    writer = OnnxWriter(recording)
    for operation in recording.operations:
        kernel = operation.name.removeprefix("aten.")
        emit = _KERNELS.get(kernel) or _KERNELS.get(kernel.replace("_.", ".", 1))
        if emit is None:
            raise UnrecordableError(f"nothing is written for {operation.name}")
        try:
            found = emit(writer, *operation.args)
        except (TypeError, ValueError, LookupError, AssertionError) as error:
            raise UnrecordableError(f"{operation.name} is called in another way") from error
        # Only the first results are written; `name` refuses operations that use the others.
        for result, name in zip(
            operation.results, [found] if isinstance(found, str) else found, strict=False
        ):
            writer.names[result.number] = name
    return writer.model(output_names)


def _rank(value: Any) -> int:
    return len(value.shape)


def _unless(fits: bool, what: str) -> None:
    if not fits:
        raise UnrecordableError(f"nothing is written for {what}")


def _axes(value: Value, dims: Any) -> list[int]:
    """Axes counted from the front; if none are given, all."""
    found = [dims] if isinstance(dims, int) else dims or range(_rank(value))
    axes = [axis % _rank(value) for axis in found]
    _unless(0 not in axes, "what mixes images")
    return axes


def _pair(values: Sequence[int], otherwise: Sequence[int] = ()) -> list[int]:
    values = list(values or otherwise)
    return values * 2 if len(values) == 1 else values


def _unary(kind: str, **attributes: Any) -> Callable[..., str]:
    return lambda g, x, *_: g.add(kind, x, **attributes)


def _arithmetic(kind: str) -> Callable[..., str]:
    def emit(g: OnnxWriter, a: Any, b: Any, alpha: Any = 1, *_: Any) -> str:
        _unless(alpha == 1, f"{kind} with alpha={alpha}")
        kinds = {part.dtype for part in (a, b) if isinstance(part, (Value, Tensor, Repeated))}
        _unless(kinds == {torch.float32}, f"{kind} of {kinds}")
        return g.add(kind, a, b)

    return emit


def _power(g: OnnxWriter, x: Value, exponent: float) -> str:
    return g.add("Mul", x, x) if exponent == 2 else g.add("Pow", x, exponent)


def _reduction(kind: str) -> Callable[..., str]:
    def emit(g: OnnxWriter, x: Value, dims: Any, keep: bool = False, dtype: Any = None) -> str:
        _unless(dtype in (None, x.dtype), f"{kind} in {dtype}")
        return g.add(kind, x, g.array(_axes(x, dims)), keepdims=int(keep))

    return emit


def _norm(g: OnnxWriter, x: Value, order: float, dims: Any, keep: bool, dtype: Any) -> str:
    _unless(order == 2 and dtype in (None, x.dtype), f"a norm of order {order}")
    return g.add("ReduceL2", x, g.array(_axes(x, dims)), keepdims=int(keep))


def _convolution(
    g: OnnxWriter,
    x: Value,
    weight: Any,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> str:
    _unless(not transposed and isinstance(weight, Tensor), "a transposed convolution")
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return g.add(
        "Conv",
        *inputs,
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
        group=groups,
        kernel_shape=list(weight.shape[2:]),
    )


def _batch_norm(
    g: OnnxWriter, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any
) -> list[str]:
    # `native_batch_norm` has a flag for training; the kernel for inference has none.
    training, epsilon = (rest[0], rest[2]) if len(rest) == 3 else (False, rest[1])
    _unless(not training and isinstance(mean, Tensor), "batch norms that train")
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    return [g.add("BatchNormalization", x, weight, bias, mean, var, epsilon=epsilon)]


def _layer_norm(
    g: OnnxWriter, x: Value, shape: list[int], weight: Any, bias: Any, epsilon: float
) -> list[str]:
    weight = torch.ones(shape) if weight is None else weight
    inputs = [x, weight] + ([] if bias is None else [bias])
    return [g.add("LayerNormalization", *inputs, axis=-len(shape), epsilon=epsilon)]


def _max_pool(
    g: OnnxWriter,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil: bool,
) -> list[str]:
    sides = _pair(padding)
    return [
        g.add(
            "MaxPool",
            x,
            kernel_shape=_pair(kernel),
            strides=_pair(stride, kernel),
            pads=[*sides, *sides],
            dilations=_pair(dilation),
            ceil_mode=int(ceil),
        )
    ]


def _average_pool(
    g: OnnxWriter,
    x: Value,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil: bool,
    count_padding: bool,
    divisor: Any,
) -> str:
    _unless(divisor is None, "a pooling with a divisor of its own")
    sides = _pair(padding)
    return g.add(
        "AveragePool",
        x,
        kernel_shape=_pair(kernel),
        strides=_pair(stride, kernel),
        pads=[*sides, *sides],
        ceil_mode=int(ceil),
        count_include_pad=int(count_padding),
    )


def _adaptive_pool(g: OnnxWriter, x: Value, size: list[int]) -> str:
    _unless(list(size) == [1, 1], f"adaptive pooling to {size}")
    return g.add("ReduceMean", x, g.array([2, 3]), keepdims=1)


def _nearest(g: OnnxWriter, x: Value, size: list[int], *_: Any) -> str:
    whole = all(isinstance(a, int) and b % a == 0 for a, b in zip(x.shape[2:], size, strict=True))
    _unless(whole, "nearest neighbours of a size that is no multiple")
    return g.add(
        "Resize",
        x,
        "",
        "",
        g.array(size),
        axes=[2, 3],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _bilinear(g: OnnxWriter, x: Value, size: list[int], align: bool, *_: Any) -> str:
    how = "align_corners" if align else "half_pixel"
    return g.add(
        "Resize",
        x,
        "",
        "",
        g.array(size),
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode=how,
    )


def _pad(g: OnnxWriter, x: Value, pads: list[int], value: float) -> str:
    sides = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)]
    before, after = zip(*([(0, 0)] * (_rank(x) - len(sides)) + sides[::-1]), strict=True)
    _unless(before[0] == after[0] == 0, "a padding of the batch")
    return g.add("Pad", x, g.array([*before, *after]), value)


def _concatenated(g: OnnxWriter, parts: list[Any], dim: int = 0) -> str:
    axis = dim % _rank(parts[0])
    _unless(axis > 0, "what joins batches")
    return g.add("Concat", *parts, axis=axis)


def _stacked(g: OnnxWriter, parts: list[Any], dim: int = 0) -> str:
    axis = dim % (_rank(parts[0]) + 1)
    wide = [g.add("Unsqueeze", part, g.array([axis])) for part in parts]
    return g.add("Concat", *wide, axis=axis)


def _view(g: OnnxWriter, x: Value, size: list[Any]) -> str:
    counted = [part for part in size if isinstance(part, Batch)]
    _unless(len(counted) <= 1, f"the shape {size}")
    if counted and -1 in size:
        own = math.prod(p.times if isinstance(p, Batch) else p for p in x.shape)
        others = math.prod(p.times if isinstance(p, Batch) else p for p in size if p != -1)
        size = [own // others if part == -1 else part for part in size]
    # One size may be -1; it follows from the others.
    return g.add("Reshape", x, g.array([p if isinstance(p, int) else -1 for p in size]))


def _expanded(g: OnnxWriter, x: Value, size: list[Any], *_: Any) -> str:
    added = len(size) - _rank(x)
    wanted = []
    for place, part in enumerate(size):
        own = x.shape[place - added] if place >= added else 1
        same = part in (-1, own)
        _unless(same or isinstance(part, int), "a constant as often as there are images")
        wanted.append(1 if same else part)
    return g.add("Expand", x, g.array(wanted))


def _permuted(g: OnnxWriter, x: Value, dims: list[int]) -> str:
    return g.add("Transpose", x, perm=[dim % _rank(x) for dim in dims])


def _transposed(g: OnnxWriter, x: Value, first: int = 0, second: int = 1) -> str:
    order = list(range(_rank(x)))
    order[first], order[second] = order[second], order[first]
    return g.add("Transpose", x, perm=order)


def _sliced(
    g: OnnxWriter, x: Value, dim: int, start: int | None, end: int | None, step: int = 1
) -> str:
    axis, start = dim % _rank(x), start or 0
    if axis == 0 and isinstance(x.shape[0], Batch):
        _unless(start == 0 and step == 1 and (end is None or end >= 2**62), "a part of the batch")
        return g.name(x)
    last = 2**62 if end is None else end
    return g.add("Slice", x, *(g.array([n]) for n in (start, last, axis, step)))


def _selected(g: OnnxWriter, x: Value, dim: int, index: int) -> str:
    axis = dim % _rank(x)
    _unless(not isinstance(x.shape[axis], Batch), "one image of the batch")
    return g.add("Gather", x, g.array(np.int64(index)), axis=axis)


def _unbound(g: OnnxWriter, x: Value, dim: int = 0) -> list[str]:
    size = x.shape[dim]
    _unless(isinstance(size, int), "each image alone")
    assert isinstance(size, int)
    return [_selected(g, x, dim, index) for index in range(size)]


def _matmul_added(g: OnnxWriter, bias: Any, a: Any, b: Any, beta: Any, alpha: Any) -> str:
    _unless(beta == alpha == 1, "addmm with factors")
    return g.add("Add", g.add("MatMul", a, b), bias)


def _cast(g: OnnxWriter, x: Value, dtype: Any, *_: Any) -> str:
    if dtype in (None, x.dtype):
        return g.name(x)
    _unless(dtype == torch.float32, f"numbers as {dtype}")
    return g.add("Cast", x, to=1)


def _clipped(g: OnnxWriter, x: Value, least: Any = None, most: Any = None) -> str:
    bounds = ["" if bound is None else g.name(bound) for bound in (least, most)]
    return g.add("Clip", x, *bounds)


def _gelu(g: OnnxWriter, x: Value, approximate: str = "none") -> str:
    return g.add("Gelu", x, approximate=approximate)


def _silu(g: OnnxWriter, x: Value) -> str:
    return g.add("Mul", x, g.add("Sigmoid", x))


def _softmax(g: OnnxWriter, x: Value, dim: int, *_: Any) -> str:
    return g.add("Softmax", x, axis=dim % _rank(x))


def _attention(
    g: OnnxWriter,
    query: Value,
    key: Value,
    value: Value,
    dropout: float,
    causal: bool,
    mask: Any = None,
    scale: float | None = None,
) -> list[str]:
    _unless(not dropout and not causal and mask is None, "attention with a mask")
    width = query.shape[-1]
    assert isinstance(width, int)
    factor = 1 / math.sqrt(width) if scale is None else scale
    order = [*range(_rank(key) - 2), _rank(key) - 1, _rank(key) - 2]
    scores = g.add("MatMul", g.add("Mul", query, factor), g.add("Transpose", key, perm=order))
    return [g.add("MatMul", g.add("Softmax", scores, axis=-1), value)]


#: Torch kernels that overwrite their first argument (`relu_`) -> the name of the other kernel.
_KERNELS: dict[str, Callable[..., str | list[str]]] = {
    "convolution.default": _convolution,
    "native_batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "native_layer_norm.default": _layer_norm,
    "relu.default": _unary("Relu"),
    "sigmoid.default": _unary("Sigmoid"),
    "tanh.default": _unary("Tanh"),
    "hardswish.default": _unary("HardSwish"),
    "hardsigmoid.default": _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "silu.default": _silu,
    "gelu.default": _gelu,
    "hardtanh.default": _clipped,
    "clamp.default": _clipped,
    "clamp_min.default": _clipped,
    "clamp_max.default": lambda g, x, most: _clipped(g, x, None, most),
    "reciprocal.default": _unary("Reciprocal"),
    "sqrt.default": _unary("Sqrt"),
    "exp.default": _unary("Exp"),
    "pow.Tensor_Scalar": _power,
    "add.Tensor": _arithmetic("Add"),
    "sub.Tensor": _arithmetic("Sub"),
    "mul.Tensor": _arithmetic("Mul"),
    "div.Tensor": _arithmetic("Div"),
    "gt.Scalar": lambda g, x, other: g.add("Greater", x, other),
    "where.self": lambda g, condition, x, y: g.add("Where", condition, x, y),
    "mean.dim": _reduction("ReduceMean"),
    "sum.dim_IntList": _reduction("ReduceSum"),
    "amax.default": _reduction("ReduceMax"),
    "linalg_vector_norm.default": _norm,
    "max_pool2d_with_indices.default": _max_pool,
    "avg_pool2d.default": _average_pool,
    "_adaptive_avg_pool2d.default": _adaptive_pool,
    "upsample_nearest2d.default": _nearest,
    "upsample_bilinear2d.default": _bilinear,
    "constant_pad_nd.default": _pad,
    "cat.default": _concatenated,
    "stack.default": _stacked,
    "view.default": _view,
    "_unsafe_view.default": _view,
    "expand.default": _expanded,
    "permute.default": _permuted,
    "transpose.int": _transposed,
    "t.default": _transposed,
    "unsqueeze.default": lambda g, x, dim: g.add("Unsqueeze", x, g.array([dim % (_rank(x) + 1)])),
    "squeeze.dim": lambda g, x, dim: g.add("Squeeze", x, g.array(_axes(x, dim))),
    "squeeze.dims": lambda g, x, dims: g.add("Squeeze", x, g.array(_axes(x, dims))),
    "slice.Tensor": _sliced,
    "select.int": _selected,
    "unbind.int": _unbound,
    "mm.default": lambda g, a, b: g.add("MatMul", a, b),
    "bmm.default": lambda g, a, b: g.add("MatMul", a, b),
    "addmm.default": _matmul_added,
    "_softmax.default": _softmax,
    "_scaled_dot_product_flash_attention_for_cpu.default": _attention,
    "_to_copy.default": _cast,
    "clone.default": _unary("Identity"),
    "detach.default": _unary("Identity"),
    "alias.default": _unary("Identity"),
}
