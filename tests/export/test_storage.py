"""Sparse storage."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.export import SPARSE_BREAK_EVEN, to_sparse
from onnxprune.model import payload_sha256
from onnxprune.tensors import find_tensors
from onnxprune.validate import open_session

SHAPE = (64, 48)


def weight(sparsity: float, dtype: type = np.float32) -> np.ndarray:
    """Random values of which exactly the given share is zero."""
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 2, SHAPE).ravel()
    values[rng.permutation(values.size)[: round(sparsity * values.size)]] = 0
    return values.reshape(SHAPE).astype(dtype)


def dense(values: np.ndarray) -> onnx.ModelProto:
    """`y = x @ w + b`."""
    elem = helper.np_dtype_to_tensor_dtype(values.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", elem, ["N", SHAPE[0]])],
        [helper.make_tensor_value_info("y", elem, ["N", SHAPE[1]])],
        [
            numpy_helper.from_array(values, "w"),
            numpy_helper.from_array(np.ones(SHAPE[1], values.dtype), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def test_onnx_runtime_computes_the_same_from_sparse_storage() -> None:
    proto = dense(weight(0.9))
    proto.graph.initializer[0].metadata_props.add(key="k", value="v")
    sparse = onnx.ModelProto.FromString(proto.SerializeToString())
    assert to_sparse(sparse, {"w"}) == ["w"]
    onnx.checker.check_model(sparse)
    x = np.random.default_rng(1).normal(size=(5, SHAPE[0])).astype(np.float32)
    expected = open_session(proto).run({"x": x})["y"]
    np.testing.assert_array_equal(open_session(sparse).run({"x": x})["y"], expected)
    assert [tensor.name for tensor in sparse.graph.initializer] == ["b"]
    stored = sparse.graph.sparse_initializer[0]
    assert (stored.values.name, list(stored.dims)) == ("w", list(SHAPE))
    assert stored.values.metadata_props[0].value == "v"
    assert payload_sha256(sparse) == payload_sha256(proto)
    assert sparse.ByteSize() < proto.ByteSize() * 0.4


@pytest.mark.parametrize(("sparsity", "converted"), [(0.66, []), (0.67, ["w"]), (0.0, [])])
def test_storage_is_sparse_only_above_break_even(sparsity: float, converted: list[str]) -> None:
    proto = dense(weight(sparsity))
    before = proto.SerializeToString()
    assert to_sparse(proto, {"w", "b"}) == converted
    assert (sparsity > SPARSE_BREAK_EVEN) == bool(converted)
    if not converted:
        assert proto.SerializeToString() == before


def test_two_byte_values_pay_off_later() -> None:
    assert to_sparse(dense(weight(0.79, np.float16)), {"w"}) == []
    assert to_sparse(dense(weight(0.81, np.float16)), {"w"}) == ["w"]


def test_other_names_and_graph_inputs_stay_dense() -> None:
    proto = dense(weight(0.9))
    assert to_sparse(proto, {"b"}) == []
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, SHAPE))
    assert to_sparse(proto, {"w"}) == []


def test_minus_zeros_and_all_zero_tensors_survive() -> None:
    values = weight(0.9)
    values[0, 0] = -0.0
    proto = dense(values)
    digest = payload_sha256(proto)
    to_sparse(proto, {"w"})
    assert find_tensors(proto)["w"].array().tobytes() == values.tobytes()
    assert payload_sha256(proto) == digest
    empty = dense(np.zeros(SHAPE, np.float32))
    digest = payload_sha256(empty)
    assert to_sparse(empty, {"w"}) == ["w"]
    assert not find_tensors(empty)["w"].array().any()
    assert payload_sha256(empty) == digest
    x = np.ones((2, SHAPE[0]), np.float32)
    assert (open_session(empty).run({"x": x})["y"] == 1).all()
