"""Values as TOML text, and tables laid over tables."""

import json
from collections.abc import Mapping
from typing import Any


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
