"""Read and write `.onnx` files: limits, external data, digests, atomic writes.

A model file is untrusted input. Sizes and external locations are checked before anything is
allocated, and whatever is wrong ends in a `ModelFileError`.
"""

import contextlib
import hashlib
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from onnxprune.errors import ModelFileError, OutputError

PROTOBUF_LIMIT_BYTES = 2**31 - 1
"""Protocol Buffers cannot hold more than this in one message."""

MAX_TENSOR_BYTES = 64 * 2**30
"""A single tensor that claims more than this is taken for damage, not for a model."""

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
        has_external_data: Whether tensors were stored outside the `.onnx` file.
    """

    path: Path | None
    proto: onnx.ModelProto
    sha256: str
    size_bytes: int
    has_external_data: bool = False

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
        data = source.SerializeToString(deterministic=True)
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return _checked(None, proto, hashlib.sha256(data).hexdigest(), len(data))
    if isinstance(source, bytes):
        proto = _parse(source, "the model in memory")
        return _checked(None, proto, hashlib.sha256(source).hexdigest(), len(source))
    path = Path(source)
    data = _read_file(path)
    proto = _parse(data, str(path))
    external = _external_files(proto, path)
    digest = hashlib.sha256(data)
    size = len(data)
    del data
    for file in external:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        size += file.stat().st_size
    for tensor in iter_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _inline(tensor, path)
    return _checked(path, proto, digest.hexdigest(), size, bool(external))


def _read_file(path: Path) -> bytes:
    if path.is_dir():
        raise ModelFileError("this is a folder, not an ONNX file", where=path)
    try:
        size = path.stat().st_size
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
    except OSError as error:
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
    has_external_data: bool = False,
) -> OnnxModel:
    """Reject what parses as a message, yet is no usable model."""
    where = path or "the model in memory"
    if not proto.graph.node or not proto.graph.output or not proto.opset_import:
        raise ModelFileError(
            "this is not an ONNX model, or it is truncated",
            where=where,
            got=f"{len(proto.graph.node)} nodes, {len(proto.graph.output)} outputs, "
            f"{len(proto.opset_import)} operator sets",
            expected="a graph with nodes and outputs, and an operator set",
        )
    for tensor in iter_tensors(proto):
        _check_tensor(tensor, where)
    _check_structure(proto, where)
    return OnnxModel(path, proto, sha256, size_bytes, has_external_data)


def _check_structure(proto: onnx.ModelProto, where: object) -> None:
    """Reject graphs whose nodes read values that nothing produces."""
    graph = proto.graph
    known = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    known |= {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise ModelFileError(
                    "the graph is damaged: a node reads a value that nothing before it produces",
                    where=f"{where}, node {node.name or node.op_type!r} ({node.op_type})",
                    got=f"input {name!r}",
                    expected="a graph input, an initializer, or the output of an earlier node",
                )
        known.update(name for name in node.output if name)
    for value in graph.output:
        if value.name not in known:
            raise ModelFileError(
                "the graph is damaged: nothing produces one of its outputs",
                where=f"{where}, output {value.name!r}",
            )


def _check_tensor(tensor: onnx.TensorProto, where: object) -> None:
    """Compare a tensor's claimed shape with the bytes it brings, before anybody decodes it."""
    claimed = _claimed_bytes(tensor, where)
    if claimed is None:
        return
    typed = any(
        len(getattr(tensor, field))
        for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    )
    if not typed and len(tensor.raw_data) != claimed:
        raise ModelFileError(
            "the file is truncated or damaged: a tensor's data do not match its shape",
            where=f"{where}, tensor {tensor.name!r}",
            got=f"{len(tensor.raw_data)} bytes",
            expected=f"{claimed} bytes for shape {tuple(tensor.dims)}",
            remedy="fetch or export the file again",
        )
    if typed:
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelFileError(
                "the file is damaged: a tensor's data do not match its shape",
                where=f"{where}, tensor {tensor.name!r}",
                got=error,
                expected=f"{math.prod(tensor.dims)} values for shape {tuple(tensor.dims)}",
            ) from None


def _claimed_bytes(tensor: onnx.TensorProto, where: object) -> int | None:
    """Bytes that dtype and shape ask for; None for strings, which have no fixed size."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return None
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelFileError(
            "a tensor has an unknown element type",
            where=f"{where}, tensor {tensor.name!r}",
            got=tensor.data_type,
        ) from None
    if any(dim < 0 for dim in tensor.dims):
        raise ModelFileError(
            "a tensor has a negative size",
            where=f"{where}, tensor {tensor.name!r}",
            got=tuple(tensor.dims),
        )
    count = math.prod(tensor.dims)
    bits = _SUB_BYTE_BITS.get(tensor.data_type, dtype.itemsize * 8)
    size = (count * bits + 7) // 8
    if size > MAX_TENSOR_BYTES:
        raise ModelFileError(
            "a tensor claims an absurd size",
            where=f"{where}, tensor {tensor.name!r}",
            got=f"shape {tuple(tensor.dims)}, {size} bytes",
            expected=f"at most {MAX_TENSOR_BYTES} bytes",
        )
    return size


_SUB_BYTE_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}.items()
    if hasattr(onnx.TensorProto, name)
}


def iter_graphs(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The main graph and all sub-graphs of its nodes, with a path that names each.

    The main graph's path is empty; a sub-graph's is `outer/node_name.attribute`.
    """

    def walk(path: str, graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.GraphProto]]:
        yield path, graph
        yield from walk_nodes(path, graph.node)

    def walk_nodes(
        path: str, nodes: Iterable[onnx.NodeProto]
    ) -> Iterator[tuple[str, onnx.GraphProto]]:
        for index, node in enumerate(nodes):
            for attribute in node.attribute:
                inner = [attribute.g] if attribute.HasField("g") else []
                inner.extend(attribute.graphs)
                for number, graph in enumerate(inner):
                    label = f"{node.name or f'{node.op_type}_{index}'}.{attribute.name}"
                    label += str(number) if attribute.graphs else ""
                    yield from walk(f"{path}/{label}" if path else label, graph)

    yield from walk("", proto.graph)
    for function in proto.functions:
        yield from walk_nodes(f"{function.domain}::{function.name}", function.node)


def iter_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every `TensorProto` that the model stores, those inside sparse tensors included.

    The tensors are the live messages of `proto`, in file order: main graph, its sub-graphs, then
    functions.
    """
    for _, tensor in iter_named_tensors(proto):
        if isinstance(tensor, onnx.SparseTensorProto):
            yield tensor.values
            yield tensor.indices
        else:
            yield tensor


def iter_named_tensors(
    proto: onnx.ModelProto,
) -> Iterator[tuple[str, onnx.TensorProto | onnx.SparseTensorProto]]:
    """Every tensor that the model stores, each with a name that is unique within the file."""

    def of_nodes(
        path: str, nodes: Iterable[onnx.NodeProto]
    ) -> Iterator[tuple[str, onnx.TensorProto | onnx.SparseTensorProto]]:
        for index, node in enumerate(nodes):
            key = node.output[0] if node.output and node.output[0] else f"#{index}"
            for attribute in node.attribute:
                base = f"{path}|{key}.{attribute.name}"
                if attribute.HasField("t"):
                    yield base, attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield base, attribute.sparse_tensor
                for number, tensor in enumerate(attribute.tensors):
                    yield f"{base}[{number}]", tensor
                for number, sparse in enumerate(attribute.sparse_tensors):
                    yield f"{base}[{number}]", sparse

    for path, graph in iter_graphs(proto):
        for tensor in graph.initializer:
            yield f"{path}|{tensor.name}", tensor
        for sparse in graph.sparse_initializer:
            yield f"{path}|{sparse.values.name}", sparse
        yield from of_nodes(path, graph.node)
    for function in proto.functions:
        yield from of_nodes(f"{function.domain}::{function.name}", function.node)


def _external_files(proto: onnx.ModelProto, model_path: Path) -> list[Path]:
    """The external data files of a model, each inside the model's own folder and long enough."""
    folder = model_path.resolve().parent
    files: dict[str, Path] = {}
    for tensor in iter_tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = f"{model_path}, tensor {tensor.name!r}"
        location, offset, length = _external_entry(tensor, where)
        file = folder / location
        if Path(location).is_absolute() or folder not in file.resolve().parents:
            raise ModelFileError(
                "external data lie outside the model's folder",
                where=where,
                got=location,
                expected="a file beside the model, not reached through `..` or a link",
            )
        if not file.is_file():
            raise ModelFileError(
                "an external data file is missing",
                where=where,
                got=f"no file {location!r} beside the model",
                remedy="copy the data file into the model's folder",
            )
        if offset + length > file.stat().st_size:
            raise ModelFileError(
                "an external data file is truncated",
                where=where,
                got=f"{location!r} has {file.stat().st_size} bytes",
                expected=f"at least {offset + length} bytes",
            )
        files[location] = file
    return [files[location] for location in sorted(files)]


def _external_entry(tensor: onnx.TensorProto, where: object) -> tuple[str, int, int]:
    """Location, offset and length in bytes of a tensor's external data."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    claimed = _claimed_bytes(tensor, where)
    try:
        location = entries["location"]
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", claimed) or 0)
    except (KeyError, TypeError, ValueError):
        raise ModelFileError(
            "an external data entry is damaged", where=where, got=entries
        ) from None
    if length != claimed or offset < 0:
        raise ModelFileError(
            "an external data entry does not match its tensor's shape",
            where=where,
            got=f"offset {offset}, length {length}",
            expected=f"length {claimed}",
        )
    return location, offset, length


def _inline(tensor: onnx.TensorProto, model_path: Path) -> None:
    location, offset, length = _external_entry(tensor, model_path)
    with (model_path.resolve().parent / location).open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


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


def tensor_array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor's values; read-only where they need no decoding."""
    return numpy_helper.to_array(tensor)


def payload_sha256(proto: onnx.ModelProto) -> str:
    """Digest of every tensor of a model: name, element type, shape and values.

    It does not depend on how values are stored (raw or typed fields, inline or external, dense or
    as a `sparse_initializer`), so it changes exactly when a value does.
    """
    digests = {
        name: _tensor_digest(dense_array(tensor), tensor.values.data_type)
        if isinstance(tensor, onnx.SparseTensorProto)
        else _tensor_digest(tensor_array(tensor), tensor.data_type)
        for name, tensor in iter_named_tensors(proto)
    }
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(name.encode() + b"\0" + digests[name])
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


def dense_array(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """The dense form of a `SparseTensorProto`, whose indices are linear or one row a value."""
    values = tensor_array(sparse.values)
    indices = tensor_array(sparse.indices)
    shape = tuple(sparse.dims)
    dense = np.zeros(math.prod(shape), dtype=values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    dense[flat] = values
    return dense.reshape(shape)


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
    if not external and proto.ByteSize() <= PROTOBUF_LIMIT_BYTES:
        atomic_write_bytes(path, proto.SerializeToString(deterministic=True))
        return
    data_path = path.with_name(path.name + ".data")
    light = onnx.ModelProto()
    light.CopyFrom(proto)

    def write_data(stream: BinaryIO) -> None:
        for tensor in iter_tensors(light):
            if tensor.HasField("raw_data") and len(tensor.raw_data) >= 1024:
                offset = -(-stream.tell() // 4096) * 4096
                stream.write(b"\0" * (offset - stream.tell()))
                stream.write(tensor.raw_data)
                _point_outside(tensor, data_path.name, offset)

    atomic_write(data_path, write_data)
    atomic_write_bytes(path, light.SerializeToString(deterministic=True))


def _point_outside(tensor: onnx.TensorProto, location: str, offset: int) -> None:
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file beside its target, flush it to the disk, and rename it into place.

    Raises:
        OutputError: The target cannot be written; an existing file is left as it was.
    """
    atomic_write(Path(path), lambda stream: stream.write(data))


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Like `atomic_write_bytes`, for data that `fill` writes to a stream bit by bit."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            "the output cannot be written",
            where=path,
            got=error.strerror or error,
            remedy="name a path in an existing folder that you may write to",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work that an output can be written.

    Raises:
        OutputError: The folder is missing or read-only, or the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError("the output path is a folder", where=path, expected="a file name")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"):
            pass
    except OSError as error:
        raise OutputError(
            "the output cannot be written",
            where=path,
            got=error.strerror or error,
            remedy="name a path in an existing folder that you may write to",
        ) from None
