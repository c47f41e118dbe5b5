"""Files that a reader never sees half written."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import OutputError


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

    Raises:
        OutputError: A target cannot be written; existing files are left as they were.
    """
    token = secrets.token_hex(4)
    temporaries = {path: path.with_name(f".{path.name}.{token}.tmp") for path in contents}
    path = next(iter(contents))
    try:
        for path, fill in contents.items():
            with temporaries[path].open("xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        for temporary in temporaries.values():
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
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        "the output cannot be written",
        where=path,
        got=error.strerror or error,
        remedy="name a path in an existing folder that you may write to",
    )
