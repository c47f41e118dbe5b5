"""Quantising to integers or 8-bit floats, and back.

Integers of fewer than 8 bits are held in bytes. Values are divided and rounded in float32, half to
even, as ONNX Runtime does.
"""

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register
from onnxprune.importer.values import FLOAT_TYPES, QUANTIZED_DTYPES, TORCH_DTYPES

_INTEGER_BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.UINT16, TensorProto.INT16), 16),
    **dict.fromkeys((TensorProto.UINT8, TensorProto.INT8), 8),
    **dict.fromkeys((TensorProto.UINT4, TensorProto.INT4), 4),
    **dict.fromkeys((TensorProto.UINT2, TensorProto.INT2), 2),
}


def integer_limits(dtype: torch.dtype, bits: int | None = None) -> tuple[int, int]:
    """Smallest and largest integer of a type, or of that many bits held in it."""
    limits = torch.iinfo(dtype)
    if bits is None:
        return limits.min, limits.max
    return (0, 2**bits - 1) if limits.min == 0 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def along_axis(parameter: Tensor, x: Tensor, axis: int, block_size: int = 0) -> Tensor:
    """A scale or zero point for the whole tensor, each slice or each block, to broadcast to `x`."""
    if block_size:
        repeated = parameter.repeat_interleave(block_size, dim=axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    dtype: torch.dtype,
    axis: int = 1,
    block_size: int = 0,
    bits: int | None = None,
) -> Tensor:
    """Round `x / scale` to integers, half to even, and saturate.

    Args:
        x: Real numbers.
        scale: One, one for each slice along the axis, or one for each block of it.
        zero_point: The integer that stands for 0, in the shape of the scale; None for 0.
        dtype: Type that holds the integers.
        axis: Axis of slices or blocks.
        block_size: Elements in a block; 0 without blocks.
        bits: Bits of an integer, where the type holds more.
    """
    levels = torch.round(x.to(scale.dtype) / along_axis(scale, x, axis, block_size))
    if zero_point is not None:
        levels = levels + along_axis(zero_point.to(scale.dtype), x, axis, block_size)
    return levels.clamp(*integer_limits(dtype, bits)).to(torch.int32).to(dtype)


def dequantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int = 1, block_size: int = 0
) -> Tensor:
    """Real numbers that quantised ones stand for; the arguments are those of `quantize`."""
    values = x.to(scale.dtype)
    if zero_point is not None:
        values = values - along_axis(zero_point.to(scale.dtype), x, axis, block_size)
    return values * along_axis(scale, x, axis, block_size)


def quantize_to_float8(
    x: Tensor, scale: Tensor, dtype: torch.dtype, axis: int, block_size: int, saturate: bool
) -> Tensor:
    """Round `x / scale` to an 8-bit float; beyond the largest one it saturates or overflows."""
    values = x.to(scale.dtype) / along_axis(scale, x, axis, block_size)
    if saturate:
        limits = torch.finfo(dtype)
        values = values.clamp(limits.min, limits.max)
    return values.to(dtype)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise to unsigned bytes over the range of `x` and 0; returns scale and zero point, too."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = torch.where(high == low, torch.ones_like(high), (high - low) / 255.0)
    zero_point = torch.round((0.0 - low / scale).clamp(0.0, 255.0)).to(torch.uint8)
    return quantize(x, scale, zero_point, torch.uint8), scale, zero_point


def _placement(op: Op, scale: int, axis: int) -> dict[str, Any]:
    """Axis and block size as keywords; none for one scale for the whole tensor."""
    block_size = op.attr("block_size", 0)
    if block_size:
        return {"axis": op.attr("axis", axis), "block_size": block_size}
    if op.shape(scale) in ((), (1,)):
        return {}
    return {"axis": op.attr("axis", axis)}


def _check_scale(op: Op) -> None:
    if op.elem_type(1) not in FLOAT_TYPES | {0}:
        raise UnsupportedNode(f"scales of ONNX element type {op.elem_type(1)}")


def _quantized_type(op: Op) -> int:
    if op.has(2):
        return op.elem_type(2) or TensorProto.UINT8
    return int(op.attr("output_dtype", 0)) or int(TensorProto.UINT8)


@register("QuantizeLinear", since=10, trains=False)
@register("QuantizeLinear", domain=CONTRIB_DOMAIN, trains=False)
def _quantize_linear(op: Op) -> Result:
    _check_scale(op)
    elem_type = _quantized_type(op)
    place = _placement(op, 1, 1)
    bits = _INTEGER_BITS.get(elem_type)
    dtype = TORCH_DTYPES.get(elem_type) or QUANTIZED_DTYPES.get(elem_type)
    if dtype is None or (bits is None and not dtype.is_floating_point):
        raise UnsupportedNode(f"ONNX element type {elem_type}")
    if bits is None:
        saturate = bool(op.attr("saturate", 1))
        place = {"axis": 1, "block_size": 0, **place}
        return op.call(
            quantize_to_float8, op.tensor(0), op.tensor(1), dtype, **place, saturate=saturate
        )
    if bits < 8:
        place["bits"] = bits
    return op.call(quantize, op.tensor(0), op.tensor(1), op.optional(2), dtype, **place)


@register("DequantizeLinear", since=10, trains=False)
@register("DequantizeLinear", domain=CONTRIB_DOMAIN, trains=False)
def _dequantize_linear(op: Op) -> Result:
    _check_scale(op)
    known = {*_INTEGER_BITS, *QUANTIZED_DTYPES, TensorProto.INT32, TensorProto.UNDEFINED}
    if op.elem_type() not in known:
        raise UnsupportedNode(f"ONNX element type {op.elem_type()}")
    place = _placement(op, 1, 1)
    return op.call(dequantize, op.tensor(0), op.tensor(1), op.optional(2), **place)


@register("DynamicQuantizeLinear", since=11, trains=False)
def _dynamic_quantize_linear(op: Op) -> Result:
    return op.unpack(op.call(dynamic_quantize, op.tensor(0)), 3)
