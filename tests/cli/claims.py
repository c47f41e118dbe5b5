"""The fields of a JSON Schema, and how to put something else into each."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

Field = tuple[str, ...]
"""Names on the way to a field; `*` stands for the first entry of a list or an object."""

NOT_OF_TYPE: dict[str, list[Any]] = {
    "string": [5, True, ["text"], None],
    "integer": ["3", " 384 ", True, 1.5, None],
    "number": ["0.5", True, [0.5], None],
    "boolean": ["true", 1, 0, None],
    "array": ["text", 3, {"0": 1}, None],
    "object": ["text", 3, [], None],
}


def fields(schema: dict[str, Any]) -> Iterator[tuple[Field, dict[str, Any]]]:
    """Every field of a schema with what the schema says of it, those of its parts included."""

    def walk(path: Field, part: dict[str, Any]) -> Iterator[tuple[Field, dict[str, Any]]]:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        for name, entry in part.get("properties", {}).items():
            yield (*path, name), entry
            yield from walk((*path, name), entry)
        inner = [part.get("items"), *part.get("patternProperties", {}).values()]
        inner.append(part.get("additionalProperties"))
        for entry in inner:
            if isinstance(entry, dict) and entry:
                if "$ref" not in entry:
                    yield (*path, "*"), entry
                yield from walk((*path, "*"), entry)
        for option in part.get("anyOf", []):
            yield from walk(path, option)

    yield from walk((), schema)


def types_of(entry: dict[str, Any]) -> list[str]:
    """The JSON types that a field may have."""
    options = entry.get("anyOf", [entry])
    return [option.get("type", "integer" if "const" in option else "object") for option in options]


def wrong_values(entry: dict[str, Any]) -> list[Any]:
    """Values of other types than a field has."""
    types = types_of(entry)
    values = NOT_OF_TYPE[types[0]]
    return [value for value in values if value is not None or "null" not in types]


def read(model: Path, key: str) -> dict[str, Any]:
    """What a file says under a key."""
    proto = onnx.load(model)
    (entry,) = [item for item in proto.metadata_props if item.key == key]
    found: dict[str, Any] = json.loads(entry.value)
    return found


def changed(model: Path, key: str, claims: Any) -> Path:
    """The file with something else under the key; tensors' own entries follow the model's."""
    proto = onnx.load(model)
    (entry,) = [item for item in proto.metadata_props if item.key == key]
    entry.value = claims if isinstance(claims, str) else json.dumps(claims)
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    target = model.with_name("changed.onnx")
    onnx.save(proto, target)
    return target


def edited(claims: dict[str, Any], path: Field, edit: Callable[[Any, Any], object]) -> Any:
    """A copy of the claims after `edit(holder, key)` of the field."""
    result = copy.deepcopy(claims)
    holder: Any = result
    for name in path[:-1]:
        holder = holder[first_key(holder) if name == "*" else name]
    edit(holder, first_key(holder) if path[-1] == "*" else path[-1])
    return result


def first_key(holder: Any) -> Any:
    return 0 if isinstance(holder, list) else next(iter(holder))


def put(value: Any) -> Callable[[Any, Any], object]:
    """Sets a field."""
    return lambda holder, key: holder.__setitem__(key, value)


def remove(holder: Any, key: Any) -> None:
    del holder[key]
