"""Which stored tensors count as parameters."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.errors import ModelFileError
from onnxprune.tensors import find_tensors


def floats(name: str, *shape: int) -> TensorProto:
    """An initializer of random numbers."""
    rng = np.random.default_rng(len(name))
    return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)


def model(text: str, *initializers: TensorProto, opset: int = 17) -> onnx.ModelProto:
    """A model from the text of its graph."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(initializers)
    return proto


def test_convolution_weight_is_prunable_along_its_input_channels() -> None:
    proto = model(
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w, b) }",
        floats("w", 4, 3, 3, 3),
        floats("b", 4),
    )
    tensors = find_tensors(proto)
    weight, bias = tensors["w"], tensors["b"]
    assert (weight.role, weight.op_type, weight.prunable, weight.reduction_axis) == (
        "weight",
        "Conv",
        True,
        1,
    )
    assert (bias.role, bias.trainable, bias.prunable) == ("bias", True, False)
    assert weight.size == 108
    np.testing.assert_array_equal(weight.array(), numpy_helper.to_array(proto.graph.initializer[0]))


def test_depthwise_weight_trains_and_is_not_pruned() -> None:
    proto = model(
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { y = Conv<group=4>(x, w) }",
        floats("w", 4, 1, 3, 3),
    )
    weight = find_tensors(proto)["w"]
    assert weight.depthwise
    assert weight.trainable
    assert not weight.prunable


def test_grouped_weight_with_several_input_channels_is_pruned() -> None:
    proto = model(
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { y = Conv<group=2>(x, w) }",
        floats("w", 4, 2, 3, 3),
    )
    assert find_tensors(proto)["w"].prunable


@pytest.mark.parametrize(
    ("body", "shape", "axis"),
    [
        ("y = MatMul(x, w)", (6, 4), 0),
        ("y = Gemm(x, w)", (6, 4), 0),
        ("y = Gemm<transB=1>(x, w)", (4, 6), 1),
        ("t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)", (4, 6), 1),
        ("t = Transpose(w) y = MatMul(x, t)", (4, 6), 1),
        ("i = Identity(w) c = Cast<to=1>(i) y = MatMul(x, c)", (6, 4), 0),
        ("t = Squeeze<axes=[0]>(w) y = MatMul(x, t)", (1, 6, 4), 1),
        ("t = Flatten<axis=2>(w) y = MatMul(x, t)", (1, 6, 4), 1),
        ("t = Reshape(w, s) y = MatMul(x, t)", (6, 2, 2), 0),
        ("t = Reshape(w, s) y = MatMul(x, t)", (3, 2, 4), None),
    ],
)
def test_reduction_axis_follows_rearrangements(
    body: str, shape: tuple[int, ...], axis: int | None
) -> None:
    proto = model(
        f"g (float[N,6] x) => (float[N,4] y) {{ {body} }}",
        floats("w", *shape),
        numpy_helper.from_array(np.array([6, -1]), "s"),
        opset=12,
    )
    weight = find_tensors(proto)["w"]
    assert weight.prunable
    assert weight.reduction_axis == axis


def test_transposed_convolution_reduces_over_its_first_axis() -> None:
    proto = model(
        "g (float[N,3,8,8] x) => (float[N,4,10,10] y) { y = ConvTranspose(x, w) }",
        floats("w", 3, 4, 3, 3),
    )
    assert find_tensors(proto)["w"].reduction_axis == 0


@pytest.mark.parametrize(
    ("domain", "body", "shape", "axes", "group_shape"),
    [
        ("", "Conv(x, w)", (8, 4, 3, 3), (1, 0), (8, 4, 3, 3)),
        ("", "Conv<group=2>(x, w)", (8, 4, 3, 3), (1, 0), (4, 4, 3, 3)),
        ("", "ConvTranspose<group=2>(x, w)", (8, 4, 3, 3), (0, 1), (4, 4, 3, 3)),
        ("com.microsoft", "NhwcConv<group=2>(x, w)", (8, 3, 3, 4), (3, 0), (4, 3, 3, 4)),
        ("", "MatMul(x, w)", (6, 4), (0, 1), (6, 4)),
        ("", "MatMul(w, x)", (4, 6), (1, 0), (4, 6)),
        ("", "MatMul(x, w)", (5, 6, 4), (1, 2), (5, 6, 4)),
        ("", "MatMul(x, w)", (6,), (0, None), (6,)),
        ("", "Gemm<transB=1>(x, w)", (4, 6), (1, 0), (4, 6)),
        ("", "Gemm<transA=1>(w, x)", (6, 4), (0, 1), (6, 4)),
        ("com.microsoft", "FusedMatMul<transBatchB=1>(x, w)", (6, 2, 4), (0, 2), (6, 2, 4)),
        (
            "com.microsoft",
            "FusedMatMul<transBatchB=1, transB=1>(x, w)",
            (4, 2, 6),
            (2, 0),
            (4, 2, 6),
        ),
        ("", "LSTM<hidden_size=2>(x, w, r)", (1, 8, 6), (2, 1), (1, 8, 6)),
        ("com.microsoft", "Attention<num_heads=1>(x, w, b)", (8, 6), (0, 1), (8, 6)),
    ],
)
def test_axes_of_weights_and_what_one_group_of_channels_holds(
    domain: str,
    body: str,
    shape: tuple[int, ...],
    axes: tuple[int | None, int | None],
    group_shape: tuple[int, ...],
) -> None:
    node = f"{domain}.{body}" if domain else body
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
        f"g (float[N] x) => (float[N] y) {{ y = {node} }}"
    )
    proto.graph.initializer.append(floats("w", *shape))
    weight = find_tensors(proto)["w"]
    assert (weight.reduction_axis, weight.output_axis) == axes
    assert weight.group_shape == group_shape


@pytest.mark.parametrize(
    ("body", "shape", "axis"),
    [
        ("t = Transpose(w) y = MatMul(x, t)", (4, 6), 0),
        ("t = Flatten<axis=2>(w) y = MatMul(x, t)", (1, 6, 4), 2),
        ("t = Reshape(w, s) y = MatMul(x, t)", (6, 2, 2), None),
    ],
)
def test_output_axis_follows_rearrangements(
    body: str, shape: tuple[int, ...], axis: int | None
) -> None:
    proto = model(
        f"g (float[N,6] x) => (float[N,4] y) {{ {body} }}",
        floats("w", *shape),
        numpy_helper.from_array(np.array([6, -1]), "s"),
        opset=12,
    )
    assert find_tensors(proto)["w"].output_axis == axis


def test_norm_tensors_train_or_are_statistics() -> None:
    proto = model(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { y = BatchNormalization(x, s, b, m, v) }",
        *(floats(name, 4) for name in "sbmv"),
    )
    tensors = find_tensors(proto)
    roles = {name: (t.role, t.trainable, t.prunable) for name, t in tensors.items()}
    assert roles == {
        "s": ("scale", True, False),
        "b": ("shift", True, False),
        "m": ("running_mean", False, False),
        "v": ("running_var", False, False),
    }


def test_elementwise_operands_need_a_name_and_more_than_one_element() -> None:
    proto = model(
        """g (float[N,6] x) => (float[N,4] y) {
            h = MatMul(x, w)
            p = Add(h, bias)
            q = Mul(p, scale)
            r = Div(q, one)
            k = Constant<value = float[4] {1, 2, 3, 4}>()
            s = Sub(r, k)
            y = Add(s, folded)
        }""".replace("folded", "onnx__Add_7"),
        floats("w", 6, 4),
        floats("bias", 4),
        floats("scale", 4),
        floats("one", 1),
        floats("onnx__Add_7", 4),
    )
    proto.graph.initializer[-1].name = "onnx::Add_7"
    proto.graph.node[-1].input[1] = "onnx::Add_7"
    tensors = find_tensors(proto)
    assert {name for name, t in tensors.items() if t.trainable} == {"w", "bias", "scale"}
    assert tensors["bias"].role == "bias"
    assert tensors["scale"].role == "operand"


@pytest.mark.parametrize(
    "name",
    [
        *("to_copy_1", "_to_copy", "zeros_like", "lift_fresh_copy_2"),
        *("lifted_tensor_0", "_tensor_constant1", "features.1.1.attn.lifted_tensor_0"),
    ],
)
def test_what_an_exporter_computed_is_no_parameter(name: str) -> None:
    """Newer exporters name a constant after the call of PyTorch that it is the result of."""
    text = "g (float[N,6] x) => (float[N,4] y) { h = MatMul(x, w) r = Relu(h) y = Add(r, c) }"
    proto = model(text, floats("w", 6, 4), floats("c", 4))
    assert find_tensors(proto)["c"].trainable
    proto.graph.initializer[1].name = proto.graph.node[2].input[1] = name
    assert not find_tensors(proto)[name].trainable


ROTARY = """g (float[N,T,4] x, int64[N,T] places) => (float[N,T,4] y) {
    SOURCE
    angles = PRODUCT
    both = Concat<axis = -1>(angles, angles)
    c = Cos(both)
    s = LAST(both)
    q = Mul(x, c)
    r = Mul(q, s)
    y = MatMul(r, w)
}"""
COUNTED = {
    "range": "shape = Shape(x) n = Gather(shape, one) p = Range(zero, n, one) "
    "f = Cast<to = 1>(p) col = Unsqueeze(f, last)",
    "input": "f = Cast<to = 1>(places) col = Unsqueeze(f, last)",
    "values": "k = Slice(x, zeros, ones, last) col = Identity(k)",
}


PRODUCTS = (
    *("Mul(col, inv)", "Mul(inv, col)", "MatMul(col, inv)"),
    'Einsum<equation = "...i, ij -> ...j">(col, inv)',
)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("source", COUNTED)
@pytest.mark.parametrize("last", ["Sin", "Tanh"])
def test_frequencies_of_positions_are_no_parameter(source: str, last: str, product: str) -> None:
    """Unless it is values of the input that are multiplied, or the result is used in other ways."""
    text = ROTARY.replace("SOURCE", COUNTED[source]).replace("PRODUCT", product)
    proto = model(text.replace("LAST", last), floats("inv", 1, 2), floats("w", 4, 4))
    for name, array in (("one", 1), ("zero", 0), ("last", [-1]), ("zeros", [0]), ("ones", [1])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(array), name))
    learned = {name for name, tensor in find_tensors(proto).items() if tensor.trainable}
    fixed = source != "values" and last == "Sin"
    normalises = source == "input" and product.startswith("Mul")
    assert learned == ({"w"} if fixed or normalises else {"w", "inv"})


def test_constants_count_where_weights_are_constants() -> None:
    proto = model(
        """g (float[N,2] x) => (float[N,2] y) {
            w = Constant<value = float[2,2] {1, 2, 3, 4}>()
            b = Constant<value = float[2] {1, 2}>()
            h = MatMul(x, w)
            y = Add(h, b)
        }"""
    )
    tensors = find_tensors(proto)
    assert tensors["w"].kind == "constant"
    assert tensors["w"].prunable
    assert tensors["b"].trainable


def test_input_normalisation_is_not_trained() -> None:
    proto = model(
        """g (uint8[N,3,4,4] image) => (float[N,3,4,4] y) {
            x = Cast<to=1>(image)
            c = Sub(x, mean)
            n = Div(c, std)
            y = Mul(n, gain)
        }""",
        *(floats(name, 3, 1, 1) for name in ("mean", "std", "gain")),
    )
    assert not any(t.trainable for t in find_tensors(proto).values())


def test_tied_tensor_is_one_entry_that_is_pruned_as_a_weight() -> None:
    proto = model(
        """g (int64[N] ids) => (float[N,8] y) {
            e = Gather(table, ids)
            t = Transpose<perm=[1,0]>(table)
            y = MatMul(e, t)
        }""",
        floats("table", 8, 4),
    )
    tensors = find_tensors(proto)
    assert list(tensors) == ["table"]
    table = tensors["table"]
    assert table.role == "weight"
    assert table.prunable
    assert table.reduction_axis == 1
    assert [use.role for use in table.uses] == ["embedding", "weight"]


def test_integer_tensors_are_never_trained() -> None:
    proto = model(
        "g (int32[N,2] x) => (int32[N,2] y) { y = MatMul(x, w) }",
        numpy_helper.from_array(np.eye(2, dtype=np.int32), "w"),
    )
    assert not find_tensors(proto)["w"].trainable


def test_sub_graph_and_function_tensors_get_unique_names() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,2] x, bool c) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> {
            h = local.Layer(x, w)
            y = If(c) <
                then_branch = t () => (float[N,2] a) <float[2,2] w = {1, 0, 0, 1}> {
                    a = MatMul(h, w)
                },
                else_branch = e () => (float[N,2] b) { b = Identity(h) }
            >
        }
        <domain: "local", opset_import: ["" : 17]>
        Layer (x, weight) => (y) {
            bias = Constant<value = float[2] {1, 2}>()
            z = MatMul(x, weight)
            y = Add(z, bias)
        }"""
    )
    tensors = find_tensors(proto)
    assert tensors["w"].uses[0].value == "weight"
    assert tensors["w"].prunable
    inner = [t for t in tensors.values() if t.scope.endswith("then_branch")]
    assert len(inner) == 1
    assert inner[0].prunable
    assert inner[0].name != "w"
    assert tensors["bias"].scope == "local::Layer"


CONTRIB = ("w", 8, 6), ("b", 6), ("s", 6), ("h", 6)


@pytest.mark.parametrize(
    ("node", "roles", "reduction_axis"),
    [
        ("FusedMatMul(x, w)", {"w": "weight"}, 0),
        ("FusedMatMul<transB = 1>(x, w)", {"w": "weight"}, 1),
        ("FusedMatMulActivation(x, w)", {"w": "weight"}, 0),
        ("FusedGemm(x, w, b)", {"w": "weight", "b": "bias"}, 0),
        ("Attention<num_heads = 1>(x, w, b)", {"w": "weight", "b": "bias"}, 0),
        ("MultiHeadAttention<num_heads = 1>(x, x, x, b)", {"b": "bias"}, None),
        ("SkipLayerNormalization(x, w, s, h, b)", None, None),
        ("SkipGroupNorm<groups = 1>(x, s, h, x, b)", None, None),
        ("EmbedLayerNormalization(i, , w, w, , s, h)", None, None),
        ("BiasSplitGelu(x, b)", {"b": "bias"}, None),
    ],
)
def test_operators_of_onnx_runtime(
    node: str, roles: dict[str, str] | None, reduction_axis: int | None
) -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
        f"g (float[N,5,8] x, int32[N,5] i) => (float[N,5,6] y) {{ y = com.microsoft.{node} }}"
    )
    proto.graph.initializer.extend(floats(*shape) for shape in CONTRIB)
    tensors = find_tensors(proto)
    if roles is None:
        table = "embedding" if node.startswith("Embed") else "operand"
        roles = {"s": "scale", "h": "shift"}
        roles |= {"b": "bias"} if " b)" in node else {}
        roles |= {"w": table} if "w" in node.partition("(")[2] else {}
    assert {name: t.role for name, t in tensors.items() if t.trainable} == roles
    prunable = [name for name, t in tensors.items() if t.prunable]
    assert prunable == ([] if reduction_axis is None else ["w"])
    assert tensors["w"].reduction_axis == reduction_axis


def test_weights_with_their_channels_last() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
        "g (float[N,8,8,4] x) => (float[N,8,8,4] z) "
        "{ y = com.microsoft.NhwcConv(x, w) z = com.microsoft.NhwcConv<group = 4>(y, d) }"
    )
    proto.graph.initializer.extend([floats("w", 4, 1, 1, 4), floats("d", 4, 3, 3, 1)])
    tensors = find_tensors(proto)
    assert (tensors["w"].prunable, tensors["w"].reduction_axis) == (True, 3)
    assert (tensors["d"].prunable, tensors["d"].depthwise) == (False, True)


def test_batch_axes_of_a_fused_product_are_not_summed_over() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
        "g (float[2,3,5] x) => (float[2,3,4] y) "
        "{ y = com.microsoft.FusedMatMul<transBatchB = 1>(x, w) }"
    )
    proto.graph.initializer.append(floats("w", 5, 2, 4))
    assert find_tensors(proto)["w"].reduction_axis == 0


def test_functions_that_call_each_other_are_an_error() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N] x) => (float[N] y) { y = local.A(x) }
        <domain: "local", opset_import: ["local" : 1]>
        A (x) => (y) { y = local.B(x) }
        <domain: "local", opset_import: ["local" : 1]>
        B (x) => (y) { y = local.A(x) }"""
    )
    with pytest.raises(ModelFileError, match="nested without end"):
        find_tensors(proto)


def test_sparse_initializer_is_found_with_its_dense_shape() -> None:
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
    indices = helper.make_tensor("w_indices", TensorProto.INT64, [2], [1, 3])
    proto = model("g (float[N,2] x) => (float[N,2] y) { y = MatMul(x, w) }")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 2]))
    weight = find_tensors(proto)["w"]
    assert weight.shape == (2, 2)
    assert weight.prunable
    np.testing.assert_array_equal(weight.array(), [[0, 5], [0, 7]])


def test_real_model_with_weights_in_constant_nodes(real_model) -> None:
    proto = onnx.load(real_model("ch_ppocr_mobile_v2.0_cls_infer.onnx"))
    tensors = find_tensors(proto).values()
    assert len(proto.graph.initializer) == 0
    assert sum(t.size for t in tensors if t.trainable) == 129_356
    assert sum(t.size for t in tensors if t.prunable) == 103_496


def test_functions_that_multiply_at_every_level_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxprune.tensors._MAX_NODES", 10_000)
    functions = "".join(
        f"""<domain: "local", opset_import: ["" : 17, "local" : 1]>
        f{level} (x) => (y) {{ a = local.f{level + 1}(x) y = local.f{level + 1}(a) }}"""
        for level in range(40)
    )
    proto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N] x) => (float[N] y) {{ y = local.f0(x) }} {functions}
        <domain: "local", opset_import: ["" : 17]> f40 (x) => (y) {{ y = Relu(x) }}"""
    )
    with pytest.raises(ModelFileError, match="call each other too often"):
        find_tensors(proto)


def test_gates_taken_apart_and_joined_again_are_recurrent_weights() -> None:
    proto = model(
        """g (float[T,N,3] x) => (float[T,1,N,2] y) {
            a0 = Constant<value_ints=[0]>()
            first = Slice(w, s0, s1, a0)
            second = Slice(w, s1, s2, a0)
            swapped = Concat<axis=0>(second, first)
            w_ = Unsqueeze(swapped, a0)
            r_ = Unsqueeze(r, a0)
            y, h = RNN<hidden_size=2>(x, w_, r_)
        }""",
        floats("w", 2, 3),
        floats("r", 2, 2),
        *(numpy_helper.from_array(np.array([i]), f"s{i}") for i in range(3)),
    )
    tensors = find_tensors(proto)
    assert tensors["w"].role == tensors["r"].role == "recurrent"
    assert tensors["w"].prunable
    assert tensors["w"].reduction_axis == 1


def test_rows_read_by_the_input_are_an_embedding_and_no_weight() -> None:
    proto = model(
        """g (int64[N] ids) => (float[N,2] y) { e = Gather(table, ids) y = MatMul(e, w) }""",
        floats("table", 8, 4),
        floats("w", 4, 2),
    )
    tensors = find_tensors(proto)
    assert tensors["table"].role == "embedding"
    assert not tensors["table"].prunable


def test_what_norms_need_and_nobody_learned_is_no_parameter() -> None:
    proto = model(
        """g (float[N,2,H] x) => (float[N,2,H] y) {
            one = Constant<value=float[2] {1, 1}>()
            zero = Constant<value=float[2] {0, 0}>()
            n = InstanceNormalization(x, one, zero)
            m = InstanceNormalization(n, scale, zero)
            y = Conv(m, w)
        }""",
        floats("scale", 2),
        floats("w", 2, 2, 1),
    )
    tensors = find_tensors(proto)
    assert [name for name, tensor in tensors.items() if tensor.trainable] == ["scale", "w"]


def test_learned_positions_may_be_added_to_the_input() -> None:
    proto = model(
        "g (float[N,5,4] x) => (float[N,5,4] z) { y = Add(x, position) z = Add(y, mean) }",
        floats("position", 1, 5, 4),
        floats("mean", 1, 1, 4),
    )
    trainable = {name for name, tensor in find_tensors(proto).items() if tensor.trainable}
    assert trainable == {"position"}
