"""The imported module as a PyTorch module."""

import copy
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import ModelFileError, UnsupportedModelError
from onnxprune.importer import load, registry, supported_operators
from onnxprune.importer.op import Op
from onnxprune.importer.ops.norm import BatchNormalization

from .helpers import assert_equals_runtime, half_model, normal, outputs, text_model

BATCH_NORM = """g (float[N,3,H,W] x) => (float[N,3,H,W] y) {
    y = BatchNormalization<epsilon = 0.001, momentum = 0.8>(x, s, b, m, v)
}"""


def batch_norm_arrays() -> dict[str, np.ndarray]:
    return {
        "s": normal(3, seed=1),
        "b": normal(3, seed=2),
        "m": normal(3, seed=3),
        "v": np.array([0.5, 1.0, 2.0], dtype=np.float32),
    }


def linear() -> onnx.ModelProto:
    return text_model(
        "g (float[N,4] x) => (float[N,2] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": normal(4, 2), "b": np.array([1, 2], dtype=np.float32)},
    )


def test_parameters_keep_names_and_shapes() -> None:
    proto = linear()
    proto.graph.initializer[0].name = "layer.0/w"
    proto.graph.node[0].input[1] = "layer.0/w"
    module = load(proto)
    assert module.tensor_names == {"layer_0_w": "layer.0/w", "b": "b"}
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "layer_0_w": (4, 2),
        "b": (2,),
    }
    exported = module.export_tensors()
    assert torch.equal(exported["layer.0/w"], torch.from_numpy(normal(4, 2)))
    assert not exported["layer.0/w"].requires_grad


def test_training_does_not_change_the_source() -> None:
    module = load(linear())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    stored = numpy_helper.to_array(module.source.proto.graph.initializer[0])
    np.testing.assert_array_equal(stored, normal(4, 2))


def test_parameter_names_never_hide_module_attributes() -> None:
    proto = linear()
    proto.graph.initializer[1].name = "training"
    proto.graph.node[1].input[1] = "training"
    module = load(proto)
    assert module.training is True
    assert module.tensor_names["training_1"] == "training"


def test_inputs_by_onnx_name_and_by_position() -> None:
    proto = text_model(
        "g (float[N] a, float[N] b) => (float[N] difference, float[N] total) "
        "{ difference = Sub(a, b) total = Add(a, b) }"
    )
    for index, name in enumerate(["in.1", "in/2"]):
        proto.graph.input[index].name = name
        for node in proto.graph.node:
            node.input[index] = name
    module = load(proto)
    assert module.input_names == ["in.1", "in/2"]
    assert module.output_names == ["difference", "total"]
    a, b = torch.tensor([5.0]), torch.tensor([3.0])
    difference, total = module(**{"in/2": b, "in.1": a})
    assert (difference.item(), total.item()) == (2.0, 8.0)
    assert module(a, b)[0].item() == 2.0


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        (1, [], "missing: 'b.in'; the model's inputs are 'a/in', 'b.in'"),
        (0, ["z", "b.in"], "unknown: 'z'; missing: 'a/in'; the model's inputs are "),
        (2, ["a/in"], "given twice: 'a/in'; the"),
        (3, [], "3 given by position; the"),
    ],
)
def test_wrong_inputs_are_named_as_in_the_file(given: int, named: list[str], message: str) -> None:
    proto = text_model("g (float[N] p, float[N] q) => (float[N] y) { y = Add(p, q) }")
    for index, name in enumerate(["a/in", "b.in"]):
        proto.graph.input[index].name = proto.graph.node[0].input[index] = name
    x = torch.ones(2)
    with pytest.raises(TypeError) as caught:
        load(proto)(*[x] * given, **dict.fromkeys(named, x))
    assert message in str(caught.value)


def test_input_names_that_read_alike_or_are_keywords() -> None:
    proto = text_model(
        "g (float[N] a, float[N] b, float[N] c) => (float[N] y) { y = Sum(a, b, c) }"
    )
    for index, name in enumerate(["in.1", "in/1", "class"]):
        proto.graph.input[index].name = name
        proto.graph.node[0].input[index] = name
    one = torch.ones(1)
    assert load(proto)(**{"in.1": one, "in/1": 2 * one, "class": 4 * one}).item() == 7.0


def test_node_that_makes_no_sense_is_an_error_of_ours() -> None:
    proto = text_model(
        "g (float[N,4] x) => (int64 y) { s = Shape(x) y = Gather(s, i) }", {"i": np.array(9)}
    )
    with pytest.raises(ModelFileError, match=r"a Gather node does not make sense"):
        load(proto)


def test_node_that_breaks_its_schema_is_an_error_of_ours() -> None:
    proto = text_model(
        "g (float[N,2,4,4] x) => (float[N,2,4,4] y) { y = MaxPool<strides = [1, 1]>(x) }"
    )
    with pytest.raises(ModelFileError, match="does not fit its operator"):
        load(proto)


def test_initializer_that_is_also_an_input_is_not_asked_for() -> None:
    proto = linear()
    proto.ir_version = 3
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [4, 2]))
    module = load(proto)
    assert module.input_names == ["x"]
    assert "w" in module.tensor_names.values()


def test_batch_norm_trains_like_the_native_one() -> None:
    arrays = batch_norm_arrays()
    module = load(text_model(BATCH_NORM, arrays)).train()
    native = torch.nn.BatchNorm2d(3, eps=0.001, momentum=0.2)
    state = {"weight": "s", "bias": "b", "running_mean": "m", "running_var": "v"}
    native.load_state_dict({k: torch.from_numpy(arrays[v]) for k, v in state.items()}, strict=False)
    for seed in range(3):
        x = torch.from_numpy(normal(4, 3, 5, 5, seed=seed))
        torch.testing.assert_close(module(x), native(x))
    exported = module.export_tensors()
    torch.testing.assert_close(exported["m"], native.running_mean)
    torch.testing.assert_close(exported["v"], native.running_var)


def test_batch_norm_without_momentum_averages_all_batches() -> None:
    module = load(text_model(BATCH_NORM, batch_norm_arrays())).train()
    (norm,) = [m for m in module.modules() if isinstance(m, BatchNormalization)]
    norm.reset_running_stats()
    norm.momentum = None
    batches = [torch.from_numpy(normal(4, 3, 5, 5, seed=seed)) for seed in range(3)]
    for batch in batches:
        module(batch)
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, means)


def test_evaluation_follows_a_file_in_training_mode() -> None:
    graph = BATCH_NORM.replace("momentum = 0.8", "training_mode = 1")
    proto = text_model(graph.replace("y = B", "y, rm, rv = B"), batch_norm_arrays())
    x = normal(4, 3, 5, 5) + 7
    module = assert_equals_runtime(proto, {"x": x})
    before = module.export_tensors()["m"].clone()
    module(torch.from_numpy(x))
    assert torch.equal(module.export_tensors()["m"], before)


def test_shared_statistics_behind_aliases_are_kept_apart() -> None:
    arrays = batch_norm_arrays()
    proto = text_model(
        """g (float[N,3,H,W] x) => (float[N,3,H,W] y) {
            m2 = Identity(m)
            v2 = Identity(v)
            h = BatchNormalization(x, s, b, m, v)
            y = BatchNormalization(h, s, b, m2, v2)
        }""",
        arrays,
    )
    module = assert_equals_runtime(proto, {"x": normal(2, 3, 4, 4)})
    assert set(module.tensor_names.values()) == {"s", "b"}
    assert sorted(module.buffer_names.values()) == ["m", "m2", "v", "v2"]
    module.train()(torch.from_numpy(normal(4, 3, 4, 4) + 3))
    exported = module.export_tensors()
    assert not torch.allclose(exported["m"], exported["m2"])


def test_a_shift_that_is_a_running_mean_says_how_to_export() -> None:
    """What exporters make of the zeros of an untrained network, without an alias between."""
    proto = text_model(
        """g (float[N,3,H,W] x) => (float[N,3,H,W] y) {
            y = BatchNormalization(x, s, m, m, v)
        }""",
        batch_norm_arrays(),
    )
    with pytest.raises(UnsupportedModelError, match=r"'m' is a parameter.*(?s:.*)after training"):
        load(proto)


def test_aliases_of_one_initializer_are_one_parameter() -> None:
    proto = text_model(
        """g (float[N,3] x) => (float[N,3] y) {
            w2 = Identity(w)
            h = MatMul(x, w)
            y = MatMul(h, w2)
        }""",
        {"w": normal(3, 3)},
    )
    module = load(proto)
    assert module.tensor_names == {"w": "w"}
    module(torch.ones(1, 3)).sum().backward()
    w = torch.from_numpy(normal(3, 3)).requires_grad_()
    (torch.ones(1, 3) @ w @ w).sum().backward()
    torch.testing.assert_close(module.w.grad, w.grad)


def test_dropout_drops_in_training_alone() -> None:
    proto = text_model(
        "g (float[N] x) => (float[N] y) { y = Dropout(x, ratio) }",
        {"ratio": np.array(0.25, dtype=np.float32)},
    )
    module = load(proto)
    x = torch.ones(4000)
    torch.manual_seed(0)
    dropped = module.train()(x)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.2 < (dropped == 0).float().mean() < 0.3
    assert torch.equal(module.eval()(x), x)


def test_half_precision_is_held_in_float32() -> None:
    module = assert_equals_runtime(
        half_model(), {"x": normal(3, 4).astype(np.float16)}, tolerance=1e-2
    )
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_copies_are_independent_and_share_the_source() -> None:
    module = load(text_model(BATCH_NORM, batch_norm_arrays()))
    twin = copy.deepcopy(module)
    assert twin.source is module.source
    assert twin.tensor_names == module.tensor_names
    with torch.no_grad():
        twin.s.zero_()
    assert module.s.abs().sum() > 0
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin.s, module.s)


def test_pickles_keep_what_was_trained() -> None:
    module = load(text_model(BATCH_NORM, batch_norm_arrays())).eval()
    with torch.no_grad():
        module.s.mul_(3)
    twin = pickle.loads(pickle.dumps(module))
    assert not twin.training
    assert twin.tensor_names == module.tensor_names
    x = torch.from_numpy(normal(2, 3, 5, 4))
    assert torch.equal(twin(x), module(x))


@pytest.mark.parametrize("name", ["self", "torch", "F", "device", "inf", "class"])
def test_values_of_any_name(name: str) -> None:
    proto = text_model(
        "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) k = Relu(h) y = Mul(k, h) }",
        {"w": normal(4, 4)},
    )
    for node in proto.graph.node:
        node.input[:] = [name if value == "h" else value for value in node.input]
        node.output[:] = [name if value == "h" else value for value in node.output]
    assert_equals_runtime(proto, {"x": normal(2, 4)})


def test_constants_stay_out_of_the_state_dict() -> None:
    proto = text_model(
        "g (float[N,4] x) => (float[N,2] y) { h = MatMul(x, w) y = Mul(h, k) }",
        {"w": normal(4, 2), "k": normal(1, 1)},
    )
    proto.graph.node[1].op_type = "Pow"
    module = load(proto)
    assert list(module.state_dict()) == ["w"]


def test_generated_code_is_readable() -> None:
    code = load(linear()).code
    assert "def forward(self, x):" in code
    assert "y = F.linear(x, self.w.t(), self.b)" in code


def test_compiled_and_cast_modules_agree() -> None:
    module = load(linear()).eval()
    x = torch.from_numpy(normal(3, 4))
    expected = module(x)
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(copy.deepcopy(module).double()(x.double()).float(), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x).float(), expected, rtol=0.05, atol=0.05)


def test_every_unsupported_operator_is_named_at_once() -> None:
    proto = text_model(
        """g (float[N] x) => (float[N] y) {
            a = other.Foo(x)
            b = Relu(a)
            y = other.Bar(b)
        }""",
        extra=', "other" : 1',
    )
    proto.graph.node[0].name = "first"
    with pytest.raises(UnsupportedModelError) as error:
        load(proto)
    message = str(error.value)
    assert "other.Foo" in message
    assert "'first'" in message
    assert "other.Bar" in message
    assert "'y'" in message
    assert "Relu" not in message


def test_unsupported_operators_of_all_branches_are_named() -> None:
    proto = text_model(
        """g (bool c, float[N] x) => (float[N] y) {
            y = If (c) <
                then_branch = a () => (float[N] p) { p = other.Foo(x) },
                else_branch = b () => (float[N] q) { r = other.Bar(x) q = other.Baz(r) }
            >
        }""",
        extra=', "other" : 1',
    )
    with pytest.raises(UnsupportedModelError) as error:
        load(proto)
    message = str(error.value)
    assert all(f"other.{name}" in message for name in ("Foo", "Bar", "Baz"))
    assert "If" not in message


def test_dead_nodes_are_not_asked_for() -> None:
    proto = text_model(
        "g (float[N] x) => (float[N] y) { a = other.Foo(x) y = Relu(x) }", extra=', "other" : 1'
    )
    assert load(proto)(torch.tensor([-1.0])).item() == 0.0


@pytest.mark.parametrize("opset", [0, 99])
def test_unknown_operator_set_versions_are_an_error(opset: int) -> None:
    proto = linear()
    proto.opset_import[0].version = opset
    with pytest.raises(UnsupportedModelError, match=f"ai.onnx {opset}"):
        load(proto)


def test_local_functions_are_expanded() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> {
            y = local.Layer<alpha = 0.5>(x, w)
        }
        <domain: "local", opset_import: ["" : 17]>
        Layer <alpha> (x, weight) => (z) {
            h = MatMul(x, weight)
            z = LeakyRelu<alpha: float = @alpha>(h)
        }"""
    )
    module = assert_equals_runtime(proto, {"x": normal(3, 2)})
    assert module.tensor_names == {"w": "w"}


def test_final_activation_is_seen_through_reshapes() -> None:
    proto = text_model(
        """g (float[N,4] x) => (float[4] p, float[N,4] q, float[N,4] r) {
            s = Softmax(x)
            i = Identity(s)
            p = Reshape(i, flat)
            q = Sigmoid(x)
            r = Relu(x)
        }""",
        {"flat": np.array([-1])},
    )
    assert load(proto).output_activations == {"p": "softmax", "q": "sigmoid", "r": None}


def test_sparse_initializers_become_dense_parameters() -> None:
    proto = text_model("g (float[N,2] x) => (float[N,2] y) { y = MatMul(x, w) }")
    values = onnx.helper.make_tensor("w", 1, [1], [5.0])
    indices = onnx.helper.make_tensor("i", 7, [1], [2])
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2, 2]))
    module = load(proto)
    assert module.w.tolist() == [[0.0, 0.0], [5.0, 0.0]]
    assert outputs(module, {"x": normal(1, 2)})[0].shape == (1, 2)


def test_registry_lists_what_is_implemented() -> None:
    names = {entry.op_type for entry in supported_operators()}
    assert {"Conv", "Gemm", "LayerNormalization", "Resize"} <= names
    assert all(entry.until is None or entry.since < entry.until for entry in supported_operators())


def test_second_builder_of_the_same_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", {})

    def build(op: Op) -> registry.Result:
        return op.tensor(0)

    registry.register("Twice", since=9)(build)
    registry.register("Twice", since=7, until=9)(build)
    registry.register("Twice", domain="test")(build)
    with pytest.raises(ValueError, match="Twice has two builders for some of the versions from 12"):
        registry.register("Twice", since=12)(build)
    with pytest.raises(ValueError, match="some of the versions 1 to 8"):
        registry.register("Twice", until=8)(build)
    assert len(registry.entries()) == 3


FUNCTION_WITH_BRANCHES = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
g (float[N,3] x, bool c) => (float[N,3] y) { y = local.f<alpha = 0.3>(x, c) }
<domain: "local", opset_import: ["" : 17]>
f <alpha> (x, c) => (y) {
    y = If(c)<
        then_branch = t () => (float[N,3] a) <float[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 10}> {
            l = LeakyRelu<alpha: float = @alpha>(x)
            a = MatMul(l, w)
        },
        else_branch = e () => (float[N,3] b) {
            v = Constant<value = float[3,3] {1, 0, 2, 0, 1, 0, 3, 0, 1}>()
            k = Constant<value_floats = [1.0, 2.0, 3.0]>()
            d = Gemm(x, v, k)
            b = LeakyRelu<alpha: float = @alpha>(d)
        }
    >
}"""


def test_branches_of_a_function_with_attributes_train(tmp_path: Path) -> None:
    """A body with references to attributes is copied for the call; its tensors stay the file's."""
    proto, x = onnx.parser.parse_model(FUNCTION_WITH_BRANCHES), normal(4, 3)
    feeds = [{"x": x, "c": np.array(True)}, {"x": x, "c": np.array(False)}]
    module = assert_equals_runtime(proto, *feeds)
    assert set(module.tensor_names.values()) == {"w", "v", "k"}
    for taken in (True, False):
        module(torch.from_numpy(x), torch.tensor(taken)).square().sum().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            assert parameter.grad.abs().sum() > 0
            parameter -= 0.01 * parameter.grad
    onnxprune.export(module, tmp_path / "trained.onnx")
    trained = assert_equals_runtime(onnx.load(tmp_path / "trained.onnx"), *feeds)
    for name, tensor in module.export_tensors().items():
        np.testing.assert_array_equal(trained.export_tensors()[name], tensor)
