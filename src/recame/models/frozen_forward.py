"""The fastest available forward pass for frozen weights: an ONNX graph on a CPU, else eager."""

from __future__ import annotations

import errno
import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recame.errors import DataError
from recame.models.onnx_kernels import write_onnx
from recame.models.recorded_graph import UnrecordableError, record

logger = logging.getLogger(__name__)

#: One tensor or several, batch first.
Outputs = Tensor | tuple[Tensor, ...]

#: Least number of pixels for which making a graph pays off on a CPU: a recorded graph (under a
#: second), and one from `torch.onnx` (about ten seconds).
GRAPH_PIXELS, EXPORT_PIXELS = 4_000_000, 40_000_000
#: Pixels in one call of a graph: a large batch is split, so that its maps stay in the CPU caches.
_PART_PIXELS = 1 << 17
#: Largest difference of a recorded graph from the network, relative to the value or to 1.
_TOLERANCE = 1e-3
_GIVEN_OUT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO, errno.EROFS})


class FrozenForward:
    """Run a module with fixed weights, without autograd, as fast as the device allows.

    On a CPU with onnxruntime and for many images, the module becomes a graph with folded batch
    norms. Otherwise, or if the network cannot be exported, it runs eagerly in inference mode. The
    choice depends on the network and the amount of work, never on a timing, so a repeated run makes
    the same choice. If memory or disk are too full for the graph, this is an error and not a reason
    for eager mode: eager mode rounds differently, so a resumed run, or one on another machine,
    would end with other weights.

    Args:
        module: maps images (B, C, H, W) in [0, 1] to one tensor or a tuple of tensors, batch first.
        example: a batch of at least one image, of the later size.
        num_images: number of images to process.
        precision: `32`, `bf16` or `16`: autocast of eager mode.
        function: runs instead of the module's own forward, and uses only its weights.

    Raises:
        DataError: memory or disk run out while the graph is made.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        *,
        num_images: int,
        precision: str = "32",
        function: Callable[[Tensor], Outputs] | None = None,
    ) -> None:
        self._module = (module if function is None else _Calling(module, function)).eval()
        self._dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision)
        self._session: Any = None
        pixels = num_images * example.shape[-1] * example.shape[-2]
        if becomes_graph(example.device, pixels):
            self._session = _session_or_none(
                self._module, example[:4], export=pixels >= EXPORT_PIXELS
            )

    @property
    def uses_graph(self) -> bool:
        """Whether a graph runs, not eager mode."""
        return self._session is not None

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Forward one batch.

        Args:
            images: (B, C, H, W) in [0, 1].

        Returns:
            The module's outputs as float32 tensors on the images' device.
        """
        if self._session is not None:
            return _answers(self._session, images)
        autocast = torch.autocast(images.device.type, self._dtype, self._dtype is not None)
        with torch.inference_mode(), autocast:
            result = self._module(images)
        outputs = result if isinstance(result, tuple) else (result,)
        # Clone outside of inference mode, so that heads can train on the result.
        return tuple(output.float().clone() for output in outputs)


def becomes_graph(device: torch.device, pixels: int) -> bool:
    """Whether a graph is used for so many pixels on this device, with the installed packages."""
    return device.type == "cpu" and pixels >= GRAPH_PIXELS and graph_runtime_available()


class _Calling(nn.Module):
    """A module whose forward calls a function: only a forward can be exported as a graph."""

    def __init__(self, module: nn.Module, function: Callable[[Tensor], Outputs]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, images: Tensor) -> Outputs:
        """Images (B, C, H, W) -> what the function returns."""
        return self.function(images)


def graph_runtime_available() -> bool:
    """Whether the packages that make and run an ONNX graph are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def _session_or_none(module: nn.Module, example: Tensor, *, export: bool) -> Any:
    try:
        session = _recorded_session(module, example)
        if session is None and export:
            # Two images, because the exporter would treat a batch of one as a constant. In memory,
            # because the disk may be full.
            program = _program(module, example[:1].contiguous().repeat(2, 1, 1, 1), None)
            session = _session(program.model_proto.SerializeToString())
        return session
    except Exception as error:  # the exporter fails in many ways; eager always runs
        if _gave_out(error):
            raise DataError(
                f"The network's graph cannot be made here ({error}): memory or disk give out. "
                "Without the graph, answers would be rounded differently, so a resumed run would "
                "not give the same result. Free memory and disk space (TMPDIR), and start again."
            ) from error
        reason = str(error).partition("\n")[0]
        logger.warning("This network cannot become a graph (%s): it runs eagerly, slower.", reason)
        return None


def _recorded_session(module: nn.Module, example: Tensor) -> Any:
    """A session of the recorded graph; None if recording fails or its answers differ."""
    try:
        session = _session(quick_onnx(module, example))
    except UnrecordableError:
        return None
    with torch.inference_mode():
        result = module(example)
    found = _answers(session, example)
    for ours, theirs in zip(found, result if isinstance(result, tuple) else (result,), strict=True):
        if not ((ours - theirs).abs() <= _TOLERANCE * theirs.abs().clamp_min(1)).all():
            return None
    return session


def _session(graph: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Waiting threads must not spin: on a busy machine this slows the graph down, on a quiet one it
    # gains nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _answers(session: Any, images: Tensor) -> tuple[Tensor, ...]:
    name, whole = session.get_inputs()[0].name, images.contiguous().numpy()
    size = max(1, _PART_PIXELS // (whole.shape[-1] * whole.shape[-2]))
    starts = range(0, max(1, len(whole)), size)
    found = [session.run(None, {name: whole[first : first + size]}) for first in starts]
    return tuple(
        torch.cat([torch.from_numpy(output) for output in outputs])
        for outputs in zip(*found, strict=True)
    )


def _gave_out(error: BaseException) -> bool:
    """Whether the machine failed (memory or disk), not the network."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, MemoryError) or getattr(told, "errno", None) in _GIVEN_OUT:
            return True
        if "allocate memory" in str(told) or "bad_alloc" in str(told):
            return True
        told = told.__cause__ or told.__context__
    return False


def quick_onnx(module: nn.Module, example: Tensor, *, output_names: Sequence[str] = ()) -> bytes:
    """A module's graph from two recorded forward passes (`recorded_graph`), in under a second.

    Args:
        module: as for `export_onnx`, on the CPU.
        example: (B, ...), one image or more.
        output_names: of the graph's outputs; empty: `output_0` and so on. The input is `images`.

    Raises:
        UnrecordableError: this network needs `torch.onnx`.
    """
    recording = record(module, example)
    names = output_names or [f"output_{number}" for number in range(len(recording.outputs))]
    return write_onnx(recording, names)


def export_onnx(
    module: nn.Module, example: Tensor, path: Path, *, output_names: Sequence[str] | None = None
) -> None:
    """Write a module as an ONNX graph with a dynamic batch; the exporter's messages are silenced.

    Args:
        module: in evaluation mode; maps one batch to one tensor or a tuple of tensors.
        example: (B, ...), two images or more: the exporter treats a batch of one as a constant.
        path: the file to write, weights included.
        output_names: of the graph's outputs; None: the exporter's own. The input is `images`.
    """
    _program(module, example, output_names).save(str(path), external_data=False)


def _program(module: nn.Module, example: Tensor, output_names: Sequence[str] | None) -> Any:
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                module,
                (example,),
                input_names=["images"],
                output_names=output_names,
                dynamo=True,
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
