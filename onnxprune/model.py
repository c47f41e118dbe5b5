"""Read and write `.onnx` files.

A model file is untrusted input. Sizes and external locations are checked before anything is
allocated, and whatever is wrong ends in a `ModelFileError`.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import FunctionProto, GraphProto, NodeProto

from onnxprune.errors import ModelFileError
from onnxprune.external_data import load_external_data, move_outside
from onnxprune.files import (
    atomic_write,
    atomic_write_all,
    atomic_write_bytes,
    atomic_write_text,
    check_writable,
)
from onnxprune.payload import (
    PROTOBUF_LIMIT_BYTES,
    check_payload,
    dense_array,
    inner_graphs,
    iter_graphs,
    iter_named_tensors,
    iter_tensors,
    payload_sha256,
    tensor_array,
)

__all__ = [
    "PROTOBUF_LIMIT_BYTES",
    "OnnxModel",
    "ValueSpec",
    "atomic_write",
    "atomic_write_bytes",
    "atomic_write_text",
    "check_writable",
    "dense_array",
    "external_data_path",
    "fits_in_one_message",
    "iter_graphs",
    "iter_named_tensors",
    "iter_tensors",
    "payload_sha256",
    "read",
    "tensor_array",
    "value_spec",
    "write",
]

_CHUNK_BYTES = 8 * 2**20
_FORMAT_HINTS = {
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint, perhaps)",
    b"\x89HDF": "an HDF5 file (a Keras model, perhaps)",
    b"version https://git-lfs": "a Git LFS pointer, not the model itself",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
}


@dataclass(frozen=True)
class ValueSpec:
    """A graph input or output.

    Attributes:
        name: ONNX name.
        dtype: Element type, or None where the graph does not state one that NumPy has.
        shape: One entry an axis: a size, the name of a dynamic axis, or None if unknown; None for
            an unknown rank.
    """

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None

    def describe(self) -> str:
        """`float32[N, 3, 224, 224]`, for messages."""
        dtype = "?" if self.dtype is None else self.dtype.name
        if self.shape is None:
            return f"{dtype}[...]"
        return f"{dtype}[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class OnnxModel:
    """A model read into memory.

    Attributes:
        path: Where it was read from; None for a model handed over in memory.
        proto: The model with its external data loaded into it.
        sha256: Digest of the file as it lies on disk, followed by its external data files in the
            order of their names; for a model without external data, what `sha256sum` prints.
        size_bytes: Size of the file with its external data.
        external_files: The files beside the `.onnx` file that held tensors.
    """

    path: Path | None
    proto: onnx.ModelProto
    sha256: str
    size_bytes: int
    external_files: tuple[Path, ...] = ()

    @property
    def has_external_data(self) -> bool:
        """Whether tensors were stored outside the `.onnx` file."""
        return bool(self.external_files)

    @property
    def label(self) -> str:
        """How messages name this model."""
        return "the model in memory" if self.path is None else str(self.path)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        for opset in self.proto.opset_import:
            if opset.domain in ("", "ai.onnx"):
                return int(opset.version)
        return 0

    @property
    def inputs(self) -> list[ValueSpec]:
        """Graph inputs that the caller must feed (initializers listed as inputs are left out)."""
        stored = {tensor.name for tensor in self.proto.graph.initializer}
        stored |= {tensor.values.name for tensor in self.proto.graph.sparse_initializer}
        return [value_spec(v) for v in self.proto.graph.input if v.name not in stored]

    @property
    def outputs(self) -> list[ValueSpec]:
        """Graph outputs in graph order."""
        return [value_spec(v) for v in self.proto.graph.output]

    @property
    def class_count(self) -> int | None:
        """Length of the first output's class axis; None unless it has two axes and a known size."""
        shape = self.outputs[0].shape
        if shape is not None and len(shape) == 2 and isinstance(shape[1], int):
            return shape[1]
        return None


def read(source: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel) -> OnnxModel:
    """Read a model from a path, from serialised bytes, or from a `ModelProto`.

    External data are read only from inside the model's own folder, after their sizes are checked.

    Raises:
        ModelFileError: No such file, not ONNX, truncated, or bad external data.
    """
    if isinstance(source, OnnxModel):
        return source
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source)
    if isinstance(source, bytes):
        proto = _parse(source, "the model in memory")
        return _checked(None, proto, hashlib.sha256(source).hexdigest(), len(source))
    path = Path(source)
    data = _read_file(path)
    proto = _parse(data, str(path))
    digest = hashlib.sha256(data)
    size = len(data)
    del data
    external = load_external_data(proto, path)
    for file in external:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    return _checked(path, proto, digest.hexdigest(), size, tuple(external))


def _from_proto(source: onnx.ModelProto) -> OnnxModel:
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    if fits_in_one_message(proto):
        data = proto.SerializeToString(deterministic=True)
        return _checked(None, proto, hashlib.sha256(data).hexdigest(), len(data))
    size = sum(len(tensor.raw_data) for tensor in iter_tensors(proto))
    return _checked(None, proto, payload_sha256(proto), size)


def fits_in_one_message(proto: onnx.ModelProto) -> bool:
    """Whether a model with its data inline is below the size that Protocol Buffers can write."""
    try:
        return int(proto.ByteSize()) <= PROTOBUF_LIMIT_BYTES
    except EncodeError:  # how protobuf itself says that it is not
        return False


def _read_file(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelFileError("this is a folder, not an ONNX file", where=path)
        size = path.stat().st_size
        if not path.is_file():
            raise ModelFileError("this is a device or a pipe, not an ONNX file", where=path)
        if size > PROTOBUF_LIMIT_BYTES:
            raise ModelFileError(
                "the file is larger than an ONNX file can be",
                where=path,
                got=f"{size} bytes",
                expected=f"at most {PROTOBUF_LIMIT_BYTES} bytes",
                remedy="large models keep their tensors in external data files",
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError("no such model file", where=path) from None
    except (OSError, ValueError) as error:
        raise ModelFileError("the model file cannot be read", where=path, got=error) from None


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    for magic, meaning in _FORMAT_HINTS.items():
        if data.startswith(magic):
            raise ModelFileError(
                "this is not an ONNX file", where=where, got=meaning, expected="an .onnx file"
            )
    if not data:
        raise ModelFileError("the model file is empty", where=where, got="0 bytes")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelFileError(
            "this is not an ONNX file, or it is truncated",
            where=where,
            got=f"{len(data)} bytes that do not parse ({error})",
            expected="a serialised onnx.ModelProto",
            remedy="fetch or export the file again and compare its size",
        ) from None
    return proto


def _checked(
    path: Path | None,
    proto: onnx.ModelProto,
    sha256: str,
    size_bytes: int,
    external_files: tuple[Path, ...] = (),
) -> OnnxModel:
    """Reject what parses as a message, yet is no usable model."""
    where = str(path or "the model in memory")
    if not proto.graph.node or not proto.graph.output or not proto.opset_import:
        raise ModelFileError(
            "this is not an ONNX model, or it is truncated",
            where=where,
            got=f"{len(proto.graph.node)} nodes, {len(proto.graph.output)} outputs, "
            f"{len(proto.opset_import)} operator sets",
            expected="a graph with nodes and outputs, and an operator set",
        )
    domains = {_domain(opset.domain) for opset in proto.opset_import}
    _check_graph(proto.graph, set(), domains, where)
    for function in proto.functions:
        _check_function(function, domains, where)
    check_payload(proto, where)
    return OnnxModel(path, proto, sha256, size_bytes, external_files)


def _check_function(function: FunctionProto, domains: set[str], where: str) -> None:
    domains = domains | {_domain(opset.domain) for opset in function.opset_import}
    where = f"{where}, function {function.domain}::{function.name}"
    known = set(function.input)
    _check_nodes(function.node, known, domains, where)
    _check_produced(function.output, known, where)


def _check_graph(graph: GraphProto, outer: set[str], domains: set[str], where: str) -> None:
    """Reject graphs whose nodes read values that nothing produces; `outer` holds known names."""
    known = outer | {value.name for value in graph.input}
    known |= {tensor.name for tensor in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    _check_text(known, where)
    _check_nodes(graph.node, known, domains, where)
    _check_produced([value.name for value in graph.output], known, where)


def _check_nodes(
    nodes: Iterable[NodeProto], known: set[str], domains: set[str], where: str
) -> None:
    """Check nodes in order, and add their outputs to `known`."""
    for node in nodes:
        _check_text([node.name, node.op_type, node.domain, *node.input, *node.output], where)
        if _domain(node.domain) not in domains:
            raise ModelFileError(
                "the model is damaged or truncated: it does not say which version of an "
                "operator set it uses",
                where=f"{where}, node {node.name or node.op_type!r} ({node.op_type})",
                got=f"no entry for the domain {node.domain!r}",
            )
        for name in node.input:
            if name and name not in known:
                raise ModelFileError(
                    "the graph is damaged: a node reads a value that nothing before it produces",
                    where=f"{where}, node {node.name or node.op_type!r} ({node.op_type})",
                    got=f"input {name!r}",
                    expected="a graph input, an initializer, or the output of an earlier node",
                )
        for _, graph in inner_graphs(node):
            _check_graph(graph, known, domains, where)
        known.update(name for name in node.output if name)


def _check_produced(names: Iterable[str], known: set[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise ModelFileError(
                "the graph is damaged: nothing produces one of its outputs",
                where=f"{where}, output {name!r}",
            )


def _check_text(names: Iterable[object], where: str) -> None:
    """Reject names that are not UTF-8, for which protobuf hands out bytes instead of a string."""
    for name in names:
        if not isinstance(name, str):
            raise ModelFileError(
                "the file is damaged: a name is not UTF-8 text", where=where, got=repr(name)[:200]
            )


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def value_spec(value: onnx.ValueInfoProto) -> ValueSpec:
    """What a `ValueInfoProto` says of a tensor."""
    tensor_type = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    except (KeyError, TypeError):
        dtype = None
    if not tensor_type.HasField("shape"):
        return ValueSpec(value.name, dtype, None)
    dims: list[int | str | None] = []
    for dim in tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param or None)
    return ValueSpec(value.name, dtype, tuple(dims))


def external_data_path(path: Path) -> Path:
    """The file that `write` puts the tensors of a large model into."""
    return path.with_name(path.name + ".data")


def write(proto: onnx.ModelProto, path: str | os.PathLike[str], *, external: bool = False) -> None:
    """Write a model so that a reader never sees half a file.

    Args:
        proto: The model; it is not changed.
        path: Target. A model above the protobuf limit, or one written with `external`, keeps its
            tensors in `<file name>.data` beside it.
        external: Store tensors of 1 KiB and more as external data.

    Raises:
        OutputError: The target cannot be written.
    """
    path = Path(path)
    if not external and fits_in_one_message(proto):
        atomic_write_bytes(path, proto.SerializeToString(deterministic=True))
        return
    data_path = external_data_path(path)
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    atomic_write_all(
        {
            data_path: lambda stream: move_outside(light, stream, data_path.name),
            path: lambda stream: stream.write(light.SerializeToString(deterministic=True)),
        }
    )
