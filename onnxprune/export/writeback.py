"""Patch tensors in a copy of the original `ModelProto`; nothing else of it changes."""

import os
from collections.abc import Mapping, Set
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import SparseTensorProto, TensorProto

from onnxprune.errors import ModelError
from onnxprune.model import OnnxModel, iter_graphs, write
from onnxprune.tensors import GraphTensor, find_tensors

_TYPED_FIELDS: dict[int, tuple[str, np.dtype]] = {
    TensorProto.FLOAT: ("float_data", np.dtype(np.float32)),
    TensorProto.DOUBLE: ("double_data", np.dtype(np.float64)),
    TensorProto.FLOAT16: ("int32_data", np.dtype(np.uint16)),
    TensorProto.BFLOAT16: ("int32_data", np.dtype(np.uint16)),
}


class Exportable(Protocol):
    """An imported model: knows its file, and its trained tensors by ONNX name."""

    @property
    def source(self) -> OnnxModel:
        """The model as it was read."""
        ...

    def export_tensors(self) -> Mapping[str, Any]:
        """Tensors (PyTorch's or NumPy's) by ONNX name, in the file's shapes."""
        ...


def export(imported: Exportable, path: str | os.PathLike[str]) -> None:
    """Write a model back into the graph that it was imported from.

    Everything but the trained tensors stays as in the original file, and these keep their element
    types. Without training the file has the same tensors byte for byte.

    Args:
        imported: From `onnxprune.load`.
        path: The file to write, atomically. Large models and those that had external data keep
            theirs in `<file name>.data` beside it.

    Raises:
        ModelError: A trained tensor is not finite.
        OutputError: The file cannot be written.
    """
    tensors = {name: _numpy(tensor) for name, tensor in imported.export_tensors().items()}
    proto = write_back(imported.source.proto, tensors)
    write(proto, path, external=imported.source.has_external_data)


def _numpy(tensor: Any) -> np.ndarray:
    """A PyTorch tensor on any device as an array; bfloat16, which NumPy lacks, as float32."""
    if isinstance(tensor, np.ndarray):
        return tensor
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype.itemsize == 2 else tensor).numpy()
    return array


def write_back(source: onnx.ModelProto, tensors: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a model with new values in some of its stored tensors.

    A tensor whose new values equal its old ones bit for bit is left as it is. The others keep
    their element type and the field of the message that held their values.

    Where several users share a tensor through `Identity` aliases and one alias is named here (the
    running statistics of an untrained model, which exporters merge because they are equal), its
    `Identity` node becomes a `Constant` with a tensor of its own.

    Args:
        source: The original model, with its data inline; it is not changed.
        tensors: ONNX tensor name -> new values, in the stored shape. They are converted to the
            stored element type, which rounds where that is narrower.

    Raises:
        ModelError: A name is not stored in the model, a shape differs, or a value is not finite.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    stored = find_tensors(proto)
    aliases = tensors.keys() - stored.keys()
    if aliases:
        _separate(proto, aliases, stored)
        stored = find_tensors(proto)
    for name, values in tensors.items():
        if name not in stored:
            raise ModelError("the model stores no such tensor", where=name)
        if tuple(values.shape) != stored[name].shape:
            raise ModelError(
                "a tensor has another shape than in the model",
                where=name,
                got=tuple(values.shape),
                expected=stored[name].shape,
            )
        if not np.isfinite(values).all():
            raise ModelError(
                "a trained tensor is not finite",
                where=name,
                got="NaN or infinity",
                remedy="lower the learning rate",
            )
        tensor = stored[name]
        converted = values.astype(tensor.dtype)
        if converted.tobytes() != np.ascontiguousarray(tensor.array()).tobytes():
            _store(tensor.proto, converted)
    return proto


def _separate(proto: onnx.ModelProto, aliases: Set[str], stored: Mapping[str, GraphTensor]) -> None:
    """Give aliases tensors of their own, with the values that they share; changes `proto`."""
    origins = {use.value: tensor for tensor in stored.values() for use in tensor.uses}
    for _, graph in iter_graphs(proto):
        for node in graph.node:
            alias = node.output[0] if node.output else ""
            if node.op_type == "Identity" and alias in aliases and alias in origins:
                tensor = onnx.numpy_helper.from_array(origins[alias].array(), alias)
                constant = onnx.helper.make_node("Constant", [], [alias], node.name, value=tensor)
                node.CopyFrom(constant)


def _store(tensor: TensorProto | SparseTensorProto, values: np.ndarray) -> None:
    if isinstance(tensor, SparseTensorProto):
        _store_sparse(tensor, values)
        return
    field, dtype = _TYPED_FIELDS[tensor.data_type]
    if len(getattr(tensor, field)):
        flat = values.ravel()
        flat = flat.view(dtype) if flat.dtype.itemsize == dtype.itemsize else flat
        tensor.ClearField(field)
        getattr(tensor, field).extend(flat.tolist())
    else:
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        tensor.raw_data = np.ascontiguousarray(little).tobytes()


def _store_sparse(tensor: SparseTensorProto, values: np.ndarray) -> None:
    """Replace the non-zeros of a tensor that the file stores as a sparse one."""
    flat = values.ravel()
    indices = np.flatnonzero(flat)
    name = tensor.values.name
    tensor.values.CopyFrom(onnx.numpy_helper.from_array(flat[indices], name))
    tensor.indices.CopyFrom(onnx.numpy_helper.from_array(indices.astype(np.int64), ""))
