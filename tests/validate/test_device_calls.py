"""Without a GPU: the CUDA library and the session are stand-ins that keep a log."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.model import ValueSpec
from onnxprune.validate import device_calls
from onnxprune.validate.device_calls import CudaStopwatch, device_burst, on_stream, open_stopwatch
from onnxprune.validate.runtime_process import SessionSettings


class Cuda:
    """A CUDA runtime library whose clock advances by 2.5 ms with each run of the session."""

    def __init__(self, failing=None):
        self.log, self.now, self.marks, self.handles, self.failing = [], 0.0, {}, 100, failing

    def __getattr__(self, name):
        def function(*arguments):
            if name == self.failing:
                return 35
            self.log.append(name)
            return getattr(self, f"_{name}")(*arguments)

        return function

    def _create(self, pointer):
        self.handles += 1
        pointer._obj.value = self.handles
        return 0

    _cudaStreamCreate = _cudaEventCreate = _create

    def _cudaEventRecord(self, event, stream):
        assert stream.value == 101
        self.marks[event.value] = self.now
        return 0

    def _cudaEventSynchronize(self, event):
        return 0

    def _cudaEventElapsedTime(self, pointer, first, second):
        pointer._obj.value = self.marks[second.value] - self.marks[first.value]
        return 0


def test_events_time_the_calls_of_a_burst(monkeypatch):
    cuda, bound = Cuda(), []
    binding = SimpleNamespace(
        bind_ortvalue_input=lambda name, value: bound.append((name, value)),
        bind_output=lambda *place: bound.append(place),
    )

    def run(binding):
        cuda.log.append("run")
        cuda.now += 2.5

    session = SimpleNamespace(
        outputs=[ValueSpec("y", np.dtype(np.float32), (1,))],
        raw=SimpleNamespace(io_binding=lambda: binding, run_with_iobinding=run),
    )
    value = SimpleNamespace(ortvalue_from_numpy=lambda array, *place: (array.sum(), *place))
    monkeypatch.setattr(device_calls, "import_runtime", lambda: SimpleNamespace(OrtValue=value))
    burst = device_burst({"x": np.ones(3)}, CudaStopwatch(cuda))(session)
    assert bound == [("x", (3, "cuda", 0)), ("y", "cuda", 0)]
    del cuda.log[:]
    assert burst(2) == [2_500_000, 2_500_000]
    timed = ["Record", "run", "Record", "Synchronize", "ElapsedTime"]
    assert [entry.removeprefix("cudaEvent") for entry in cuda.log] == ["run", *timed, *timed]


def test_sessions_get_the_stream():
    settings = SessionSettings("CUDAExecutionProvider", provider_options={"device_id": "0"})
    assert on_stream(settings, CudaStopwatch(Cuda())).provider_options == {
        "device_id": "0",
        "user_compute_stream": "101",
    }


def test_what_cuda_refuses_is_said():
    with pytest.raises(UsageError, match=r"cudaEventCreate\n  got: error 35"):
        CudaStopwatch(Cuda(failing="cudaEventCreate"))


def test_it_needs_cuda(monkeypatch):
    with pytest.raises(UsageError, match="only CUDA"):
        open_stopwatch("CPUExecutionProvider")

    def missing(name):
        raise OSError

    monkeypatch.setattr(device_calls, "import_runtime", lambda: SimpleNamespace())
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UsageError, match="cannot be loaded"):
        open_stopwatch("CUDAExecutionProvider")
