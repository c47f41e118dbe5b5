"""Data specs: the text that names a data set on the command line and in a recipe."""

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl

from onnxprune.errors import DataError

_REMEDY = (
    "a folder of class folders, an .npz file, a folder of .npz shards, "
    "torchvision:NAME?root=FOLDER, or python:package.module:function"
)


@dataclass(frozen=True)
class DataSpec:
    """A parsed spec.

    Attributes:
        kind: Which family of readers it asks for.
        target: The path, the torchvision class name, or `package.module:function`.
        parameters: What follows the `?`, as text; only with torchvision.
    """

    kind: Literal["path", "torchvision", "python"]
    target: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_spec(spec: str) -> DataSpec:
    """Parse a data spec.

    Raises:
        DataError: The spec is empty or malformed.
    """
    kind, _, rest = spec.partition(":")
    if kind == "torchvision":
        name, _, query = rest.partition("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError:
            raise _malformed(spec, "torchvision:NAME?root=FOLDER&train=true") from None
        if not name.isidentifier():
            raise _malformed(spec, "torchvision:NAME?root=FOLDER&train=true")
        return DataSpec("torchvision", name, dict(pairs))
    if kind == "python":
        module, _, function = rest.partition(":")
        parts = [*module.split("."), function]
        if not all(part.isidentifier() for part in parts):
            raise _malformed(spec, "python:package.module:function")
        return DataSpec("python", rest)
    if not spec.strip():
        raise _malformed(spec, _REMEDY)
    return DataSpec("path", spec)


def _malformed(spec: str, expected: str) -> DataError:
    return DataError("the data spec is malformed", got=repr(spec), expected=expected)
