"""Arithmetic, comparison, logic and bits, with broadcasting."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, find_entry, register
from onnxprune.importer.values import Host
from onnxprune.shapes import tensor_type

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
}
_COMPARISON: dict[str, Callable[..., Any]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
}
_LOGIC: dict[str, Callable[..., Any]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.linalg.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": operator.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}


def _binary(op: Op, function: Callable[..., Any], keep_type: bool = True) -> fx.Node:
    """Emit a broadcasting call; unsigned types that PyTorch lacks go through int64."""
    if not op.is_wide_unsigned():
        return op.call(function, op.operand(0), op.operand(1))
    wide = [op.method("to", op.tensor(index), torch.int64) for index in (0, 1)]
    result = op.call(function, *wide)
    return op.method("to", result, op.dtype(0)) if keep_type else result


def aligned(b: Tensor, a: Tensor, axis: int) -> Tensor:
    """`b` with axes of size 1 at its end, so that it begins at an axis of `a`."""
    trailing = a.ndim - axis % a.ndim - b.ndim
    return b.reshape(*b.shape, *[1] * trailing)


@register(*_ARITHMETIC, *_COMPARISON, "Div", "Pow", "And", "Or", "Xor", "PRelu", until=7)
def _broadcast_by_attribute(op: Op) -> Result:
    """The current form of an operator that used to say where its second operand begins."""
    axis = op.attr("axis")
    if op.node.op_type == "PRelu":
        axis = None if op.shape(1) == (1,) else 1
    if axis is not None and not _ends_together(op, axis):
        op.inputs[1] = op.call(aligned, op.tensor(1), op.tensor(0), axis)
        rank = op.rank()
        shape = None if rank is None else (None,) * rank
        op.input_types[1] = tensor_type(op.elem_type(1), shape)
    entry = find_entry("", op.node.op_type, 7)
    assert entry is not None
    return entry.builder(op)


def _ends_together(op: Op, axis: int) -> bool:
    rank, other = op.rank(0), op.rank(1)
    return rank is not None and other is not None and axis % rank + other == rank


@register(*_ARITHMETIC, since=7)
def _arithmetic(op: Op) -> Result:
    return _binary(op, _ARITHMETIC[op.node.op_type])


@register(*_COMPARISON, since=7)
def _comparison(op: Op) -> Result:
    return _binary(op, _COMPARISON[op.node.op_type], keep_type=False)


@register("And", "Or", "Xor", since=7)
@register("BitwiseAnd", "BitwiseOr", "BitwiseXor", since=18)
def _logic(op: Op) -> Result:
    if op.node.op_type.startswith("Bitwise") and op.is_wide_unsigned():
        return _binary(op, _LOGIC[op.node.op_type])
    return op.call(_LOGIC[op.node.op_type], op.tensor(0), op.tensor(1))


@register(*_UNARY)
def _unary(op: Op) -> Result:
    if op.is_wide_unsigned():
        wide = op.method("to", op.tensor(0), torch.int64)
        return op.method("to", op.call(_UNARY[op.node.op_type], wide), op.dtype(0))
    return op.call(_UNARY[op.node.op_type], op.tensor(0))


@register("Identity")
def _identity(op: Op) -> Result:
    value = op.value(0)
    if isinstance(value, Host):
        return Host(value.array, value.elem_type, op.node.output[0])
    return value


def truncating_div(a: Tensor, b: Tensor | int) -> Tensor:
    """Integer division that rounds toward zero."""
    return torch.div(a, b, rounding_mode="trunc")


@register("Div", since=7)
def _div(op: Op) -> Result:
    return _binary(op, operator.truediv if op.is_float() else truncating_div)


def mixed_pow(base: Tensor, exponent: Tensor) -> Tensor:
    """Power of mixed types: the result has the base's type."""
    if base.is_floating_point():
        return torch.pow(base, exponent.to(base.dtype))
    return torch.pow(base, exponent).to(base.dtype)


@register("Pow", since=7)
def _power(op: Op) -> Result:
    if op.is_float(0) and op.number(1) is not None:
        return op.call(torch.pow, op.tensor(0), op.operand(1))
    same = op.elem_type(0) == op.elem_type(1)
    return op.call(torch.pow if same else mixed_pow, op.tensor(0), op.tensor(1))


@register("Mod", since=10)
def _mod(op: Op) -> Result:
    return _binary(op, torch.fmod if op.attr("fmod", 0) else torch.remainder)


@register("BitShift", since=11)
def _bit_shift(op: Op) -> Result:
    left = op.attr("direction") == "LEFT"
    return _binary(op, torch.bitwise_left_shift if left else torch.bitwise_right_shift)


@register("Sum", "Mean")
def _total(op: Op) -> Result:
    values = op.tensors()
    result = reduce(lambda a, b: op.call(operator.add, a, b), values)
    if op.node.op_type == "Mean":
        result = op.call(operator.truediv, result, len(values))
    return result


@register("Min", "Max")
def _extreme(op: Op) -> Result:
    function = torch.minimum if op.node.op_type == "Min" else torch.maximum
    values = op.tensors()
    if not op.is_wide_unsigned():
        return reduce(lambda a, b: op.call(function, a, b), values)
    wide = [op.method("to", value, torch.int64) for value in values]
    return op.method("to", reduce(lambda a, b: op.call(function, a, b), wide), op.dtype(0))


@register("Clip", until=11)
def _clip_with_attributes(op: Op) -> Result:
    return op.call(torch.clamp, op.tensor(0), min=op.attr("min"), max=op.attr("max"))


@register("Clip", since=11)
def _clip(op: Op) -> Result:
    low, high = (op.number(i) if op.number(i) is not None else op.optional(i) for i in (1, 2))
    if low is None and high is None:
        return op.value(0)
    is_tensor = [isinstance(v, fx.Node) and not v.meta.get("non_negative") for v in (low, high)]
    if any(is_tensor):
        low, high = op.optional(1), op.optional(2)
    return op.call(torch.clamp, op.tensor(0), min=low, max=high)


def is_inf(x: Tensor, positive: bool, negative: bool) -> Tensor:
    """Infinities of the signs asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if positive:
        found = found | torch.isposinf(x)
    if negative:
        found = found | torch.isneginf(x)
    return found


@register("IsInf", since=10)
def _infinite(op: Op) -> Result:
    positive, negative = bool(op.attr("detect_positive", 1)), bool(op.attr("detect_negative", 1))
    if positive and negative:
        return op.call(torch.isinf, op.tensor(0))
    return op.call(is_inf, op.tensor(0), positive, negative)


@register("Where", since=9)
def _where(op: Op) -> Result:
    return op.call(torch.where, op.tensor(0), op.operand(1), op.operand(2))
