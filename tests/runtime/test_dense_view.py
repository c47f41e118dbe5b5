"""Compiled models are looked at through the weights that their operators hold."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import ModelFileError
from onnxprune.runtime.dense_view import dense_view
from onnxprune.validate import inspect_model

from .helpers import compiled, net, normal, sparse
from .reference import run


def network() -> onnx.ModelProto:
    return net(
        "g (float[N, 6, 9, 9] x) => (float[N, 4, 9, 20] y)"
        " { a = Conv<pads = [1, 1, 1, 1]>(x, w, b) c = Conv<pads = [1, 1, 1, 1]>(a, w2)"
        " s = Add(a, c) t = Transpose<perm = [0, 2, 3, 1]>(s) m = MatMul(t, k) n = Add(m, e)"
        " y = Transpose<perm = [0, 1, 2, 3]>(n) }",
        **{"w": sparse(8, 6, 3, 3), "b": normal(8), "w2": sparse(8, 8, 3, 3, seed=4)},
        **{"k": sparse(20, 8, seed=3).T, "e": normal(20)},
    )


def test_the_view_computes_what_the_model_does_without_activations():
    source = network()
    result = compiled(source)
    assert result.record.replaced == 3
    view = dense_view(result.proto)
    assert {node.domain for node in view.graph.node} == {""}
    onnx.checker.check_model(view)
    feeds = {"x": normal(2, 6, 9, 9)}
    np.testing.assert_allclose(run(view, feeds)[0], run(source, feeds)[0], atol=1e-4)
    names = {tensor.name: list(tensor.dims) for tensor in view.graph.initializer}
    assert names.items() >= {"w": [8, 6, 3, 3], "w2": [8, 8, 3, 3], "k": [8, 20]}.items()
    assert not any(name.endswith((".values", ".columns", ".row_starts")) for name in names)


def test_inspection_tells_sparsity_from_what_the_operators_hold():
    source = network()
    before, after = inspect_model(source), inspect_model(compiled(source).proto)
    assert after.sparsity == before.sparsity
    assert after.prunable_parameters == before.prunable_parameters
    assert after.flops == before.flops
    assert after.operators["onnxprune::SparseConv"] == 2
    assert after.metadata.metadata is None
    assert after.compiled.record is not None
    assert after.compiled.record["replaced"] == 3
    assert (after.compiled.true, after.compiled.problems) == (True, [])
    assert (before.compiled.record, before.compiled.true) == (None, None)


def test_false_metadata_change_nothing():
    """A record may claim what it likes: what is reported is counted."""
    result = compiled(network())
    (entry,) = [e for e in result.proto.metadata_props if e.key == "onnxprune.compiled"]
    entry.value = entry.value.replace('"sparsity":0.', '"sparsity":0.9')
    before = inspect_model(network())
    assert inspect_model(result.proto).sparsity == before.sparsity
    result.proto.metadata_props.add(key="onnxprune.sparsity", value='{"sparsity": 1.0}')
    assert inspect_model(result.proto).metadata.true is False


def change(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    proto = compiled(network()).proto
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    edited = edit(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(edited, name))
    return proto


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("w.values", lambda a: a[:-1]),
        ("w.columns", lambda a: a + np.uint16(54)),
        ("w.row_starts", lambda a: a[::-1].copy()),
        ("w.row_starts", lambda a: a - 1),
        ("w.row_starts", lambda a: a[:1]),
        ("w.row_starts", lambda a: a[:0]),
    ],
)
def test_damaged_rows_are_an_error_of_ours(name: str, edit: Callable[[np.ndarray], np.ndarray]):
    with pytest.raises(ModelFileError, match="makes no sense") as caught:
        inspect_model(change(name, edit))
    assert "w.values" in str(caught.value.got)


def test_each_arrangement_of_a_weight_is_told_apart():
    """As it is stored, compressed, and compressed after it was turned and doubled."""
    source = net(
        "g (float[N, 12] x) => (float[N, 12] y, float[12, N] z)"
        " { a = MatMul(x, w) b = Gemm<transB = 1, alpha = 2.0>(a, w) y = MatMul(b, w)"
        " t = Transpose(x) z = MatMul(w, t) }",
        w=sparse(12, 12).T,
    )
    result = compiled(source)
    assert result.record.replaced == 3
    view = dense_view(result.proto)
    assert sorted(t.name for t in view.graph.initializer) == ["w", "w.dense", "w_1"]
    feeds = {"x": normal(3, 12)}
    for found, expected in zip(run(view, feeds), run(source, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [0, 1])
def test_an_operator_without_inputs(keep: int):
    proto = compiled(network()).proto
    del proto.graph.node[0].input[keep:]
    with pytest.raises(ModelFileError, match="makes no sense"):
        dense_view(proto)


def test_an_operator_that_lacks_its_weight():
    proto = compiled(network()).proto
    del proto.graph.node[0].attribute[:]
    with pytest.raises(ModelFileError, match="makes no sense"):
        inspect_model(proto)
