"""Values that are stored as float16."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import UnsupportedModelError
from onnxprune.runtime import read_record, with_half_values
from onnxprune.runtime.dense_view import dense_view
from onnxprune.runtime.proof import rounding
from onnxprune.validate import inspect_model

from .helpers import check_equal, compiled, net, normal, runtime_outputs, sparse
from .reference import run


def network(conv: np.ndarray, matrix: np.ndarray) -> onnx.ModelProto:
    return net(
        "g (float[N, 6, T] x) => (float[N, T, 20] y)"
        " { a = Conv<pads = [1, 1]>(x, w) t = Transpose<perm = [0, 2, 1]>(a) y = MatMul(t, k) }",
        w=conv,
        k=matrix.T,
    )


CONV = sparse(8, 6, 3)
MATRIX = sparse(20, 8, seed=3)


@pytest.mark.parametrize("length", [1, 70], ids=["few positions", "many positions"])
def test_the_operators_compute_with_rounded_values(length: int, kernels: bool):
    feeds = {"x": normal(2, 6, length)}
    rounded = network(CONV.astype(np.float16).astype(np.float32), _rounded(MATRIX))
    result = with_half_values(compiled(network(CONV, MATRIX)))
    stored = {t.name: t.data_type for t in result.proto.graph.initializer}
    assert stored["w.values"] == stored["k.values"] == onnx.TensorProto.FLOAT16
    check_equal(rounded, result, feeds, kernels, replaced=2)
    assert np.abs(run(rounded, feeds)[0] - run(network(CONV, MATRIX), feeds)[0]).max() > 1e-5


def _rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def test_every_number_of_16_bits(need_kernels: None):
    """Each is the one value of a row that meets a 1."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[~np.isnan(halves)]
    rows = len(halves)
    tensors = {
        "v": halves,
        "c": np.zeros(rows, np.uint16),
        "s": np.arange(rows + 1, dtype=np.int32),
    }
    node = helper.make_node("SparseMatMul", ["x", "v", "c", "s"], ["y"], "n", domain="onnxprune")
    node.attribute.append(helper.make_attribute("in_features", 1))
    float_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", float_type, ["N", 1])],
        [helper.make_tensor_value_info("y", float_type, ["N", rows])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("onnxprune", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    finite = np.isfinite(halves)
    for batch in (1, 9):  # by gathered products, and by the kernels of tiles
        (y,) = runtime_outputs(proto, {"x": np.ones((batch, 1), np.float32)})
        for found in y:
            np.testing.assert_array_equal(found[finite], halves[finite].astype(np.float32))
            assert (found[~finite] == halves[~finite].astype(np.float32)).all()


def test_a_weight_beyond_the_range_keeps_float32(kernels: bool):
    large = CONV.copy()
    large.flat[np.flatnonzero(large)[0]] = 1e5
    proto = network(large, MATRIX)
    result = with_half_values(compiled(proto))
    assert [layer.values for layer in result.record.layers] == ["float32", "float16"]
    assert read_record(result.proto) == result.record
    check_equal(network(large, _rounded(MATRIX)), result, {"x": normal(1, 6, 5)}, kernels)


def test_inspection_sees_the_rounded_weights():
    small = MATRIX.copy()
    small.flat[np.flatnonzero(small)[0]] = 1e-9  # rounded to zero
    result = with_half_values(compiled(network(CONV, small)))
    view = {t.name: numpy_helper.to_array(t) for t in dense_view(result.proto).graph.initializer}
    np.testing.assert_array_equal(view["w"], _rounded(CONV))
    np.testing.assert_array_equal(view["k"], _rounded(small).T)
    assert view["k"].dtype == np.float32
    zeros = {tensor.name: tensor.zeros for tensor in inspect_model(result.proto).tensors}
    assert zeros["k"] == small.size - np.count_nonzero(small) + 1


def test_rounding_is_measured_and_what_is_not_finite_refused(need_kernels: None):
    proto = network(CONV, MATRIX)
    plain = compiled(proto)
    shapes = {"x": [1, 6, 9]}
    assert rounding(proto, plain.proto, shapes=shapes) < 1e-6
    half = with_half_values(plain)
    assert half.record.largest_difference is None
    assert 1e-5 < rounding(proto, half.proto, shapes=shapes) < 1e-2
    for tensor in half.proto.graph.initializer:
        if tensor.name == "k.values":
            values = numpy_helper.to_array(tensor).copy()
            values[0] = np.inf
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(UnsupportedModelError, match="not finite"):
        rounding(proto, half.proto, shapes=shapes)
