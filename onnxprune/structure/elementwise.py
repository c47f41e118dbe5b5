"""Operators that compute each element from those at the same place."""

from collections.abc import Callable

from onnx import NodeProto

from onnxprune.structure.builder import FLOATS, Builder, Whole
from onnxprune.tensor_views import attribute_of

_SIMPLE = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "HardSwish": "hard_swish",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Mish": "mish",
    "Erf": "erf",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Reciprocal": "reciprocal",
    "Neg": "neg",
    "Abs": "abs",
    "Sin": "sin",
    "Cos": "cos",
    "Identity": "identity",
}
_WITH_SETTINGS: dict[str, tuple[str, tuple[tuple[str, float], ...]]] = {
    "LeakyRelu": ("leaky_relu", (("alpha", 0.01),)),
    "Elu": ("elu", (("alpha", 1.0),)),
    "Celu": ("celu", (("alpha", 1.0),)),
    "Selu": ("selu", (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
    "HardSigmoid": ("hard_sigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "Swish": ("silu", (("alpha", 1.0),)),
}
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "PRelu": "prelu"}
_VARIADIC = {"Sum": "add", "Max": "max", "Min": "min"}
_UNKNOWN = (
    *("Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Shrink", "IsNaN", "IsInf", "Not"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Mod"),
    *("Mean", "Tan", "Sinh", "Cosh", "Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh"),
)


def _simple(build: Builder, node: NodeProto) -> None:
    build.pointwise(_SIMPLE[node.op_type], node.input, node.output[0])


def _with_settings(build: Builder, node: NodeProto) -> None:
    function, names = _WITH_SETTINGS[node.op_type]
    settings = [float(attribute_of(node, name, default)) for name, default in names]
    build.pointwise(function, node.input, node.output[0], settings)


def _binary(build: Builder, node: NodeProto) -> None:
    if len(node.input) != 2 or attribute_of(node, "axis") is not None:
        raise Whole  # before operator set 7, axes were aligned with an attribute
    build.pointwise(_BINARY[node.op_type], node.input, node.output[0])


def _variadic(build: Builder, node: NodeProto) -> None:
    function = _VARIADIC[node.op_type]
    result, *others = node.input
    if not others:
        build.pointwise("identity", [result], node.output[0])
    for index, value in enumerate(others):
        last = index == len(others) - 1
        output = node.output[0] if last else build.fresh(node.output[0])
        result = build.pointwise(function, [result, value], output)


def _unknown(build: Builder, node: NodeProto) -> None:
    build.pointwise("unknown", node.input, node.output[0])


def _where(build: Builder, node: NodeProto) -> None:
    build.pointwise("where", node.input, node.output[0])


def _clip(build: Builder, node: NodeProto) -> None:
    value, *limits = node.input
    if not any(limits):
        low = float(attribute_of(node, "min", -float("inf")))
        high = float(attribute_of(node, "max", float("inf")))
        build.pointwise("clip", [value], node.output[0], (low, high))
        return
    given = [(f, limit) for f, limit in zip(("max", "min"), limits, strict=False) if limit]
    for index, (function, limit) in enumerate(given):
        last = index == len(given) - 1
        output = node.output[0] if last else build.fresh(node.output[0])
        value = build.pointwise(function, [value, limit], output)


def _gelu(build: Builder, node: NodeProto) -> None:
    approximate = attribute_of(node, "approximate", b"none") == b"tanh"
    build.pointwise("gelu", node.input, node.output[0], (float(approximate),))


def _cast(build: Builder, node: NodeProto) -> None:
    floats = build.elem_types.get(node.input[0]) in FLOATS
    function = "identity" if floats and attribute_of(node, "to") in FLOATS else "unknown"
    build.pointwise(function, node.input[:1], node.output[0])


def _cast_like(build: Builder, node: NodeProto) -> None:
    floats = all(build.elem_types.get(value) in FLOATS for value in node.input)
    build.pointwise("identity" if floats else "unknown", node.input[:1], node.output[0])


def _dropout(build: Builder, node: NodeProto) -> None:
    if len(node.input) > 2 and node.input[2] and not build.is_false(node.input[2]):
        raise Whole
    if build.version < 7 and not attribute_of(node, "is_test", 0):
        raise Whole
    build.pointwise("identity", node.input[:1], node.output[0])


HANDLERS: dict[str, Callable[[Builder, NodeProto], None]] = {
    **dict.fromkeys(_SIMPLE, _simple),
    **dict.fromkeys(_WITH_SETTINGS, _with_settings),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_VARIADIC, _variadic),
    **dict.fromkeys(_UNKNOWN, _unknown),
    "Where": _where,
    "Clip": _clip,
    "Gelu": _gelu,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Dropout": _dropout,
}
"""How each operator is described; `Whole` is raised for forms that are not."""
