"""Sparse storage: initializers as `sparse_initializer`, where that makes the file smaller."""

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.stored import tensor_array

SPARSE_BREAK_EVEN = 2 / 3
"""Sparsity above which 4-byte values with 8-byte indices are smaller than dense storage."""


def to_sparse(proto: onnx.ModelProto, names: set[str]) -> list[str]:
    """Store initializers of the main graph sparsely where that saves space; changes `proto`.

    ONNX Runtime loads such a file and gives the same outputs. Tensors that are also graph inputs
    stay dense, since the standard does not let a sparse initializer be a default value.

    Args:
        proto: The model.
        names: Initializers that may be converted.

    Returns:
        The names of those that were.
    """
    inputs = {value.name for value in proto.graph.input}
    converted = []
    kept = []
    for tensor in proto.graph.initializer:
        sparse = None
        if tensor.name in names and tensor.name not in inputs:
            sparse = _sparse(tensor)
        if sparse is None:
            kept.append(tensor)
        else:
            proto.graph.sparse_initializer.append(sparse)
            converted.append(tensor.name)
    remaining = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(remaining)
    return converted


def _sparse(tensor: onnx.TensorProto) -> onnx.SparseTensorProto | None:
    """The sparse form of a tensor, or None if it would be no smaller."""
    flat = tensor_array(tensor).ravel()
    indices = stored_indices(flat)
    if len(indices) * (flat.dtype.itemsize + 8) >= flat.size * flat.dtype.itemsize:
        return None
    values = numpy_helper.from_array(flat[indices], tensor.name)
    values.doc_string = tensor.doc_string
    values.metadata_props.extend(tensor.metadata_props)
    return onnx.helper.make_sparse_tensor(
        values, numpy_helper.from_array(indices), list(tensor.dims)
    )


def stored_indices(flat: np.ndarray) -> np.ndarray:
    """Linear int64 indices of the values that a sparse tensor has to hold.

    That is every value but +0.0, so that its dense form is equal bit for bit.
    """
    held = np.ascontiguousarray(flat).view(np.uint8).reshape(flat.size, flat.dtype.itemsize)
    return np.flatnonzero(held.any(axis=1)).astype(np.int64)
