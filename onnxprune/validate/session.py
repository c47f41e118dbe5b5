"""ONNX Runtime sessions: one way to open a model, with clear errors and no silent fallback."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune import model as model_files
from onnxprune.errors import (
    DataError,
    MissingDependencyError,
    ModelFileError,
    UnsupportedModelError,
    UsageError,
)
from onnxprune.model import OnnxModel, ValueSpec

if TYPE_CHECKING:
    import onnxruntime

ModelSource = str | os.PathLike[str] | OnnxModel | onnx.ModelProto | bytes | tuple[str, bytes]
"""A path, a model in memory, or serialised bytes with the label that reports shall show."""

CPU = "CPUExecutionProvider"
_SHORT_NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}
_CUDA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
OPTIMIZATION_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class Session:
    """A model loaded into ONNX Runtime.

    Attributes:
        label: How messages and reports name the model.
        inputs: The inputs to feed.
        outputs: The outputs, in graph order.
        size_bytes: Size of the file with its external data.
        provider: The execution provider that is active.
        raw: The `onnxruntime.InferenceSession`.
    """

    def __init__(
        self,
        label: str,
        source: OnnxModel,
        provider: str,
        raw: "onnxruntime.InferenceSession",
    ) -> None:
        self.label = label
        self.inputs: list[ValueSpec] = source.inputs
        self.outputs: list[ValueSpec] = source.outputs
        self.size_bytes = source.size_bytes
        self.provider = provider
        self.raw = raw
        self._output_names = [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            feeds: Input name -> array, batch axis included.

        Returns:
            Output name -> array, in graph order.

        Raises:
            DataError: ONNX Runtime refuses the inputs.
            UnsupportedModelError: The model fails while it runs.
        """
        try:
            values = self.raw.run(self._output_names, dict(feeds))
        except Exception as error:
            described = ", ".join(f"{k} {v.dtype.name}{list(v.shape)}" for k, v in feeds.items())
            kind = DataError if "INVALID_ARGUMENT" in str(error) else UnsupportedModelError
            raise kind(
                "ONNX Runtime cannot run the model on these inputs",
                where=self.label,
                got=f"{described}: {_first_line(error)}",
                expected=", ".join(f"{spec.name} {spec.describe()}" for spec in self.inputs),
            ) from error
        return dict(zip(self._output_names, values, strict=True))


def open_session(
    model: ModelSource,
    provider: str | None = None,
    threads: int | None = None,
    optimization: str = "all",
) -> Session:
    """Load a model into ONNX Runtime.

    Operators run one after another, each on `threads` threads. Worker threads may spin while a call
    runs (as in deployment), but stop when it returns, so that sessions open side by side do not
    take each other's cores.

    Args:
        model: What to load.
        provider: Execution provider, by its full name or as cpu, cuda, tensorrt, ...; None is cpu.
        threads: Threads within an operator; None leaves it to ONNX Runtime (all cores).
        optimization: Level of graph optimisation: none, basic, extended or all.

    Raises:
        ModelFileError: The file is missing, damaged or refused.
        UnsupportedModelError: ONNX Runtime has no implementation of an operator.
        UsageError: The provider is not available, or does not come up.
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = import_runtime()
    label, source = read_source(model)
    name = provider_name(provider)
    options = _options(runtime, threads, optimization)
    providers = [name] if name == CPU else [name, CPU]
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as scratch:
        try:
            # ONNX Runtime prints what it thinks of CUDA to standard output, which belongs to --json
            with contextlib.redirect_stdout(sys.stderr):
                if name in _CUDA_PROVIDERS and hasattr(runtime, "preload_dlls"):
                    runtime.preload_dlls()
                raw = runtime.InferenceSession(
                    _runtime_input(model, source, Path(scratch)),
                    options,
                    providers=providers,
                    enable_fallback=0,
                )
        except Exception as error:
            raise _refusal(error, label, name) from error
    if raw.get_providers()[0] != name:
        raise UsageError(
            f"{name} does not come up on this machine",
            where=label,
            got=f"ONNX Runtime fell back to {raw.get_providers()[0]}",
            remedy="check the driver and the CUDA libraries; `onnxprune doctor` shows what is used",
        )
    return Session(label, source, name, raw)


def import_runtime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "cpu", "running a model") from None
    return onnxruntime


def available_providers() -> list[str]:
    """Execution providers that the installed ONNX Runtime was built with.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    return list(import_runtime().get_available_providers())


def read_source(model: ModelSource) -> tuple[str, OnnxModel]:
    """The label of a model and the model itself.

    Raises:
        ModelFileError: Missing or damaged.
    """
    if isinstance(model, tuple):
        label, data = model
        return label, model_files.read(data)
    source = model_files.read(model)
    return source.label, source


def provider_name(provider: str | None) -> str:
    """The full name of an execution provider that this ONNX Runtime has.

    Raises:
        UsageError: It has none of that name.
        MissingDependencyError: onnxruntime is not installed.
    """
    name = _SHORT_NAMES.get((provider or "cpu").lower(), provider or CPU)
    available = import_runtime().get_available_providers()
    if name not in available:
        raise UsageError(
            "this execution provider is not available",
            got=provider,
            expected=", ".join(available),
            remedy="install the ONNX Runtime build for it (onnxprune[gpu] for CUDA)",
        )
    return name


def _options(runtime: Any, threads: int | None, optimization: str) -> Any:
    if optimization not in OPTIMIZATION_LEVELS:
        raise UsageError(
            "no such level of graph optimisation",
            got=optimization,
            expected=", ".join(OPTIMIZATION_LEVELS),
        )
    if threads is not None and threads < 1:
        raise UsageError("the number of threads must be at least 1", got=threads)
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(
        runtime.GraphOptimizationLevel, OPTIMIZATION_LEVELS[optimization]
    )
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _runtime_input(model: ModelSource, source: OnnxModel, scratch: Path) -> str | bytes:
    """What ONNX Runtime gets: the file itself, or bytes, or a file for what bytes cannot hold."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if model_files.fits_in_one_message(source.proto):
        return model_files.serialized(source.proto)
    path = scratch / "model.onnx"
    model_files.write(source.proto, path)
    return str(path)


def _refusal(error: Exception, label: str, provider: str) -> Exception:
    """Our error for what ONNX Runtime says while it loads a model."""
    text = _first_line(error)
    if "NOT_IMPLEMENTED" in text or "opset" in text.lower():
        return UnsupportedModelError(
            "ONNX Runtime does not support this model", where=label, got=text
        )
    if provider != CPU and any(word in text for word in ("CUDA", "provider", "TensorRT")):
        return UsageError(f"{provider} does not come up on this machine", where=label, got=text)
    return ModelFileError("ONNX Runtime refuses the model", where=label, got=text)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
