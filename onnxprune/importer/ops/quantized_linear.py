"""Convolutions and matrix products of quantised tensors.

Sums of products are exact: they are computed in float64, which holds every integer up to 2^53.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.conv import kernel_shape
from onnxprune.importer.ops.pad import same_pads, torch_pads
from onnxprune.importer.ops.quantize import dynamic_quantize, integer_limits
from onnxprune.importer.registry import Result, UnsupportedNode, register

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BYTES = frozenset({2, 3})


def requantize(
    sums: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Round `sums * scale` to integers, half to even, and saturate.

    Args:
        sums: Whole numbers in float64.
        scale: Input scales times weight scales over the output scale; broadcasts to `sums`.
        zero_point: The integer that stands for 0; None for 0.
        dtype: Type of the result.
    """
    levels = torch.round(sums.to(torch.float32) * scale)
    if zero_point is not None:
        levels = levels + zero_point.to(torch.float32)
    return levels.clamp(*integer_limits(dtype)).to(torch.int32).to(dtype)


def _per_channel(parameter: Tensor, rank: int) -> Tensor:
    """A parameter of each output channel, to broadcast along axis 0 of a weight."""
    return parameter.reshape(-1, *[1] * (rank - 1)) if parameter.numel() > 1 else parameter.sum()


def _conv_sums(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None,
    w_zero: Tensor | None,
    stride: list[int],
    pads: list[int] | str,
    dilation: list[int],
    groups: int,
) -> Tensor:
    inputs, kernel = x.to(torch.float64), weight.to(torch.float64)
    if x_zero is not None:
        inputs = inputs - x_zero.to(torch.float64)
    if w_zero is not None:
        kernel = kernel - _per_channel(w_zero.to(torch.float64), kernel.ndim)
    if isinstance(pads, str):
        upper = pads == "SAME_UPPER"
        pads = same_pads(x.shape[2:], weight.shape[2:], stride, dilation, upper)
    inputs = F.pad(inputs, torch_pads(pads))
    result: Tensor = _CONV[x.ndim - 2](
        inputs, kernel, None, tuple(stride), 0, tuple(dilation), groups
    )
    return result.round()


def integer_conv(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None,
    w_zero: Tensor | None,
    stride: list[int],
    pads: list[int] | str,
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Convolution of 8-bit tensors in int32, with zero points taken off first.

    Args:
        x: (batch, in_channels, spatial...).
        weight: (out_channels, in_channels // groups, spatial...).
        x_zero: The zero point of `x`; None for 0.
        w_zero: One zero point, or one for each output channel; None for 0.
        stride: One for each spatial axis, as is `dilation`.
        pads: All begins, then all ends; or `SAME_UPPER` or `SAME_LOWER`.
        dilation: Distance of kernel elements.
        groups: Number of channel groups.
    """
    sums = _conv_sums(x, weight, x_zero, w_zero, stride, pads, dilation, groups)
    return sums.to(torch.int64).to(torch.int32)


def quantized_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None,
    stride: list[int],
    pads: list[int] | str,
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Convolution of 8-bit tensors to an 8-bit tensor; geometry as in `integer_conv`.

    Args:
        x: (batch, in_channels, spatial...).
        x_scale: Scale of `x`.
        x_zero: Zero point of `x`.
        weight: (out_channels, in_channels // groups, spatial...).
        w_scale: One scale, or one for each output channel.
        w_zero: The same of zero points.
        y_scale: Scale of the result.
        y_zero: Zero point of the result, whose type it has.
        bias: (out_channels,) in int32, in units of `x_scale * w_scale`; None for 0.
        stride: Distance of windows.
        pads: Padding with the zero point.
        dilation: Distance of kernel elements.
        groups: Number of channel groups.
    """
    sums = _conv_sums(x, weight, x_zero, w_zero, stride, pads, dilation, groups)
    if bias is not None:
        sums = sums + _per_channel(bias.to(torch.float64), x.ndim - 1)
    scale = _per_channel(x_scale * w_scale / y_scale, x.ndim - 1)
    return requantize(sums, scale, y_zero, y_zero.dtype)


def _conv_geometry(op: Op, weight: int) -> tuple[Any, ...]:
    kernel = kernel_shape(op, weight)
    axes = len(kernel)
    auto_pad = op.attr("auto_pad", "NOTSET")
    pads: Any = op.attr("pads", [0] * (2 * axes))
    if auto_pad != "NOTSET":
        pads = [0] * (2 * axes) if auto_pad == "VALID" else auto_pad
    stride, dilation = op.attr("strides", [1] * axes), op.attr("dilations", [1] * axes)
    return stride, pads, dilation, op.attr("group", 1)


@register("ConvInteger", since=10, trains=False)
def _conv_integer(op: Op) -> Result:
    operands = (op.tensor(0), op.tensor(1), op.optional(2), op.optional(3))
    return op.call(integer_conv, *operands, *_conv_geometry(op, 1))


@register("QLinearConv", since=10, trains=False)
@register("QLinearConv", domain=CONTRIB_DOMAIN, trains=False)
def _quantized_conv(op: Op) -> Result:
    channels_last = bool(op.attr("channels_last", 0))
    x = op.tensor(0)
    if channels_last:
        x = op.method("movedim", x, -1, 1)
    operands = [x, *(op.tensor(index) for index in range(1, 8)), op.optional(8)]
    result = op.call(quantized_conv, *operands, *_conv_geometry(op, 3))
    return op.method("movedim", result, 1, -1) if channels_last else result


def _rows(parameter: Tensor, matrix: Tensor) -> Tensor:
    """A parameter of each row of the left matrix, or of all."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.unsqueeze(-1) if parameter.ndim < matrix.ndim else parameter


def _columns(parameter: Tensor) -> Tensor:
    """A parameter of each column of the right matrix, or of all."""
    return parameter.reshape(()) if parameter.numel() == 1 else parameter


def _product_sums(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    left, right = a.to(torch.float64), b.to(torch.float64)
    if a_zero is not None:
        left = left - _rows(a_zero.to(torch.float64), a)
    if b_zero is not None:
        right = right - _columns(b_zero.to(torch.float64))
    return torch.matmul(left, right)


def integer_matmul(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """Product of 8-bit matrices in int32, with zero points taken off first.

    Args:
        a: (..., rows, inner).
        b: (..., inner, columns).
        a_zero: One zero point, or one for each row; None for 0.
        b_zero: One zero point, or one for each column; None for 0.
    """
    return _product_sums(a, b, a_zero, b_zero).to(torch.int64).to(torch.int32)


@register("MatMulInteger", since=10, trains=False)
def _matmul_integer(op: Op) -> Result:
    return op.call(integer_matmul, op.tensor(0), op.tensor(1), op.optional(2), op.optional(3))


def quantized_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """Product of 8-bit matrices as an 8-bit matrix.

    Args:
        a: (..., rows, inner).
        a_scale: One scale, or one for each row.
        a_zero: The same of zero points.
        b: (..., inner, columns).
        b_scale: One scale, or one for each column.
        b_zero: The same of zero points.
        y_scale: Scale of the result.
        y_zero: Zero point of the result, whose type it has.
    """
    scale = _rows(a_scale, a) * _columns(b_scale) / y_scale
    return requantize(_product_sums(a, b, a_zero, b_zero), scale, y_zero, y_zero.dtype)


@register("QLinearMatMul", since=10, trains=False)
def _quantized_matmul(op: Op) -> Result:
    if {op.elem_type(index) for index in (0, 3, 7)} - _BYTES:
        raise UnsupportedNode("element types other than uint8 and int8")
    return op.call(quantized_matmul, *(op.tensor(index) for index in range(8)))


def scaled_integer_matmul(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None,
    b_zero: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Product of 8-bit matrices in real numbers; the arguments are those of `quantized_matmul`."""
    sums = _product_sums(a, b, a_zero, b_zero).to(torch.float32)
    result = sums * (_rows(a_scale, a) * _columns(b_scale))
    return result if bias is None else result + bias


@register("MatMulIntegerToFloat", domain=CONTRIB_DOMAIN, trains=False)
def _matmul_integer_to_float(op: Op) -> Result:
    operands = [op.tensor(index) for index in range(4)]
    return op.call(scaled_integer_matmul, *operands, *(op.optional(i) for i in (4, 5, 6)))


def dynamically_quantized_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Product of a matrix that is quantised first with an 8-bit one, in real numbers."""
    quantized, a_scale, a_zero = dynamic_quantize(a)
    return scaled_integer_matmul(quantized, b, a_scale, b_scale, a_zero, b_zero, bias)


@register("DynamicQuantizeMatMul", domain=CONTRIB_DOMAIN, trains=False)
def _dynamically_quantized_matmul(op: Op) -> Result:
    operands = [op.tensor(index) for index in range(3)]
    return op.call(dynamically_quantized_matmul, *operands, op.optional(3), op.optional(4))


def quantized_gemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None,
    y_scale: Tensor | None,
    y_zero: Tensor | None,
    alpha: float,
    trans_a: bool,
    trans_b: bool,
) -> Tensor:
    """`alpha * a @ b + c` of 8-bit matrices, as an 8-bit matrix or in real numbers.

    Args:
        a: (rows, inner), or the reverse with `trans_a`.
        a_scale: Scale of `a`.
        a_zero: Zero point of `a`.
        b: (inner, columns), or the reverse with `trans_b`.
        b_scale: One scale, or one for each column.
        b_zero: The same of zero points.
        c: int32 in units of `alpha * a_scale * b_scale`; None for 0.
        y_scale: Scale of the result; None for real numbers.
        y_zero: Zero point of the result, whose type it has; None for real numbers.
        alpha: Factor of the product.
        trans_a: Whether `a` is transposed first.
        trans_b: Whether `b` is transposed first.
    """
    left, right = a.t() if trans_a else a, b.t() if trans_b else b
    sums = _product_sums(left, right, a_zero, b_zero)
    if c is not None:
        sums = sums + c.to(torch.float64)
    scale = alpha * a_scale * _columns(b_scale)
    if y_scale is None or y_zero is None:
        return sums.to(torch.float32) * scale
    return requantize(sums, scale / y_scale, y_zero, y_zero.dtype)


@register("QGemm", domain=CONTRIB_DOMAIN, trains=False)
def _quantized_gemm(op: Op) -> Result:
    operands = [op.tensor(index) for index in range(6)]
    operands += [op.optional(index) for index in range(6, 9)]  # type: ignore[misc]
    flags = bool(op.attr("transA", 0)), bool(op.attr("transB", 0))
    return op.call(quantized_gemm, *operands, op.attr("alpha", 1.0), *flags)
