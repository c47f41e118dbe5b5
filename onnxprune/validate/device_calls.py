"""Calls whose inputs and outputs stay in the memory of a CUDA device, timed by CUDA events.

ONNX Runtime's Python interface has no events, so these come from the CUDA runtime library that it
has loaded, on a stream that the sessions are given.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.runtime.library import import_runtime
from onnxprune.validate.runtime_process import Burst, SessionSettings
from onnxprune.validate.session import CUDA_PROVIDERS, Session

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_DEVICE = ("cuda", 0)


class CudaStopwatch:
    """Two events on a stream of its own.

    Args:
        library: The CUDA runtime library.

    Raises:
        UsageError: CUDA refuses.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._stream, self._first, self._second = (ctypes.c_void_p() for _ in range(3))
        self._do("cudaStreamCreate", ctypes.byref(self._stream))
        self._do("cudaEventCreate", ctypes.byref(self._first))
        self._do("cudaEventCreate", ctypes.byref(self._second))

    @property
    def stream(self) -> int:
        """Address of the stream."""
        return self._stream.value or 0

    def start(self) -> None:
        """Mark the start, after what the stream has been given so far."""
        self._do("cudaEventRecord", self._first, self._stream)

    def stop(self) -> int:
        """Nanoseconds on the device since the start, once it has got here."""
        elapsed_ms = ctypes.c_float()
        self._do("cudaEventRecord", self._second, self._stream)
        self._do("cudaEventSynchronize", self._second)
        self._do("cudaEventElapsedTime", ctypes.byref(elapsed_ms), self._first, self._second)
        return round(elapsed_ms.value * 1e6)

    def _do(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            raise UsageError("the CUDA runtime refuses", where=function, got=f"error {code}")


def open_stopwatch(provider: str) -> CudaStopwatch:
    """A stopwatch for a provider that runs on CUDA.

    Raises:
        UsageError: It does not, or there is no CUDA runtime library.
    """
    if provider not in CUDA_PROVIDERS:
        raise UsageError(
            "only CUDA keeps inputs and outputs on a device",
            got=provider,
            expected=" or ".join(CUDA_PROVIDERS),
            remedy="--provider cuda, or leave out --device-io",
        )
    runtime = import_runtime()
    if hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    for name in _LIBRARIES:
        try:
            return CudaStopwatch(ctypes.CDLL(name))
        except OSError:
            continue
    raise UsageError(
        "the CUDA runtime library cannot be loaded",
        expected=", ".join(_LIBRARIES),
        remedy="check the CUDA libraries; `onnxprune doctor` shows what is used",
    )


def on_stream(settings: SessionSettings, stopwatch: CudaStopwatch) -> SessionSettings:
    """The same settings for sessions that work on the stopwatch's stream."""
    stream = {"user_compute_stream": str(stopwatch.stream)}
    return replace(settings, provider_options=settings.provider_options | stream)


def device_burst(
    feeds: Mapping[str, np.ndarray], stopwatch: CudaStopwatch
) -> Callable[[Session], Burst]:
    """Makes bursts over inputs and outputs that stay on the device."""
    runtime = import_runtime()

    def make(session: Session) -> Burst:
        binding = session.raw.io_binding()
        for name, array in feeds.items():
            value = runtime.OrtValue.ortvalue_from_numpy(array, *_DEVICE)
            binding.bind_ortvalue_input(name, value)
        for spec in session.outputs:
            binding.bind_output(spec.name, *_DEVICE)

        def burst(calls: int) -> list[int]:
            session.raw.run_with_iobinding(binding)
            elapsed = []
            for _ in range(calls):
                stopwatch.start()
                session.raw.run_with_iobinding(binding)
                elapsed.append(stopwatch.stop())
            return elapsed

        return burst

    return make
