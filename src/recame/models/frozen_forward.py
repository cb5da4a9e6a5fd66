"""The fastest forward at hand for frozen weights: an ONNX graph on a CPU, else eager."""

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

#: Pixels to embed from which a graph pays for itself on a CPU: one that is recorded (under a
#: second), and one that `torch.onnx` must export (about ten).
GRAPH_PIXELS, EXPORT_PIXELS = 4_000_000, 40_000_000
#: Pixels that pass a graph at once: a large batch goes in parts, whose maps stay in the caches.
_PART_PIXELS = 1 << 17
#: How far a recorded graph may be from the network, beside the number's size or 1.
_TOLERANCE = 1e-3
_GIVEN_OUT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO, errno.EROFS})


class FrozenForward:
    """Run a module whose weights stay as they are, without autograd, as fast as the device allows.

    On a CPU with onnxruntime and many images ahead, the module becomes a graph with its batch
    norms folded away; otherwise, or where the network cannot be exported, it runs eagerly in
    inference mode. The choice depends on the network and the amount of work, never on a timing, so
    that a repeated run takes the same path. A machine that has no room for the graph at the moment
    does not decide: that is refused, since the eager path rounds otherwise, and a run that is
    resumed, or one on a second machine, would not end with the same weights.

    Args:
        module: maps images (B, C, H, W) in [0, 1] to one tensor or a tuple of tensors, batch first.
        example: a batch of at least one image of the size to come.
        num_images: how many images will pass.
        precision: `32`, `bf16` or `16`: the eager path's autocast.
        function: runs in the place of the module's own forward, and uses its weights alone.

    Raises:
        DataError: memory or disk give out while the graph is made.
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
        """Whether an exported graph runs."""
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
        # A clone outside inference mode, so that heads can train on it.
        return tuple(output.float().clone() for output in outputs)


def becomes_graph(device: torch.device, pixels: int) -> bool:
    """Whether so many pixels pass a graph, on a device and with the packages for that."""
    return device.type == "cpu" and pixels >= GRAPH_PIXELS and graph_runtime_available()


class _Calling(nn.Module):
    """What a function makes of a module: a graph is exported from a forward alone."""

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
            # Two images: the exporter would take a batch of one for a constant. In memory: no disk
            # that may be full has a part in it.
            program = _program(module, example[:1].contiguous().repeat(2, 1, 1, 1), None)
            session = _session(program.model_proto.SerializeToString())
        return session
    except Exception as error:  # the exporter fails in many ways; eager always runs
        if _gave_out(error):
            raise DataError(
                f"The network's graph cannot be made here ({error}): memory or disk give out. "
                "Without it the answers would be rounded otherwise than on a machine that has "
                "room, so a resumed run would not be the same. Free memory and space (TMPDIR), and "
                "start again."
            ) from error
        reason = str(error).partition("\n")[0]
        logger.warning("This network cannot become a graph (%s): it runs eagerly, slower.", reason)
        return None


def _recorded_session(module: nn.Module, example: Tensor) -> Any:
    """None where the network cannot be recorded, or the record answers otherwise than it."""
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
    # A waiting thread must not spin on a core that another program could use: it slows the graph
    # itself down, and alone it gains nothing.
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
    """Whether it was the machine that failed, not the network."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, MemoryError) or getattr(told, "errno", None) in _GIVEN_OUT:
            return True
        if "allocate memory" in str(told) or "bad_alloc" in str(told):
            return True
        told = told.__cause__ or told.__context__
    return False


def quick_onnx(module: nn.Module, example: Tensor, *, output_names: Sequence[str] = ()) -> bytes:
    """A module's graph, written from two recorded forwards (`recorded_graph`), in under a second.

    Args:
        module: as for `export_onnx`, on the CPU.
        example: (B, ...), one image or more.
        output_names: of the graph's outputs; none: `output_0` and so on. The input is `images`.

    Raises:
        UnrecordableError: this network needs `torch.onnx`.
    """
    recording = record(module, example)
    names = output_names or [f"output_{number}" for number in range(len(recording.outputs))]
    return write_onnx(recording, names)


def export_onnx(
    module: nn.Module, example: Tensor, path: Path, *, output_names: Sequence[str] | None = None
) -> None:
    """Write a module as an ONNX graph with a dynamic batch, without the exporter's chatter.

    Args:
        module: in evaluation mode; maps one batch to one tensor or a tuple of tensors.
        example: (B, ...), two images or more: the exporter takes a batch of one for a constant.
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
