"""Elementwise operators, pooling and concatenation of quantised tensors, all of com.microsoft.

ONNX Runtime's kernels define them. Where a kernel works on real numbers, the emitted calls
dequantise, compute, and quantise again.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.quantize import dequantize, integer_limits, quantize
from onnxprune.importer.ops.standard import as_standard
from onnxprune.importer.registry import Result, UnsupportedNode, register


def _saturated(levels: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Whole numbers above the zero point as integers of a type."""
    if zero_point is not None:
        levels = levels + zero_point.to(levels.dtype)
    return levels.clamp(*integer_limits(dtype)).to(torch.int32).to(dtype)


def _zero(zero_point: Tensor | None) -> Tensor | float:
    return 0.0 if zero_point is None else zero_point.to(torch.float32)


def quantized_add(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
) -> Tensor:
    """Sum of two quantised tensors; scales and zero points are those of the whole tensors.

    As ONNX Runtime does it: in units of the result, with the zero points taken together first, and
    each product and sum rounded to float32 once.
    """
    a_ratio, b_ratio = a_scale / y_scale, b_scale / y_scale
    offset = _zero(y_zero) - (a_ratio * _zero(a_zero) + b_ratio * _zero(b_zero))
    shifted = (b.to(torch.float64) * b_ratio + offset).to(torch.float32)
    total = (a.to(torch.float64) * a_ratio + shifted).to(torch.float32)
    return _saturated(torch.round(total), None, a.dtype)


def quantized_multiply(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
) -> Tensor:
    """Product of two quantised tensors."""
    left, right = a.to(torch.float64) - _zero(a_zero), b.to(torch.float64) - _zero(b_zero)
    ratio = a_scale * b_scale / y_scale
    total = (left * right * ratio).to(torch.float32) + _zero(y_zero)
    return _saturated(torch.round(total), None, a.dtype)


_BINARY: dict[str, Callable[..., Any]] = {
    "QLinearAdd": quantized_add,
    "QLinearMul": quantized_multiply,
}


@register(*_BINARY, domain=CONTRIB_DOMAIN, trains=False)
def _binary(op: Op) -> Result:
    operands = [op.tensor(0), op.tensor(1), op.optional(2), op.tensor(3), op.tensor(4)]
    operands += [op.optional(5), op.tensor(6), op.optional(7)]
    return op.call(_BINARY[op.node.op_type], *operands)


def _real(op: Op, index: int) -> fx.Node:
    """A quantised input, which its scale and zero point follow, as real numbers."""
    return op.call(dequantize, op.tensor(index), op.tensor(index + 1), op.optional(index + 2))


def _quantized(op: Op, real: fx.Node, scale: int) -> fx.Node:
    """Real numbers as integers, with the scale at an index and the zero point after it."""
    dtype = op.dtype(scale + 1 if op.has(scale + 1) else 0)
    return op.call(quantize, real, op.tensor(scale), op.optional(scale + 1), dtype)


@register("QLinearSigmoid", domain=CONTRIB_DOMAIN, trains=False)
def _sigmoid(op: Op) -> Result:
    return _quantized(op, op.call(torch.sigmoid, _real(op, 0)), 3)


@register("QLinearLeakyRelu", domain=CONTRIB_DOMAIN, trains=False)
def _leaky_relu(op: Op) -> Result:
    return _quantized(op, op.call(F.leaky_relu, _real(op, 0), op.attr("alpha", 0.01)), 3)


@register("QLinearAveragePool", domain=CONTRIB_DOMAIN, trains=False)
def _average_pool(op: Op) -> Result:
    channels_last = bool(op.attr("channels_last", 0))
    real = _real(op, 0)
    if channels_last:
        real = op.method("movedim", real, -1, 1)
    result = _quantized(op, as_standard(op, "AveragePool", [real], [op.input_types[0]]), 3)
    return op.method("movedim", result, 1, -1) if channels_last else result


def quantized_global_average(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    channels_last: bool,
) -> Tensor:
    """Mean over all spatial axes; the sum is exact, and scaled once."""
    axes = list(range(1, x.ndim - 1)) if channels_last else list(range(2, x.ndim))
    count = math.prod(x.shape[axis] for axis in axes)
    sums = x.to(torch.int64).sum(dim=axes, keepdim=True) - count * x_zero.to(torch.int64)
    scale = x_scale / (y_scale * count)
    return _saturated(torch.round(sums.to(torch.float32) * scale), y_zero, x.dtype)


@register("QLinearGlobalAveragePool", domain=CONTRIB_DOMAIN, trains=False)
def _global_average(op: Op) -> Result:
    operands = [op.tensor(index) for index in range(5)]
    return op.call(quantized_global_average, *operands, bool(op.attr("channels_last", 0)))


@register("QLinearReduceMean", domain=CONTRIB_DOMAIN, trains=False)
def _reduce_mean(op: Op) -> Result:
    axes, keep = op.attr("axes") or None, bool(op.attr("keepdims", 1))
    return _quantized(op, op.call(torch.mean, _real(op, 0), dim=axes, keepdim=keep), 3)


@register("QLinearConcat", domain=CONTRIB_DOMAIN, trains=False)
def _concat(op: Op) -> Result:
    parts = [_real(op, index) for index in range(2, len(op.inputs), 3)]
    joined = op.call(torch.cat, parts, dim=op.attr("axis"))
    return _quantized(op, joined, 0)


@register("QLinearWhere", domain=CONTRIB_DOMAIN, trains=False)
def _where(op: Op) -> Result:
    chosen = op.call(torch.where, op.tensor(0), _real(op, 1), _real(op, 4))
    return _quantized(op, chosen, 7)


def quantized_softmax(
    x: Tensor,
    x_scale: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    axis: int,
    flatten: bool,
) -> Tensor:
    """Softmax of 8-bit integers.

    As in ONNX Runtime, the result has a whole number of levels, `floor(1 / y_scale)`.

    Args:
        x: 8-bit integers.
        x_scale: Their scale; the zero point has no influence.
        y_scale: Scale of the result.
        y_zero: Zero point of the result.
        axis: Axis of the softmax.
        flatten: Whether all axes from `axis` on are taken together.
    """
    moved = x.flatten(axis) if flatten else x.movedim(axis, -1)
    shares = F.softmax(moved.to(torch.float64) * x_scale, dim=-1)
    levels = torch.round((shares * torch.floor(1.0 / y_scale)).to(torch.float32))
    result = _saturated(levels, y_zero, x.dtype)
    return result.reshape(x.shape) if flatten else result.movedim(-1, axis)


@register("QLinearSoftmax", domain=CONTRIB_DOMAIN, trains=False)
def _softmax(op: Op) -> Result:
    if op.elem_type() not in (2, 3):
        raise UnsupportedNode("element types other than uint8 and int8")
    operands = op.tensor(0), op.tensor(1), op.tensor(3), op.tensor(4)
    axis = op.attr("axis", -1)
    flatten = op.attr("opset", 13) < 13
    if flatten and axis < 0:
        axis += op.known_rank()
    return op.call(quantized_softmax, *operands, axis, flatten)
