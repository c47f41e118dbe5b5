"""A pointwise convolution and the depthwise one after it, in one operator."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelFileError
from onnxprune.runtime import (
    CompiledModel,
    CompileOptions,
    LayerRecord,
    Thresholds,
    compile_model,
    cost,
    tune,
    tuning,
    with_half_values,
)
from onnxprune.runtime.dense_view import dense_view
from onnxprune.runtime.record_check import verify_record
from onnxprune.validate import inspect_model

from .helpers import (
    ANY,
    attributes,
    check_equal,
    compiled,
    compressed,
    net,
    normal,
    opened,
    operator,
    operators,
    runtime_outputs,
    sparse,
    sparse_nodes,
)
from .reference import run

FUSED = "SparseExpandDepthwise"


def expansion(
    matrix: np.ndarray, taps: np.ndarray, *, residual: bool = False, **given: Any
) -> onnx.ModelProto:
    """A model of one operator, with the weights `(rows, channels)` and `(rows, taps)`."""
    axes = len(given["kernel_shape"])
    settings = {"strides": [1] * axes, "dilations": [1] * axes, "pads": [0] * 2 * axes}
    rows = len(matrix)
    tensors = {"taps": taps, "bias": normal(rows, seed=5), "depthwise_bias": normal(rows, seed=6)}
    attributes = {"in_channels": matrix.shape[1], **settings, **given}
    weights = compressed(matrix)
    return operator(
        FUSED, weights | tensors, axes + 2, residual=residual, name="both", **attributes
    )


# Bands of rows; whole small images; those split for a stride; and windows that need lists of loads.
FORMS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "bands": ([37, 41], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "bands, a stride": ([45, 50], {"kernel_shape": [5, 5], "pads": [2] * 4, "strides": [2, 2]}),
    "small": ([14, 14], {"kernel_shape": [5, 5], "pads": [2] * 4}),
    "small, a stride": ([14, 13], {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}),
    "lists": ([40, 33], {"kernel_shape": [4, 3], "pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    "one axis": ([301], {"kernel_shape": [9], "pads": [4, 4], "strides": [2]}),
}


def form(name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    size, window = FORMS[name]
    proto = expansion(
        sparse(70, 24, density=0.12),
        normal(70, math.prod(window["kernel_shape"])),
        **window,
        activation="HardSwish",
        expand_activation="Silu",
    )
    return proto, normal(3, 24, *size)


@pytest.mark.parametrize("name", FORMS)
def test_the_same_to_the_last_bit_on_any_number_of_threads(name: str, need_kernels: None):
    proto, x = form(name)
    found = []
    for threads in (1, 2, 3, 65):
        found.append(runtime_outputs(proto, {"x": x}, threads)[0])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


_IN_ANOTHER_PROCESS = """
import sys, numpy as np, onnx
from tests.runtime.helpers import LARGEST_ERROR, error, runtime_outputs
from tests.runtime.reference import run
from tests.runtime.test_expanded import FORMS, form
for name in FORMS:
    proto, x = form(name)
    (expected,), (found,) = run(proto, {"x": x}), runtime_outputs(proto, {"x": x})
    assert error(expected, found) <= LARGEST_ERROR, name
"""


@pytest.mark.parametrize("kernels_named", ["avx2", "portable"])
def test_with_other_instructions(kernels_named: str, need_kernels: None):
    """Where the processor lacks them, its best ones are tested once more."""
    environment = {**os.environ, "ONNXPRUNE_KERNELS": kernels_named}
    subprocess.run([sys.executable, "-c", _IN_ANOTHER_PROCESS], env=environment, check=True)


@pytest.mark.parametrize("shape", [(0, 4, 9, 9), (2, 4, 0, 9)])
def test_no_pixels(shape: tuple[int, ...], need_kernels: None):
    proto = expansion(sparse(6, 4), normal(6, 9), kernel_shape=[3, 3], pads=[1] * 4)
    (y,) = runtime_outputs(proto, {"x": normal(*shape)})
    assert y.shape == (shape[0], 6, *shape[2:])


REFUSED = {
    "in_channels": ({"in_channels": 0}, "in_channels is 0; expected 1 to 65536"),
    "too few columns": ({"in_channels": 2}, "do not rise within 0 to 1"),
    "kernel_shape": ({"kernel_shape": [3, 3, 3]}, "expected one or two sizes"),
    "other taps": ({"kernel_shape": [5, 5]}, r"taps has the shape \[8, 9\]; expected \[8, 25\]"),
    "strides": ({"strides": [0, 1]}, "strides is .*expected 1 to 65536"),
    "pads": ({"pads": [-1, 0, 0, 0]}, "pads is .*expected 0 to 65536"),
    "activation": ({"activation": "Tanh"}, "activation is 'Tanh'; expected one of"),
    "expand_activation": (
        {"expand_activation": "Tanh"},
        "expand_activation is 'Tanh'; expected one of",
    ),
    "block": ({"block": 3}, "block is 3; expected 1 or 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_when_a_session_is_created(case: str, need_kernels: None):
    changed, message = REFUSED[case]
    settings: dict[str, Any] = {"kernel_shape": [3, 3], **changed}
    proto = expansion(sparse(8, 6, density=1.0), normal(8, 9), **settings)
    with pytest.raises(Exception, match=rf"onnxprune {FUSED} 'both': .*{message}"):
        opened(proto)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": (1, 5, 9, 9), "residual": (1, 8, 7, 7)}, "expected 4 axes with 6 channels"),
        ({"x": (1, 6, 9, 9), "residual": (1, 8, 9, 9)}, "residual has the shape"),
    ],
)
def test_inputs_of_other_shapes_are_refused(
    feeds: dict[str, tuple[int, ...]], message: str, need_kernels: None
):
    proto = expansion(sparse(8, 6), normal(8, 9), residual=True, kernel_shape=[3, 3])
    with pytest.raises(Exception, match=message):
        runtime_outputs(proto, {name: normal(*shape) for name, shape in feeds.items()})


def bottleneck(
    size: int = 24,
    density: float = 0.1,
    block: int = 1,
    settings: str = "pads = [1, 1, 1, 1]",
    body: str = "",
) -> onnx.ModelProto:
    """Pointwise, depthwise, pointwise: 16 to 80 to 24 channels."""
    body = body or (
        "c = Conv(x, w, a) h = HardSwish(c)"
        f" d = Conv<group = 80, {settings}>(h, v, b) r = Relu(d) y = Conv(r, p)"
    )
    return net(
        f"g (float[N, 16, {size}, {size}] x) => (float[N, 24, P, Q] y) {{ {body} }}",
        w=sparse(80, 16, 1, 1, density=density, block=block),
        a=normal(80, seed=3),
        v=normal(80, 1, 3, 3),
        b=normal(80, seed=4),
        p=sparse(24, 80, 1, 1, density=0.1),
    )


@pytest.mark.parametrize("settings", ["pads = [1, 1, 1, 1]", "strides = [2, 2]"])
@pytest.mark.parametrize("block", [1, 4])
def test_a_bottleneck_is_computed_by_two_operators(settings: str, block: int, kernels: bool):
    proto = bottleneck(settings=settings, block=block)
    result = compiled(proto, layouts="all")
    assert operators(result.proto) == [FUSED, "SparseConv"]
    both, last = sparse_nodes(result.proto)
    said = attributes(both)
    assert (said["expand_activation"], said["activation"]) == (b"HardSwish", b"Relu")
    assert said.get("block", 1) == block
    assert attributes(last)["x_layout"] == b"plain", "the operator writes plain values"
    check_equal(proto, result, {"x": normal(2, 16, 24, 24)}, kernels, replaced=2)
    first, middle, _ = result.record.layers
    assert (first.sparse, first.fused, first.block) == (True, ["HardSwish", "depthwise"], block)
    assert (middle.sparse, middle.within, middle.fused) == (False, first.name, ["Relu"])
    assert middle.reason == "dense, but computed with the sparse layer before it"
    assert last.input[0] == both.output[0]


def test_a_residual_of_the_depthwise_layer(kernels: bool):
    proto = bottleneck(
        body="c = Conv(x, w) d = Conv<group = 80, pads = [1, 1, 1, 1]>(c, v) e = Conv(x, o)"
        " s = Add(d, e) r = Relu(s) y = Conv(r, p)"
    )
    proto.graph.initializer.append(numpy_helper.from_array(normal(80, 16, 1, 1, seed=8), "o"))
    result = compiled(proto)
    assert FUSED in operators(result.proto)
    check_equal(proto, result, {"x": normal(2, 16, 24, 24)}, kernels)
    assert result.record.layers[1].fused == ["residual", "Relu"]
    (entry,) = [e for e in result.proto.metadata_props if e.key == "onnxprune.compiled"]
    entry.value = entry.value.replace('"residual",', "").replace('"residual", ', "")
    (problem,) = verify_record(result.proto).problems
    assert problem == "layers.1 (d): fused: it lacks 'residual', which the operator computes"


APART = {
    "small images": bottleneck(size=20),
    "many weights": bottleneck(density=0.6),
    "another reader": bottleneck(
        body="c = Conv(x, w, a) d = Conv<group = 80, pads = [1, 1, 1, 1]>(c, v) s = Mul(d, c)"
        " y = Conv(s, p)"
    ),
    "a residual between": bottleneck(
        body="c = Conv(x, w) e = Conv(x, w2) s = Add(c, e)"
        " d = Conv<group = 80, pads = [1, 1, 1, 1]>(s, v) y = Conv(d, p)"
    ),
    "a stride before": bottleneck(
        size=48,
        body="c = Conv<strides = [2, 2]>(x, w) d = Conv<group = 80, pads = [1, 1, 1, 1]>(c, v)"
        " y = Conv(d, p)",
    ),
    "another function between": bottleneck(
        body="c = Conv(x, w) i = Sin(c) d = Conv<group = 80, pads = [1, 1, 1, 1]>(i, v)"
        " y = Conv(d, p)"
    ),
}
APART["a residual between"].graph.initializer.append(
    numpy_helper.from_array(normal(80, 16, 1, 1, seed=9), "w2")
)


@pytest.mark.parametrize("case", APART)
def test_what_stays_apart(case: str, kernels: bool):
    proto = APART[case]
    result = compiled(proto, thresholds=replace(ANY, unstructured=0.1))
    assert FUSED not in operators(result.proto)
    assert "SparseConv" in operators(result.proto)
    size = proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    check_equal(proto, result, {"x": normal(2, 16, size, size)}, kernels)


def test_sizes_that_are_open_leave_them_apart(kernels: bool):
    proto = bottleneck()
    for axis in (2, 3):
        dim = proto.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.dim_param = "HW"[axis - 2]
    assert FUSED not in operators(compiled(proto).proto)


def test_a_fixed_batch_makes_images_no_larger(kernels: bool):
    proto = bottleneck(size=20)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    result = compiled(proto)
    assert FUSED not in operators(result.proto)
    check_equal(proto, result, {"x": normal(8, 16, 20, 20)}, kernels)


def test_an_output_of_the_graph_is_not_lost(kernels: bool):
    proto = bottleneck()
    value = helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", 80, 24, 24])
    proto.graph.output.append(value)
    result = compiled(proto)
    assert FUSED not in operators(result.proto)
    check_equal(proto, result, {"x": normal(1, 16, 24, 24)}, kernels)


def test_the_rule_replaces_together_what_alone_would_not_pay():
    """At 112×112 the depthwise layer would read from memory what the pointwise one writes to it."""
    proto = net(
        "g (float[N, 16, 112, 112] x) => (float[N, 64, 56, 56] y) { c = Conv(x, w) r = Relu(c)"
        " d = Conv<group = 64, pads = [1, 1, 1, 1], strides = [2, 2]>(r, v) y = Relu(d) }",
        w=sparse(64, 16, 1, 1, density=0.1),
        v=normal(64, 1, 3, 3),
    )
    rule = Thresholds(least_gain=0)
    assert operators(compile_model(proto, CompileOptions(rule)).proto) == [FUSED]
    first = next(node for node in proto.graph.node if node.op_type == "Relu")
    first.op_type = "Sin"
    assert FUSED not in operators(compile_model(proto, CompileOptions(rule)).proto)
    record = compile_model(proto, CompileOptions(rule)).record
    assert record.layers[0].reason.startswith("expected to be")


def test_what_is_excluded_stays_dense():
    proto = bottleneck()
    result = compile_model(proto, CompileOptions(ANY, exclude=["w"]))
    assert operators(result.proto)[:1] == ["Conv"]
    assert FUSED not in operators(result.proto)


SELECTED: dict[str, dict[str, list[str]]] = {
    "the weight excluded": {"exclude": ["v"]},
    "the node excluded": {"exclude": ["middle"]},
    "the others included": {"include": ["w", "p"]},
}


@pytest.mark.parametrize("size", [24, 12], ids=["one operator", "an operator of its own"])
@pytest.mark.parametrize("case", SELECTED)
def test_a_depthwise_layer_that_is_not_selected_stays(case: str, size: int, kernels: bool):
    """It is no part of another layer's operator, and gets none of its own."""
    proto = bottleneck(size)
    proto.graph.node[2].name = "middle"
    result = compile_model(proto, CompileOptions(ANY, **SELECTED[case]))
    assert operators(result.proto) == ["SparseConv", "Conv", "Relu", "SparseConv"]
    assert "v" in {tensor.name for tensor in result.proto.graph.initializer}
    first, middle, _ = result.record.layers
    assert first.fused == ["HardSwish"]
    assert (middle.reason, middle.within, middle.fused) == ("not selected", "", [])
    assert verify_record(result.proto).problems == []
    check_equal(proto, result, {"x": normal(2, 16, size, size)}, kernels, replaced=2)
    included = CompileOptions(ANY, include=["w", "v", "p"])
    found = [layer.fused for layer in compile_model(proto, included).record.layers]
    assert found == [layer.fused for layer in compiled(proto).record.layers]


def test_values_of_16_bits(kernels: bool):
    proto = bottleneck()
    result = with_half_values(compiled(proto))
    assert [layer.values for layer in result.record.layers] == ["float16", "float32", "float16"]
    assert verify_record(result.proto).problems == []
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "p"):
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    check_equal(proto, result, {"x": normal(2, 16, 24, 24)}, kernels)


def test_inspection_sees_both_layers():
    source = bottleneck()
    result = compiled(source)
    view = dense_view(result.proto)
    onnx.checker.check_model(view)
    assert operators(view) == ["Conv"] * 3
    stored = {t.name: numpy_helper.to_array(t) for t in view.graph.initializer}
    for tensor in source.graph.initializer:
        if tensor.name in ("w", "v", "p"):
            np.testing.assert_array_equal(stored[tensor.name], numpy_helper.to_array(tensor))
    feeds = {"x": normal(1, 16, 24, 24)}
    for node in source.graph.node:  # the view leaves activations out
        if node.op_type in ("Relu", "HardSwish"):
            node.op_type = "Identity"
    np.testing.assert_allclose(run(view, feeds)[0], run(source, feeds)[0], atol=1e-4)
    before, after = inspect_model(bottleneck()), inspect_model(result.proto)
    assert after.sparsity == before.sparsity
    assert after.prunable_parameters == before.prunable_parameters
    assert after.flops == before.flops
    assert {t.name: t.zeros for t in after.tensors if t.prunable} == {
        t.name: t.zeros for t in before.tensors if t.prunable
    }
    assert (after.compiled.true, after.compiled.problems) == (True, [])


def test_an_operator_without_a_window_cannot_be_viewed():
    proto = compiled(bottleneck()).proto
    window = next(a for a in proto.graph.node[0].attribute if a.name == "kernel_shape")
    proto.graph.node[0].attribute.remove(window)
    with pytest.raises(ModelFileError, match="makes no sense"):
        dense_view(proto)


def test_names_in_the_view_are_free():
    source = bottleneck()
    source.graph.input[0].name = source.graph.node[0].input[0] = "r.expanded"
    onnx.checker.check_model(dense_view(compiled(source).proto))


def test_layers_with_one_depthwise_weight_read_it_at_one_place(kernels: bool):
    """Inspection would otherwise count its parameters twice."""
    proto = bottleneck(
        body="c = Conv(x, w, a) d = Conv<group = 80, pads = [1, 1, 1, 1]>(c, v)"
        " i = Conv(x, o) j = Conv<group = 80, pads = [1, 1, 1, 1]>(i, v)"
        " s = Mul(d, j) y = Conv(s, p)"
    )
    proto.graph.initializer.append(
        numpy_helper.from_array(sparse(80, 16, 1, 1, density=0.1, seed=8), "o")
    )
    result = compiled(proto)
    assert operators(result.proto).count(FUSED) == 2
    check_equal(proto, result, {"x": normal(2, 16, 24, 24)}, kernels)
    taps = {node.input[4] for node in sparse_nodes(result.proto) if node.op_type == FUSED}
    assert taps == {"v.taps"}
    assert inspect_model(result.proto).parameters == inspect_model(proto).parameters


FALSE = {
    "no depthwise layer": (1, {"within": ""}, "no such node"),
    "another operator": (1, {"within": "y"}, "computes no second layer"),
    "no operator": (1, {"within": "q"}, "within: the model has no such node"),
    "both sparse": (1, {"sparse": True}, "with all of its weights"),
    "another activation": (1, {"fused": ["Silu"]}, "Silu"),
    "no activation": (0, {"fused": ["depthwise"]}, "it lacks 'HardSwish'"),
    "no second layer": (0, {"fused": ["HardSwish"]}, "it lacks 'depthwise'"),
    "a layer twice": (0, {"fused": ["HardSwish", "depthwise", "depthwise"]}, "twice"),
    "a residual": (1, {"fused": ["Relu", "residual"]}, "residual"),
    "another shape": (0, {"shape": [80, 16, 3, 3]}, "shape"),
    "a layer that is not there": (1, {"name": "q"}, "second bias is 'd.bias'"),
    "the name of another layer": (1, {"name": "y"}, "layers: y is listed 2 times"),
    "the name of its operator": (1, {"name": "c"}, "layers: c is listed 2 times"),
    "an operator of another name": (0, {"name": "q"}, "name: the model has no such node"),
    "another depthwise weight": (1, {"weight": "w"}, "weight: 'w' where the operator reads 'v.t"),
    "other taps": (1, {"shape": [80, 1, 5, 5]}, "has [80, 1, 3, 3]"),
    "taps of fewer channels": (1, {"shape": [40, 1, 3, 3]}, "has [80, 1, 3, 3]"),
    "zeros of a dense weight": (1, {"sparsity": 0.9}, "sparsity: 0.9 where the file has None"),
    "blocks of a dense weight": (1, {"block": 4}, "block: 4 where the file has 1"),
    "halves of a dense weight": (1, {"values": "float16"}, "values: float16"),
    "fewer zeros": (0, {"sparsity": 0.5}, "sparsity"),
    "a reason missing": (1, {"reason": ""}, "reason"),
}


def claim(result: CompiledModel, layers: list[LayerRecord]) -> list[str]:
    """What is noticed of other statements on the layers of a compiled model."""
    record = result.record.model_copy(update={"layers": layers})
    (entry,) = [e for e in result.proto.metadata_props if e.key == "onnxprune.compiled"]
    entry.value = record.model_dump_json()
    return verify_record(result.proto).problems


@pytest.mark.parametrize("case", FALSE)
def test_a_false_record_is_noticed(case: str):
    number, update, message = FALSE[case]
    result = compiled(bottleneck())
    layers = list(result.record.layers)
    layers[number] = layers[number].model_copy(update=update)
    problems = claim(result, layers)
    assert any(message in problem for problem in problems), problems


def test_an_operator_of_another_name_is_noticed():
    result = compiled(bottleneck())
    result.proto.graph.node[0].name = "q"
    assert claim(result, result.record.layers) == [
        "layers.0 (c): name: the model has no such node",
        "layers.1 (d): within: the model has no such node",
        "layers: q, a SparseExpandDepthwise, is not listed",
    ]


@pytest.mark.parametrize("size", [24, 12], ids=["one operator", "an operator of its own"])
def test_every_layer_is_listed_once(size: int):
    result = compiled(bottleneck(size))
    first, middle, last = result.record.layers
    assert (middle.weight, middle.shape) == ("v", [80, 1, 3, 3])
    assert claim(result, [first, middle, last]) == []
    assert any("d" in problem for problem in claim(result, [first, last]))
    assert "layers: d is listed 2 times" in claim(result, [first, middle, middle, last])
    assert "layers: y is listed 2 times" in claim(result, [first, middle, last, last])


@pytest.mark.parametrize("size", [24, 12], ids=["one operator", "an operator of its own"])
def test_taps_of_another_shape_than_the_operator_has_are_noticed(size: int):
    result = compiled(bottleneck(size))
    (taps,) = [t for t in result.proto.graph.initializer if t.name == "v.taps"]
    array = numpy_helper.to_array(taps)
    for wrong in (array[:-1], array[:, :-1], array.reshape(-1, 1), array[None]):
        taps.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wrong), "v.taps"))
        problems = claim(result, result.record.layers)
        assert any(p.startswith("layers.1 (d): shape: ") for p in problems), problems


def test_records_of_earlier_versions_say_nothing_of_depthwise_weights():
    result = compiled(bottleneck())
    first, middle, last = result.record.layers
    result.proto.graph.node[0].input[6] = "c.depthwise.bias"
    (bias,) = [t for t in result.proto.graph.initializer if t.name == "d.bias"]
    bias.name = "c.depthwise.bias"
    assert claim(result, [first, middle.model_copy(update={"weight": "", "shape": []}), last]) == []


def test_both_layers_are_timed_as_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, need_kernels: None
):
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    timed = []
    original = tuning.layer_models

    def models(*args: Any) -> Any:
        pair = original(*args)
        timed.append([operators(model) for model in pair])
        return pair

    times = iter([2.0, 1.0] * 2)  # dense and sparse of each layer
    monkeypatch.setattr(tuning, "layer_models", models)
    monkeypatch.setattr(
        tuning,
        "_times",
        lambda calls, *_: np.array([[next(times, 1 - i / 10) for i in range(len(calls))]]),
    )
    source = bottleneck()
    options = CompileOptions(samples="together")
    result = tune(source, options, threads=1, shapes={"x": [1, 16, 24, 24]})
    assert timed[0] == [["Conv", "HardSigmoid", "Mul", "Conv", "Relu"], [FUSED]]
    assert operators(result.proto) == [FUSED, "SparseConv"]
    assert (result.record.layers[0].dense_ms, result.record.layers[0].sparse_ms) == (2.0, 1.0)
    check_equal(source, result, {"x": normal(1, 16, 24, 24)}, kernels=True)


def test_a_model_that_gains_nothing_says_so_of_every_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, need_kernels: None
):
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(tuning, "_times", lambda calls, *rest: np.ones((3, len(calls))))
    result = tune(bottleneck(), threads=1, shapes={"x": [1, 16, 24, 24]})
    assert result.record.replaced == 0
    _, middle, _ = result.record.layers
    assert (middle.within, middle.fused, middle.reason) == ("", [], "it has groups")


def widened() -> onnx.ModelProto:
    """Layers that pay in either form: 64 to 256 channels of 56×56 pixels."""
    return net(
        "g (float[N, 64, 56, 56] x) => (float[N, 256, 56, 56] y) { c = Conv(x, w) r = Relu(c)"
        " y = Conv<group = 256, pads = [1, 1, 1, 1]>(r, v) }",
        w=sparse(256, 64, 1, 1, density=0.05),
        v=normal(256, 1, 3, 3),
    )


def test_a_form_that_does_not_pay_leaves_the_other(monkeypatch: pytest.MonkeyPatch):
    """Where both as one are expected to be slow, the pointwise layer may still be sparse."""
    proto = widened()
    options = CompileOptions(Thresholds(least_gain=0), samples="together")
    assert operators(compile_model(proto, options).proto) == [FUSED]
    monkeypatch.setattr(cost, "_FAR_WEIGHTS", 1e3)
    assert operators(compile_model(proto, options).proto) == ["SparseConv", "DepthwiseConv"]


def test_tuning_also_tries_the_form_that_the_rule_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, need_kernels: None
):
    """Both layers as one are measured to be slow, which says nothing of the pointwise one alone."""
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cost, "_FAR_WEIGHTS", 1e3)
    times = iter([2.0, 2.5])  # dense and sparse of both
    monkeypatch.setattr(
        tuning,
        "_times",
        lambda calls, *_: np.array([[next(times, 1 - i / 10) for i in range(len(calls))]]),
    )
    options = CompileOptions(Thresholds(least_gain=0), samples="together")
    result = tune(widened(), options, threads=1, shapes={"x": [1, 64, 56, 56]})
    assert operators(result.proto) == ["SparseConv", "DepthwiseConv"]
    assert result.record.layers[0].sparse_ms is None, "the time is of another operator"


def test_tuning_times_both_forms_of_the_same_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, need_kernels: None
):
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cost, "_FAR_WEIGHTS", 1e3)
    compared = []

    def timed(calls: Any, *_: Any) -> np.ndarray:
        compared.append(len(calls))
        return np.array([[2.0, 1.0] if len(compared) == 1 else [1.0] * len(calls)])

    monkeypatch.setattr(tuning, "_times", timed)
    options = CompileOptions(Thresholds(least_gain=0), samples="together")
    tune(widened(), options, threads=1, shapes={"x": [1, 64, 56, 56]})
    assert compared == [2, 3], "the layer, then the source and both forms"
