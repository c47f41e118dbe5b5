"""ONNX Runtime's own optimisation as the first step, whatever the size of the model."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import model as model_files
from onnxprune.errors import UnsupportedModelError
from onnxprune.runtime import compile_model, front

from .helpers import check_equal, compiled, net, normal, operators, sparse


def network() -> onnx.ModelProto:
    return net(
        "g (float[N, 600] x) => (float[N, 40] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }",
        w=sparse(90, 600).T,
        v=sparse(40, 90).T,
    )


def test_models_that_one_message_cannot_hold(monkeypatch: pytest.MonkeyPatch, kernels: bool):
    """ONNX Runtime then reads and writes the tensors beside the model."""
    source = network()
    monkeypatch.setattr(model_files, "fits_in_one_message", lambda proto: False)
    result = compiled(source)
    assert all(tensor.data_location == 0 for tensor in result.proto.graph.initializer)
    check_equal(source, result, {"x": normal(3, 600)}, kernels, replaced=2)


def test_external_data(tmp_path: Path, kernels: bool):
    model_files.write(network(), tmp_path / "model.onnx", external=True)
    result = compiled(tmp_path / "model.onnx")
    check_equal(network(), result, {"x": normal(3, 600)}, kernels, replaced=2)


def test_functions_and_constants_are_resolved(kernels: bool):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "own" : 1]>'
        "g (float[N, 12] x) => (float[N, 20] y)"
        "{ t = Identity(w) k = Transpose(t) y = own.layer(x, k) }"
        '<domain: "own", opset_import: ["" : 18]>'
        "layer (x, k) => (y) { m = MatMul(x, k) y = Relu(m) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(sparse(20, 12), "w"))
    result = compiled(proto)
    assert operators(result.proto) == ["SparseMatMul"]
    check_equal(proto, result, {"x": normal(3, 12)}, kernels, replaced=1)


def test_sparse_initializers(kernels: bool):
    source = network()
    stored = compiled(source)
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    for tensor in list(proto.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        places = np.flatnonzero(array)
        proto.graph.initializer.remove(tensor)
        proto.graph.sparse_initializer.append(
            onnx.helper.make_sparse_tensor(
                onnx.numpy_helper.from_array(array.ravel()[places], tensor.name),
                onnx.numpy_helper.from_array(places.astype(np.int64)),
                array.shape,
            )
        )
    result = compiled(proto)
    assert result.record.replaced == stored.record.replaced
    check_equal(source, result, {"x": normal(3, 600)}, kernels)


def test_what_onnx_runtime_refuses():
    proto = net("g (float[N, 12] x) => (float[N, 12] y) { y = Relu(x) }")
    proto.opset_import[0].version = 999
    with pytest.raises(UnsupportedModelError, match="cannot be compiled"):
        compile_model(proto)


def test_a_node_without_a_name_gets_no_other_nodes_name(kernels: bool):
    """Operators go by the label of the layer, its first output, and no two may have one name."""
    source = network()
    assert source.graph.node[0].output == ["a"]
    source.graph.node[2].name = "a"
    result = compiled(source)
    assert [node.name for node in result.proto.graph.node] == ["a_1", "a"]
    assert [layer.name for layer in result.record.layers] == ["a_1", "a"]
    check_equal(source, result, {"x": normal(3, 600)}, kernels, replaced=2)


FOLDED = {
    "BatchNorm": "c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n)",
    "factors": "c = Conv(x, w) n = Mul(c, f) y = Relu(n)",
    "computed factors": "k = Exp(f) c = Conv(x, w) n = Mul(c, k) y = Relu(n)",
    "a sum before": "c = Conv(x, w) a = Add(c, f) n = Mul(a, f) y = Relu(n)",
    "what vanishes between": "c = Conv(x, w) i = Identity(c) d = Dropout(i)"
    " n = BatchNormalization(d, s, b, m, v) y = Relu(n)",
    "a transposed weight": "q = Transpose<perm = [1, 0, 2, 3]>(w) y = Conv(x, q)",
    "a constant image": "c = Conv(o, w) y = Add(x, c)",
}


@pytest.mark.parametrize("case", sorted(FOLDED))
def test_large_weights_are_folded_into(case: str, monkeypatch: pytest.MonkeyPatch, kernels: bool):
    """Weights are kept from ONNX Runtime, but not those that it changes."""
    w = sparse(96, 96, 1, 1)
    assert w.nbytes > front.LARGE_BYTES
    per_channel = {name: np.abs(normal(96, seed=n)) for n, name in enumerate("sbmv")}
    source = net(
        f"g (float[N, 96, 5, 5] x) => (float[N, 96, 5, 5] y) {{ {FOLDED[case]} }}",
        w=w,
        f=normal(96, 1, 1),
        o=normal(1, 96, 5, 5),
        **per_channel,
    )
    result = compiled(source)
    monkeypatch.setattr(front, "LARGE_BYTES", 2**30)
    shown = compiled(source)
    assert operators(result.proto) == operators(shown.proto)
    assert result.record.layers == shown.record.layers
    check_equal(source, result, {"x": normal(2, 96, 5, 5)}, kernels)


def test_weights_that_other_graphs_read(kernels: bool):
    branch = "float[N, 96] z) {{ t = Transpose({}) z = MatMul(x, t) }}"
    source = net(
        "g (float[N, 96] x, bool c) => (float[N, 96] y, float[N, 96] e) {"
        " y = MatMul(x, w) e = If (c) <"
        f" then_branch = th () => ({branch.format('w')},"
        f" else_branch = el () => ({branch.format('w').replace('z', 'u')}> }}",
        w=sparse(96, 96),
    )
    feeds = {"x": normal(3, 96), "c": np.array(True)}
    check_equal(source, compiled(source), feeds, kernels, replaced=1)


def test_weights_that_are_inputs(kernels: bool):
    """Before IR version 4 every weight is one; since then, one that a caller can override."""
    source = net("g (float[N, 96] x) => (float[N, 96] y) { y = MatMul(x, w) }", w=sparse(96, 96))
    source.graph.input.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [96, 96])
    )
    assert compiled(source).record.replaced == 0
    source.ir_version = 3
    del source.opset_import[:]
    source.opset_import.append(onnx.helper.make_opsetid("", 8))
    result = compiled(source)
    assert [value.name for value in result.proto.graph.input] == ["x"]
    check_equal(source, result, {"x": normal(3, 96)}, kernels, replaced=1)


def test_inputs_that_are_initializers_go_with_them():
    """Before IR version 4; ONNX Runtime keeps one of equal constants, and all of the inputs."""
    source = net(
        "g (float[N, 96] x) => (float[N, 96] y)"
        " { a = Mul(x, one) b = MatMul(a, w) c = Mul(b, other) y = Relu(c) }",
        w=sparse(96, 96),
        one=np.array(1.5, np.float32),
        other=np.array(1.5, np.float32),
    )
    source.ir_version = 3
    del source.opset_import[:]
    source.opset_import.append(onnx.helper.make_opsetid("", 8))
    for tensor in source.graph.initializer:
        kind = onnx.TensorProto.FLOAT
        source.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, kind, tensor.dims)
        )
    assert [value.name for value in compiled(source).proto.graph.input] == ["x"]


def test_what_else_a_model_says_stays():
    source = network()
    source.producer_name, source.model_version = "somebody", 7
    source.metadata_props.add(key="labels", value="a,b")
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "lines"
    proto = compiled(source).proto
    assert (proto.graph.name, proto.model_version) == ("g", 7)
    assert {p.key: p.value for p in proto.metadata_props}["labels"] == "a,b"
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "lines"
