"""Tensors whose data stay in their file and are mapped into memory where they are looked at.

The message of such a tensor says where its data are, as ONNX's external data do, but with the
absolute path of a file that was checked, and with a mark. The mark holds a secret of this process,
so that no file and no other process can make one, and the state of the file, so that a file that
was changed since is noticed. The data may also be in the bytes that a file was read into.
"""

import itertools
import mmap
import os
import secrets
import weakref
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from onnx import TensorProto

from onnxprune.errors import ModelFileError
from onnxprune.files import check_state, file_state

_MARK = "onnxprune.mapped"
_SECRET = secrets.token_hex(16)
_IN_MEMORY = "in memory"


class FileBytes:
    """The bytes of a file; tensors can refer to them as long as somebody holds this.

    Attributes:
        data: The bytes.
        name: What tensors call them.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.name = str(next(_numbers))
        _held[self.name] = self


_numbers = itertools.count()
_held: weakref.WeakValueDictionary[str, FileBytes] = weakref.WeakValueDictionary()


def refer(tensor: TensorProto, file: Path | FileBytes, offset: int, length: int) -> None:
    """Leave a tensor's data in a file, whose place and size were checked; changes `tensor`."""
    release(tensor)
    tensor.data_location = TensorProto.EXTERNAL
    if isinstance(file, FileBytes):
        location, state = file.name, _IN_MEMORY
    else:
        location, state = os.fspath(file.resolve()), file_state(file)
    for key, value in (
        ("location", location),
        ("offset", str(offset)),
        ("length", str(length)),
        (_MARK, f"{_SECRET}:{state}"),
    ):
        tensor.external_data.add(key=key, value=value)


def release(tensor: TensorProto) -> None:
    """Forget where a tensor's data are; changes `tensor`."""
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    tensor.ClearField("raw_data")


def is_mapped(tensor: TensorProto) -> bool:
    """Whether a tensor's data are in a file or its bytes, by `refer` in this process."""
    return tensor.data_location == TensorProto.EXTERNAL and any(
        entry.key == _MARK and entry.value.startswith(_SECRET) for entry in tensor.external_data
    )


def mapped_length(tensor: TensorProto) -> int:
    """Bytes of a mapped tensor's data."""
    return int(_entries(tensor)["length"])


def mapped_data(tensor: TensorProto) -> np.ndarray:
    """The bytes of a mapped tensor, read-only.

    Raises:
        ModelFileError: The file was changed or removed since the model was read.
    """
    entries = _entries(tensor)
    offset, length = int(entries["offset"]), int(entries["length"])
    state = entries[_MARK].removeprefix(f"{_SECRET}:")
    place = entries["location"]
    source = _held[place].data if state == _IN_MEMORY else _mapping(place, state)
    return np.frombuffer(source, np.uint8, length, offset)


def drop_pages(tensors: Iterable[TensorProto]) -> None:
    """Let the memory go that what was read of mapped files takes; they can be read again."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    found = [_entries(tensor) for tensor in tensors if is_mapped(tensor)]
    for place, mark in {(entries["location"], entries[_MARK]) for entries in found}:
        state = mark.removeprefix(f"{_SECRET}:")
        if state != _IN_MEMORY:
            _mapping(place, state).madvise(mmap.MADV_DONTNEED)


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@lru_cache(maxsize=64)
def _mapping(path: str, state: str) -> mmap.mmap:
    """A file mapped into memory; kept open, so that a file that replaces it does no harm."""
    try:
        check_state(path, state)
        with open(path, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelFileError(
            "an external data file cannot be read any more", where=path, got=error
        ) from None
