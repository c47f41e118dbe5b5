"""Statements in a model's metadata, read without forgiving anything.

What a lax reader takes for a number (a text, a boolean) another tool takes for something else, so
only the very types of the schema pass.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import onnx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

_MOST_SHOWN = 80

HEX64 = r"^[0-9a-f]{64}$"
VERSION_TEXT = r"^[0-9]+(\.[0-9A-Za-z]+)*([-+!][0-9A-Za-z.]+)?$"

Count = Annotated[int, Field(ge=0)]
"""A number of things."""


class Claims(BaseModel):
    """A record in which unknown fields, missing ones and other types than stated are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole_number(value: object) -> object:
    """`true` and `1.0` equal 1 in Python, and are no version number in JSON."""
    if type(value) is not int:
        raise ValueError("Input should be a whole number")
    return value


SchemaVersion = Annotated[Literal[1], BeforeValidator(_whole_number)]
"""The only version of both records so far."""

T = TypeVar("T", bound=Claims)


def read_claims(kind: type[T], raw: Mapping[str, Any]) -> tuple[T | None, list[str]]:
    """A record as an object, or what is wrong with its form, one line a field.

    Args:
        kind: The record's class.
        raw: What `json_object` read.
    """
    try:
        return kind.model_validate_json(json.dumps(raw)), []
    except ValidationError as error:
        return None, [problem_text(item) for item in error.errors(include_url=False)]


def problem_text(item: Any, record: str = "") -> str:
    """Which field, what was found, what was expected.

    Args:
        item: An entry of pydantic's `ValidationError.errors`.
        record: Where the record is that was read; empty for the metadata as a whole.
    """
    where = ".".join(str(part) for part in (record, *item["loc"]) if part != "")
    expected = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "missing":
        return f"{where}: it is missing, and no file may leave it out"
    if not item["loc"]:
        return f"{where or 'the metadata'}: {brief(expected)}"
    if item["type"] == "extra_forbidden":
        expected = "no field of this name"
    expected = expected.replace("String should match pattern ", "text that matches ")
    return f"{where}: found {shown(item['input'])}, expected {expected}"


def shown(value: object) -> str:
    """A value as JSON has it, shortened, so that `"0.5"` and `0.5` look different."""
    return brief(json.dumps(value, ensure_ascii=False, default=repr))


def brief(text: str) -> str:
    """A text that may be endless, shortened."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def json_object(text: str) -> dict[str, Any] | None:
    """A JSON object; None for anything else.

    That includes an object in which a key stands twice, of whose values readers take different
    ones, NaN and infinity, which are no JSON, and halves of characters, which are no text.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value


def entries_of(holder: Any, key: str) -> list[str]:
    """The values that a message's `metadata_props` have under a key."""
    return [entry.value for entry in holder.metadata_props if entry.key == key]


def drop_entries(holder: onnx.ModelProto | onnx.TensorProto, *keys: str) -> None:
    """Remove what a message's `metadata_props` have under these keys."""
    for place in reversed(range(len(holder.metadata_props))):
        if holder.metadata_props[place].key in keys:
            del holder.metadata_props[place]


def json_text(value: object) -> str:
    """JSON that is the same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def only_entry(
    proto: onnx.ModelProto, key: str, fault: Callable[[str], None]
) -> dict[str, Any] | None:
    """The object under a key of a model's metadata; None if there is none, or it cannot be read.

    Args:
        proto: The model.
        key: The key.
        fault: Is told why it cannot be read.
    """
    entries = entries_of(proto, key)
    if len(entries) > 1:
        fault(f"the model has {len(entries)} entries of this kind")
    if len(entries) != 1:
        return None
    found = json_object(entries[0])
    if found is None:
        fault("the metadata are no JSON object, or have a key twice")
    return found
