import os
import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxprune import model as model_files
from onnxprune.errors import (
    DataError,
    MissingDependencyError,
    ModelFileError,
    UnsupportedModelError,
    UsageError,
)
from onnxprune.runtime import library
from onnxprune.validate import open_session, session
from onnxprune.validate.session import PreparedModel

pytest.importorskip("onnxruntime")

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w)  z = Relu(y) }
"""


@pytest.fixture
def proto():
    return onnx.parser.parse_model(TEXT)


def test_a_path_bytes_a_proto_and_a_labelled_pair(proto, tmp_path):
    path = tmp_path / "net.onnx"
    model_files.write(proto, path)
    data = proto.SerializeToString()
    x = np.array([[1, 0, -1]], np.float32)
    sources = [path, str(path), data, proto, model_files.read(path), ("ours", data)]
    for source in sources:
        result = open_session(source, threads=1).run({"x": x})
        assert list(result) == ["y", "z"]
        np.testing.assert_array_equal(result["y"], [[-4, -4]])
        np.testing.assert_array_equal(result["z"], [[0, 0]])
    assert open_session(path).label == str(path)
    assert open_session(("ours", data)).label == "ours"
    opened = open_session(path)
    assert [spec.describe() for spec in opened.inputs] == ["float32[N, 3]"]
    assert [spec.name for spec in opened.outputs] == ["y", "z"]
    assert opened.size_bytes == path.stat().st_size
    assert opened.provider == "CPUExecutionProvider"


def test_a_model_in_memory_is_run_as_it_is_now(proto, tmp_path):
    model_files.write(proto, tmp_path / "net.onnx")
    source = model_files.read(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").unlink()
    assert open_session(source).run({"x": np.ones((1, 3), np.float32)})["y"][0, 0] == 9


def test_external_data_and_models_beyond_protobuf(proto, tmp_path, monkeypatch):
    weights = np.random.default_rng(0).standard_normal((3, 400)).astype(np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 400
    x = np.ones((2, 3), np.float32)
    model_files.write(proto, tmp_path / "net.onnx", external=True)
    expected = np.tile(weights.sum(0), (2, 1))
    from_file = open_session(tmp_path / "net.onnx").run({"x": x})["y"]
    np.testing.assert_allclose(from_file, expected, rtol=1e-5)
    monkeypatch.setattr(model_files, "PROTOBUF_LIMIT_BYTES", 1000)
    np.testing.assert_allclose(open_session(proto).run({"x": x})["y"], expected, rtol=1e-5)


def test_threads_and_optimisation_reach_the_runtime(proto):
    options = open_session(proto, threads=2, optimization="basic").raw.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 1
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    with PreparedModel(proto, session.session_settings(spinning=False)) as prepared:
        options = prepared.open().raw.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(UsageError, match="threads"):
        open_session(proto, threads=0)
    with pytest.raises(UsageError, match="none, basic, extended, all"):
        open_session(proto, optimization="most")


def test_bad_files(proto, tmp_path):
    with pytest.raises(ModelFileError, match="no such model file"):
        open_session(tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"bad\.onnx"):
        open_session(tmp_path / "bad.onnx")
    proto.graph.node[1].op_type = "NoSuchOp"
    with pytest.raises((ModelFileError, UnsupportedModelError), match="NoSuchOp"):
        open_session(("net", proto.SerializeToString()))


def test_an_operator_without_a_kernel_is_unsupported(proto):
    text = TEXT.replace("float[N, 3] x", "int8[N, 3] x").replace("float[", "int8[")
    proto = onnx.parser.parse_model(text.replace("z = Relu(y)", "z = Sin(y)"))
    with pytest.raises((ModelFileError, UnsupportedModelError)) as caught:
        open_session(proto)
    assert "the model in memory" in str(caught.value)


def test_inputs_that_do_not_fit(proto):
    opened = open_session(("net", proto.SerializeToString()))
    for feeds in ({"x": np.ones((1, 4), np.float32)}, {"x": np.ones((1, 3))}):
        with pytest.raises(DataError, match=r"net(.|\n)*x float32\[N, 3\]"):
            opened.run(feeds)


def test_providers(proto, monkeypatch):
    assert session.provider_name("cpu") == session.provider_name(None) == session.CPU
    with pytest.raises(UsageError, match="CPUExecutionProvider"):
        open_session(proto, provider="abacus")


def test_a_provider_that_does_not_come_up_is_no_silent_fallback(proto, monkeypatch, capfd):
    class Fallen:
        def __init__(self, *args, **kwargs):
            print("Falling back")

        def get_providers(self):
            return [session.CPU]

    runtime = library.import_runtime()
    monkeypatch.setattr(runtime, "InferenceSession", Fallen)
    monkeypatch.setattr(runtime, "preload_dlls", lambda: print("no libcurand"), raising=False)
    monkeypatch.setattr(
        runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", session.CPU]
    )
    with pytest.raises(UsageError, match="CUDAExecutionProvider does not come up"):
        open_session(proto, provider="cuda")
    assert capfd.readouterr().out == ""


def test_without_onnxruntime(proto, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"onnxprune\[cpu\]"):
        open_session(proto)


def test_a_prepared_model_is_loaded_again_and_again(proto):
    x = np.ones((1, 3), np.float32)
    with PreparedModel(("ours", proto.SerializeToString()), session.session_settings()) as prepared:
        first, second = prepared.open(), prepared.open()
        assert first.raw is not second.raw
        np.testing.assert_array_equal(first.run({"x": x})["y"], second.run({"x": x})["y"])
        assert min(first.load_ms, second.load_ms) > 0
        path = prepared.path
        assert open_session(path).run({"x": x})["y"][0, 0] == 9
    assert not os.path.exists(path)


def test_tensorrt_gets_sparsity_and_a_cache_that_goes(proto, monkeypatch):
    settings = session.SessionSettings(
        session.TENSORRT, provider_options={"trt_sparsity_enable": "0", "trt_fp16_enable": "1"}
    )
    with PreparedModel(proto, settings) as prepared:
        options = prepared.settings.provider_options
        cache = options.pop("trt_engine_cache_path")
        assert os.path.isdir(cache)
    assert not os.path.exists(cache)
    assert options == {
        "trt_sparsity_enable": "0",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
    }
