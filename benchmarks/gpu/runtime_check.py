"""`evaluate` and `bench` on ONNX Runtime's CUDA and TensorRT providers, where these are there."""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from rows import Outcome, Settings
from small_run import SmallRun, make_small_run

from onnxprune.calibration import open_data
from onnxprune.errors import UsageError
from onnxprune.model import read
from onnxprune.validate import bench, evaluate, open_session
from onnxprune.validate.session import TENSORRT, available_providers

AGREEMENT = 0.99
_CUDA = "CUDAExecutionProvider"


def measure(item: str, settings: Settings) -> Outcome:
    """Run one of the two commands' functions."""
    if "TensorRT" in item:
        return _tensorrt(settings)
    if settings.device == "cuda" and _CUDA not in available_providers():
        return Outcome(None, {}, f"this build of ONNX Runtime has no {_CUDA}")
    warnings.simplefilter("ignore")
    with _files(settings) as files:
        if item.startswith("evaluate"):
            return _evaluate(files, settings.device)
        if item.endswith("on the GPU"):
            return _device_io(files, settings.device)
        return _bench(files, settings.device)


@contextmanager
def _files(settings: Settings) -> Iterator[SmallRun]:
    with tempfile.TemporaryDirectory() as folder:
        yield make_small_run(Path(folder), samples=512, size=32, width=64, seed=settings.seed)


def _evaluate(files: SmallRun, provider: str) -> Outcome:
    """Compare classes and outputs of the provider with the CPU's."""
    source = read(files.model)
    samples = open_data(str(files.evaluation), inputs=source.inputs, num_classes=source.class_count)
    (wanted,) = evaluate([source], samples, keep_outputs=True).models
    (found,) = evaluate([source], samples, provider=provider, keep_outputs=True).models
    assert wanted.outputs is not None
    assert found.outputs is not None
    measured = {
        "agreement": float((wanted.predictions == found.predictions).mean()),
        "max_abs_error": float(np.abs(wanted.outputs - found.outputs).max()),
    }
    return Outcome(measured["agreement"] >= AGREEMENT, measured)


def _bench(files: SmallRun, provider: str) -> Outcome:
    """The model against itself: the ratio should be about 1, which noise alone may hinder."""
    result = bench([files.model, files.model], batch=32, provider=provider, max_seconds=5.0)
    ratio = result.models[1].speedup
    measured = {
        "median_ms": result.models[0].latency_ms["median"],
        "ratio": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
    }
    used = result.environment["provider"]
    wanted = _CUDA if provider == "cuda" else "CPUExecutionProvider"
    message = "" if used == wanted else f"it ran on {used}"
    return Outcome(used == wanted, measured, message, result.environment)


def _tensorrt(settings: Settings) -> Outcome:
    """The dense model beside one with 2:4 zeros, in half precision where TensorRT likes that.

    Builds of ONNX Runtime for GPUs list the provider also where TensorRT itself is missing, so only
    a session that opens shows that it is there.
    """
    if TENSORRT not in available_providers():
        return Outcome(None, {}, f"this build of ONNX Runtime has no {TENSORRT}")
    warnings.simplefilter("ignore")
    with _files(settings) as files:
        try:
            open_session(files.model, provider="tensorrt")
        except UsageError as error:
            return Outcome(None, {}, f"{error.what} ({error.got})")
        sparse = files.model.with_name("sparse.onnx")
        onnx.save(_with_2_4_zeros(onnx.load(files.model)), sparse)
        result = bench(
            [files.model, sparse],
            batch=32,
            provider="tensorrt",
            provider_options={"trt_fp16_enable": "1", "trt_sparsity_enable": "1"},
            max_seconds=20.0,
        )
    speedup = result.models[1].speedup
    measured = {
        "dense_ms": result.models[0].latency_ms["median"],
        "sparse_ms": result.models[1].latency_ms["median"],
        "ratio": speedup.ratio,
        "low": speedup.low,
        "high": speedup.high,
    }
    used = result.environment["provider"]
    message = "" if used == TENSORRT else f"it ran on {used}"
    return Outcome(used == TENSORRT, measured, message, result.environment)


def _with_2_4_zeros(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Two of every four input channels of each convolution's weight set to zero; `proto` itself."""
    weights = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in weights and array.shape[1] % 4 == 0:
            array.reshape(len(array), -1, 4, *array.shape[2:])[:, :, :2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return proto


def _device_io(files: SmallRun, provider: str) -> Outcome:
    """What a call takes on the device, by its events, beside one with copies by the clock."""
    if provider != "cuda":
        return Outcome(None, {}, "inputs and outputs on the device need CUDA")
    copied, kept = (
        bench([files.model], batch=32, provider=provider, max_seconds=5.0, device_io=device_io)
        for device_io in (False, True)
    )
    measured = {
        "with_copies_ms": copied.models[0].latency_ms["median"],
        "on_device_ms": kept.models[0].latency_ms["median"],
    }
    passed = 0 < measured["on_device_ms"] < measured["with_copies_ms"]
    return Outcome(passed, measured, "", kept.environment)
