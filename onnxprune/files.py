"""Files that a reader never sees half written, and digests of files."""

import contextlib
import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import ModelFileError, OutputError

_CHUNK_BYTES = 8 * 2**20


def file_state(path: str | os.PathLike[str]) -> str:
    """Tells two states of a file apart, without reading it."""
    status = os.stat(path)
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def check_state(path: str | os.PathLike[str], state: str) -> None:
    """Make sure that a file is as it was.

    Raises:
        ModelFileError: It was changed.
        OSError: It is gone.
    """
    if file_state(path) != state:
        raise ModelFileError(
            "the file was changed after the model was read",
            where=path,
            remedy="read the model again, and replace model files instead of writing into them",
        )


class Digest:
    """A SHA-256 digest that is computed when it is first asked for.

    Digests of large models take longer than reading them, and few users of a model need one.

    Args:
        compute: Returns the digest in hexadecimal digits.
    """

    def __init__(self, compute: Callable[[], str]) -> None:
        self._compute = compute

    @classmethod
    def of(cls, data: bytes) -> "Digest":
        """The digest of data, which are not kept."""
        value = hashlib.sha256(data).hexdigest()
        return cls(partial(str, value))

    @classmethod
    def of_files(cls, states: Mapping[Path, str]) -> "Digest":
        """The digest of files, one after the other.

        Args:
            states: The files in order, each with its `file_state` when it was read.
        """
        return cls(partial(_files_sha256, states))

    @cached_property
    def hex(self) -> str:
        """The digest in hexadecimal digits.

        Raises:
            ModelFileError: A file is no longer what it was.
        """
        return self._compute()


def _files_sha256(states: Mapping[Path, str]) -> str:
    digest = hashlib.sha256()
    for file, state in states.items():
        try:
            check_state(file, state)
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise ModelFileError(
                "a model file cannot be read any more", where=file, got=error.strerror
            ) from None
    return digest.hexdigest()


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
    atomic_write_all({path: fill})


def atomic_write_all(contents: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
    """Write files that belong together, in order; none takes its place before all are complete.

    Folders that are missing are made.

    Raises:
        OutputError: A target cannot be written; existing files are left as they were.
    """
    token = secrets.token_hex(4)
    temporaries = {path: path.with_name(f".{path.name}.{token}.tmp") for path in contents}
    path = next(iter(contents))
    try:
        for path, fill in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporaries[path].open("xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
        for folder in {path.parent for path in contents}:
            _sync_folder(folder)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder outlast a power loss; not every file system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work that an output can be written, and leave nothing behind.

    Writing makes a folder that is missing, so the nearest one that exists has to be writable.

    Raises:
        OutputError: That folder is read-only or no folder, or the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError("the output path is a folder", where=path, expected="a file name")
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", suffix=".tmp"):
            pass
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        "the output cannot be written",
        where=path,
        got=error.strerror or error,
        remedy="free some space"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        else "name a path in a folder that you may write to",
    )
