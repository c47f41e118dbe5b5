"""Casts, and tensors that are made rather than computed."""

from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register
from onnxprune.importer.values import FLOAT_TYPES, HALF_DTYPES, TORCH_DTYPES, WIDE_UNSIGNED_TYPES


def _target_dtype(elem_type: int) -> torch.dtype:
    dtype = TORCH_DTYPES.get(elem_type)
    if dtype is None:
        raise UnsupportedNode(f"ONNX element type {elem_type}")
    return dtype


@register("Cast", since=6)
def _cast(op: Op) -> Result:
    return op.method("to", op.tensor(0), _target_dtype(op.attr("to")))


@register("CastLike", since=15)
def _cast_like(op: Op) -> Result:
    return op.method("to", op.tensor(0), _target_dtype(op.elem_type(1)))


@register("BitCast", since=26)
def _bit_cast(op: Op) -> Result:
    if op.elem_type() in HALF_DTYPES or op.attr("to") in HALF_DTYPES:
        raise UnsupportedNode("half precision, which is computed in float32")
    return op.method("view", op.tensor(0), _target_dtype(op.attr("to")))


@register("ConstantOfShape", since=9)
def _constant_of_shape(op: Op) -> Result:
    tensor = op.attr("value")
    value, dtype = 0.0, torch.float32
    if tensor is not None:
        dtype = _target_dtype(tensor.data_type)
        value = numpy_helper.to_array(tensor).astype(_python_kind(tensor.data_type)).item()
    return op.call(torch.full, op.ints(0), value, dtype=dtype, device=op.builder.device())


def _python_kind(elem_type: int) -> Any:
    return np.float64 if elem_type in FLOAT_TYPES else None


def arange(start: Any, limit: Any, delta: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers from `start` to before `limit` in steps of `delta`."""
    numbers = [n.item() if isinstance(n, Tensor) else n for n in (start, limit, delta)]
    return torch.arange(*numbers, dtype=dtype, device=device)


@register("Range", since=11)
def _range(op: Op) -> Result:
    numbers = [n if (n := op.number(i)) is not None else op.tensor(i) for i in range(3)]
    return op.call(arange, *numbers, op.dtype(0), op.builder.device())


def eye_like(x: Tensor, k: int, dtype: torch.dtype | None) -> Tensor:
    """Ones on the k-th diagonal of a zero matrix shaped like `x`."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    return (columns - rows.unsqueeze(1) == k).to(dtype or x.dtype)


@register("EyeLike", since=9)
def _eye(op: Op) -> Result:
    dtype = _target_dtype(op.attr("dtype")) if op.attr("dtype") else None
    return op.call(eye_like, op.tensor(0), op.attr("k", 0), dtype)


def triangle(x: Tensor, upper: bool, diagonal: Tensor) -> Tensor:
    """Upper or lower triangle from a diagonal that is computed while the model runs."""
    return (torch.triu if upper else torch.tril)(x, int(diagonal))


@register("Trilu", since=14)
def _trilu(op: Op) -> Result:
    upper = bool(op.attr("upper", 1))
    if op.has(1) and op.number(1) is None:
        return op.call(triangle, op.tensor(0), upper, op.tensor(1))
    diagonal = op.number(1) if op.has(1) else 0
    return op.call(torch.triu if upper else torch.tril, op.tensor(0), diagonal)


def one_hot(indices: Tensor, depth: Any, values: Tensor, axis: int) -> Tensor:
    """`values[1]` at the indices and `values[0]` elsewhere, along a new axis."""
    count = int(depth.item()) if isinstance(depth, Tensor) else int(depth)
    classes = torch.arange(count, device=indices.device)
    wrapped = torch.where(indices < 0, indices + count, indices)
    hot = (wrapped.unsqueeze(-1) == classes).movedim(-1, axis)
    return torch.where(hot, values[1], values[0])


@register("OneHot", since=9)
def _one_hot(op: Op) -> Result:
    number = op.number(1)
    depth = op.tensor(1) if number is None else number
    return op.call(one_hot, op.tensor(0), depth, op.tensor(2), op.attr("axis", -1))


def _window(size: Any, periodic: bool, weights: tuple[float, float, float], device: Any) -> Tensor:
    count = int(size.item()) if isinstance(size, Tensor) else int(size)
    steps = torch.arange(count, dtype=torch.float64, device=device)
    angle = steps * (2 * torch.pi) / (count if periodic else count - 1)
    a, b, c = weights
    return a - b * torch.cos(angle) + c * torch.cos(2 * angle)


def cosine_window(
    size: Any, periodic: bool, weights: tuple[float, float, float], dtype: torch.dtype, device: Any
) -> Tensor:
    """A window `a - b cos(t) + c cos(2 t)`."""
    return _window(size, periodic, weights, device).to(dtype)


_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@register(*_WINDOWS, since=17)
def _window_node(op: Op) -> Result:
    number = op.number(0)
    size = op.tensor(0) if number is None else number
    dtype = _target_dtype(op.attr("output_datatype", 1))
    periodic, weights = bool(op.attr("periodic", 1)), _WINDOWS[op.node.op_type]
    return op.call(cosine_window, size, periodic, weights, dtype, op.builder.device())


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, dtype: torch.dtype
) -> Tensor:
    """Round `x / scale` to integers and saturate."""
    levels = torch.round(x / _along_axis(x, scale, axis))
    if zero_point is not None:
        levels = levels + _along_axis(x, zero_point.to(x.dtype), axis)
    limits = torch.iinfo(dtype)
    return levels.clamp(limits.min, limits.max).to(torch.int64).to(dtype)


def dequantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """Real numbers that quantised ones stand for."""
    values = x.to(scale.dtype)
    if zero_point is not None:
        values = values - _along_axis(x, zero_point.to(scale.dtype), axis)
    return values * _along_axis(x, scale, axis)


def _along_axis(x: Tensor, parameter: Tensor, axis: int) -> Tensor:
    if parameter.numel() == 1 and parameter.ndim < 2:
        return parameter.reshape(())
    if parameter.ndim == 1:
        shape = [1] * x.ndim
        shape[axis] = -1
        return parameter.reshape(shape)
    blocks = x.shape[axis] // parameter.shape[axis]
    return parameter.repeat_interleave(blocks, dim=axis)


_INTEGER_TYPES = WIDE_UNSIGNED_TYPES | {2, 3, 5, 6}


@register("QuantizeLinear", since=10)
def _quantize_linear(op: Op) -> Result:
    elem_type = op.elem_type(2) if op.has(2) else op.attr("output_dtype", 0) or 2
    if elem_type not in _INTEGER_TYPES:
        raise UnsupportedNode(f"ONNX element type {elem_type}")
    arguments = op.tensor(1), op.optional(2), op.attr("axis", 1), _target_dtype(elem_type)
    return op.call(quantize, op.tensor(0), *arguments)


@register("DequantizeLinear", since=10)
def _dequantize_linear(op: Op) -> Result:
    if op.elem_type() not in _INTEGER_TYPES:
        raise UnsupportedNode(f"ONNX element type {op.elem_type()}")
    return op.call(dequantize, op.tensor(0), op.tensor(1), op.optional(2), op.attr("axis", 1))
