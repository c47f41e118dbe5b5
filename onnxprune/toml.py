"""TOML in and out, and tables laid over tables."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.errors import PolicyError, RecipeError, UsageError


def allowed_here(key: object, allowed: Sequence[str]) -> str:
    """The keys that exist where an unknown one was found, the one that was meant first."""
    meant = difflib.get_close_matches(str(key), allowed, 1)
    hint = "".join(f"did you mean {one!r}? " for one in meant)
    return f"{hint}allowed here: {', '.join(allowed)}"


def read_settings(
    path: Path, kind: str, error: type[RecipeError | PolicyError], remedy: str
) -> dict[str, Any]:
    """The tables of a file that a user wrote; a byte order mark, as editors leave it, is no harm.

    Args:
        path: The file.
        kind: What it is called in messages.
        error: What is raised if it is no TOML.
        remedy: What to do if it is missing.

    Raises:
        UsageError: The file is missing, or cannot be read.
        RecipeError: It is no TOML; or PolicyError, as `error` says.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"no such {kind} file", where=path, remedy=remedy) from None
    except OSError as problem:
        raise UsageError(
            f"the {kind} file cannot be read", where=path, got=problem.strerror, remedy=remedy
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise error(f"the {kind} is not readable TOML", [str(problem)], where=path) from None
    except RecursionError:
        raise error(f"the {kind} is nested too deeply", [], where=path) from None


def merged(values: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`values` with single keys of its tables replaced; a value of None replaces nothing."""
    result = {table: dict(v) if isinstance(v, Mapping) else v for table, v in values.items()}
    for table, replacements in overrides.items():
        present = {key: value for key, value in replacements.items() if value is not None}
        if present:
            inner = result.setdefault(table, {})
            if isinstance(inner, dict):
                inner.update(present)
    return result


def toml_text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of values, and of tables of values, as a TOML document."""
    lines: list[str] = []
    for table, values in tables.items():
        plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
        lines.append(f"[{table}]")
        lines += [f"{key} = {toml_value(value)}" for key, value in plain.items()]
        for key in [key for key in values if key not in plain]:
            if values[key]:
                lines.append(f"[{table}.{key}]")
                lines += [f"{toml_value(k)} = {toml_value(v)}" for k, v in values[key].items()]
        lines.append("")
    return "\n".join(lines)


def toml_value(value: object) -> str:
    """A string, number, boolean, list or inline table as TOML; JSON is the common ground."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{toml_value(k)} = {toml_value(v)}' for k, v in value.items())}}}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
