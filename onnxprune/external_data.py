"""External data: tensors that lie in files beside the `.onnx` file.

The paths stand in the model, which is untrusted: only files inside the model's own folder are
opened, and only after their sizes are checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto

from onnxprune.errors import ModelFileError
from onnxprune.mapped import is_mapped, mapped_data, refer, release
from onnxprune.payload import claimed_bytes, iter_tensors

MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the `.onnx` file: they are mostly shapes, which readers want at once."""

READ_AT_ONCE_BYTES = 256 * 2**20
"""Up to this size, files are read into memory and may change afterwards; larger ones are mapped."""

MIN_MAPPED_BYTES = 64 * 2**10
"""Smaller tensors of a large model are read: ONNX's own functions have to see shapes."""

_ALIGNMENT = 4096
_SLACK_BYTES = 64 * 2**20
_MAX_SHARING = 8


@dataclass(frozen=True)
class _Entry:
    tensor: TensorProto
    location: str
    file: Path
    offset: int
    length: int


def load_external_data(proto: onnx.ModelProto, model_path: Path) -> list[Path]:
    """Move a model's external data into its tensors; changes `proto`.

    Where they are large, the larger tensors stay in their files and are mapped.

    Returns:
        The files that were read, in the order of their names in the model.

    Raises:
        ModelFileError: A file is missing, too short, unreadable, or outside the model's folder.
    """
    entries = list(_entries(proto, model_path))
    files = {entry.location: entry.file for entry in entries}
    sizes = {file: file.stat().st_size for file in files.values()}
    claimed = sum(entry.length for entry in entries)
    if claimed > _MAX_SHARING * sum(sizes.values()) + _SLACK_BYTES:
        raise ModelFileError(
            "tensors share their external data absurdly often",
            where=model_path,
            got=f"{claimed} bytes of tensors in {sum(sizes.values())} bytes of files",
        )
    large = claimed > READ_AT_ONCE_BYTES
    for entry in entries:
        if large and entry.length >= MIN_MAPPED_BYTES:
            refer(entry.tensor, entry.file, entry.offset, entry.length)
            continue
        try:
            with entry.file.open("rb") as stream:
                stream.seek(entry.offset)
                data = stream.read(entry.length)
        except OSError as error:
            raise ModelFileError(
                "an external data file cannot be read", where=entry.file, got=error.strerror
            ) from None
        release(entry.tensor)
        entry.tensor.raw_data = data
    return [files[location] for location in sorted(files)]


def _entries(proto: onnx.ModelProto, model_path: Path) -> Iterator[_Entry]:
    """The external tensors of a model, each in a file that exists and is long enough."""
    folder = model_path.resolve().parent
    for tensor in iter_tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL or is_mapped(tensor):
            continue
        where = f"{model_path}, tensor {tensor.name!r}"
        location, offset, length = _location(tensor, where)
        file = _inside(folder, location, where)
        if offset + length > file.stat().st_size:
            raise ModelFileError(
                "an external data file is truncated",
                where=where,
                got=f"{location!r} has {file.stat().st_size} bytes",
                expected=f"at least {offset + length} bytes",
            )
        yield _Entry(tensor, location, file, offset, length)


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file that a location names, if it exists and lies inside the model's folder."""
    file = folder / location
    try:
        inside = not Path(location).is_absolute() and folder in file.resolve().parents
        exists = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, a circle of links
        raise ModelFileError(
            "an external data file cannot be found", where=where, got=f"{location[:200]!r}: {error}"
        ) from None
    if not inside:
        raise ModelFileError(
            "external data lie outside the model's folder",
            where=where,
            got=location,
            expected="a file beside the model, not reached through `..` or a link",
        )
    if not exists:
        raise ModelFileError(
            "an external data file is missing",
            where=where,
            got=f"no file {location!r} beside the model",
            remedy="copy the data file into the model's folder",
        )
    return file


def _location(tensor: TensorProto, where: str) -> tuple[str, int, int]:
    """Location, offset and length in bytes of a tensor's external data."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    claimed = claimed_bytes(tensor, where)
    try:
        location = entries["location"]
        offset = int(entries.get("offset", "0") or 0)
        length = int(entries.get("length", claimed) or 0)
        if not isinstance(location, str):  # what protobuf hands out where a string is not UTF-8
            raise TypeError
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


def load_mapped(proto: onnx.ModelProto) -> None:
    """Read the tensors into memory that are mapped; changes `proto`."""
    for tensor in iter_tensors(proto):
        if is_mapped(tensor):
            data = mapped_data(tensor).tobytes()
            release(tensor)
            tensor.raw_data = data


def move_outside(proto: onnx.ModelProto, stream: BinaryIO, location: str) -> None:
    """Write the larger tensors of a model to a stream and make them point there; changes `proto`.

    Args:
        proto: The model, with its data inline or mapped.
        stream: The data file, at its beginning.
        location: The name that the data file will have, beside the model.
    """
    for tensor in iter_tensors(proto):
        mapped = is_mapped(tensor)
        data = mapped_data(tensor).data if mapped else tensor.raw_data
        length = len(data)
        if length < MIN_EXTERNAL_BYTES and not mapped:
            continue
        offset = -(-stream.tell() // _ALIGNMENT) * _ALIGNMENT
        stream.write(b"\0" * (offset - stream.tell()))
        stream.write(data)
        release(tensor)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
