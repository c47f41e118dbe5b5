"""The messages of a file that hold values, and these values as arrays.

A value is stored as a dense tensor, as a sparse one, or as plain numbers in the `value_float`,
`value_floats`, `value_int` or `value_ints` attribute of a `Constant` node.
"""

import math
from typing import TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

from onnxprune.mapped import is_mapped, mapped_data

Stored: TypeAlias = TensorProto | SparseTensorProto | AttributeProto
"""A live message that holds one tensor."""

PACKED_BITS = {
    getattr(TensorProto, name): bits
    for name, bits in {
        "UINT2": 2,
        "INT2": 2,
        "UINT4": 4,
        "INT4": 4,
        "FLOAT4E2M1": 4,
        "FLOAT6E2M3": 6,
        "FLOAT6E3M2": 6,
    }.items()
    if hasattr(TensorProto, name)
}
"""Element types of which several share a byte; which of them exist depends on onnx's version."""

_PLAIN = {
    "value_float": AttributeProto.FLOAT,
    "value_floats": AttributeProto.FLOATS,
    "value_int": AttributeProto.INT,
    "value_ints": AttributeProto.INTS,
}
_LISTS = (AttributeProto.FLOATS, AttributeProto.INTS)
_FLOATS = (AttributeProto.FLOAT, AttributeProto.FLOATS)


def constant_value(node: NodeProto) -> Stored | None:
    """What a `Constant` node stores; None for strings, and for other nodes."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == AttributeProto.TENSOR:
            return attribute.t
        if attribute.name == "sparse_value":
            return attribute.sparse_tensor
        if attribute.name in _PLAIN and attribute.type == _PLAIN[attribute.name]:
            return attribute
    return None


def stored_shape(stored: Stored) -> tuple[int, ...]:
    """The shape of what a message holds; plain numbers have no axis or one."""
    if isinstance(stored, AttributeProto):
        return (len(_numbers(stored)),) if stored.type in _LISTS else ()
    return tuple(int(dim) for dim in stored.dims)


def stored_type(stored: Stored) -> int:
    """The element type of what a message holds, as ONNX numbers it."""
    if isinstance(stored, AttributeProto):
        return int(TensorProto.FLOAT if stored.type in _FLOATS else TensorProto.INT64)
    return stored.values.data_type if isinstance(stored, SparseTensorProto) else stored.data_type


def stored_array(stored: Stored) -> np.ndarray:
    """The values that a message holds, dense also where they are stored sparse."""
    if isinstance(stored, AttributeProto):
        dtype = np.float32 if stored.type in _FLOATS else np.int64
        return np.array(_numbers(stored), dtype).reshape(stored_shape(stored))
    return dense_array(stored) if isinstance(stored, SparseTensorProto) else tensor_array(stored)


def _numbers(attribute: AttributeProto) -> list[float] | list[int]:
    """The plain numbers of an attribute."""
    if attribute.type in _LISTS:
        return list(attribute.floats if attribute.type in _FLOATS else attribute.ints)
    return [attribute.f] if attribute.type in _FLOATS else [attribute.i]


def tensor_array(tensor: TensorProto) -> np.ndarray:
    """A tensor's values; read-only where they need no decoding."""
    if is_mapped(tensor) and tensor.data_type in PACKED_BITS:
        unpacked = TensorProto(dims=tensor.dims, data_type=tensor.data_type)
        unpacked.raw_data = mapped_data(tensor).tobytes()
        tensor = unpacked
    if is_mapped(tensor):
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        little = mapped_data(tensor).view(dtype.newbyteorder("<"))
        return little.reshape(tuple(tensor.dims))
    return numpy_helper.to_array(tensor)


def dense_array(sparse: SparseTensorProto) -> np.ndarray:
    """The dense form of a `SparseTensorProto`, whose indices are linear or one row a value."""
    values = tensor_array(sparse.values)
    indices = tensor_array(sparse.indices)
    shape = tuple(sparse.dims)
    dense = np.zeros(math.prod(shape), dtype=values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    dense[flat] = values
    return dense.reshape(shape)
