import numpy as np
import onnx.parser
import pytest

from onnxprune import model as model_files
from onnxprune.validate import Speedup
from onnxprune.validate.bench_verdict import reason, sentence

SAME, SLOWER, FASTER = Speedup(1, 0.99, 1.01), Speedup(0.9, 0.88, 0.92), Speedup(2, 1.9, 2.1)
UNCLEAR = Speedup(1, 0.9, 1.1)
CPU = {"provider": "CPUExecutionProvider"}
TENSORRT = {"provider": "TensorrtExecutionProvider"}


def network(weight):
    rows, columns = weight.shape
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> '
        f"net (float[1, {rows}] x) => (float[1, {columns}] y) {{ y = MatMul(x, w) }}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model_files.read(proto.SerializeToString())


@pytest.fixture
def weight():
    return np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


def test_unstructured_zeros_on_a_dense_kernel(weight):
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.8)] = 0
    for result in (SAME, SLOWER):
        text = reason(result, network(weight), CPU)
        assert "80.0% of its prunable weights are zero (unstructured)" in text
        assert "CPUExecutionProvider has dense kernels" in text
        assert "removing whole channels" in text
        assert "`onnxprune compile`" in text
        assert "onnxprune prune --pattern 2:4" in text


def test_few_zeros(weight):
    assert reason(SAME, network(weight), CPU).startswith("0.0% of its prunable weights are zero")


def test_nm_zeros(weight):
    weight.reshape(16, 4, 32)[:, :2] = 0
    assert "50.0% of its prunable weights are zero (pattern 2:4), but" in reason(
        SAME, network(weight), CPU
    )
    text = reason(SAME, network(weight), TENSORRT)
    assert "trt_fp16_enable" in text
    assert "multiply zeros" not in text


def test_whole_channels(weight):
    weight[:, ::2] = 0
    text = reason(SLOWER, network(weight), CPU)
    assert "whole channels that are still stored and computed" in text
    assert "2:4" not in text


def test_a_speedup_needs_no_reason(weight):
    assert reason(FASTER, network(weight), CPU) is None


def test_noise_is_named(weight):
    calm = reason(UNCLEAR, network(weight), CPU | {"openings": 12, "busy_cores_of_others": 0.02})
    assert "after 12 openings." in calm
    assert "--seconds" in calm
    loaded = {"openings": 12, "busy_cores_of_others": 1.3, "cores": 2}
    assert "other programs kept 1.3 of 2 cores busy" in reason(
        UNCLEAR, network(weight), CPU | loaded
    )


def test_sentences():
    assert sentence("p", FASTER, None) == (
        "p: faster than the baseline (2.000x, 95 % interval 1.900 to 2.100)"
    )
    assert sentence("p", SLOWER, "Why.").endswith("(0.900x, 95 % interval 0.880 to 0.920). Why.")
    assert "as fast as the baseline within 1.0%" in sentence("p", SAME, None)
    assert "too noisy to conclude" in sentence("p", UNCLEAR, None)
