"""Samples of a batch that are computed one after the other."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from onnxprune.errors import UnsupportedModelError
from onnxprune.runtime import (
    CompiledModel,
    CompileOptions,
    compile_model,
    prove,
    read_record,
    register,
    session,
    tune,
)
from onnxprune.runtime.cost import Work, splitting_pays
from onnxprune.runtime.dense_view import dense_view
from onnxprune.runtime.half import with_half_values
from onnxprune.runtime.plan import SampleRule
from onnxprune.runtime.record_check import verify_record
from onnxprune.runtime.samples import working_graph
from onnxprune.validate import inspect_model

from .helpers import ANY, check_equal, net, normal, operators, pruned, sparse
from .reference import run

SPLIT = ["Shape", "Gather", "Cast", "If"]
WEIGHTS = {"w": sparse(8, 6, 3, 3), "b": normal(8), "k": sparse(20, 8, seed=3).T}
NETWORK = (
    "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(a) p = GlobalAveragePool(r)"
    " f = Flatten(p) y = MatMul(f, k)"
)


def network(body: str = NETWORK, outputs: str = "float[N, 20] y", **weights: np.ndarray):
    return net(f"g (float[N, 6, 9, 9] x) => ({outputs}) {{ {body} }}", **(WEIGHTS | weights))


def split(proto: ModelProto, samples: SampleRule = "split") -> CompiledModel:
    result = compile_model(proto, CompileOptions(ANY, "strided", samples=samples))
    assert verify_record(result.proto).problems == []
    return result


@pytest.mark.parametrize("count", [1, 3])
def test_a_split_model_computes_what_its_source_does(count: int, kernels: bool):
    source = network()
    result = split(source)
    assert operators(result.proto) == SPLIT
    onnx.checker.check_model(result.proto)
    assert (result.record.samples, result.record.samples_reason) == ("split", "")
    check_equal(source, result, {"x": normal(count, 6, 9, 9)}, kernels, replaced=2)


@pytest.mark.usefixtures("need_kernels")
def test_a_batch_of_nothing():
    result = split(network())
    made = session_of(result).run(None, {"x": normal(0, 6, 9, 9)})
    assert made[0].shape == (0, 20)


def test_an_old_opset_has_axes_as_attributes(kernels: bool):
    source = network()
    source.opset_import[0].version = 11
    result = split(source)
    check_equal(source, result, {"x": normal(2, 6, 9, 9)}, kernels, replaced=2)


def test_several_inputs_one_of_which_is_the_same_for_all_samples(kernels: bool):
    source = net(
        "g (float[N, 5, 6] x, float[N, 5, 20] z, float[1, 20] s)"
        " => (float[N, 5, 20] y, float[N, 5, 20] u)"
        " { m = MatMul(x, k) n = Add(m, z) u = Mul(n, s) y = Relu(u) }",
        k=sparse(20, 6).T,
    )
    feeds = {"x": normal(3, 5, 6), "z": normal(3, 5, 20), "s": normal(1, 20)}
    result = split(source)
    assert result.record.samples == "split"
    assert [value.name for value in result.proto.graph.input] == ["x", "z", "s"]
    check_equal(source, result, feeds, kernels, replaced=1)


def test_an_input_that_is_an_output(kernels: bool):
    source = network(f"{NETWORK} q = Identity(x)", "float[N, 20] y, float[N, 6, 9, 9] q")
    result = split(source)
    check_equal(source, result, {"x": normal(2, 6, 9, 9)}, kernels, replaced=2)


MIXED = {
    "mean over the batch": "m = ReduceMean<keepdims = 1>(f, zero) d = Sub(f, m) y = MatMul(d, k)",
    "softmax over the batch": "d = Softmax<axis = 0>(f) y = MatMul(d, k)",
    "samples against each other": "t = Transpose(f) s = MatMul(f, t) d = MatMul(s, f)"
    " y = MatMul(d, k)",
    "other order": "d = Slice(f, last, first, zero, back) y = MatMul(d, k)",
    "sum so far": "d = CumSum(f, axis) y = MatMul(d, k)",
    "number of samples": "n = Shape<start = 0, end = 1>(f) c = Cast<to = 1>(n) d = Div(f, c)"
    " y = MatMul(d, k)",
    "number of each sample": "n = Shape<start = 0, end = 1>(f) q = Squeeze(n) i = Range(o, q, e)"
    " c = Cast<to = 1>(i) v = Unsqueeze(c, one) d = Add(f, v) y = MatMul(d, k)",
    "reshaped across": "t = Transpose(f) h = Reshape(t, like) d = Relu(h) y = MatMul(d, k)",
    "transposed for good": "t = Transpose(f) u = Relu(t) v = Transpose(u) d = Reshape(v, flat)"
    " e1 = Reshape(d, like) y = MatMul(e1, k) z = ReduceSum<keepdims = 0>(y)",
    "chosen by all": "c = ReduceMax<keepdims = 0>(f) g = Greater(c, half) d = Where(g, f, f)"
    " y = MatMul(d, k)",
}
CONSTANTS = {
    "zero": np.array([0]),
    "axis": np.array(0),
    "one": np.array([1]),
    "first": np.array([-(2**40)]),
    "last": np.array([-1]),
    "back": np.array([-1]),
    "o": np.array(0),
    "e": np.array(1),
    "half": np.float32(0.5),
    "like": np.array([-1, 8]),
    "flat": np.array([-1]),
}


@pytest.mark.parametrize("case", sorted(MIXED))
def test_samples_that_depend_on_each_other_stay_together(case: str, kernels: bool):
    body = f"a = Conv(x, w, b) p = GlobalAveragePool(a) f = Flatten(p) {MIXED[case]}"
    outputs = "float[N, 20] y" + (", float z" if "z =" in body else "")
    source = network(body, outputs, **CONSTANTS)
    result = split(source)
    assert result.record.samples == "together"
    assert result.record.samples_reason
    assert operators(result.proto) != SPLIT
    check_equal(source, result, {"x": normal(3, 6, 9, 9)}, kernels, replaced=2)


NOT_FOLLOWED = {
    "a quotient that is rounded": "d = Div(n, twenty) i = Add(d, one) g = Gather(scales, i)"
    " a = Mul(x, g) y = MatMul(a, k)",
    "a remainder": "d = Mod(n, two) i = Add(d, one) g = Gather(scales, i) a = Mul(x, g)"
    " y = MatMul(a, k)",
    "the same by chance": "d = Sub(n, thirty) i = Mul(d, d) c = Cast<to = 1>(i) a = Mul(x, c)"
    " y = MatMul(a, k)",
    "from a table": "i = Gather(table, n) c = Cast<to = 1>(i) a = Mul(x, c) y = MatMul(a, k)",
    "as many as there are samples": "s = Slice(few, zero, n) m = MatMul(x, k)"
    " g = Gather<axis = 1>(m, s) y = ReduceSum<keepdims = 1>(g, one)",
    "the last so many": "e = Neg(n) m = MatMul(x, k) s = Slice(m, e, large, one)"
    " y = ReduceSum<keepdims = 1>(s, one)",
    "a square": "q = Concat<axis = 0>(n, n) e = Expand(half, q)"
    " r = ReduceSum<keepdims = 1>(e, one) a = Mul(x, r) y = MatMul(a, k)",
    "one sample is another case": "q = Equal(n, one) w = Where(q, four, two)"
    " c = Concat<axis = 0>(n, w, minus) m = MatMul(x, k) r = Reshape(m, c)"
    " t = ReduceMax<keepdims = 0>(r, one) y = ReduceSum<keepdims = 1>(t, one)",
    "five samples are another case": "q = Equal(n, five) w = Where(q, four, two)"
    " c = Concat<axis = 0>(n, w, minus) m = MatMul(x, k) r = Reshape(m, c)"
    " t = ReduceMax<keepdims = 0>(r, one) y = ReduceSum<keepdims = 1>(t, one)",
    "five samples, less what they are": "v = Sub(n, five) q = Cast<to = 9>(v)"
    " w = Where(q, two, four) c = Concat<axis = 0>(n, w, minus) m = MatMul(x, k)"
    " r = Reshape(m, c) t = ReduceMax<keepdims = 0>(r, one)"
    " y = ReduceSum<keepdims = 1>(t, one)",
    "many are another case": "v = Cast<to = 1>(n) o = Div(v, five_hundred) q = Floor(o)"
    " p = Cast<to = 7>(q) w = Add(p, two) c = Concat<axis = 0>(n, w) e = Expand(half, c)"
    " t = ReduceSum<keepdims = 1>(e, one) a = Mul(x, t) y = MatMul(a, k)",
    "an axis of one sample goes, too": "r = Reshape(x, row) s = Squeeze(r) y = MatMul(s, k)",
}


@pytest.mark.parametrize("case", sorted(NOT_FOLLOWED))
def test_sizes_that_only_look_the_same_for_every_batch_keep_samples_together(case: str):
    constants = {"k": sparse(20, 8, seed=3).T, "scales": normal(2000), "table": np.arange(1001)}
    constants["table"][[29, 31]] = 5
    constants |= {"half": np.full(1, 0.5, np.float32), "five_hundred": np.float32([500])}
    constants |= {"large": np.array([2**40]), "few": np.arange(5), "row": np.array([0, 1, 8])}
    constants |= {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    constants |= {"four": np.array([4]), "five": np.array([5]), "twenty": np.array([20])}
    constants |= {"thirty": np.array([30]), "minus": np.array([-1])}
    body = f"n = Shape<start = 0, end = 1>(x) {NOT_FOLLOWED[case]}"
    source = net(f"g (float[N, 8] x) => (float[N, Q] y) {{ {body} }}", **constants)
    result = split(source)
    assert result.record.samples == "together"
    assert operators(result.proto) != SPLIT


EXACT = {
    "windows": "c = Concat<axis = 0>(n, two, four) w = Reshape(x, parts) d = Shape(w)"
    " e = Slice(d, zero, one, zero) b = Div(e, two) t = Concat<axis = 0>(b, minus)"
    " r = Relu(w) f = Reshape(r, t) y = MatMul(f, k)",
    "expanded as exporters do": "c = Concat<axis = 0>(n, one, eight) m = Equal(c, minuses)"
    " w = Where(m, ones, c) e = Expand(token, w) s = Squeeze(e, one) j = Add(s, x)"
    " y = MatMul(j, k)",
}


@pytest.mark.parametrize("case", sorted(EXACT))
def test_sizes_that_are_computed_exactly_are_followed(case: str, kernels: bool):
    constants = {"k": sparse(20, 8, seed=3).T, "token": normal(1, 1, 8)}
    constants |= {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    constants |= {"four": np.array([4]), "eight": np.array([8]), "minus": np.array([-1])}
    constants |= {"minuses": np.full(3, -1), "ones": np.ones(3, np.int64)}
    constants |= {"parts": np.array([-1, 4])}
    body = f"n = Shape<start = 0, end = 1>(x) {EXACT[case]}"
    source = net(f"g (float[N, 8] x) => (float[N, 20] y) {{ {body} }}", **constants)
    result = split(source)
    assert result.record.samples_reason == ""
    check_equal(source, result, {"x": normal(3, 8)}, kernels)


FRAMES = {
    "two batches": "(float[, 8] x, float[, 8] z) => (float[N, 20] y) { a = Add(x, z) y ="
    " MatMul(a, k) }",
    "a square": "(float[N, N, 8] x) => (float[N, 20] y) { a = ReduceMean<axes = [1], keepdims = 0>"
    "(x) y = MatMul(a, k) }",
    "an input": "(float[N, 8] x) => (float[N, 20] y, float[N, 8] x) { y = MatMul(x, k) }",
    "text": "(float[N, 8] x, string[N, 2] s) => (float[N, 20] y, string[N, 2] t) { y ="
    " MatMul(x, k) t = Identity(s) }",
    "small floats": "(float[N, 8] x) => (float[N, 20] y, float8e4m3fn[N, 8] t) { y = MatMul(x, k)"
    " t = Cast<to = 17>(x) }",
}


@pytest.mark.parametrize("case", sorted(FRAMES))
def test_inputs_and_outputs_that_no_scan_can_have_keep_samples_together(case: str):
    frame = FRAMES[case].replace("float[, 8]", "float[A, 8]")
    source = net(f"g {frame}", k=sparse(20, 8, seed=3).T)
    if case == "a square":
        source.opset_import[0].version = 17
    for value in source.graph.input:
        if value.type.tensor_type.shape.dim[0].dim_param == "A":
            value.type.tensor_type.shape.dim[0].Clear()
    result = split(source)
    assert result.record.samples == "together"
    assert result.record.samples_reason


@pytest.mark.usefixtures("need_kernels")
def test_sizes_left_over_from_a_fixed_batch(kernels: bool):
    """As a model has them that was exported with one, and opened at its inputs and outputs."""
    body = "r = Relu(x) s = Sin(r) m = MatMul(s, k) y = Tanh(m)"
    source = net(f"g (float[N, 8] x) => (float[N, 20] y) {{ {body} }}", k=WEIGHTS["k"])
    for name, sizes in (("r", [4, 8]), ("s", [4, 8]), ("m", [4, 20])):
        source.graph.value_info.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)
        )
    result = split(source)
    assert result.record.samples == "split"
    check_equal(source, result, {"x": normal(3, 8)}, kernels, replaced=1)


def test_a_dense_layer_without_a_name_that_makes_an_output_is_in_the_record():
    source = network(
        "a = Conv(x, w, b) y = ConvTranspose(a, t)",
        "float[N, 4, 9, 9] y",
        t=normal(8, 4, 3, 3),
    )
    result = split(source)
    assert result.record.samples == "split"
    assert [(layer.name, layer.sparse) for layer in result.record.layers] == [
        ("a", True),
        ("y", False),
    ]


def test_a_scan_with_fewer_outputs_than_the_model_is_not_ours():
    result = split(network())
    (branches,) = [n for n in result.proto.graph.node if n.op_type == "If"]
    branches.output.append("more")
    result.proto.graph.output.add(name="more")
    assert working_graph(result.proto) is result.proto.graph
    dense_view(result.proto)


@pytest.mark.parametrize("place", ["main graph", "other branch", "scan", "sparse"])
def test_weights_beside_the_graph_of_a_sample_are_not_overlooked(place: str):
    proto = split(network()).proto
    branches = {a.name: a.g for a in proto.graph.node[-1].attribute}
    weight = onnx.numpy_helper.from_array(normal(8, 20), "hidden")
    if place == "main graph":
        proto.graph.initializer.append(weight)
    elif place == "other branch":
        multiplied = onnx.helper.make_node("MatMul", ["x", "hidden"], ["more"])
        branches["else_branch"].node.append(multiplied)
        branches["else_branch"].initializer.append(weight)
    elif place == "scan":
        branches["then_branch"].initializer.append(weight)
    else:
        working_graph(proto).sparse_initializer.add().values.CopyFrom(weight)
    assert working_graph(proto) is proto.graph
    assert not verify_record(proto).true


def test_a_sparse_operator_without_its_weight_is_a_problem_of_the_record():
    result = split(network())
    (node,) = [n for n in working_graph(result.proto).node if n.op_type == "SparseConv"]
    del node.input[2:]
    assert any("make no sense" in problem for problem in verify_record(result.proto).problems)


APART = {
    "heads": "h = Reshape(x, heads) t = Transpose<perm = [0, 2, 1, 3]>(h)"
    " u = Transpose<perm = [0, 2, 3, 1]>(h) s = MatMul(t, u) p = Softmax<axis = 3>(s)"
    " o = MatMul(p, t) v = Transpose<perm = [0, 2, 1, 3]>(o) f = Reshape(v, joined)"
    " y = MatMul(f, k)",
    "positions first": "t = Transpose<perm = [1, 0, 2]>(x) m = MatMul(t, q) n = Shape(t)"
    " l = Slice(n, zero, two) c = Concat<axis = 0>(l, split) h = Reshape(m, c)"
    " r = Relu(h) d = Shape<start = 0, end = 1>(t) e = Concat<axis = 0>(d, minus, eight)"
    " g = Reshape(r, e) i = Transpose<perm = [1, 0, 2]>(g) y = MatMul(i, k)",
    "a token before all": "n = Shape<start = 0, end = 1>(x) c = Concat<axis = 0>(n, one, eight)"
    " e = Expand(token, c) j = Concat<axis = 1>(e, x) s = Slice(j, zero, five, one)"
    " y = MatMul(s, k)",
    "a part of a table": "n = Shape<start = 1, end = 2>(x) t = Slice(table, zero, n, one)"
    " a = Add(x, t) y = MatMul(a, k)",
}


@pytest.mark.parametrize("case", sorted(APART))
def test_samples_are_followed_through_transposed_and_joined_axes(case: str, kernels: bool):
    weights = {"k": sparse(20, 8, seed=3).T, "q": sparse(8, 8, seed=4).T}
    weights |= {"heads": np.array([0, 0, 2, 4]), "joined": np.array([0, 0, 8])}
    weights |= {"split": np.array([2, 4]), "zero": np.array([0]), "one": np.array([1])}
    weights |= {"two": np.array([2]), "five": np.array([5]), "minus": np.array([-1])}
    weights |= {"eight": np.array([8]), "token": normal(1, 1, 8), "table": normal(1, 200, 8)}
    source = net(f"g (float[N, 5, 8] x) => (float[N, 5, 20] y) {{ {APART[case]} }}", **weights)
    result = split(source)
    assert result.record.samples_reason == ""
    check_equal(source, result, {"x": normal(3, 5, 8)}, kernels)


def test_an_output_of_open_size_stays_together():
    """For no samples its size would not be known."""
    source = net(
        "g (float[N, T, 6] x) => (float[N, T, 20] y) { y = MatMul(x, k) }", k=WEIGHTS["k"][:6]
    )
    reason = split(source).record.samples_reason
    assert "'y'" in reason


def test_a_fixed_batch_stays_together():
    source = network()
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    source.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    assert split(source).record.samples == "together"


def test_whoever_looks_at_a_split_model_sees_its_layers():
    source = network()
    result = split(source)
    together = split(source, "together")
    before, after = inspect_model(together.proto), inspect_model(result.proto)
    assert (after.sparsity, after.flops, after.prunable_parameters) == (
        before.sparsity,
        before.flops,
        before.prunable_parameters,
    )
    assert after.operators["onnxprune::SparseConv"] == 1
    assert (after.compiled.true, after.compiled.problems) == (True, [])
    view = dense_view(result.proto)
    onnx.checker.check_model(view)
    feeds = {"x": normal(2, 6, 9, 9)}
    dense = dense_view(together.proto)
    np.testing.assert_array_equal(run(view, feeds)[0], run(dense, feeds)[0])
    half = with_half_values(result)
    kinds = {t.data_type for t in working_graph(half.proto).initializer if "values" in t.name}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert verify_record(half.proto).problems == []


def test_a_record_that_speaks_of_the_other_way_is_false():
    result = split(network())
    (entry,) = [e for e in result.proto.metadata_props if e.key == "onnxprune.compiled"]
    entry.value = entry.value.replace('"samples":"split"', '"samples":"together"').replace(
        '"samples": "split"', '"samples": "together"'
    )
    assert any("samples" in problem for problem in verify_record(result.proto).problems)


def test_a_model_that_only_looks_split_is_left_as_it_is():
    result = split(network())
    broken = ModelProto()
    broken.CopyFrom(result.proto)
    body = working_graph(broken)
    del body.node[0]
    assert working_graph(broken) is broken.graph
    assert not verify_record(broken).true
    dense_view(broken)


@pytest.mark.usefixtures("need_kernels")
def test_proof_runs_several_samples():
    """A body that mixes up samples is found although one sample would not show it."""
    source = network()
    result = split(source)
    assert prove(source, result.proto) < 1e-5
    branches = {a.name: a.g for a in result.proto.graph.node[-1].attribute}
    (scan,) = branches["then_branch"].node
    scan.attribute.append(onnx.helper.make_attribute("scan_input_directions", [1]))
    with pytest.raises(UnsupportedModelError, match="something else"):
        prove(source, result.proto)


LONG = Work("1x1", False, 256, 256, 6554, 1, 3136, 6_400_000)
SHORT = Work("1x1", False, 32, 32, 102, 1, 196, 50_000)
CLASSIFIER = Work("1x1", False, 4096, 25088, 10_276_045, 1, 1, 120_000)


@pytest.mark.parametrize(("layers", "threads", "pays"), [
    ([LONG] * 3, None, True), ([LONG] * 3, 8, True), ([SHORT] * 3, None, False),
    ([SHORT] * 3, 1, True), ([LONG, CLASSIFIER], 1, False), ([], 1, False),
])  # fmt: skip
def test_when_splitting_is_expected_to_pay(layers: list[Work], threads: int | None, pays: bool):
    assert splitting_pays([(layer, False) for layer in layers], threads) == pays


@pytest.mark.usefixtures("need_kernels")
def test_tuning_at_a_batch_tries_both_ways(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fastest(protos, feeds, threads, deadline, plain=1):
        asked.append([operators(proto) for proto in protos])
        return 1

    monkeypatch.setattr("onnxprune.runtime.tuning._fastest", fastest)
    options = CompileOptions(ANY)
    result = tune(network(), options, threads=1, seconds=1, shapes={"x": (4, 6, 9, 9)})
    assert result.record.replaced
    assert [found == SPLIT for found in asked[-1]].count(True) == 1
    asked.clear()
    tune(network(), options, threads=1, seconds=1, shapes={"x": (1, 6, 9, 9)})
    assert len(asked) == 1


@pytest.mark.usefixtures("need_kernels")
@pytest.mark.parametrize("wins", ["together", "split"])
@pytest.mark.parametrize("expected", ["together", "split"])
def test_tuning_gives_a_measured_reason(monkeypatch: pytest.MonkeyPatch, expected: str, wins: str):
    """Whichever way the rule takes, and whichever is faster."""

    def fastest(protos, feeds, threads, deadline, plain=1):
        ways = ["split" if operators(proto) == SPLIT else "together" for proto in protos]
        return 1 if plain else ways.index(wins)

    monkeypatch.setattr("onnxprune.runtime.tuning._fastest", fastest)
    monkeypatch.setattr("onnxprune.runtime.plan.splitting_pays", lambda *_: expected == "split")
    result = tune(network(), CompileOptions(ANY), threads=1, seconds=1, shapes={"x": (4, 6, 9, 9)})
    reason = "one after the other, they were measured to be no faster"
    assert result.record.samples == wins
    assert result.record.samples_reason == (reason if wins == "together" else "")
    assert read_record(result.proto) == result.record
    assert verify_record(result.proto).problems == []


@pytest.mark.usefixtures("need_kernels")
def test_a_session_of_one_thread_splits(tmp_path: Path):
    path = tmp_path / "pruned.onnx"
    weights = {"w": normal(64, 64, 1, 1), "v": normal(64, 64, 1, 1, seed=2)}
    body = "a = Conv(x, w) r = Relu(a) c = Conv(r, v) y = Relu(c)"
    proto = net(f"g (float[N, 64, 56, 56] x) => (float[N, 64, 56, 56] y) {{ {body} }}", **weights)
    onnx.save(pruned(proto), path)
    split = []
    feeds = {"x": normal(3, 64, 56, 56)}
    (expected,) = onnxruntime.InferenceSession(path).run(None, feeds)
    for threads in (1, 2):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        (found,) = session(path, options).run(None, feeds)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        split.append("If" in operators(onnx.load(tmp_path / "loaded.onnx")))
    assert split == [True, False]


def session_of(result: CompiledModel):
    options = onnxruntime.SessionOptions()
    register(options)
    return onnxruntime.InferenceSession(result.proto.SerializeToString(), options)
