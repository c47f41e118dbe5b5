"""Patch tensors in a copy of the original `ModelProto`; nothing else of it changes."""

import os
from collections.abc import Mapping, Set
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import AttributeProto, SparseTensorProto, TensorProto

from onnxprune.errors import ModelError
from onnxprune.export.storage import stored_indices
from onnxprune.mapped import release
from onnxprune.model import OnnxModel, iter_graphs, write
from onnxprune.stored import Stored
from onnxprune.tensors import GraphTensor, find_tensors

_TYPED_FIELDS: dict[int, tuple[str, np.dtype]] = {
    TensorProto.FLOAT: ("float_data", np.dtype(np.float32)),
    TensorProto.DOUBLE: ("double_data", np.dtype(np.float64)),
    TensorProto.FLOAT16: ("int32_data", np.dtype(np.uint16)),
    TensorProto.BFLOAT16: ("int32_data", np.dtype(np.uint16)),
}
_ALL_TYPED_FIELDS = (*sorted({field for field, _ in _TYPED_FIELDS.values()}), "int64_data")


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
    their element type and the field of the message that held their values; plain numbers in a
    `Constant` node stay plain numbers.

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
    origins = {use.value: tensor for tensor in stored.values() for use in tensor.uses}
    changed = {}
    for name, values in tensors.items():
        tensor = stored.get(name) or origins.get(name)
        if tensor is None:
            raise ModelError("the model stores no such tensor", where=name)
        converted = _converted(name, values, tensor)
        if not np.array_equal(_bits(converted), _bits(tensor.array())):
            changed[name] = converted
    aliases = changed.keys() - stored.keys()
    if aliases:
        _separate(proto, aliases, origins)
        stored = find_tensors(proto)
    for name, converted in changed.items():
        if name not in stored:
            raise ModelError("an alias is no output of an Identity node", where=name)
        _store(stored[name].proto, converted)
    return proto


def _bits(values: np.ndarray) -> np.ndarray:
    """A tensor's bytes, which tell also apart what compares equal, as 0.0 and -0.0 do."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _converted(name: str, values: np.ndarray, tensor: GraphTensor) -> np.ndarray:
    """Values in the stored element type, if they fit."""
    if tuple(values.shape) != tensor.shape:
        raise ModelError(
            "a tensor has another shape than in the model",
            where=name,
            got=tuple(values.shape),
            expected=tensor.shape,
        )
    if not np.isfinite(values).all():
        raise ModelError(
            "a trained tensor is not finite",
            where=name,
            got="NaN or infinity",
            remedy="lower the learning rate",
        )
    if tensor.elem_type not in _TYPED_FIELDS:
        raise ModelError(
            "only float tensors can be written back", where=name, got=tensor.dtype, expected="float"
        )
    with np.errstate(over="ignore"):
        converted = values.astype(tensor.dtype, copy=False)
    if not np.isfinite(converted).all():
        raise ModelError(
            "a trained tensor does not fit its element type",
            where=name,
            got=f"magnitudes up to {np.abs(values).max():g}",
            expected=f"finite values in {tensor.dtype}",
            remedy="lower the learning rate, or raise weight_decay",
        )
    return converted


def _separate(
    proto: onnx.ModelProto, aliases: Set[str], origins: Mapping[str, GraphTensor]
) -> None:
    """Give aliases tensors of their own, with the values that they share; changes `proto`."""
    for _, graph in iter_graphs(proto):
        for node in graph.node:
            alias = node.output[0] if node.output else ""
            if node.op_type == "Identity" and alias in aliases:
                tensor = onnx.numpy_helper.from_array(origins[alias].array(), alias)
                constant = onnx.helper.make_node("Constant", [], [alias], node.name, value=tensor)
                node.CopyFrom(constant)


def _store(tensor: Stored, values: np.ndarray) -> None:
    if isinstance(tensor, SparseTensorProto):
        _store_sparse(tensor, values)
        return
    if isinstance(tensor, AttributeProto):
        _store_plain(tensor, values)
        return
    field, dtype = _TYPED_FIELDS[tensor.data_type]
    if len(getattr(tensor, field)):
        flat = values.ravel()
        flat = flat.view(dtype) if flat.dtype.itemsize == dtype.itemsize else flat
        tensor.ClearField(field)
        getattr(tensor, field).extend(flat.tolist())
    else:
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        release(tensor)
        tensor.raw_data = np.ascontiguousarray(little).tobytes()


def _store_plain(attribute: AttributeProto, values: np.ndarray) -> None:
    """Replace the plain float numbers of a `Constant` node."""
    if attribute.type == AttributeProto.FLOAT:
        attribute.f = values.item()
    else:
        attribute.floats[:] = values.tolist()


def _store_sparse(tensor: SparseTensorProto, values: np.ndarray) -> None:
    """Replace the non-zeros of a tensor that the file stores as a sparse one."""
    flat = values.ravel()
    indices = stored_indices(flat)
    for message, array in ((tensor.values, flat[indices]), (tensor.indices, indices)):
        fresh = onnx.numpy_helper.from_array(array)
        for field in (*_ALL_TYPED_FIELDS, "dims"):
            message.ClearField(field)
        message.dims.extend(fresh.dims)
        message.raw_data = fresh.raw_data
