"""Values of an ONNX graph while it is converted, and how ONNX types map to PyTorch.

A value is a tensor, which is a node of the fx graph, or a `Host` value: numbers that are known at
import or that the host computes from shapes while the module runs. Shape arithmetic stays on the
host, so that it never waits for a GPU and `torch.compile` sees plain (symbolic) integers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import fx

from onnxprune.payload import MAX_TENSOR_BYTES

TORCH_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}
"""Type that a tensor is computed in; half precision is computed in float32."""

HALF_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Types that exist only at the borders of an imported module."""

QUANTIZED_DTYPES: dict[int, torch.dtype] = {
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
"""Types that only quantising operators compute with; a few bits are held in a byte."""

FLOAT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)
WIDE_UNSIGNED_TYPES = frozenset({TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64})
"""Types for which PyTorch lacks most arithmetic."""

HOST_LIMIT = 1024
"""Largest number of elements that shape arithmetic is followed through."""


@dataclass(frozen=True, eq=False)
class Host:
    """Numbers that live on the host.

    Attributes:
        array: Numbers known at import; or, with `object` elements, numbers and fx nodes that
            compute numbers.
        elem_type: ONNX element type.
        name: ONNX name under which it becomes a buffer where a tensor is needed.
    """

    array: np.ndarray
    elem_type: int
    name: str

    @property
    def literal(self) -> bool:
        """Whether all of it is known at import."""
        return not self.array.dtype.hasobject

    def items(self) -> list[object]:
        """All elements as Python numbers or fx nodes, in row-major order."""
        return list(self.array.ravel().tolist())


Value: TypeAlias = fx.Node | Host


def as_host(array: np.ndarray, elem_type: int, name: str) -> Host:
    """A host value of an object array that may turn out to hold numbers alone."""
    if array.dtype.hasobject and not any(isinstance(item, fx.Node) for item in array.ravel()):
        array = array.astype(numpy_dtype(elem_type))
    return Host(array, elem_type, name)


def check_size(elem_type: int, sizes: Iterable[Any]) -> None:
    """Refuse a tensor that no machine holds, before anything is allocated for it.

    Args:
        elem_type: Its ONNX element type; one byte an element if unknown.
        sizes: Its sizes; those that are no integers are not known yet and count as 1.

    Raises:
        ValueError: It has more than `MAX_TENSOR_BYTES`.
    """
    sizes = tuple(sizes)
    known = math.prod(size for size in sizes if isinstance(size, int))
    if known * TORCH_DTYPES.get(elem_type, torch.int8).itemsize > MAX_TENSOR_BYTES:
        shown = [size if isinstance(size, int) else "?" for size in sizes]
        raise ValueError(
            f"its result of shape {shown} is larger than {MAX_TENSOR_BYTES // 2**30} GiB"
        )


def numpy_dtype(elem_type: int) -> np.dtype:
    """NumPy type in which numbers of an ONNX type are held; float32 for half precision."""
    if elem_type in HALF_DTYPES:
        return np.dtype(np.float32)
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))
