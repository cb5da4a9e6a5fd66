"""Sessions that run a model: ONNX Runtime, OpenVINO, or torch for a run folder."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any, Protocol

import numpy as np

from recame.contracts import Array, PreprocessSpec
from recame.decisions.calibration import Calibration
from recame.errors import CheckpointError, ConfigError, MissingDependencyError
from recame.runtime.bundle import MODEL_FILES, Bundle

#: Values of `device` for ONNX bundles.
ONNX_DEVICES = ("auto", "cpu", "cuda", "tensorrt")

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_GPU_ADVICE = {
    "cuda": "pip uninstall onnxruntime, then pip install onnxruntime-gpu, on a machine with an "
    "NVIDIA driver and the CUDA and cuDNN libraries that it names",
    "tensorrt": "pip uninstall onnxruntime, then pip install onnxruntime-gpu tensorrt, on a "
    "machine with an NVIDIA driver",
}
#: Pixels that one core runs at once; the activations of more would not fit its cache. Those of INT8
#: are a quarter as large (`benchmarks/realtime/parts.py`).
_PIXELS_AT_ONCE = {"fp32": 4 * 128 * 128, "fp16": 4 * 128 * 128, "int8": 16 * 128 * 128}


_ONE_AT_A_TIME = threading.Lock()


class Session(Protocol):
    """A model that is ready to run.

    Attributes:
        spec: how images are decoded for it.
        outputs: what `run` returns, `probabilities` first.
        backend: `onnxruntime`, `openvino` or `torch`.
        device: where it runs, for example `cpu` or `cuda`.
        steady: whether an image has the same output bits in a batch of any size. If not, only
            batches of one size give equal bits.
    """

    spec: PreprocessSpec
    outputs: tuple[str, ...]
    backend: str
    device: str
    steady: bool

    def run(self, images: Array) -> dict[str, Array]:
        """Run one batch; several threads may call at once.

        Args:
            images: (B, H, W, C) stored pixels, uint8 or uint16 as `spec.dtype`.

        Returns:
            Each output by its name; `probabilities` is (B, C) float32, calibrated.
        """


def open_session(bundle: Bundle, *, device: str, threads: int, calls: int) -> Session:
    """Start the runtime that a bundle's format needs.

    Args:
        bundle: a checked bundle.
        device: `auto`, `cpu`, or another device of the runtime.
        threads: CPU threads of all calls together.
        calls: number of `run` calls at once.

    Raises:
        MissingDependencyError: the runtime is not installed.
        ConfigError: the device does not exist.
        CheckpointError: the runtime cannot read the graph.
    """
    kind = OnnxSession if bundle.format == "onnx" else OpenvinoSession
    return kind(bundle, device=device, threads=threads, calls=calls)


class OnnxSession:
    """A bundle's ONNX graph in ONNX Runtime; the arguments are those of `open_session`."""

    backend = "onnxruntime"

    def __init__(self, bundle: Bundle, *, device: str, threads: int, calls: int) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingDependencyError(
                "onnxruntime", "runtime", f"to run the ONNX bundle {bundle.path}"
            ) from error
        self.spec, self.outputs = bundle.spec, bundle.outputs
        self._calibration = bundle.calibration
        providers = _onnx_providers(device, ort.get_available_providers())
        options = ort.SessionOptions()
        options.intra_op_num_threads = max(1, threads // calls)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A waiting thread must not occupy the core that decodes images meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # The checked bytes, since the file may have changed.
            self._session = ort.InferenceSession(
                bundle.files[bundle.model_path.name], sess_options=options, providers=providers
            )
        except Exception as error:
            raise CheckpointError(
                f"ONNX Runtime {ort.__version__} cannot open {bundle.model_path} "
                f"({_first_line(error)}): update it (pip install -U onnxruntime), or export the "
                "run again."
            ) from error
        used = self._session.get_providers()[0]
        # If a provider's libraries are missing, ONNX Runtime uses the next one without an error.
        if device not in ("auto", "cpu") and used != _PROVIDERS[device]:
            raise ConfigError(
                f"device={device} was asked for, but ONNX Runtime fell back to {used}: its "
                f"libraries are not found. Install them: {_GPU_ADVICE[device]}."
            )
        self.device = next((name for name, known in _PROVIDERS.items() if known == used), used)
        self.steady = bundle.steady and self.device == "cpu"
        self._input = self._session.get_inputs()[0].name

    def run(self, images: Array) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        results = self._session.run(list(self.outputs), {self._input: images})
        return _calibrated(dict(zip(self.outputs, results, strict=True)), self._calibration)


def _onnx_providers(device: str, available: list[str]) -> list[str]:
    """Providers to try, in order; the CPU is last, for operators that others lack."""
    if device not in ONNX_DEVICES:
        raise ConfigError(
            f"device={device!r} is unknown to an ONNX bundle: choose {', '.join(ONNX_DEVICES)}."
        )
    chosen = {"auto": ["cuda"], "cpu": [], "cuda": ["cuda"], "tensorrt": ["tensorrt", "cuda"]}
    wanted = [_PROVIDERS[name] for name in chosen[device]]
    if device != "auto" and wanted and wanted[0] not in available:
        raise ConfigError(
            f"device={device} needs ONNX Runtime's {wanted[0]}, and this installation has only "
            f"{', '.join(available)}. Install it: {_GPU_ADVICE[device]}; or leave --device out."
        )
    return [*(name for name in wanted if name in available), _PROVIDERS["cpu"]]


class OpenvinoSession:
    """A bundle's OpenVINO graph; the arguments are those of `open_session`."""

    backend = "openvino"

    def __init__(self, bundle: Bundle, *, device: str, threads: int, calls: int) -> None:
        try:
            import openvino as ov
        except ImportError as error:
            raise MissingDependencyError(
                "openvino", "runtime-openvino", f"to run the OpenVINO bundle {bundle.path}"
            ) from error
        with _ONE_AT_A_TIME:
            # OpenVINO looks up numpy's types at their first use; two threads that do this at once
            # would deadlock.
            ov.Type.u8.to_dtype()
        self.spec, self.outputs = bundle.spec, bundle.outputs
        self._calibration = bundle.calibration
        core = ov.Core()
        name = "CPU" if device == "auto" else device.upper()
        if name.split(".")[0] not in {known.split(".")[0] for known in core.available_devices}:
            raise ConfigError(
                f"device={device!r} is unknown to OpenVINO here: it has "
                f"{', '.join(core.available_devices).lower()}."
                + (" CUDA and TensorRT need an ONNX bundle." if device in _GPU_ADVICE else "")
            )
        properties: dict[str, Any] = {}
        self.device, self._at_once = name.lower(), sys.maxsize
        self.steady = bundle.steady and name == "CPU"
        if name == "CPU":
            properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
            pixels = _PIXELS_AT_ONCE[bundle.precision]
            self._at_once = max(1, pixels // (self.spec.height * self.spec.width))
        if name == "CPU" or bundle.precision != "fp16":
            # Processors with bfloat16 units would silently use them and break the parity.
            properties["INFERENCE_PRECISION_HINT"] = "f32"
        self._threads, self._calls = threads, calls
        # The checked bytes, since the files may have changed.
        graph, weights = (bundle.files[file] for file in MODEL_FILES["openvino"])

        def compiled(streams: int) -> Any:
            own = {"NUM_STREAMS": streams} if name == "CPU" else {}
            try:
                model = core.read_model(graph, weights)
                return core.compile_model(model, name, properties | own)
            except Exception as error:
                raise CheckpointError(
                    f"OpenVINO {ov.__version__} cannot open {bundle.model_path} "
                    f"({_first_line(error)}): update it (pip install -U openvino), or export the "
                    "run again."
                ) from error

        self._compile = compiled
        self._compiled = self._cores = compiled(calls)
        self._compiling, self._own = threading.Lock(), threading.local()

    def run(self, images: Array) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        if len(images) <= self._at_once:
            request = self._requests("whole", 1)[0]
            found = self._outputs(request.infer([images], share_inputs=True))
            return _calibrated(found, self._calibration)
        # Parts that fit a core's cache, equally many for each core of this call.
        cores = max(1, self._threads // self._calls)
        requests = self._requests("parts", 2 * cores)
        count = cores * math.ceil(len(images) / (cores * self._at_once))
        # No part has one image if others have several: a single image might be rounded differently.
        parts = np.array_split(images, min(count, len(images) // min(2, self._at_once)))
        answers: list[dict[str, Array]] = []
        for number in range(len(parts) + len(requests)):
            request = requests[number % len(requests)]
            if 0 <= number - len(requests) < len(parts):
                request.wait()
                answers.append(self._outputs(request.results))
            if number < len(parts):
                request.start_async([parts[number]], share_inputs=True)
        found = {name: np.concatenate([part[name] for part in answers]) for name in self.outputs}
        return _calibrated(found, self._calibration)

    def _requests(self, kind: str, count: int) -> list[Any]:
        """The calling thread's own requests, since each has its buffers."""
        if not hasattr(self._own, kind):
            model = self._compiled if kind == "whole" else self._on_each_core()
            setattr(self._own, kind, [model.create_infer_request() for _ in range(count)])
        requests: list[Any] = getattr(self._own, kind)
        return requests

    def _on_each_core(self) -> Any:
        """The graph with one stream per thread, compiled at the first large batch."""
        with self._compiling:
            if self._threads != self._calls and self._cores is self._compiled:
                self._cores = self._compile(self._threads)
            return self._cores

    def _outputs(self, results: Any) -> dict[str, Array]:
        return {name: np.array(results[name]) for name in self.outputs}


def _calibrated(outputs: dict[str, Array], calibration: Calibration | None) -> dict[str, Array]:
    """Calibrate the ensemble's probabilities in a graph's outputs."""
    if calibration is None:
        return outputs
    return {**outputs, "probabilities": calibration.apply(outputs["probabilities"])}


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
