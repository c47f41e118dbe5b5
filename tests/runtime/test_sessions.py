"""Opening models in one line, and what is said where the kernels are missing."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxprune import model as model_files
from onnxprune import runtime
from onnxprune.errors import (
    DenseSpeedWarning,
    MissingDependencyError,
    MissingKernelsError,
    ModelFileError,
    UnsupportedModelError,
)
from onnxprune.runtime import library
from onnxprune.runtime.proof import LARGEST_DIFFERENCE, difference, prove
from onnxprune.validate import open_session
from onnxprune.validate.bench_sessions import peak_memory
from onnxprune.validate.session import PreparedModel, session_settings

from .helpers import compiled, net, normal, sparse

FEEDS = {"x": normal(2, 256, 20, 20)}


def network(density: float = 0.1) -> onnx.ModelProto:
    return net(
        "g (float[N, 256, 20, 20] x) => (float[N, 64, 20, 20] y) { c = Conv(x, w) y = Relu(c) }",
        w=sparse(64, 256, 1, 1, density=density),
    )


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    path = tmp_path / "compiled.onnx"
    onnx.save(compiled(network()).proto, path)
    return path


@pytest.fixture
def expected(plain: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"])
    return session.run(None, FEEDS)[0]


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))


def operators_of(session: onnxruntime.InferenceSession) -> set[str]:
    """Operators that a session runs, from its profile."""
    text = Path(session.end_profiling()).read_text(encoding="utf-8")
    return {name for name in ("SparseConv", "Conv") if f'"op_name" : "{name}"' in text}


@pytest.mark.usefixtures("need_kernels")
@pytest.mark.parametrize("file", ["plain", "ready"])
def test_a_session_runs_the_sparse_operators(
    file: str, request: pytest.FixtureRequest, expected: np.ndarray, tmp_path: Path
):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = runtime.session(request.getfixturevalue(file), options)
    assert isinstance(session, onnxruntime.InferenceSession)
    np.testing.assert_allclose(session.run(None, FEEDS)[0], expected, atol=1e-5)
    assert operators_of(session) == {"SparseConv"}


@pytest.mark.usefixtures("need_kernels")
def test_a_model_where_nothing_pays_is_opened_as_it_is(tmp_path: Path):
    path = tmp_path / "dense.onnx"
    onnx.save(network(density=0.9), path)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = runtime.session(path, options)
    session.run(None, FEEDS)
    assert "SparseConv" not in operators_of(session)


@pytest.mark.usefixtures("need_kernels")
def test_options_that_a_caller_builds(ready: Path, expected: np.ndarray):
    options = onnxruntime.SessionOptions()
    runtime.register(options)
    session = onnxruntime.InferenceSession(ready, options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, FEEDS)[0], expected, atol=1e-5)


@pytest.mark.usefixtures("need_kernels")
def test_options_can_be_used_again(ready: Path, plain: Path, expected: np.ndarray):
    options = onnxruntime.SessionOptions()
    runtime.register(options)
    for path in (ready, plain, ready):
        np.testing.assert_allclose(
            runtime.session(path, options).run(None, FEEDS)[0], expected, atol=1e-5
        )


@pytest.mark.usefixtures("need_kernels")
def test_a_provider_with_options_is_the_same_provider(plain: Path, tmp_path: Path):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = runtime.session(plain, options, [("CPUExecutionProvider", {})])
    session.run(None, FEEDS)
    assert operators_of(session) == {"SparseConv"}


@pytest.mark.usefixtures("no_library")
def test_without_kernels_a_plain_model_runs_and_says_that_it_is_not_faster(
    plain: Path, expected: np.ndarray
):
    with pytest.warns(DenseSpeedWarning, match="gains nothing from zeros") as caught:
        session = runtime.session(plain)
    assert len(caught) == 1
    assert "was not built" in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning points at the caller"
    np.testing.assert_array_equal(session.run(None, FEEDS)[0], expected)


@pytest.mark.usefixtures("no_library")
def test_without_kernels_a_compiled_model_is_refused_with_the_remedy(ready: Path):
    assert not runtime.available()
    assert "was not built" in str(runtime.missing_reason())
    with pytest.raises(MissingKernelsError, match="was not built") as caught:
        runtime.session(ready)
    assert "compiler" in str(caught.value.remedy)
    with pytest.raises(MissingKernelsError):
        open_session(ready)


def test_a_library_that_onnx_runtime_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plain: Path
):
    (tmp_path / "_kernels.so").write_bytes(b"no library")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert "does not load" in str(runtime.missing_reason())
    with pytest.warns(DenseSpeedWarning, match="does not load"):
        runtime.session(plain)


def test_of_several_builds_the_newest_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for place, name in enumerate(["_kernels.so", "_kernels.abi3.so", "_kernels.txt"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (place, place))
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert runtime.library_path() == tmp_path / "_kernels.abi3.so"


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch, plain: Path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError):
        runtime.session(plain)


def test_files_that_are_no_models(tmp_path: Path):
    with pytest.raises(ModelFileError, match="no such model"):
        runtime.session(tmp_path / "none.onnx")


@pytest.mark.usefixtures("need_kernels")
def test_the_kernels_are_those_of_this_machine():
    assert runtime.instruction_set() in {"portable", "avx2", "avx512", "neon"}


@pytest.mark.usefixtures("need_kernels")
def test_compiled_models_are_opened_wherever_models_are(ready: Path, plain: Path):
    found = open_session(ready, threads=1).run(FEEDS)["y"]
    np.testing.assert_allclose(found, open_session(plain).run(FEEDS)["y"], atol=1e-5)
    with PreparedModel(ready, session_settings(threads=1)) as prepared:
        assert peak_memory(prepared, FEEDS), "it was loaded and run in a process of its own"


def test_the_difference_of_outputs():
    a = np.array([3.0, -4.0, 0.0], np.float32)
    assert difference(a, a) == 0
    scale = np.sqrt(25 / 3)
    assert difference(a, a + np.array([0, 0, 0.1], np.float32)) == pytest.approx(0.1 / scale)
    assert difference(a, a[:2]) == np.inf
    assert difference(a, np.array([3, -4, np.nan], np.float32)) == np.inf
    nan = np.array([1, np.nan], np.float32)
    assert difference(nan, nan) == 0
    assert difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert difference(np.zeros(2), np.zeros(2)) == 0
    assert difference(np.zeros(2), np.ones(2)) == np.inf


@pytest.mark.usefixtures("need_kernels")
def test_a_result_that_differs_is_refused():
    source = network()
    result = compiled(source)
    assert 0 <= prove(source, result.proto) <= LARGEST_DIFFERENCE / 10
    values = next(t for t in result.proto.graph.initializer if t.name == "w.values")
    array = onnx.numpy_helper.to_array(values).copy()
    array[7] += 0.01
    values.CopyFrom(onnx.numpy_helper.from_array(array, values.name))
    with pytest.raises(UnsupportedModelError, match="something else") as caught:
        prove(source, result.proto)
    assert "output 'y'" in str(caught.value)


@pytest.mark.usefixtures("need_kernels")
def test_a_compiled_file_with_external_data(tmp_path: Path, ready: Path):
    path = tmp_path / "external.onnx"
    model_files.write(onnx.load(ready), path, external=True)
    assert (tmp_path / "external.onnx.data").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = runtime.session(path).run(None, FEEDS)[0]
    np.testing.assert_array_equal(found, runtime.session(ready).run(None, FEEDS)[0])


RESIDENT = """
import subprocess
import sys
import onnxruntime
from onnxprune import runtime

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

runtime.available()
before = resident()
opener = onnxruntime.InferenceSession if sys.argv[1] == "plain" else runtime.session
session = opener(sys.argv[2], providers=["CPUExecutionProvider"])
print(resident() - before)
"""


@pytest.mark.usefixtures("need_kernels")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_session_of_a_pruned_model_keeps_no_dense_weights(tmp_path: Path):
    path = tmp_path / "pruned.onnx"
    layers = range(5)
    body = " ".join(f"x{n + 1} = Conv<pads = [1, 1, 1, 1]>(x{n}, w{n})" for n in layers)
    weights = {f"w{n}": sparse(512, 512, 3, 3, density=0.1, seed=n) for n in layers}
    head = "g (float[N, 512, 7, 7] x0) => (float[N, 512, 7, 7] x5)"
    onnx.save(net(f"{head} {{ {body} }}", **weights), path)
    grown = {}
    for way in ("plain", "sparse"):
        command = [sys.executable, "-c", RESIDENT, way, str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        grown[way] = 1024 * int(done.stdout)
    dense = sum(weight.nbytes for weight in weights.values())
    assert grown["plain"] - grown["sparse"] > 1.3 * dense, "ONNX Runtime keeps them three times"
