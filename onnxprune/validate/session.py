"""ONNX Runtime sessions: one way to open a model, with clear errors and no silent fallback."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxprune import model as model_files
from onnxprune.errors import (
    DataError,
    ModelFileError,
    UnsupportedModelError,
    UsageError,
)
from onnxprune.model import OnnxModel, ValueSpec
from onnxprune.runtime.library import check_kernels, import_runtime, is_compiled
from onnxprune.validate.runtime_process import CPU, SessionSettings, open_raw

if TYPE_CHECKING:
    import onnxruntime

ModelSource = str | os.PathLike[str] | OnnxModel | onnx.ModelProto | bytes | tuple[str, bytes]
"""A path, a model in memory, or serialised bytes with the label that reports shall show."""

_SHORT_NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}
TENSORRT = "TensorrtExecutionProvider"
CUDA_PROVIDERS = ("CUDAExecutionProvider", TENSORRT)
_SPIN_IN_CALLS = {"session.force_spinning_stop": "1"}
_NEVER_SPIN = {"session.intra_op.allow_spinning": "0"}
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
        load_ms: Time that ONNX Runtime took to load it, in milliseconds.
    """

    def __init__(
        self,
        label: str,
        source: OnnxModel,
        provider: str,
        raw: "onnxruntime.InferenceSession",
        load_ms: float = 0.0,
    ) -> None:
        self.label = label
        self.inputs: list[ValueSpec] = source.inputs
        self.outputs: list[ValueSpec] = source.outputs
        self.size_bytes = source.size_bytes
        self.provider = provider
        self.raw = raw
        self.load_ms = load_ms
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


class PreparedModel:
    """A model that has been read and can be loaded into ONNX Runtime again and again.

    Use it as a context manager: what it had to write to disk is removed at the end.

    Attributes:
        label: How messages and reports name the model.
        source: The model as it was read.
        settings: How its sessions are opened.
    """

    def __init__(self, model: ModelSource, settings: SessionSettings) -> None:
        self.label, self.source = read_source(model)
        if is_compiled(self.source.proto):
            settings = replace(settings, libraries=(str(check_kernels()),))
        self.settings = settings
        self._model = model
        self._scratch = tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True)
        if settings.provider == TENSORRT:
            # Building an engine takes minutes, and N:M weights are only made use of when asked for
            options = {
                "trt_sparsity_enable": "1",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": self._scratch.name,
            }
            self.settings = replace(settings, provider_options=options | settings.provider_options)

    def __enter__(self) -> "PreparedModel":
        return self

    def __exit__(self, *error: object) -> None:
        self._scratch.cleanup()

    @cached_property
    def content(self) -> str | bytes:
        """What ONNX Runtime gets: the file, or bytes, or a file for what bytes cannot hold."""
        if isinstance(self._model, str | os.PathLike):
            return os.fspath(self._model)
        if model_files.fits_in_one_message(self.source.proto):
            return model_files.serialized(self.source.proto)
        return self._written()

    @cached_property
    def path(self) -> str:
        """A file with the model."""
        if isinstance(self.content, str):
            return self.content
        return self._written()

    def _written(self) -> str:
        path = Path(self._scratch.name) / "model.onnx"
        model_files.write(self.source.proto, path)
        return str(path)

    def open(self, *, profile_prefix: str = "") -> "Session":
        """Load it.

        Args:
            profile_prefix: Where ONNX Runtime writes a profile; empty for none.

        Raises:
            ModelFileError: ONNX Runtime refuses the file.
            UnsupportedModelError: ONNX Runtime has no implementation of an operator.
            UsageError: The provider does not come up.
        """
        runtime, name = import_runtime(), self.settings.provider
        content = self.content
        try:
            # ONNX Runtime prints what it thinks of CUDA to standard output, which belongs to --json
            with contextlib.redirect_stdout(sys.stderr):
                if name in CUDA_PROVIDERS and hasattr(runtime, "preload_dlls"):
                    runtime.preload_dlls()
                start = time.perf_counter()
                raw = open_raw(runtime, content, self.settings, profile_prefix=profile_prefix)
                load_ms = (time.perf_counter() - start) * 1e3
        except Exception as error:
            raise _refusal(error, self.label, name) from error
        if raw.get_providers()[0] != name:
            raise UsageError(
                f"{name} does not come up on this machine",
                where=self.label,
                got=f"ONNX Runtime fell back to {raw.get_providers()[0]}",
                remedy="check the driver and the CUDA libraries; `onnxprune doctor` shows what is "
                "used",
            )
        return Session(self.label, self.source, name, raw, load_ms)


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
    with PreparedModel(model, session_settings(provider, threads, optimization)) as prepared:
        return prepared.open()


def session_settings(
    provider: str | None = None,
    threads: int | None = None,
    optimization: str = "all",
    provider_options: Mapping[str, str] | None = None,
    spinning: bool = True,
) -> SessionSettings:
    """Checked settings of a session.

    Args:
        provider: See `open_session`.
        threads: See `open_session`.
        optimization: See `open_session`.
        provider_options: Options of the execution provider.
        spinning: Whether worker threads spin while a call runs.

    Raises:
        UsageError: The provider is not available, or another value makes no sense.
        MissingDependencyError: onnxruntime is not installed.
    """
    if optimization not in OPTIMIZATION_LEVELS:
        raise UsageError(
            "no such level of graph optimisation",
            got=optimization,
            expected=", ".join(OPTIMIZATION_LEVELS),
        )
    if threads is not None and threads < 1:
        raise UsageError("the number of threads must be at least 1", got=threads)
    return SessionSettings(
        provider=provider_name(provider),
        threads=threads,
        graph_level=OPTIMIZATION_LEVELS[optimization],
        provider_options=dict(provider_options or {}),
        config=_SPIN_IN_CALLS if spinning else _NEVER_SPIN,
    )


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
