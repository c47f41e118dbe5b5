"""Fusion: exporters' decompositions become one call, near misses do not, and results stay equal."""

import io
import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from onnxprune.importer import ImportedModel, converter, load
from onnxprune.importer.ops.activation import swish
from onnxprune.importer.ops.dropped_attention import DroppedAttention
from onnxprune.importer.ops.norm import layer_norm, rms_norm

from .helpers import assert_equals_runtime, normal, outputs, text_model

attend = F.scaled_dot_product_attention


def calls(module: fx.GraphModule) -> Counter[Any]:
    return Counter(node.target for node in module.graph.nodes if node.op == "call_function")


def unfused(proto: Any, monkeypatch: pytest.MonkeyPatch) -> ImportedModel:
    with monkeypatch.context() as patch:
        patch.setattr(converter, "fuse", lambda *_: None)
        return load(proto)


def assert_same(proto: Any, monkeypatch: pytest.MonkeyPatch, *inputs: Tensor) -> ImportedModel:
    """Compare outputs and all gradients with those of the import without fusion."""
    module, plain = load(proto).eval(), unfused(proto, monkeypatch).eval()
    assert module.tensor_names == plain.tensor_names
    gradients = []
    for candidate in (module, plain):
        leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
        result = candidate(*leaves)
        weights = torch.linspace(-1, 2, result.numel()).reshape(result.shape)
        (result * weights).sum().backward()
        tensors = [leaf for leaf in leaves if leaf.requires_grad] + list(candidate.parameters())
        gradients.append([result.detach(), *[tensor.grad for tensor in tensors]])
    for fused, separate in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, separate, rtol=1e-5, atol=1e-5)
    return module


def unary(body: str, **types: str) -> str:
    return f"g (float[N,8] x) => (float[N,8] y) {{ {body} }}"


ERF = "d = Div(x, r) e = Erf(d) a = Add(e, one) "
NUMBERS = {
    name: np.float32(value)
    for name, value in {
        "r": math.sqrt(2), "one": 1, "half": 0.5, "c": 0.044715, "s": math.sqrt(2 / math.pi),
        "q": 1.702, "two": 2, "three": 3, "zero": 0, "six": 6, "sixth": 1 / 6,
        "k": math.sqrt(0.5), "n1": -1,
    }.items()
}  # fmt: skip

ACTIVATIONS: list[tuple[str, Callable[..., Any]]] = [
    (ERF + "m = Mul(x, a) y = Mul(m, half)", F.gelu),
    (ERF + "m = Mul(a, half) y = Mul(m, x)", F.gelu),
    ("h = Mul(half, x) d = Mul(x, k) e = Erf(d) a = Add(one, e) y = Mul(h, a)", F.gelu),
    (
        "p = Pow(x, three) m = Mul(p, c) a = Add(x, m) b = Mul(a, s) t = Tanh(b) u = Add(t, one) "
        "h = Mul(x, half) y = Mul(h, u)",
        F.gelu,
    ),
    (
        "p = Mul(x, x) o = Mul(p, x) m = Mul(c, o) a = Add(x, m) b = Mul(s, a) t = Tanh(b) "
        "u = Add(one, t) h = Mul(half, u) y = Mul(x, h)",
        F.gelu,
    ),
    (
        "a = Mul(c, x) b = Mul(a, x) d = Add(one, b) e = Mul(x, s) f = Mul(e, d) t = Tanh(f) "
        "u = Add(t, one) h = Mul(x, half) y = Mul(h, u)",
        F.gelu,
    ),
    ("m = Mul(q, x) g = Sigmoid(m) y = Mul(x, g)", swish),
    ("g = Sigmoid(x) y = Mul(x, g)", F.silu),
    ("p = Softplus(x) t = Tanh(p) y = Mul(x, t)", F.mish),
    ("p = Exp(x) o = Add(p, one) l = Log(o) t = Tanh(l) y = Mul(x, t)", F.mish),
    ("p = Exp(x) o = Add(one, p) y = Log(o)", F.softplus),
    ("a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)", F.hardsigmoid),
    ("a = Mul(x, sixth) b = Add(a, half) y = Clip(b, zero, one)", F.hardsigmoid),
    ("a = Add(x, three) b = Clip(a, zero, six) m = Mul(x, b) y = Div(m, six)", F.hardswish),
    ("a = Add(x, three) b = Clip(a, zero, six) d = Div(b, six) y = Mul(d, x)", F.hardswish),
    ("h = HardSigmoid<alpha = 0.16666667>(x) y = Mul(x, h)", F.hardswish),
    ("y = Clip(x, zero, six)", F.relu6),
]


@pytest.mark.parametrize(("body", "function"), ACTIVATIONS)
def test_activations(
    body: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = text_model(unary(body), NUMBERS)
    x = 3 * normal(5, 8)
    module = assert_same(proto, monkeypatch, torch.from_numpy(x))
    assert calls(module) == {function: 1}
    assert_equals_runtime(proto, {"x": x}, tolerance=2e-6)


def test_activation_of_a_sum_and_gate_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = """g (float[N,8] a, float[N,8] b) => (float[N,8] y) {
        d = Add(a, b) t = Add(d, three) p = Clip(t, zero, six) h = Div(p, six)
        g = Sigmoid(a) m = Mul(a, g) y = Mul(m, h)
    }"""
    inputs = torch.from_numpy(normal(2, 8)), torch.from_numpy(normal(2, 8, seed=1))
    module = assert_same(text_model(graph, NUMBERS), monkeypatch, *inputs)
    assert calls(module)[F.hardsigmoid] == calls(module)[F.silu] == 1


@pytest.mark.parametrize(
    "body",
    [
        ERF + "m = Mul(x, a) y = Mul(m, two)",
        ERF.replace("r)", "two)") + "m = Mul(x, a) y = Mul(m, half)",
        ERF + "m = Mul(a, half) z = Add(m, a) y = Mul(x, z)",
        "m = Mul(two, x) g = Sigmoid(m) y = Mul(m, x)",
        "a = Add(x, two) b = Clip(a, zero, six) m = Mul(x, b) y = Div(m, six)",
        "a = Add(x, three) b = Clip(a, one, six) m = Mul(x, b) y = Div(m, six)",
        "a = Sub(x, three) b = Clip(a, zero, six) m = Mul(x, b) y = Div(m, six)",
        "g = Tanh(x) y = Mul(x, g)",
        "g = Sigmoid(x) y = Div(x, g)",
    ],
)
def test_near_misses_of_activations(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = {F.gelu, F.silu, F.mish, F.softplus, F.hardswish, F.hardsigmoid, swish}
    module = assert_same(text_model(unary(body), NUMBERS), monkeypatch, torch.randn(3, 8))
    assert not fused & set(calls(module))


def test_integers_are_no_activations() -> None:
    graph = "g (int64[N] x) => (int64[N] y) { y = Clip(x, zero, six) }"
    proto = text_model(graph, {"zero": np.array(0), "six": np.array(6)})
    module = assert_equals_runtime(proto, {"x": np.arange(-3, 9)})
    assert calls(module) == {torch.clamp: 1}


def test_value_that_is_an_output_stays() -> None:
    graph = "g (float[N] x) => (float[N] y, float[N] g) { g = Sigmoid(x) y = Mul(x, g) }"
    module = load(text_model(graph))
    assert F.silu not in calls(module)
    y, gate = module(torch.ones(3))
    assert torch.equal(y, gate)


def test_the_result_keeps_its_name() -> None:
    module = load(text_model(unary("g = Sigmoid(x) z = Mul(x, g) y = Relu(z)")))
    (node,) = [node for node in module.graph.nodes if node.target is F.silu]
    assert (node.name, node.meta["onnx_name"]) == ("z", "z")


LAYER_NORM = """g (float[N,T,C] x) => (float[N,T,C] y) {
    mean = ReduceMean<axes = [-1]>(x) d = Sub(x, mean) SQUARE v = ReduceMean<axes = [-1]>(p)
    e = Add(v, eps) r = Sqrt(e) TAIL
}"""
AFFINE = "n = Div(d, r) m = Mul(n, w) y = Add(m, b)"


def layer_norm_model(square: str = "p = Pow(d, two)", tail: str = AFFINE, **edits: str) -> Any:
    graph = LAYER_NORM.replace("SQUARE", square).replace("TAIL", tail)
    for old, new in edits.items():
        graph = graph.replace(old, new)
    arrays = {"w": 1 + normal(6) / 4, "b": normal(6, seed=1), "eps": np.float32(1e-6)}
    return text_model(graph, {**arrays, "two": np.float32(2)}, opset=14)


@pytest.mark.parametrize(
    ("square", "tail"),
    [
        ("p = Pow(d, two)", AFFINE),
        ("p = Mul(d, d)", AFFINE.replace("Mul(n, w)", "Mul(w, n)")),
        ("d2 = Sub(x, mean) p = Mul(d2, d2)", "i = Reciprocal(r) n = Mul(d, i) " + AFFINE[13:]),
        ("p = Mul(d, d)", "i = Reciprocal(r) f = Mul(i, w) g = Mul(x, f) h = Mul(mean, f) "
         "k = Sub(b, h) y = Add(g, k)"),
        ("p = Pow(d, two)", "n = Div(d, r) y = Mul(n, w)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", ["C", "6"])
def test_layer_norm(square: str, tail: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = layer_norm_model(square, tail)
    x = 2 + normal(2, 3, 6)
    if size == "6":  # an axis that is certain, as a product with a weight leaves it
        node = onnx.helper.make_node("MatMul", ["input", "square"], ["x"])
        proto.graph.node.insert(0, node)
        proto.graph.input[0].name = "input"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(6, 6), "square"))
    module = assert_same(proto, monkeypatch, torch.from_numpy(x))
    assert calls(module)[F.layer_norm if size == "6" else layer_norm] == 1
    assert torch.sqrt not in calls(module)
    assert_equals_runtime(proto, {proto.graph.input[0].name: x}, tolerance=1e-5)


@pytest.mark.parametrize(
    "proto",
    [
        layer_norm_model(**{"[-1]>(p)": "[1]>(p)"}),
        layer_norm_model(**{"[-1]": "[1]"}),
        layer_norm_model("p = Abs(d)"),
        layer_norm_model(tail=AFFINE.replace("Div(d, r)", "Div(x, r)")),
        layer_norm_model(tail="n = Div(d, r) m = Mul(n, x) y = Add(m, b)"),
        layer_norm_model(tail="n = Div(d, r) m = Mul(n, w) a = Add(m, b) y = Add(a, r)"),
    ],
    ids=["axes differ", "other axis", "no square", "not centred", "computed scale", "read twice"],
)
def test_near_misses_of_layer_norm(proto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = assert_same(proto, monkeypatch, torch.rand(2, 6, 6) + 0.5)
    assert not {F.layer_norm, layer_norm} & set(calls(module))


def test_rms_norm_and_normalize(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = """g (float[N,T,6] x) => (float[N,T,6] y) {
        p = Pow(x, two) v = ReduceMean<axes = [-1]>(p) e = Add(v, eps) r = Sqrt(e)
        i = Reciprocal(r) n = Mul(x, i) m = Mul(w, n)
        l = ReduceL2<axes = [-1], keepdims = 1>(m) c = Clip(l, eps) s = Shape(m)
        h = Expand(c, s) y = Div(m, h)
    }"""
    arrays = {"two": np.float32(2), "eps": np.float32(1e-6), "w": 1 + normal(6) / 4}
    module = assert_same(text_model(graph, arrays, 14), monkeypatch, torch.randn(2, 3, 6))
    assert calls(module) == {rms_norm: 1, F.normalize: 1}


class Attention(nn.Module):
    """One layer of attention with a linear layer for all projections."""

    def __init__(self, mask: str = "", dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mask, self.dropout = mask, nn.Dropout(dropout)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        if not self.mask:
            y = attend(q, k, v)
        elif self.mask == "own":
            y = attend(q, k, v, keep, self.dropout.p if self.training else 0.0)
        else:
            scores = q @ k.transpose(-1, -2) / 2 * 1.5
            if self.mask == "add":
                scores = scores + (keep.float() - 1) * 1e4
            elif self.mask == "where":
                scores = scores.masked_fill(~keep, -math.inf)
            y = self.dropout(scores.softmax(-1)) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def exported(module: nn.Module, inputs: tuple[Tensor, ...], **settings: Any) -> onnx.ModelProto:
    buffer = io.BytesIO()
    names = ["x", "keep"][: len(inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if settings.pop("dynamo", False):
            program = torch.onnx.export(
                module, inputs, dynamo=True, verbose=False, input_names=names
            )
            return program.model_proto
        axes = {"x": {0: "batch", 1: "tokens"}}
        torch.onnx.export(
            module, inputs, buffer, dynamo=False, input_names=names, dynamic_axes=axes, **settings
        )
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("settings", [{"opset_version": 14}, {"dynamo": True}], ids=str)
def test_attention_and_linear_of_both_exporters(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    proto = exported(Attention().eval(), (x, torch.ones(5, dtype=torch.bool)), **settings)
    for value in list(proto.graph.input)[1:]:
        proto.graph.input.remove(value)
    module = assert_same(proto, monkeypatch, x)
    assert calls(module)[attend] == 1
    assert calls(module)[F.linear] == 2
    assert not {torch.matmul, F.softmax, "transpose"} & set(calls(module))
    (node,) = [node for node in module.graph.nodes if node.target is attend]
    assert "scale" not in node.kwargs


@pytest.mark.parametrize("mask", ["add", "where", "none"])
def test_attention_with_mask_and_scale(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    keep = torch.tensor([[True, False, True, True, False]])
    x = torch.randn(2, 5, 8)
    proto = exported(Attention(mask).eval(), (x, keep), opset_version=17)
    inputs = (x, keep)[: len(proto.graph.input)]
    module = assert_same(proto, monkeypatch, *inputs)
    (node,) = [node for node in module.graph.nodes if node.target is attend]
    assert node.kwargs["scale"] == 0.75
    assert ("attn_mask" in node.kwargs) == (mask != "none")
    arrays = {name: t.numpy() for name, t in zip(("x", "keep"), inputs, strict=False)}
    assert_equals_runtime(proto, arrays, tolerance=1e-5)


@pytest.mark.parametrize(
    "settings", [{"opset_version": 14}, {"opset_version": 17}, {"dynamo": True}], ids=str
)
def test_attention_that_gives_zeros_to_a_query_without_keys(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, keep = torch.randn(2, 5, 8), torch.ones(5, 5, dtype=torch.bool).tril()
    native = Attention("own").eval()
    proto = exported(native, (x, keep), **settings)
    assert "IsNaN" in {node.op_type for node in proto.graph.node}
    module = assert_same(proto, monkeypatch, x, keep)
    assert calls(module)[attend] == 1
    assert not {torch.matmul, F.softmax, torch.isnan} & set(calls(module))
    keep[2] = False
    result = module(x, keep)
    torch.testing.assert_close(result, unfused(proto, monkeypatch).eval()(x, keep))
    if "dynamo" not in settings:  # which writes the lowest finite number for minus infinity
        torch.testing.assert_close(result, native(x, keep))
        torch.testing.assert_close(result[:, 2], native.out.bias.expand(2, 8))
    arrays = {"x": x.numpy(), "keep": keep.numpy()}
    assert_equals_runtime(proto, arrays, tolerance=1e-5)
    result.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_attention_drops_weights_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, keep = torch.randn(2, 5, 8), torch.ones(5, dtype=torch.bool)
    settings = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
    proto = exported(Attention("none", 0.25), (x, keep), opset_version=17, **settings)
    module = load(proto)
    (dropped,) = [m for m in module.modules() if isinstance(m, DroppedAttention)]
    assert dropped.ratio == 0.25
    assert dropped.training_mode
    assert not torch.equal(module.train()(x), module(x))
    dropped.ratio = 0.0
    torch.testing.assert_close(module(x), Attention.forward(_like(module), x, keep))


def _like(module: ImportedModel) -> Attention:
    """The native module with an imported one's weights, and no dropout."""
    native = Attention("none")
    state = {name: t for name, t in module.export_tensors().items() if name in native.state_dict()}
    native.load_state_dict(state)
    return native


ATTENTION = """g (float[N,2,T,4] q, float[N,2,4,S] k, float[N,2,S,4] v) => (OUTPUTS) {
    s = MatMul(q, k) c = Mul(s, half) SOFTMAX y = MatMul(w, v)
}"""
GUARDED = "u = Softmax<axis = -1>(c) n = IsNaN(u) w = Where(n, zero, u)"


@pytest.mark.parametrize(
    ("softmax", "outputs", "fuses"),
    [
        ("w = Softmax<axis = -1>(c)", "float[N,2,T,4] y", True),
        ("w = Softmax<axis = 3>(c)", "float[N,2,T,4] y", True),
        ("w = Softmax<axis = 2>(c)", "float[N,2,T,4] y", False),
        ("w = Softmax<axis = -1>(c)", "float[N,2,T,4] y, float[N,2,T,S] w", False),
        ("w = Softmax<axis = -1>(s)", "float[N,2,T,4] y, float[N,2,T,S] c", False),
        (GUARDED, "float[N,2,T,4] y", True),
        (GUARDED.replace("zero", "zeros"), "float[N,2,T,4] y", True),
        (GUARDED.replace("zero", "half"), "float[N,2,T,4] y", False),
        (GUARDED.replace("zero", "other"), "float[N,2,T,4] y", False),
        (GUARDED.replace("zero", "s"), "float[N,2,T,4] y", False),
        (GUARDED.replace("IsNaN(u)", "IsNaN(s)"), "float[N,2,T,4] y", False),
        (GUARDED.replace("zero, u", "u, zero"), "float[N,2,T,4] y", False),
        (GUARDED, "float[N,2,T,4] y, float[N,2,T,S] u", False),
    ],
)
def test_attention_only_where_weights_are_not_needed(
    softmax: str, outputs: str, fuses: bool
) -> None:
    graph = ATTENTION.replace("SOFTMAX", softmax).replace("OUTPUTS", outputs)
    arrays = {"half": np.float32(0.5), "zero": np.float32(0)}
    module = load(
        text_model(
            graph, {**arrays, "zeros": np.zeros(1, np.float32), "other": np.ones(1, np.float32)}
        )
    )
    assert (attend in calls(module)) == fuses


def test_attention_with_a_product_that_onnx_runtime_has_fused() -> None:
    graph = """g (float[N,2,T,4] q, float[N,2,S,4] k, float[N,2,S,4] v) => (float[N,2,T,4] y) {
        s = com.microsoft.FusedMatMul<alpha = 0.7, transB = 1>(q, k)
        w = Softmax<axis = -1>(s) y = MatMul(w, v)
    }"""
    proto = text_model(graph, extra=', "com.microsoft" : 1')
    feed = {"q": normal(1, 2, 3, 4), "k": normal(1, 2, 5, 4, seed=1), "v": normal(1, 2, 5, 4)}
    module = assert_equals_runtime(proto, feed, tolerance=1e-5)
    (node,) = [node for node in module.graph.nodes if node.op.startswith("call_")]
    assert node.target is attend
    assert node.kwargs == {"scale": 0.7}


def test_attention_in_double_precision_with_scale_on_both_sides() -> None:
    graph = """g (double[N,2,T,4] q, double[N,2,4,S] k, double[N,2,S,4] v)
        => (double[N,2,T,4] y) {
        a = Mul(q, r) b = Mul(k, r) s = MatMul(a, b) w = Softmax<axis = -1>(s) y = MatMul(w, v)
    }"""
    proto = text_model(graph, {"r": np.float64(0.6)})
    shapes = {"q": (1, 2, 3, 4), "k": (1, 2, 4, 5), "v": (1, 2, 5, 4)}
    feed = {name: normal(*shape).astype(np.float64) for name, shape in shapes.items()}
    module = load(proto)
    weights = np.exp(0.36 * feed["q"] @ feed["k"])
    expected = weights / weights.sum(-1, keepdims=True) @ feed["v"]
    np.testing.assert_allclose(outputs(module, feed)[0], expected, rtol=1e-13, atol=1e-13)
    (node,) = [node for node in module.graph.nodes if node.target is attend]
    assert node.kwargs["scale"] == pytest.approx(0.36, rel=1e-7)


@pytest.mark.parametrize(("bias", "fuses"), [((6,), True), ((1,), False), ((3, 6), False)])
def test_linear_needs_a_bias_of_the_right_shape(
    bias: tuple[int, ...], fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = "g (float[N,3,4] x) => (float[N,3,6] y) { h = MatMul(x, w) y = Add(b, h) }"
    proto = text_model(graph, {"w": normal(4, 6), "b": normal(*bias, seed=1)})
    module = assert_same(proto, monkeypatch, torch.randn(2, 3, 4))
    assert (F.linear in calls(module)) == fuses
    assert dict(module.named_parameters())["w"].shape == (4, 6)


@pytest.mark.parametrize("settings", [{"opset_version": 14}, {"opset_version": 17}, {"dynamo": 1}])
def test_group_norm(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Flatten())
    with torch.no_grad():
        net[1].weight.normal_()
    x = torch.randn(2, 3, 4, 4)
    proto = exported(net.eval(), (x,), **settings)
    module = assert_same(proto, monkeypatch, x)
    assert calls(module)[F.group_norm] == 1
    assert F.instance_norm not in calls(module)


def test_sizes_that_weights_determine_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = """g (float[N,4] x) => (float[A,B] y) {
        h = MatMul(x, w) s = Shape(h) n = Gather(s, zero) c = Gather(s, one) d = Div(c, two)
        u = Unsqueeze(n, axes) t = Unsqueeze(d, axes) z = Concat<axis = 0>(u, t, minus)
        y = Reshape(h, z)
    }"""
    ints = {"zero": np.array(0), "one": np.array(1), "two": np.array(2)}
    arrays = {"w": normal(4, 6), "axes": np.array([0]), "minus": np.array([-1]), **ints}
    proto = text_model(graph.replace("[A,B]", "[A,B,D]"), arrays)
    module = assert_same(proto, monkeypatch, torch.randn(5, 4))
    assert ".size(0), 3, -1)" in module.code
    assert "//" not in module.code


def test_calls_without_effect_are_left_out() -> None:
    graph = """g (float[N,4] x) => (float[N,4] y) {
        a = Cast<to = 1>(x) b = Concat<axis = 1>(a) c = Slice(b, begin, end)
        d = Pad(c, none) y = Relu(d)
    }"""
    arrays = {
        "begin": np.array([0]), "end": np.array([2**62]), "none": np.zeros(4, dtype=np.int64),
    }  # fmt: skip
    module = load(text_model(graph, arrays))
    assert calls(module) == {F.relu: 1}


def test_sub_graphs_are_fused_too() -> None:
    graph = """g (float[N,4] x, bool c) => (float[N,4] y) {
        y = If(c) <
            then_branch = t () => (float[N,4] a) { g = Sigmoid(x) a = Mul(x, g) },
            else_branch = e () => (float[N,4] b) { h = MatMul(x, w) b = Add(h, v) }
        >
    }"""
    proto = text_model(graph, {"w": normal(4, 4), "v": normal(4)})
    feeds = [{"x": normal(2, 4), "c": np.array(flag)} for flag in (True, False)]
    module = assert_equals_runtime(proto, *feeds, tolerance=1e-6)
    inner = [m for m in module.modules() if isinstance(m, fx.GraphModule) and m is not module]
    assert [set(calls(m)) & {F.silu, F.linear} for m in inner] == [{F.silu}, {F.linear}]


def test_compiled_with_dynamic_sizes() -> None:
    torch.manual_seed(0)
    proto = exported(Attention("none").eval(), (torch.randn(2, 5, 8), torch.ones(5)))
    module = load(proto)
    compiled = torch.compile(module, backend="aot_eager", dynamic=True, fullgraph=True)
    for batch, tokens in ((2, 5), (3, 7)):
        x = torch.randn(batch, tokens, 8)
        gradients = []
        for candidate in (compiled, module):
            module.zero_grad()
            candidate(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in module.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
