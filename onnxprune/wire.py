"""Parse a large model file without reading its tensors.

`ParseFromString` copies a whole file twice. Here the messages of a file that is mapped into memory,
or was read, are walked in their wire format as far as large tensors lie in them; what is parsed is
the file without these tensors' data, which stay where they are (see `onnxprune.mapped`).

The format: https://protobuf.dev/programming-guides/encoding/
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto

from onnxprune.mapped import FileBytes, refer

_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
_MAX_VARINT_BYTES = 10

_INNER = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
}
"""Kinds of messages that tensors lie in: field number -> kind of the message in that field."""

_MOST_DEEP = 100
"""How deep Protocol Buffers let messages lie in each other."""

_RAW_DATA = 9
_EXTERNAL_FIELDS = frozenset({13, 14})


def parse_in_place(path: Path, min_mapped_bytes: int) -> ModelProto:
    """Parse a model whose larger tensors stay in the file.

    Args:
        path: The file; it must not be empty.
        min_mapped_bytes: Size from which a tensor's data stay there.

    Raises:
        ValueError: The file is no such message, as far as it was looked at.
        google.protobuf.message.DecodeError: The same of the rest.
        OSError: The file cannot be read.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _parsed(_Lightener(data, path, min_mapped_bytes))


def parse_read(read: FileBytes, min_mapped_bytes: int) -> ModelProto:
    """Parse the bytes of a file, in which larger tensors stay.

    Args:
        read: The bytes; somebody has to hold them as long as these tensors are in use.
        min_mapped_bytes: Size from which a tensor's data stay there.

    Raises:
        ValueError: They are no such message, as far as it was looked at.
        google.protobuf.message.DecodeError: The same of the rest.
    """
    return _parsed(_Lightener(read.data, read, min_mapped_bytes))


def _parsed(lightener: "_Lightener") -> ModelProto:
    proto = ModelProto()
    proto.ParseFromString(lightener.model())
    return proto


class _Lightener:
    def __init__(
        self, data: mmap.mmap | bytes, place: Path | FileBytes, min_mapped_bytes: int
    ) -> None:
        self._data = data
        self._place = place
        self._min_mapped_bytes = min_mapped_bytes

    def model(self) -> bytes:
        """The bytes of the whole file without the data of large tensors."""
        return self._message("model", 0, len(self._data), 0)

    def _message(self, kind: str, start: int, end: int, depth: int) -> bytes:
        if depth > _MOST_DEEP:
            raise ValueError(f"messages lie more than {_MOST_DEEP} deep in each other")
        if end - start < self._min_mapped_bytes:
            return self._data[start:end]
        if kind == "tensor":
            return self._tensor(start, end)
        parts = []
        copied = start
        for number, wire_type, begin, value, stop in self._fields(start, end):
            inner = _INNER[kind].get(number)
            large = stop - value >= self._min_mapped_bytes
            if inner is None or wire_type != _LENGTH_DELIMITED or not large:
                continue
            parts.append(self._data[copied:begin])
            light = self._message(inner, value, stop, depth + 1)
            parts.append(_varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(light)) + light)
            copied = stop
        return b"".join([*parts, self._data[copied:end]])

    def _tensor(self, start: int, end: int) -> bytes:
        fields = list(self._fields(start, end))
        data = [field for field in fields if field[0] == _RAW_DATA]
        if len(data) != 1 or any(field[0] in _EXTERNAL_FIELDS for field in fields):
            return self._data[start:end]
        _, _, begin, value, stop = data[0]
        if stop - value < self._min_mapped_bytes:
            return self._data[start:end]
        reference = TensorProto()
        refer(reference, self._place, value, stop - value)
        encoded: bytes = reference.SerializeToString()
        return self._data[start:begin] + self._data[stop:end] + encoded

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Fields as (number, wire type, where its tag, its value and the next field begin)."""
        position = start
        while position < end:
            begin = position
            tag, position = self._read_varint(position, end)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == 0:
                value = position
                _, position = self._read_varint(position, end)
            elif wire_type == _LENGTH_DELIMITED:
                length, value = self._read_varint(position, end)
                position = value + length
            elif wire_type in _FIXED_BYTES:
                value = position
                position += _FIXED_BYTES[wire_type]
            else:
                raise ValueError(f"wire type {wire_type} at byte {begin}")
            if position > end:
                raise ValueError(f"a field at byte {begin} reaches beyond its message")
            yield number, wire_type, begin, value, position

    def _read_varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position + index >= end:
                break
            byte = self._data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise ValueError(f"no number at byte {position}")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
