"""Read the files that a run or a probe leaves behind, without torch and without pickle.

They are untrusted input: sizes are limited before reading, every file is validated, and what is
wrong names the file.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from onnxprune.errors import UsageError

_MAX_FILE_BYTES = 256 * 1024**2
REMEDY = (
    "name the folder that `onnxprune prune` or `onnxprune cascade` wrote with --run-dir, or run it "
    "again"
)


Part = TypeVar("Part", bound=BaseModel)


def read_text(path: Path) -> str:
    """The text of a file of at most 256 MiB.

    Raises:
        UsageError: It is missing, too large, unreadable or no UTF-8.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > _MAX_FILE_BYTES:
            raise UsageError(
                "a file of the run directory is too large to be read",
                where=path,
                got=f"{size_bytes} bytes",
                expected=f"at most {_MAX_FILE_BYTES}",
            )
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(
            f"the run directory has no {path.name}", where=path, remedy=REMEDY
        ) from error
    except OSError as error:
        raise UsageError(f"{path.name} cannot be read", where=path, got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise damaged(path, f"bytes that are not UTF-8 at offset {error.start}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UsageError: As `read_text`, or it holds something else.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise damaged(path, f"{error.msg} (line {error.lineno})") from error
    except RecursionError as error:
        raise damaged(path, "values nested too deeply") from error
    except ValueError as error:
        raise damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise damaged(path, type(value).__name__, expected="a JSON object")
    return value


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """What TOML text holds that was read from `path`.

    Raises:
        UsageError: It is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise damaged(path, str(error)) from error


def validated(model: type[Part], value: Any, path: Path, line: int | None = None) -> Part:
    """`value` as a part of the file at `path`, of line `line` where it is one of a log.

    Raises:
        UsageError: It does not fit; the first key that does not is named.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"{key}: " if line is None else f"line {line}, {key}: "
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise damaged(path, f"{where}{first['msg']}{more}") from error


def damaged(path: Path, got: str, expected: str | None = None) -> UsageError:
    """An error for a file whose content cannot be right."""
    return UsageError(
        f"{path.name} is damaged", where=path, got=got, expected=expected, remedy=REMEDY
    )
