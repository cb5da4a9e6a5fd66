"""Convert an fp32 graph to half precision or INT8.

INT8 weights use only half of their range (`OverflowFix.ENABLE`). Processors without VNNI add pairs
of products in 16 bits, which would saturate with the whole range, and a bundle must decide on the
line's PC as it did where it was exported.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np

from recame.contracts import Array
from recame.errors import ExportError, MissingDependencyError

#: Images in the calibration sample; more if there are very many classes.
_CALIBRATION_IMAGES = 1000
_PER_CLASS = 3

_CALIBRATION_BATCH = 10

#: Packages that an export needs besides torch, by format and precision.
_NEEDED = {
    ("onnx", "fp32"): ("onnx", "onnxscript", "onnxruntime"),
    ("onnx", "fp16"): ("onnx", "onnxscript", "onnxruntime"),
    ("onnx", "int8"): ("onnx", "onnxscript", "onnxruntime", "nncf"),
    ("openvino", "fp32"): ("onnx", "onnxscript", "openvino"),
    ("openvino", "fp16"): ("onnx", "onnxscript", "openvino"),
    ("openvino", "int8"): ("onnx", "onnxscript", "openvino", "nncf"),
}


def check_packages(format: str, precision: str) -> None:  # noqa: A002 - the command's word
    """Stop early if packages that an export needs are not installed.

    Raises:
        MissingDependencyError: names the package and the command that installs it.
    """
    for name in _NEEDED[format, precision]:
        if importlib.util.find_spec(name) is None:
            purpose = f"to export an {precision.upper()} bundle as {format}"
            extra = "runtime" if name == "onnxruntime" else "export"
            raise MissingDependencyError(name, extra, purpose)


def calibration_size(num_classes: int) -> int:
    """Number of images that a calibration sample should have."""
    return max(_CALIBRATION_IMAGES, _PER_CLASS * num_classes)


def to_half(source: Path, out: Path) -> None:
    """Convert an ONNX graph to half precision, with pixels, head and softmax left in fp32.

    Args:
        source: the fp32 graph.
        out: the file to write.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    kept = sensitive_nodes(model) | _pixel_nodes(model)
    logging.getLogger("onnxruntime.transformers.float16").setLevel(logging.ERROR)
    half = convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(kept))
    onnx.save(half, out)


def quantise_onnx(source: Path, out: Path, calibration: Array) -> None:
    """Quantise the convolutions of an ONNX graph to INT8 with nncf.

    Activations and weights have 8 bits, with a scale for each channel of a weight. The first
    convolution, which sees the pixels, and the depthwise ones, which lose most, stay in fp32.

    Args:
        source: the fp32 graph.
        out: the file to write.
        calibration: (N, H, W, C) stored pixels.

    Raises:
        ExportError: the graph holds something that cannot be quantised.
    """
    import nncf
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = source.with_name("prepared.onnx")
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    except Exception as error:
        raise _not_quantised(error) from error
    model = onnx.load(prepared)
    first = next((node.name for node in model.graph.node if node.op_type == "Conv"), "")
    kept = {first} | sensitive_nodes(model) | _depthwise_nodes(model)
    # INT8 for other operators gave no speed-up in ONNX Runtime in our tests.
    others = {node.op_type for node in model.graph.node} - {"Conv"}
    batches = [{"images": batch} for batch in _batches(calibration)]
    quantised = _quantised(
        model, batches, nncf.IgnoredScope(sorted(kept), types=sorted(others), validate=False)
    )
    onnx.save(quantised, out)


def quantise_openvino(source: Path, out: Path, calibration: Array) -> None:
    """Convert an ONNX graph to OpenVINO and quantise it to INT8 with nncf.

    Args:
        source: the fp32 ONNX graph.
        out: the `.xml` to write, its `.bin` beside it.
        calibration: (N, H, W, C) stored pixels.

    Raises:
        ExportError: the graph holds something that cannot be quantised.
    """
    import nncf
    import onnx
    import openvino as ov

    names = sensitive_nodes(onnx.load(source))
    model = ov.convert_model(source)
    aside = {"Constant", "Parameter", "Result"}
    # A convolution with a bias becomes `name/WithoutBiases` and the sum `name`.
    found = {
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() not in aside and op.get_friendly_name().partition("/")[0] in names
    }
    ignored = nncf.IgnoredScope(sorted(found), validate=False)
    # Symmetric activations run fastest; bias correction layer by layer restores their accuracy.
    symmetric = nncf.QuantizationPreset.PERFORMANCE
    quantised = _quantised(model, _batches(calibration), ignored, symmetric, layer_by_layer=True)
    ov.save_model(quantised, out, compress_to_fp16=False)


def to_openvino(source: Path, out: Path, *, half: bool) -> None:
    """Convert an ONNX graph to OpenVINO, with 32-bit or 16-bit weights.

    Args:
        source: the fp32 ONNX graph.
        out: the `.xml` to write, its `.bin` beside it.
        half: whether weights are stored in 16 bits.
    """
    import openvino as ov

    ov.save_model(ov.convert_model(source), out, compress_to_fp16=half)


def sensitive_nodes(model: Any) -> set[str]:
    """Names of the nodes to keep in fp32: attention gates, and the head up to the outputs.

    Quantising them would lose most accuracy and save least time.

    Args:
        model: an ONNX model that `export_onnx` wrote of a `DeploymentGraph`.
    """
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in model.graph.node for name in node.output}
    squeezes = [n for n in model.graph.node if any(".squeeze." in name for name in n.input)]
    pools = [makers[n.input[0]] for n in squeezes]
    heads = [node for node in model.graph.node if _in_head(node)]
    return _downstream([*pools, *squeezes], readers, "Mul") | _downstream(heads, readers, None)


def _in_head(node: Any) -> bool:
    scopes = "".join(p.value for p in node.metadata_props if p.key.endswith("name_scopes"))
    return "'model.head'" in scopes


def _downstream(nodes: list[Any], readers: dict[str, list[Any]], stop: str | None) -> set[str]:
    """Names of these nodes and all later ones, up to but not including a node of type `stop`."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.name in found or node.op_type == stop:
            continue
        found.add(node.name)
        for name in node.output:
            waiting += readers.get(name, [])
    return found


def _depthwise_nodes(model: Any) -> set[str]:
    """Names of the convolutions with one input channel per group."""
    shapes = {weights.name: list(weights.dims) for weights in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        shape = shapes.get(node.input[1], []) if node.op_type == "Conv" else []
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if len(shape) == 4 and shape[1] == 1 and groups > 1:
            found.add(node.name)
    return found


def _pixel_nodes(model: Any) -> set[str]:
    """Names of the nodes before the first convolution: stored pixels overflow half precision."""
    found = set()
    for node in model.graph.node:  # in topological order
        if node.op_type == "Conv":
            break
        found.add(node.name)
    return found


def _batches(calibration: Array) -> list[Array]:
    return np.array_split(calibration, -(-len(calibration) // _CALIBRATION_BATCH))


def _quantised(
    model: Any,
    batches: list[Any],
    ignored: Any,
    preset: Any = None,
    *,
    layer_by_layer: bool = False,
) -> Any:
    """Quantise an ONNX or OpenVINO model to INT8.

    Args:
        model: an ONNX or OpenVINO model.
        batches: the calibration sample, as the model takes it.
        ignored: nncf's scope of nodes that stay in fp32.
        preset: of nncf; None: symmetric weights, activations as they are.
        layer_by_layer: correct each bias after all earlier ones; slower, a little more accurate.
    """
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=preset or nncf.QuantizationPreset.MIXED,
            fast_bias_correction=not layer_by_layer,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE
            ),
            subset_size=len(batches),
            ignored_scope=ignored,
        )
    except Exception as error:
        raise _not_quantised(error) from error
    finally:
        logger.setLevel(level)


def _not_quantised(error: Exception) -> ExportError:
    reason = str(error).strip().partition("\n")[0]
    return ExportError(
        f"This network cannot be quantised ({type(error).__name__}: {reason}): export it with "
        "--precision fp32 or fp16."
    )
