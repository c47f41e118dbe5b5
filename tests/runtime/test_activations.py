"""Activation functions are known by what they compute."""

import math

import numpy as np
import pytest

from .helpers import attributes, check_equal, compiled, net, normal, operators, sparse, sparse_nodes

SQRT2, SQRT_2_PI = math.sqrt(2), math.sqrt(2 / math.pi)


def scalar(value: float) -> str:
    return f"Constant<value = float {{{value!r}}}>()"


FORMS = {
    "relu": ("y = Relu(c)", "Relu"),
    "relu_of_max": (f"z = {scalar(0.0)} y = Max(z, c)", "Relu"),
    "relu_of_clip": (f"z = {scalar(0.0)} y = Clip(c, z)", "Relu"),
    "relu6": (f"z = {scalar(0.0)} h = {scalar(6.0)} y = Clip(c, z, h)", "Clip", 0, 6),
    "relu6_of_min": (f"h = {scalar(6.0)} r = Relu(c) y = Min(r, h)", "Clip", 0, 6),
    "upper_bound": (f"h = {scalar(1.5)} y = Min(c, h)", "Clip", -np.finfo(np.float32).max, 1.5),
    "two_activations": (f"h = {scalar(2.0)} a = Relu(c) b = Relu(a) y = Min(h, b)", "Clip", 0, 2),
    "leaky": ("y = LeakyRelu<alpha = 0.3>(c)", "LeakyRelu", 0.3),
    "leaky_of_max": (f"s = {scalar(0.1)} m = Mul(c, s) y = Max(c, m)", "LeakyRelu", 0.1),
    "sigmoid": ("y = Sigmoid(c)", "Sigmoid"),
    "hard_sigmoid": ("y = HardSigmoid<alpha = 0.25, beta = 0.4>(c)", "HardSigmoid", 0.25, 0.4),
    "hard_swish": ("y = HardSwish(c)", "HardSwish"),
    "hard_swish_of_hard_sigmoid": (
        "s = HardSigmoid<alpha = 0.1666667, beta = 0.5>(c) y = Mul(s, c)",
        "HardSwish",
    ),
    "hard_swish_of_clip": (
        f"t = {scalar(3.0)} z = {scalar(0.0)} h = {scalar(6.0)}"
        " a = Add(c, t) b = Clip(a, z, h) m = Mul(c, b) y = Div(m, h)",
        "HardSwish",
    ),
    "silu": ("s = Sigmoid(c) y = Mul(c, s)", "Silu"),
    "gelu_operator": ("y = Gelu(c)", "Gelu"),
    "gelu_tanh_operator": ('y = Gelu<approximate = "tanh">(c)', "GeluTanh"),
    "gelu_of_erf": (
        f"r = {scalar(SQRT2)} o = {scalar(1.0)} h = {scalar(0.5)}"
        " d = Div(c, r) e = Erf(d) p = Add(e, o) m = Mul(c, p) y = Mul(m, h)",
        "Gelu",
    ),
    "gelu_of_tanh": (
        f"t = {scalar(3.0)} k = {scalar(0.044715)} r = {scalar(SQRT_2_PI)} o = {scalar(1.0)}"
        f" h = {scalar(0.5)} q = Pow(c, t) u = Mul(k, q) a = Add(c, u) b = Mul(r, a) e = Tanh(b)"
        " p = Add(e, o) m = Mul(c, p) y = Mul(m, h)",
        "GeluTanh",
    ),
    "identity": ("y = Identity(c)", None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", ["conv", "product"])
def test_a_form_is_computed_by_the_layer(form: str, layer: str, kernels: bool):
    body, name, *settings = FORMS[form]
    if layer == "conv":
        start = "(float[1, 6, 9, 9] x) => (float[1, 8, 9, 9] y) { c = Conv(x, w) "
        proto, feeds = net(f"g {start} {body} }}", w=sparse(8, 6, 1, 1)), {"x": normal(1, 6, 9, 9)}
    else:
        start = "(float[N, 5, 12] x) => (float[N, 5, 20] y) { c = MatMul(x, w) "
        proto, feeds = net(f"g {start} {body} }}", w=sparse(20, 12).T), {"x": normal(2, 5, 12)}
    feeds["x"] *= 4
    result = compiled(proto)
    assert len(operators(result.proto)) == 1
    (node,) = sparse_nodes(result.proto)
    assert node.output[0] == "y"
    found = attributes(node)
    assert found.get("activation", b"").decode() == (name or "")
    for key, value in zip(("alpha", "beta"), settings, strict=False):
        assert found[key] == pytest.approx(value, rel=1e-5)
    check_equal(proto, result, feeds, kernels, replaced=1)


OUTSIDE = {
    "a value that something else reads": "r = Relu(c) s = Sigmoid(c) y = Mul(r, s) z = Exp(c)",
    "an output of the graph": "z = Relu(c) y = Exp(z)",
    "another slope of swish": f"k = {scalar(1.702)} m = Mul(c, k) z = Sigmoid(m) y = Mul(c, z)",
    "two values": "t = Tanh(x) s = Sigmoid(t) z = Neg(t) d = Conv(s, w) y = Mul(c, d)",
    "a bound of many numbers": "z = Sigmoid(c) y = Mul(z, many)",
}


@pytest.mark.parametrize("reason", OUTSIDE)
def test_what_is_no_known_function_of_one_value_stays(reason: str, kernels: bool):
    start = "(float[1, 6, 9, 9] x) => (float[1, 8, 9, 9] y, float[1, 8, 9, 9] z) { c = Conv(x, w) "
    if reason == "two values":
        start = (
            "(float[1, 6, 9, 9] x) => (float[1, 8, 9, 9] y, float[1, 6, 9, 9] z) { c = Conv(x, w) "
        )
    proto = net(f"g {start} {OUTSIDE[reason]} }}", w=sparse(8, 6, 1, 1), many=normal(8, 1, 1))
    result = compiled(proto)
    for node in sparse_nodes(result.proto):
        allowed = {b"Relu"} if reason == "an output of the graph" else {b"Sigmoid"}
        assert attributes(node).get("activation", b"") in {b"", *allowed}
    check_equal(proto, result, {"x": normal(1, 6, 9, 9)}, kernels)


def test_a_scalar_with_more_axes_than_the_value_is_left_alone(kernels: bool):
    """Its sum has more axes, which a layer's output would not have."""
    proto = net(
        "g (float[3, 12] x) => (float[1, 3, 20] y) { c = MatMul(x, w) y = Max(c, low) }",
        w=sparse(20, 12).T,
        low=np.zeros((1, 1, 1), np.float32),
    )
    result = compiled(proto)
    check_equal(proto, result, {"x": normal(3, 12)}, kernels, replaced=1)
    assert operators(result.proto) == ["SparseMatMul", "Max"]
