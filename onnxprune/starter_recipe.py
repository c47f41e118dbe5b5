"""A commented recipe for a model, for `onnxprune init`."""

import textwrap
from collections.abc import Iterable, Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onnxprune.model import OnnxModel, ValueSpec
from onnxprune.recipe import Recipe
from onnxprune.tensors import GraphTensor, find_tensors
from onnxprune.toml import toml_value

_WIDTH = 96
_EXAMPLES: dict[str, object] = {
    "data.train": "photos/train",
    "data.eval": "photos/val",
    "data.classes": ["cat", "dog"],
    "data.limit": 10000,
    "preprocess.input": "input",
    "preprocess.resize": 256,
    "preprocess.crop": [224, 224],
    "sparsity.target": 0.8,
    "finetune.lr": 0.01,
    "finetune.loss_output": "scores",
    "finetune.ctc_input": "sound",
    "finetune.threads": 4,
    "finetune.micro_batch": 8,
    "finetune.channels_last": True,
    "distill.weight": 0.5,
    "distill.mask_input": "attention_mask",
    "validate.threads": 4,
}


def starter_recipe(model: OnnxModel) -> str:
    """Every key of the recipe with its meaning, its default, and what this model suggests.

    Keys without a default are commented out. The text is a valid recipe as it stands.
    """
    suggestions = _suggestions(model)
    lines = [
        f"# Recipe for {_plain(model.path.name) if model.path else 'a model'}: "
        + _plain("; ".join(f"input {spec.name} {spec.describe()}" for spec in model.inputs)),
        "# Lines that begin with `# key =` show an optional key.",
        "",
    ]
    for name, field in Recipe.model_fields.items():
        table = field.alias or name
        table_class = field.annotation
        assert isinstance(table_class, type)
        assert issubclass(table_class, BaseModel)
        heading = (table_class.__doc__ or "").split("\n")[0].partition(": ")[2]
        lines += [f"# {heading[:1].upper()}{heading[1:]}", f"[{table}]"]
        lines += _table_lines(table, table_class, suggestions)
        if table == "preprocess":
            lines.append("# Keys that are left out follow the model's input.")
        if table == "sparsity":
            lines += _prunable_lines(find_tensors(model.proto).values())
        lines.append("")
    return "\n".join(lines)


def _table_lines(
    table: str, table_class: type[BaseModel], suggestions: dict[str, object]
) -> Iterator[str]:
    for key, field in table_class.model_fields.items():
        yield from (f"# {line}" for line in textwrap.wrap(field.description or "", _WIDTH))
        full = f"{table}.{key}"
        if full in suggestions:
            yield f"{key} = {toml_value(suggestions[full])}"
        elif table == "preprocess":
            yield f"# {key} = {toml_value(_EXAMPLES.get(full, _default(field)))}"
        elif (default := _default(field)) is None:
            yield f"# {key} = {toml_value(_EXAMPLES.get(full, 1))}"
        elif isinstance(default, dict):
            yield f"# {key} = {{}}"
        else:
            yield f"{key} = {toml_value(default)}"


def _default(field: FieldInfo) -> object:
    return None if field.default is PydanticUndefined else field.default


def _suggestions(model: OnnxModel) -> dict[str, object]:
    """Preprocessing keys that the shape of the model's image input gives away."""
    image = _image_input(model)
    if image is None or image.shape is None:
        return {}
    channels_last = image.shape[3] in (1, 3) and image.shape[1] not in (1, 3)
    channels = image.shape[3] if channels_last else image.shape[1]
    found: dict[str, object] = {"preprocess.layout": "NHWC" if channels_last else "NCHW"}
    if channels == 1:
        found["preprocess.color"] = "L"
    return found


def _image_input(model: OnnxModel) -> ValueSpec | None:
    images = [spec for spec in model.inputs if spec.shape is not None and len(spec.shape) == 4]
    return images[0] if len(images) == 1 else None


def _prunable_lines(tensors: Iterable[GraphTensor], limit: int = 60) -> Iterator[str]:
    prunable = [tensor for tensor in tensors if tensor.prunable]
    yield f"# Prunable by default ({sum(t.size for t in prunable):,} weights):"
    for tensor in prunable[:limit]:
        shape = "×".join(map(str, tensor.shape))
        yield f"#   {_plain(tensor.name)}  {_plain(tensor.op_type)} {shape}"
    if len(prunable) > limit:
        yield f"#   and {len(prunable) - limit} more; `onnxprune inspect` lists them all"


def _plain(text: str) -> str:
    """A name out of the model for a comment, which a line break in it must not end."""
    return "".join(char if char.isprintable() else "?" for char in text)
