"""The tensors that a model stores: where they are, whether they are sound, values and digests.

"Payload" is every tensor of a file, dense, sparse or given as plain numbers, trained or not, in the
main graph, in sub-graphs and in functions. Nothing here decodes a tensor before its shape was
checked.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

from onnxprune.errors import ModelFileError
from onnxprune.mapped import is_mapped, mapped_length
from onnxprune.stored import (
    PACKED_BITS,
    Stored,
    constant_value,
    stored_array,
    stored_type,
)

PROTOBUF_LIMIT_BYTES = 2**31 - 1
"""Protocol Buffers cannot hold more than this in one message."""

MAX_TENSOR_BYTES = 64 * 2**30
"""A single tensor that claims more than this is taken for damage, not for a model."""

_TYPED_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "string_data",
)


def iter_graphs(proto: onnx.ModelProto) -> Iterator[tuple[str, GraphProto]]:
    """The main graph and all sub-graphs of its nodes, with a path that names each.

    The main graph's path is empty; a sub-graph's is `outer/node_name.attribute`.
    """

    def walk(path: str, graph: GraphProto) -> Iterator[tuple[str, GraphProto]]:
        yield path, graph
        yield from walk_nodes(path, graph.node)

    def walk_nodes(path: str, nodes: Iterable[NodeProto]) -> Iterator[tuple[str, GraphProto]]:
        for index, node in enumerate(nodes):
            for name, graph in inner_graphs(node):
                label = f"{node.name or f'{node.op_type}_{index}'}.{name}"
                yield from walk(f"{path}/{label}" if path else label, graph)

    yield from walk("", proto.graph)
    for function in proto.functions:
        yield from walk_nodes(f"{function.domain}::{function.name}", function.node)


def inner_graphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs in a node's attributes, each with the name of its attribute."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for number, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}{number}", graph


def iter_tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every `TensorProto` that the model stores, those inside sparse tensors included.

    The tensors are the live messages of `proto`, in file order: main graph, its sub-graphs, then
    functions.
    """
    for _, tensor in iter_named_tensors(proto):
        if isinstance(tensor, SparseTensorProto):
            yield tensor.values
            yield tensor.indices
        elif isinstance(tensor, TensorProto):
            yield tensor


def iter_named_tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, Stored]]:
    """Every tensor that the model stores, with a name that says where in the file it is.

    Plain numbers in `Constant` nodes are among them. Names are unique, except where nodes of one
    graph share theirs.
    """
    for path, graph in iter_graphs(proto):
        for tensor in graph.initializer:
            yield f"{path}|{tensor.name}", tensor
        for sparse in graph.sparse_initializer:
            yield f"{path}|{sparse.values.name}", sparse
        yield from _tensors_of_nodes(path, graph.node)
    for function in proto.functions:
        path = f"{function.domain}::{function.name}"
        yield from _tensors_of_attributes(f"{path}|", function.attribute_proto)
        yield from _tensors_of_nodes(path, function.node)


def _tensors_of_nodes(path: str, nodes: Iterable[NodeProto]) -> Iterator[tuple[str, Stored]]:
    for index, node in enumerate(nodes):
        key = node.output[0] if node.output and node.output[0] else f"#{index}"
        plain = constant_value(node)
        if isinstance(plain, AttributeProto):
            yield f"{path}|{key}.{plain.name}", plain
        yield from _tensors_of_attributes(f"{path}|{key}.", node.attribute)


def _tensors_of_attributes(
    prefix: str, attributes: Iterable[AttributeProto]
) -> Iterator[tuple[str, Stored]]:
    for attribute in attributes:
        name = f"{prefix}{attribute.name}"
        if attribute.HasField("t"):
            yield name, attribute.t
        if attribute.HasField("sparse_tensor"):
            yield name, attribute.sparse_tensor
        for number, tensor in enumerate(attribute.tensors):
            yield f"{name}[{number}]", tensor
        for number, sparse in enumerate(attribute.sparse_tensors):
            yield f"{name}[{number}]", sparse


def check_payload(proto: onnx.ModelProto, where: object) -> None:
    """Compare what every tensor claims with the data that it brings.

    Raises:
        ModelFileError: A shape, an element type or an index makes no sense, or data are missing.
    """
    for _, tensor in iter_named_tensors(proto):
        if isinstance(tensor, SparseTensorProto):
            place = f"{where}, sparse tensor {tensor.values.name!r}"
            _check_dense(tensor.values, place)
            _check_dense(tensor.indices, place)
            _check_sparse(tensor, place)
        elif isinstance(tensor, TensorProto):
            _check_dense(tensor, f"{where}, tensor {tensor.name!r}")


def _check_dense(tensor: TensorProto, where: str) -> None:
    claimed = claimed_bytes(tensor, where)
    if tensor.data_location == TensorProto.EXTERNAL and not is_mapped(tensor):
        raise ModelFileError(
            "a model in memory has a tensor whose data lie in a file",
            where=where,
            expected="tensors with their data",
            remedy="give the path of the model file",
        )
    filled = [field for field in _TYPED_FIELDS if len(getattr(tensor, field))]
    if tensor.HasField("segment"):
        raise ModelFileError(
            "a tensor is a segment of a larger one",
            where=where,
            got="a segment",
            expected="a whole tensor, as nothing joins segments",
            remedy="export the model again",
        )
    if filled and tensor.HasField("raw_data"):
        raise ModelFileError(
            "a tensor has its data twice",
            where=where,
            got=", ".join(["raw_data", *filled]),
            expected="all of its data in one field",
            remedy="export the model again",
        )
    typed = (tensor.data_type == TensorProto.STRING or bool(filled)) and not is_mapped(tensor)
    length = None if typed else stored_bytes(tensor)
    if length is not None and length != claimed:
        raise ModelFileError(
            "the file is truncated or damaged: a tensor's data do not match its shape",
            where=where,
            got=f"{length} bytes",
            expected=f"{claimed} bytes for shape {tuple(tensor.dims)}",
            remedy="fetch or export the file again",
        )
    if typed:
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelFileError(
                "the file is damaged: a tensor's data do not match its shape",
                where=where,
                got=error,
                expected=f"{math.prod(tensor.dims)} values for shape {tuple(tensor.dims)}",
            ) from None


def _check_sparse(sparse: SparseTensorProto, where: str) -> None:
    """A sparse tensor's dense form is allocated by whoever uses it, so its size is limited, too."""
    shape, count = tuple(sparse.dims), math.prod(sparse.values.dims)
    size = math.prod(shape)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(sparse.values.data_type)
    if min(shape, default=0) < 0 or size * dtype.itemsize > PROTOBUF_LIMIT_BYTES:
        raise ModelFileError(
            "a sparse tensor claims an absurd size",
            where=where,
            got=f"shape {shape}",
            expected=f"at most {PROTOBUF_LIMIT_BYTES} bytes in dense form",
        )
    kind = (sparse.indices.data_type, tuple(sparse.indices.dims))
    if kind not in [(TensorProto.INT64, (count,)), (TensorProto.INT64, (count, len(shape)))]:
        raise ModelFileError(
            "the file is damaged: a sparse tensor's indices do not match its values",
            where=where,
            got=f"{count} values, indices of shape {kind[1]}",
        )
    indices = numpy_helper.to_array(sparse.indices)
    limits = np.array([size] if indices.ndim == 1 else shape)
    rows = indices.reshape(count, -1) if count else indices.reshape(0, len(limits))
    if (rows < 0).any() or (rows >= limits).any():
        raise ModelFileError(
            "the file is damaged: a sparse tensor has indices outside its shape",
            where=where,
            expected=f"indices within {shape}",
        )


def claimed_bytes(tensor: TensorProto, where: object) -> int | None:
    """Bytes that element type and shape ask for; None for strings, which have no fixed size.

    Raises:
        ModelFileError: Element type or shape are impossible.
    """
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelFileError(
            "a tensor has an unknown element type", where=where, got=tensor.data_type
        ) from None
    if any(dim < 0 for dim in tensor.dims):
        raise ModelFileError("a tensor has a negative size", where=where, got=tuple(tensor.dims))
    if tensor.data_type == TensorProto.STRING:
        return None
    bits = PACKED_BITS.get(tensor.data_type, dtype.itemsize * 8)
    size = (math.prod(tensor.dims) * bits + 7) // 8
    if size > MAX_TENSOR_BYTES:
        raise ModelFileError(
            "a tensor claims an absurd size",
            where=where,
            got=f"shape {tuple(tensor.dims)}, {size} bytes",
            expected=f"at most {MAX_TENSOR_BYTES} bytes",
        )
    return size


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's raw data, in the message or in the file where they stayed."""
    return mapped_length(tensor) if is_mapped(tensor) else len(tensor.raw_data)


def payload_sha256(proto: onnx.ModelProto) -> str:
    """Digest of every tensor of a model: name, element type, shape and values.

    It does not depend on how values are stored (raw or typed fields, inline or external, dense or
    as a `sparse_initializer`), so it changes exactly when a value does.
    """
    digests = [
        (name, _tensor_digest(stored_array(stored), stored_type(stored)))
        for name, stored in iter_named_tensors(proto)
    ]
    total = hashlib.sha256()
    for name, digest in sorted(digests, key=lambda item: item[0]):
        total.update(name.encode() + b"\0" + digest)
    return total.hexdigest()


def _tensor_digest(array: np.ndarray, data_type: int) -> bytes:
    digest = hashlib.sha256(f"{data_type}{tuple(array.shape)}".encode())
    if array.dtype.hasobject:
        for item in array.ravel():
            digest.update(repr(item).encode() + b"\0")
    else:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.digest()
