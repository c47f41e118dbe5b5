"""Layers become sparse operators that compute the same."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import UnsupportedModelError
from onnxprune.export import KEY, verify
from onnxprune.runtime import CompileOptions, Thresholds, compile_model, is_compiled, read_record
from onnxprune.runtime.record import schema
from onnxprune.runtime.record_check import verify_record

from .helpers import (
    ANY,
    attributes,
    check_equal,
    compiled,
    net,
    normal,
    operators,
    sparse,
    sparse_nodes,
)

CONVOLUTIONS = {
    "pointwise": ((8, 6, 1, 1), "strides = [1, 1]"),
    "kernel 3, padded": ((8, 6, 3, 3), "pads = [1, 1, 1, 1]"),
    "uneven everything": (
        (8, 6, 2, 3),
        "pads = [0, 1, 2, 3], strides = [2, 1], dilations = [1, 2]",
    ),
    "same upper": ((8, 6, 4, 3), 'auto_pad = "SAME_UPPER"'),
    "same lower": ((8, 6, 4, 2), 'auto_pad = "SAME_LOWER"'),
    "same upper with a stride": ((8, 6, 3, 3), 'auto_pad = "SAME_UPPER", strides = [2, 3]'),
    "same lower with a stride": ((8, 6, 2, 4), 'auto_pad = "SAME_LOWER", strides = [3, 2]'),
    "same upper that leaves a row out": (
        (8, 6, 1, 3),
        'auto_pad = "SAME_UPPER", strides = [11, 3]',
    ),
    "same lower that leaves rows out": ((8, 6, 1, 3), 'auto_pad = "SAME_LOWER", strides = [5, 3]'),
    "valid": ((8, 6, 3, 3), 'auto_pad = "VALID", strides = [2, 2]'),
    "one axis": ((8, 6, 3), "pads = [2, 1], strides = [2], dilations = [2]"),
    "one axis, same": ((8, 6, 4), 'auto_pad = "SAME_UPPER"'),
}


@pytest.mark.parametrize("form", CONVOLUTIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_convolutions(form: str, batch: int, kernels: bool):
    shape, settings = CONVOLUTIONS[form]
    size = [13, 11][: len(shape) - 2]
    proto = net(
        f"g (float[N, 6, {', '.join(map(str, size))}] x)"
        f" => (float[N, 8, {', '.join('HW'[: len(size)])}] y)"
        f" {{ c = Conv<{settings}>(x, w, b) y = Relu(c) }}",
        w=sparse(*shape),
        b=normal(8),
    )
    check_equal(proto, compiled(proto), {"x": normal(batch, 6, *size)}, kernels, replaced=1)


PRODUCTS = {
    "matmul": ("(float[N, 12] x)", "y = MatMul(x, k)", [3, 12]),
    "matmul of more axes": ("(float[N, T, 12] x)", "y = MatMul(x, k)", [2, 5, 12]),
    "matmul of a vector": ("(float[12] x)", "y = MatMul(x, k)", [12]),
    "matmul and bias": ("(float[N, T, 12] x)", "m = MatMul(x, k) y = Add(b, m)", [2, 5, 12]),
    "matmul and scalar": ("(float[N, T, 12] x)", "m = MatMul(x, k) y = Add(m, one)", [2, 5, 12]),
    "gemm": ("(float[N, 12] x)", "y = Gemm<transB = 1>(x, r, b)", [4, 12]),
    "gemm without bias": ("(float[N, 12] x)", "y = Gemm(x, k)", [4, 12]),
    "gemm scaled": ("(float[N, 12] x)", "y = Gemm<alpha = 0.5, beta = -2.0>(x, k, b)", [4, 12]),
    "gemm and scalar": ("(float[N, 12] x)", "y = Gemm<beta = 3.0>(x, k, one)", [4, 12]),
    "gemm and row": ("(float[N, 12] x)", "y = Gemm(x, k, row)", [4, 12]),
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_products(form: str, kernels: bool):
    inputs, body, shape = PRODUCTS[form]
    output = ", ".join([*"NTS"[: len(shape) - 1], "20"])
    matrix = sparse(20, 12)
    proto = net(
        f"g {inputs} => (float[{output}] y) {{ {body} }}",
        **{"k": matrix.T, "r": matrix, "b": normal(20), "row": normal(1, 20)},
        one=np.array([1.5], np.float32),
    )
    result = compiled(proto)
    check_equal(proto, result, {"x": normal(*shape)}, kernels, replaced=1)
    assert operators(result.proto) == ["SparseMatMul"]


DEPTHWISE = {
    "kernel 3": ((3, 3), "pads = [1, 1, 1, 1]"),
    "uneven": ((2, 3), "pads = [0, 1, 2, 3], strides = [2, 1], dilations = [1, 2]"),
    "a stride": ((5, 5), "pads = [2, 2, 2, 2], strides = [2, 2]"),
    "one axis": ((3,), "pads = [2, 1], strides = [2], dilations = [2]"),
    "larger": ((3, 3), "pads = [1, 1, 1, 1]", (37, 19)),
    "larger, a stride": ((5, 5), "pads = [1, 2, 2, 1], strides = [2, 2]", (45, 51)),
    "larger, uneven": (
        (7, 3),
        "pads = [3, 0, 2, 4], strides = [1, 2], dilations = [1, 2]",
        (33, 40),
    ),
    "larger, one axis": ((9,), "pads = [4, 4]", (301,)),
}


@pytest.mark.parametrize("form", DEPTHWISE)
def test_a_depthwise_layer_goes_with_the_sparse_one_that_it_reads(form: str, kernels: bool):
    """In ONNX Runtime's own layout it would have what lies between them converted."""
    kernel, settings, *given = DEPTHWISE[form]
    size, ones = given[0] if given else (13, 11)[: len(kernel)], [1] * len(kernel)
    proto = net(
        f"g (float[N, 6, {', '.join(map(str, size))}] x)"
        f" => (float[N, 8, {', '.join('HW'[: len(size)])}] y)"
        f" {{ c = Conv(x, w) r = Relu(c) d = Conv<group = 8, {settings}>(r, v, b)"
        " s = Sigmoid(d) y = Mul(d, s) }",
        w=sparse(8, 6, *ones),
        v=normal(8, 1, *kernel),
        b=normal(8),
    )
    result = compiled(proto)
    assert operators(result.proto) == ["SparseConv", "DepthwiseConv"]
    layer = result.record.layers[1]
    assert (layer.sparse, layer.fused) == (False, ["Silu"])
    check_equal(proto, result, {"x": normal(2, 6, *size)}, kernels, replaced=1)


def test_a_depthwise_layer_by_itself_stays(kernels: bool):
    proto = net(
        "g (float[N, 8, 9, 9] x) => (float[N, 6, 9, 9] y)"
        " { d = Conv<group = 8, pads = [1, 1, 1, 1]>(x, v) y = Conv(d, w) }",
        v=normal(8, 1, 3, 3),
        w=sparse(6, 8, 1, 1),
    )
    result = compiled(proto)
    assert operators(result.proto) == ["Conv", "SparseConv"]
    check_equal(proto, result, {"x": normal(2, 8, 9, 9)}, kernels, replaced=1)


def test_a_residual_is_added_by_the_layer_that_comes_last(kernels: bool):
    proto = net(
        "g (float[N, 6, 9, 9] x) => (float[N, 8, 9, 9] y)"
        " { a = Conv(x, v) c = Conv(x, w) s = Add(a, c) y = Relu(s) }",
        v=sparse(8, 6, 1, 1),
        w=sparse(8, 6, 1, 1, seed=5),
    )
    result = compiled(proto)
    check_equal(proto, result, {"x": normal(2, 6, 9, 9)}, kernels, replaced=2)
    assert operators(result.proto) == ["SparseConv", "SparseConv"]
    assert [len(node.input) for node in sparse_nodes(result.proto)] == [4, 6]
    assert [layer.fused for layer in result.record.layers] == [["residual", "Relu"], []]


def test_a_sum_that_broadcasts_is_no_residual(kernels: bool):
    """With one sample the shapes are equal, with more they are not."""
    proto = net(
        "g (float[N, 6, 9, 9] x, float[1, 8, 9, 9] r) => (float[N, 8, 9, 9] y)"
        " { c = Conv(x, w) y = Add(c, r) }",
        w=sparse(8, 6, 1, 1),
    )
    result = compiled(proto)
    assert operators(result.proto) == ["SparseConv", "Add"]
    feeds = {"x": normal(2, 6, 9, 9), "r": normal(1, 8, 9, 9)}
    check_equal(proto, result, feeds, kernels, replaced=1)


def test_a_sum_of_a_value_with_itself(kernels: bool):
    proto = net(
        "g (float[N, 6, 9, 9] x) => (float[N, 8, 9, 9] y) { c = Conv(x, w) y = Add(c, c) }",
        w=sparse(8, 6, 1, 1),
    )
    check_equal(proto, compiled(proto), {"x": normal(2, 6, 9, 9)}, kernels, replaced=1)


def test_batchnorm_and_bias_are_folded(kernels: bool):
    proto = net(
        "g (float[N, 6, 9, 9] x) => (float[N, 8, 9, 9] y)"
        " { c = Conv(x, w) n = BatchNormalization(c, s, b, m, v) y = Relu(n) }",
        w=sparse(8, 6, 3, 3)[:, :, 1:2, 1:2].copy(),
        **{"s": normal(8), "b": normal(8, seed=2), "m": normal(8, seed=3), "v": normal(8) ** 2 + 1},
    )
    result = compiled(proto)
    assert operators(result.proto) == ["SparseConv"]
    check_equal(proto, result, {"x": normal(2, 6, 9, 9)}, kernels, replaced=1)


def test_shared_weights_are_stored_once_and_the_dense_ones_are_gone(kernels: bool):
    proto = net(
        "g (float[N, 12] x) => (float[N, 12] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, w) }",
        w=sparse(12, 12).T,
    )
    result = compiled(proto)
    names = {tensor.name for tensor in result.proto.graph.initializer}
    assert names == {"w.values", "w.columns", "w.row_starts"}
    check_equal(proto, result, {"x": normal(3, 12)}, kernels, replaced=2)


def test_a_weight_that_something_else_reads_is_kept(kernels: bool):
    proto = net(
        "g (float[N, 12] x) => (float[N, 12] y, float[12, N] z)"
        " { y = MatMul(x, w) t = Transpose(x) z = MatMul(w, t) }",
        w=sparse(12, 12).T,
    )
    result = compiled(proto)
    assert sorted(operators(result.proto)) == ["MatMul", "SparseMatMul", "Transpose"]
    check_equal(proto, result, {"x": normal(3, 12)}, kernels, replaced=1)


def test_rows_without_weights_and_blocks(kernels: bool):
    matrix = sparse(20, 12, block=4)
    matrix[4:8] = 0
    proto = net(
        "g (float[N, 12] x) => (float[N, 20] y) { y = Gemm<transB = 1>(x, w, b) }",
        w=matrix,
        b=normal(20),
    )
    result = compiled(proto)
    assert attributes(sparse_nodes(result.proto)[0])["block"] == 4
    check_equal(proto, result, {"x": normal(3, 12)}, kernels, replaced=1)


def test_the_frame_of_a_model_survives(kernels: bool):
    proto = net(
        "g (float[N, 6, 9, 9] x) => (float[N, 8, 9, 9] y)"
        " { c = Conv(x, w) n = Conv(c, v) y = Relu(n) }",
        w=sparse(8, 6, 1, 1),
        v=sparse(8, 8, 1, 1),
    )
    proto.graph.node[0].name = "first"
    for key, value in (("author", "us"), (KEY, '{"method": "gmp"}')):
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "exporter"
    result = compile_model(proto, CompileOptions(ANY))
    assert result.proto.graph.input == proto.graph.input
    assert result.proto.graph.output == proto.graph.output
    assert {o.domain: o.version for o in result.proto.opset_import} == {
        "": 20,
        "com.microsoft": 1,
        "onnxprune": 1,
    }
    assert sparse_nodes(result.proto)[0].name == "first"
    (known,) = result.proto.graph.value_info
    assert known.name == "c"
    assert [d.dim_value for d in known.type.tensor_type.shape.dim] == [0, 8, 9, 9]
    props = {entry.key: entry.value for entry in result.proto.metadata_props}
    assert props["author"] == "us"
    assert set(props) == {"author", "onnxprune.compiled"}
    record = read_record(result.proto)
    assert record is not None
    assert record == result.record
    assert record.sparsity == {"method": "gmp"}
    assert record.replaced == 2
    assert verify(result.proto).true is None, "no statement that could be false"
    found = verify_record(result.proto)
    assert found.record == record.model_dump(mode="json")
    assert found.problems, "what the source says of itself is no sparsity metadata"
    assert all(problem.startswith("sparsity: ") for problem in found.problems)
    assert json.loads(props["onnxprune.compiled"])["schema_version"] == 1


def test_old_files_that_list_initializers_as_inputs(kernels: bool):
    proto = net(
        "g (float[N, 12] x, float[12, 20] w) => (float[N, 20] y) { y = MatMul(x, w) }",
        w=sparse(20, 12).T,
    )
    proto.ir_version = 3
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 8))
    result = compiled(proto)
    assert [value.name for value in result.proto.graph.input] == ["x"]
    del proto.graph.input[1]
    proto.ir_version = 8
    check_equal(proto, result, {"x": normal(3, 12)}, kernels, replaced=1)


BY_SPARSITY = CompileOptions(Thresholds(least_speedup=0, least_gain=0))


def stays(proto: onnx.ModelProto, *, thresholds: Thresholds = ANY) -> str:
    """Why the only layer stays dense."""
    result = compiled(proto, thresholds=thresholds)
    (layer,) = result.record.layers
    assert not layer.sparse
    assert result.proto == proto
    assert not is_compiled(result.proto)
    return layer.reason


def matmul(weight: np.ndarray, **others: np.ndarray) -> onnx.ModelProto:
    return net("g (float[N, 12] x) => (float[N, 20] y) { y = MatMul(x, w) }", w=weight, **others)


def test_reasons_to_stay_dense():
    grouped = "g (float[N, 6, 9, 9] x) => (float[N, 8, 9, 9] y) { y = Conv<group = 2>(x, w) }"
    assert stays(net(grouped, w=sparse(8, 3, 1, 1))) == "it has groups"
    solid = "g (float[N, 6, 5, 5, 5] x) => (float[N, 8, 5, 5, 5] y) { y = Conv(x, w) }"
    assert stays(net(solid, w=sparse(8, 6, 1, 1, 1))) == "it has 3 spatial axes"
    left = "g (float[12, N] x) => (float[20, N] y) { y = MatMul(w, x) }"
    assert stays(net(left, w=sparse(20, 12))) == "its weight is the first operand"
    turned = "g (float[12, N] x) => (float[N, 20] y) { y = Gemm<transA = 1>(x, w) }"
    assert stays(net(turned, w=sparse(20, 12).T)) == "its input is transposed"
    half = "g (float16[N, 12] x) => (float16[N, 20] y) { y = MatMul(x, w) }"
    reason = stays(net(half, w=sparse(20, 12).T.astype(np.float16)))
    assert reason == "its weight is float16; sparse operators compute in float32"
    wide = "g (float[N, 65537] x) => (float[N, 4] y) { y = MatMul(x, w) }"
    assert "65537 inputs" in stays(net(wide, w=sparse(4, 65537, density=0.01).T))
    given = "g (float[N, 12] x, float[12, 20] w) => (float[N, 20] y) { y = MatMul(x, w) }"
    assert (
        stays(net(given, w=sparse(20, 12).T)) == "its weight is an input that a caller can override"
    )
    quantised = (
        "g (float[N, 12] x) => (float[N, 20] y) { d = DequantizeLinear(w, s) y = MatMul(x, d) }"
    )
    weight = np.sign(sparse(20, 12).T).astype(np.int8)
    reason = stays(net(quantised, w=weight, s=np.array(0.1, np.float32)))
    assert reason == "its weight is computed by DequantizeLinear"
    open_size = (
        "g (float[N, 6, H, W] x) => (float[N, 8, A, B] y)"
        ' { y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w) }'
    )
    assert "open size" in stays(net(open_size, w=sparse(8, 6, 3, 3)))
    for mode in ("UPPER", "LOWER"):  # the padding is −4: ONNX Runtime begins in the second row
        within = (
            "g (float[N, 6, 10, 11] x) => (float[N, 8, A, B] y)"
            f' {{ y = Conv<auto_pad = "SAME_{mode}", strides = [5, 1]>(x, w) }}'
        )
        assert "begins within the image" in stays(net(within, w=sparse(8, 6, 1, 1)))
    varying = "g (float[4, 12] x) => (float[4, 20] y) { y = Gemm(x, w, c) }"
    assert "neither a constant bias" in stays(net(varying, w=sparse(20, 12).T, c=normal(4, 20)))


def test_products_of_activations_are_no_layers():
    proto = net("g (float[N, 5, 5] x) => (float[N, 5, 5] y) { t = Tanh(x) y = MatMul(x, t) }")
    assert compiled(proto).record.layers == []


def test_the_rule_by_sparsity():
    def reason(density: float, **settings: int) -> str:
        weight = np.zeros((64, 100), np.float32)
        weight[:, : int(100 * density)] = 1
        if settings.get("scattered"):
            weight = np.random.default_rng(0).permuted(weight, axis=1)
        proto = net(
            f"g (float[N, {settings.get('tokens', 50)}, 100] x) => (float[N, T, 64] y)"
            " { y = MatMul(x, w) }",
            w=weight.T,
        )
        (layer,) = compile_model(proto, BY_SPARSITY).record.layers
        return layer.reason

    assert reason(0.30, scattered=1) == ""
    assert reason(0.31, scattered=1) == "sparsity below 70%"
    almost = np.ones(20_000, np.float32)
    almost[:13_999] = 0
    proto = net(
        "g (float[N, 50, 100] x) => (float[N, T, 200] y) { y = MatMul(x, w) }",
        w=np.random.default_rng(0).permutation(almost).reshape(100, 200),
    )
    assert compile_model(proto, BY_SPARSITY).record.replaced == 1, "69.995 % is 70 % up to rounding"
    assert reason(0.45) == "", "four neighbours share their columns"
    assert reason(0.46) == "sparsity below 55%"
    assert reason(0.20, tokens=2, scattered=1) == "12,800 multiplications, fewer than 100,000"
    few = matmul(sparse(12, 12, density=0.1).T)
    few.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 12
    assert compile_model(few, BY_SPARSITY).record.layers[0].reason == "12 outputs, fewer than 16"


def test_a_vector_needs_more_zeros():
    def reason(density: float) -> str:
        proto = net(
            "g (float[N, 600] x) => (float[N, 400] y) { y = MatMul(x, w) }",
            w=sparse(400, 600, density=density).T,
        )
        return compile_model(proto, BY_SPARSITY).record.layers[0].reason

    assert reason(0.19) == ""
    assert reason(0.22) == "sparsity below 80%"


def test_layers_are_selected_by_name():
    proto = net(
        "g (float[N, 6, 9, 9] x) => (float[N, 8, 9, 9] y) { c = Conv(x, w) y = Conv(c, v) }",
        w=sparse(8, 6, 1, 1),
        v=sparse(8, 8, 1, 1),
    )

    def chosen(**globs: tuple[str, ...]) -> list[str]:
        layers = compile_model(proto, CompileOptions(ANY, **globs)).record.layers
        return [layer.weight for layer in layers if layer.sparse]

    assert chosen() == ["w", "v"]
    assert chosen(include=("v*",)) == ["v"]
    assert chosen(exclude=("c",)) == ["v"], "by the name of the node's output where it has none"
    assert chosen(exclude=("op:Conv",)) == []


def test_a_compiled_model_is_not_compiled_again():
    proto = matmul(sparse(20, 12).T)
    with pytest.raises(UnsupportedModelError, match="compiled already"):
        compiled(compiled(proto).proto)


def test_sub_graphs_stay_dense_and_see_the_values_they_need(kernels: bool):
    """The branch reads the layer's output before its activation, so Relu cannot be absorbed."""
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["c", "inner"], ["o"])],
        "then",
        [],
        [helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(sparse(20, 20).T, "inner")],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["c"], ["p"])],
        "else",
        [],
        [helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, None)],
    )
    proto = net(
        "g (float[N, 12] x, bool q) => (float[N, 20] y)"
        " { c = MatMul(x, w) r = Relu(c) y = Neg(r) }",
        w=sparse(20, 12).T,
    )
    choice = helper.make_node("If", ["q"], ["i"], then_branch=branch, else_branch=other)
    total = helper.make_node("Sum", ["r", "i"], ["y"])
    del proto.graph.node[2]
    proto.graph.node.extend([choice, total])
    result = compiled(proto)
    assert operators(result.proto) == ["SparseMatMul", "Relu", "If", "Sum"]
    for way in (True, False):
        feeds = {"x": normal(3, 12), "q": np.array(way)}
        check_equal(proto, result, feeds, kernels, replaced=1)


def test_the_record_keeps_to_the_committed_schema():
    file = Path(__file__).parents[2] / "docs" / "schema" / "compiled-metadata.schema.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document == schema()
    result = compiled(matmul(sparse(20, 12).T))
    (entry,) = result.proto.metadata_props
    jsonschema.Draft202012Validator(document).validate(json.loads(entry.value))
