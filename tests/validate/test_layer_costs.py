"""What layers cost, and which time of a profile is a layer's."""

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.runtime import CompileOptions, Thresholds, compile_model, missing_reason
from onnxprune.tensors import find_tensors
from onnxprune.validate import bench, layer_costs
from onnxprune.validate.layer_costs import layer_times, model_cost
from onnxprune.validate.operator_times import KernelTime

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[{batch}, 3, {size}, 8] x) => (float[{batch}, 5] y) {{
    a = Conv <pads = [1, 1, 1, 1]> (x, conv)
    b = Relu (a)
    c = Conv <group = 4> (b, depthwise)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    y = MatMul (e, linear)
}}
"""
SHAPES = {"linear": (4, 5), "conv": (4, 3, 3, 3), "depthwise": (4, 1, 1, 1)}


def network(batch: str = "N", size: str = "8") -> ModelProto:
    """Three layers, stored in another order than they run in; half of `conv` is zero."""
    proto = onnx.parser.parse_model(TEXT.format(batch=batch, size=size))
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        array = rng.uniform(0.1, 1, shape).astype(np.float32)
        if name == "conv":
            array.reshape(-1)[::2] = 0
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def times(proto: ModelProto, *kernels: KernelTime) -> dict[str, float]:
    layers = [tensor for tensor in find_tensors(proto).values() if tensor.role == "weight"]
    return layer_times(proto, layers, kernels)


def test_layers_in_the_order_in_which_they_run() -> None:
    cost = model_cost(network())
    conv, depthwise, linear = cost.layers
    assert [layer.name for layer in cost.layers] == ["conv", "depthwise", "linear"]
    assert [layer.prunable for layer in cost.layers] == [True, False, True]
    assert (conv.multiply_adds, conv.multiply_adds_sparse) == (108 * 64, 54 * 64)
    assert (depthwise.multiply_adds, depthwise.multiply_adds_sparse) == (4 * 64, 4 * 64)
    assert (linear.multiply_adds, linear.size_bytes) == (20, 80)
    assert (conv.size, conv.nonzeros, conv.size_bytes) == (108, 54, 432)
    assert cost.multiply_adds == 108 * 64 + 4 * 64 + 20
    assert all(layer.ms is None for layer in cost.layers)


def test_what_shapes_do_not_tell_is_blank() -> None:
    """Only the classifier's cost does not depend on the height of the image."""
    cost = model_cost(network(size="height"))
    assert [layer.multiply_adds for layer in cost.layers] == [None, None, 20]
    assert [layer.multiply_adds_sparse for layer in cost.layers] == [None, None, 20]
    assert cost.multiply_adds is None
    assert cost.layers[0].size_bytes == 432


def test_the_costly_layers_are_kept_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layer_costs, "MAX_LAYERS", 2)
    cost = model_cost(network())
    assert ([layer.name for layer in cost.layers], cost.left_out) == (["conv", "depthwise"], 1)


@pytest.mark.parametrize("name", ["a", "b", "b_nchwc", "b_nchwc_token_7", "fused b", "a/XFusion"])
def test_a_fused_node_is_found_by_what_it_ends_with(name: str) -> None:
    assert times(network(), KernelTime(name, "Conv", 3.0)) == {"conv": 3.0}


@pytest.mark.parametrize(
    ("kernels", "found"),
    [
        ([KernelTime("b", "Relu", 3.0)], {}),  # the activation alone
        ([KernelTime("c", "Conv", 3.0), KernelTime("x", "Conv", 1.0)], {"depthwise": 3.0}),
        ([KernelTime("b", "Conv", 1.0), KernelTime("b_nchwc", "Conv", 2.0)], {}),  # which one?
        ([], {}),
    ],
)
def test_no_time_is_guessed(kernels: list[KernelTime], found: dict[str, float]) -> None:
    assert times(network(), *kernels) == found


@pytest.mark.parametrize(
    "text",
    [
        "(float[2, 4] y, float[2, 4] z) { a = MatMul (x, w) y = Relu (a) z = Sin (a) }",
        "(float[2, 4] y, float[2, 4] a) { a = MatMul (x, w) y = Relu (a) }",
    ],
)
def test_a_layer_that_others_read_as_well_ends_where_it_is(text: str) -> None:
    """What follows can then not have been fused into it."""
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[2, 4] x) => '
    proto = onnx.parser.parse_model(head + text)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    assert times(proto, KernelTime("y", "MatMul", 1.0)) == {}
    assert times(proto, KernelTime("a", "MatMul", 1.0)) == {"w": 1.0}


def test_a_node_with_two_weights_is_the_time_of_neither() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[4, 1, 3] x) => (float[4, 1, 1, 2] y) '
        "{ y = LSTM <hidden_size = 2> (x, w, r) }"
    )
    for name, shape in {"w": (1, 8, 3), "r": (1, 8, 2)}.items():
        array = np.ones(shape, np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    layers = [layer for layer in find_tensors(proto).values() if layer.role]
    assert [layer.name for layer in layers] == ["w", "r"]
    assert layer_times(proto, layers, [KernelTime("y", "LSTM", 1.0)]) == {}
    costs = {layer.name: layer.multiply_adds for layer in model_cost(proto).layers}
    assert costs == {"w": 4 * 24, "r": 4 * 16}


def test_nodes_without_a_name_are_counted_without_constants() -> None:
    """As ONNX Runtime does, which the profile of a whole model below shows."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[2, 4] x) => (float[2, 4] y) '
        "{ k = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () a = Mul (x, k)"
        " y = MatMul (a, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    assert times(proto, KernelTime("MatMul_1", "MatMul", 2.0)) == {"w": 2.0}
    assert times(proto, KernelTime("MatMul_2", "MatMul", 2.0)) == {}
    (model,) = bench([proto.SerializeToString()], rounds=5, threads=1, profile=True).models
    assert model.cost is not None
    assert model.cost.layers[0].ms is not None


def test_a_weight_that_two_nodes_use_takes_the_time_of_both() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[2, 4] x) => (float[2, 4] y) '
        "{ a = MatMul (x, w) b = Relu (a) y = MatMul (b, w) }"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    both = [KernelTime("a", "MatMul", 1.0), KernelTime("y", "MatMul", 2.5)]
    assert times(proto, *both) == {"w": 3.5}
    assert times(proto, both[0]) == {}


def test_onnx_runtimes_own_profile_names_every_layer() -> None:
    result = bench([network().SerializeToString()], rounds=5, threads=1, profile=True)
    (model,) = result.models
    assert model.cost is not None
    assert model.operators is not None
    layers = [layer.ms for layer in model.cost.layers]
    assert all(ms is not None and ms > 0 for ms in layers)
    products = [o.ms for o in model.operators if o.op_type in ("Conv", "MatMul", "Gemm")]
    assert sum(ms or 0.0 for ms in layers) == pytest.approx(sum(products))
    assert bench([network().SerializeToString()], rounds=5, threads=1).models[0].cost is None


@pytest.mark.skipif(missing_reason() is not None, reason="no sparse kernels here")
def test_a_compiled_model_counts_the_weights_of_its_operators() -> None:
    options = CompileOptions(thresholds=Thresholds.any_size(0.3))
    compiled = compile_model(network(), options).proto
    assert "SparseConv" in {node.op_type for node in compiled.graph.node}
    (model,) = bench([compiled.SerializeToString()], rounds=5, threads=1, profile=True).models
    assert model.cost is not None
    conv = model.cost.layers[0]
    assert (conv.multiply_adds, conv.multiply_adds_sparse) == (108 * 64, 54 * 64)
    assert all(layer.ms is not None for layer in model.cost.layers)
