"""Read and write `.onnx` files.

A model file is untrusted input. Sizes and external locations are checked before anything is
allocated, and whatever is wrong ends in a `ModelFileError`.
"""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxprune import external_data
from onnxprune.errors import ModelFileError
from onnxprune.external_data import load_external_data, load_mapped, move_outside
from onnxprune.files import (
    Digest,
    atomic_write,
    atomic_write_all,
    atomic_write_bytes,
    atomic_write_text,
    check_writable,
    file_state,
)
from onnxprune.graph_checks import check_depth, check_graphs
from onnxprune.mapped import FileBytes, is_mapped, mapped_length
from onnxprune.payload import (
    PROTOBUF_LIMIT_BYTES,
    check_payload,
    iter_graphs,
    iter_named_tensors,
    iter_tensors,
    payload_sha256,
    stored_bytes,
)
from onnxprune.wire import parse_in_place, parse_read

__all__ = [
    "PROTOBUF_LIMIT_BYTES",
    "OnnxModel",
    "ValueSpec",
    "atomic_write",
    "atomic_write_bytes",
    "atomic_write_text",
    "check_writable",
    "external_data_path",
    "fits_in_one_message",
    "iter_graphs",
    "iter_named_tensors",
    "iter_tensors",
    "payload_sha256",
    "read",
    "serialized",
    "value_spec",
    "write",
]

_HEAD_BYTES = 64
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

    @property
    def class_count(self) -> int | None:
        """Length of the class axis; None unless there are two axes and a known size."""
        if self.shape is not None and len(self.shape) == 2 and isinstance(self.shape[1], int):
            return self.shape[1]
        return None


@dataclass(frozen=True)
class OnnxModel:
    """A model read into memory.

    Attributes:
        path: Where it was read from; None for a model handed over in memory.
        proto: The model with its external data loaded into it; where they are large, tensors stay
            in their files and are mapped (see `onnxprune.mapped`).
        digest: Computes `sha256`.
        size_bytes: Size of the file with its external data.
        external_files: The files beside the `.onnx` file that held tensors.
        file_bytes: What tensors refer to that were left in the bytes of the file.
    """

    path: Path | None
    proto: onnx.ModelProto
    digest: Digest
    size_bytes: int
    external_files: tuple[Path, ...] = ()
    file_bytes: FileBytes | None = None

    @property
    def sha256(self) -> str:
        """Digest of the file as it was read, followed by its external data files in the order of
        their names; for a model without external data, what `sha256sum` prints.

        Raises:
            ModelFileError: A file was changed before the digest was first asked for.
        """
        return self.digest.hex

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
        return self.outputs[0].class_count


def read(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | OnnxModel, *, light: bool = False
) -> OnnxModel:
    """Read a model from a path, from serialised bytes, or from a `ModelProto`.

    External data are read only from inside the model's own folder, after their sizes are checked.

    Args:
        source: The model.
        light: Leave the larger tensors in the bytes of the file, which the model then holds: they
            are not copied, but only `onnxprune.stored` can tell what is in them.

    Raises:
        ModelFileError: No such file, not ONNX, truncated, or bad external data.
    """
    if isinstance(source, OnnxModel):
        return source
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source)
    if isinstance(source, bytes):
        proto = _parse(source, "the model in memory")
        return _checked(None, proto, Digest.of(source), len(source))
    path = Path(source)
    size, state = _check_file(path)
    proto, read_bytes = _parse_file(path, size, light=light)
    external = load_external_data(proto, path)
    size += sum(file.stat().st_size for file in external)
    states = {path: state} | {file: file_state(file) for file in external}
    found = _checked(path, proto, Digest.of_files(states), size, tuple(external))
    return replace(found, file_bytes=read_bytes)


def _from_proto(source: onnx.ModelProto) -> OnnxModel:
    check_depth(source, "the model in memory")
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    if fits_in_one_message(proto):
        data = serialized(proto)
        return _checked(None, proto, Digest.of(data), len(data))
    size = sum(stored_bytes(tensor) for tensor in iter_tensors(proto))
    return _checked(None, proto, Digest(partial(payload_sha256, proto)), size)


def fits_in_one_message(proto: onnx.ModelProto) -> bool:
    """Whether a model with its data inline is below the size that Protocol Buffers can write."""
    mapped = sum(mapped_length(tensor) for tensor in iter_tensors(proto) if is_mapped(tensor))
    try:
        return int(proto.ByteSize()) + mapped <= PROTOBUF_LIMIT_BYTES
    except EncodeError:  # how protobuf itself says that it is not
        return False


def serialized(proto: onnx.ModelProto) -> bytes:
    """A model as one message, with the tensors inline that are mapped."""
    if any(is_mapped(tensor) for tensor in iter_tensors(proto)):
        inline = onnx.ModelProto()
        inline.CopyFrom(proto)
        load_mapped(inline)
        proto = inline
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _check_file(path: Path) -> tuple[int, str]:
    """Size and state of a file that may be read."""
    try:
        if path.is_dir():
            raise ModelFileError("this is a folder, not an ONNX file", where=path)
        size, state = path.stat().st_size, file_state(path)
        if not path.is_file():
            raise ModelFileError("this is a device or a pipe, not an ONNX file", where=path)
    except FileNotFoundError:
        raise ModelFileError("no such model file", where=path) from None
    except (OSError, ValueError) as error:
        raise ModelFileError("the model file cannot be read", where=path, got=error) from None
    if size > PROTOBUF_LIMIT_BYTES:
        raise ModelFileError(
            "the file is larger than an ONNX file can be",
            where=path,
            got=f"{size} bytes",
            expected=f"at most {PROTOBUF_LIMIT_BYTES} bytes",
            remedy="large models keep their tensors in external data files",
        )
    return size, state


def _parse_file(path: Path, size: int, *, light: bool) -> tuple[onnx.ModelProto, FileBytes | None]:
    """The file's message, and the bytes that its tensors refer to, if there are any."""
    try:
        if size <= external_data.READ_AT_ONCE_BYTES and light:
            found = FileBytes(path.read_bytes())
            _check_format(found.data[:_HEAD_BYTES], str(path))
            return parse_read(found, external_data.MIN_MAPPED_BYTES), found
        if size <= external_data.READ_AT_ONCE_BYTES:
            return _parse(path.read_bytes(), str(path)), None
        with path.open("rb") as stream:
            _check_format(stream.read(_HEAD_BYTES), str(path))
        return parse_in_place(path, external_data.MIN_MAPPED_BYTES), None
    except OSError as error:
        raise ModelFileError("the model file cannot be read", where=path, got=error) from None
    except (DecodeError, ValueError) as error:
        raise _unparsed(size, str(path), error) from None


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    _check_format(data[:_HEAD_BYTES], where)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise _unparsed(len(data), where, error) from None
    return proto


def _check_format(head: bytes, where: str) -> None:
    for magic, meaning in _FORMAT_HINTS.items():
        if head.startswith(magic):
            raise ModelFileError(
                "this is not an ONNX file", where=where, got=meaning, expected="an .onnx file"
            )
    if not head:
        raise ModelFileError("the model file is empty", where=where, got="0 bytes")


def _unparsed(size: int, where: str, reason: Exception) -> ModelFileError:
    return ModelFileError(
        "this is not an ONNX file, or it is truncated",
        where=where,
        got=f"{size} bytes that do not parse ({reason})",
        expected="a serialised onnx.ModelProto",
        remedy="fetch or export the file again and compare its size",
    )


def _checked(
    path: Path | None,
    proto: onnx.ModelProto,
    digest: Digest,
    size_bytes: int,
    external_files: tuple[Path, ...] = (),
) -> OnnxModel:
    """The model, if it is a sound one."""
    where = str(path or "the model in memory")
    check_graphs(proto, where)
    check_payload(proto, where)
    return OnnxModel(path, proto, digest, size_bytes, external_files)


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
        atomic_write_bytes(path, serialized(proto))
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
