"""`.npz` files without trust and without loading them: headers first, limits, then single rows.

NumPy's own loader allocates what a header claims. Here the header of each member is read from the
zip archive and compared with the archive's directory and the file's length before anything is
allocated. Pickled (object) arrays are refused.
"""

import ast
import io
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from onnxprune.errors import DataError

MAX_COMPRESSED_ARRAY_BYTES = 4 * 2**30
"""A compressed array must be held in memory as a whole; a larger one is refused."""

MAX_MEMBERS = 1000
_MAX_DEFLATE_RATIO = 1100
_LOCAL_HEADER = struct.Struct("<26xHH")
_MAX_HEADER_BYTES = 4096
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    RuntimeError,  # zipfile: encrypted, and as NotImplementedError unknown compression
)


@dataclass(frozen=True)
class Member:
    """One array of an `.npz` file, known by its header alone.

    Attributes:
        name: Array name, without `.npy`.
        dtype: Element type.
        shape: Shape, rows first.
        fortran: Column-major order.
        header_bytes: Length of the array's own header within the member.
        data_offset: Where its values begin in the file, if it is stored uncompressed, else None.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    header_bytes: int
    data_offset: int | None

    @property
    def size_bytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def inspect_npz(path: Path) -> dict[str, Member]:
    """The arrays of an `.npz` file by name, from its headers alone.

    Raises:
        DataError: Missing, damaged, or beyond the limits.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            entries = archive.infolist()
            if len(entries) > MAX_MEMBERS:
                raise _damaged(path, f"{len(entries)} arrays", f"at most {MAX_MEMBERS}")
            members = [_inspect(path, archive, stream, entry) for entry in entries]
    except FileNotFoundError:
        raise DataError("no such data file", where=path) from None
    except _DAMAGE as error:
        raise _damaged(path, str(error), "an .npz file written by numpy.savez") from None
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise _damaged(path, f"array names {names}", "each name once")
    return {member.name: member for member in members}


def _inspect(
    path: Path, archive: zipfile.ZipFile, stream: io.BufferedReader, entry: zipfile.ZipInfo
) -> Member:
    where = f"{path}, array {entry.filename!r}"
    if not entry.filename.endswith(".npy"):
        raise _damaged(where, "a file that is no .npy array", "arrays only")
    with archive.open(entry) as content:
        dtype, shape, fortran, header_bytes = _read_header(content, where)
    stored = entry.compress_type == zipfile.ZIP_STORED
    offset = None
    if stored:
        stream.seek(entry.header_offset)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        offset = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes + header_bytes
    member = Member(
        entry.filename.removesuffix(".npy"), dtype, shape, fortran, header_bytes, offset
    )
    if header_bytes + member.size_bytes != entry.file_size:
        raise _damaged(
            where,
            f"{entry.file_size - header_bytes} bytes of values",
            f"{member.size_bytes} bytes for {dtype}{list(shape)}",
        )
    if offset is not None and offset + member.size_bytes > os.fstat(stream.fileno()).st_size:
        raise _damaged(where, "a file that ends before the array does", "the whole array")
    if not stored and member.size_bytes > MAX_COMPRESSED_ARRAY_BYTES:
        raise DataError(
            "a compressed array is too large to be held in memory",
            where=where,
            got=f"{member.size_bytes} bytes",
            expected=f"at most {MAX_COMPRESSED_ARRAY_BYTES} bytes",
            remedy="split it into shards, or write it with numpy.savez (then it is memory-mapped)",
        )
    if not stored and entry.file_size > entry.compress_size * _MAX_DEFLATE_RATIO + 1024:
        raise _damaged(where, f"{entry.compress_size} compressed bytes", "a plausible size")
    return member


def _read_header(content: IO[bytes], where: str) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Element type, shape, column-major order, and length of an `.npy` header."""
    preamble = content.read(8)
    if preamble[:6] != b"\x93NUMPY" or preamble[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise _damaged(where, "no .npy header", "an array written by numpy.save")
    length_format = "<H" if preamble[6] == 1 else "<I"
    length_bytes = content.read(struct.calcsize(length_format))
    try:
        (length,) = struct.unpack(length_format, length_bytes)
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = ast.literal_eval(content.read(length).decode("latin1").strip())
        dtype = np.dtype(header["descr"])
        shape = tuple(header["shape"])
        fortran = header["fortran_order"]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"shape {shape}")
        if type(fortran) is not bool:
            raise ValueError(f"fortran_order {fortran!r}")
    except (ValueError, KeyError, TypeError, SyntaxError, struct.error, RecursionError) as error:
        raise _damaged(where, f"a bad .npy header ({error})", "an array") from None
    if dtype.hasobject or dtype.fields is not None or dtype.kind not in "biuf":
        raise DataError(
            "the array holds no plain numbers",
            where=where,
            got=f"dtype {dtype}",
            expected="booleans, integers or floats",
            remedy="pickled and structured arrays are refused; save plain arrays",
        )
    return dtype, shape, fortran, 8 + len(length_bytes) + length


def open_array(path: Path, member: Member) -> np.ndarray:
    """The array: memory-mapped where it is stored uncompressed, else read into memory.

    Raises:
        DataError: The file changed or is damaged.
    """
    where = f"{path}, array {member.name!r}"
    order: Literal["F", "C"] = "F" if member.fortran else "C"
    try:
        if member.size_bytes == 0:
            return np.zeros(member.shape, member.dtype)
        if member.data_offset is not None:
            return np.memmap(path, member.dtype, "r", member.data_offset, member.shape, order=order)
        buffer = bytearray(member.size_bytes)
        with zipfile.ZipFile(path) as archive, archive.open(member.name + ".npy") as content:
            content.read(member.header_bytes)
            _read_into(content, buffer)
            content.read(1)  # the archive's checksum is compared at the end of the member
    except _DAMAGE as error:
        raise _damaged(where, str(error), "the array that its header describes") from None
    return np.frombuffer(buffer, member.dtype).reshape(member.shape, order=order)


def _read_into(content: IO[bytes], target: bytearray) -> None:
    position = 0
    while position < len(target):
        chunk = content.read(min(len(target) - position, 2**24))
        if not chunk:
            raise EOFError(f"the data end after {position} of {len(target)} bytes")
        target[position : position + len(chunk)] = chunk
        position += len(chunk)


def _damaged(where: object, got: str, expected: str) -> DataError:
    return DataError(
        "the .npz file is damaged",
        where=where,
        got=got,
        expected=expected,
        remedy="write the file again with numpy.savez",
    )
