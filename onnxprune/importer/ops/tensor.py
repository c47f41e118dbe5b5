"""Casts, and tensors that are made rather than computed."""

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register
from onnxprune.importer.values import (
    FLOAT_TYPES,
    HALF_DTYPES,
    TORCH_DTYPES,
    Host,
    check_size,
    numpy_dtype,
)
from onnxprune.shapes import tensor_type


def _target_dtype(elem_type: int) -> torch.dtype:
    dtype = TORCH_DTYPES.get(elem_type)
    if dtype is None:
        raise UnsupportedNode(f"ONNX element type {elem_type}")
    return dtype


@register("Cast")
def _cast(op: Op) -> Result:
    target = op.attr("to")
    if isinstance(target, str):
        target = TensorProto.DataType.Value(target)
    node = op.method("to", op.tensor(0), _target_dtype(target))
    node.meta["type"] = tensor_type(target, op.shape())
    return node


@register("CastLike", since=15)
def _cast_like(op: Op) -> Result:
    value, target = op.value(0), op.elem_type(1)
    if isinstance(value, Host) and value.literal and target in TORCH_DTYPES:
        return Host(value.array.astype(numpy_dtype(target)), target, op.node.output[0])
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
    sizes = op.ints(0)
    if isinstance(sizes, list):
        check_size(tensor.data_type if tensor is not None else TensorProto.FLOAT, sizes)
    return op.call(torch.full, sizes, value, dtype=dtype, device=op.builder.device())


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


@register("Trilu", since=14)
def _trilu(op: Op) -> Result:
    function = torch.triu if op.attr("upper", 1) else torch.tril
    return op.call(function, op.tensor(0), op.integer(1, 0))


def one_hot(indices: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """`values[1]` at the indices and `values[0]` elsewhere, along a new axis."""
    classes = torch.arange(depth, device=indices.device)
    wrapped = torch.where(indices < 0, indices + depth, indices)
    hot = (wrapped.unsqueeze(-1) == classes).movedim(-1, axis)
    return torch.where(hot, values[1], values[0])


@register("OneHot", since=9)
def _one_hot(op: Op) -> Result:
    return op.call(one_hot, op.tensor(0), op.integer(1), op.tensor(2), op.attr("axis", -1))
