"""What sparsity metadata say of a run against the recipe that they hold.

The recipe is part of an untrusted file: nothing in it needs to be there, or of the right type.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from onnxprune.export.pattern_check import pattern_fits
from onnxprune.globs import matches
from onnxprune.payload import inner_graphs
from onnxprune.tensors import GraphTensor


def recipe_problems(recipe: Mapping[str, Any], method: str, target: float) -> list[str]:
    """Where method and target differ from the recipe's, one line each."""
    settings = _sparsity(recipe)
    return [
        f"{key}: the recipe says {settings[name]}, the metadata say {said}"
        for key, name, said in (("method", "method", method), ("target_sparsity", "target", target))
        if settings.get(name) is not None and settings[name] != said
    ]


def list_problems(
    proto: onnx.ModelProto,
    stored: Mapping[str, GraphTensor],
    listed: set[str],
    recipe: Mapping[str, Any],
) -> list[str]:
    """Prunable tensors in the recipe's scope that the metadata pass over in silence.

    A tensor that no output depends on is not pruned and need not be listed.

    Args:
        proto: The model.
        stored: Its tensors by name.
        listed: Names that the metadata list.
        recipe: The recipe in the metadata.
    """
    settings = _sparsity(recipe)
    include = _texts(settings.get("include"), ["*"])
    exclude = _texts(settings.get("exclude"), [])
    pattern = settings.get("pattern")
    needed = needed_values(proto)
    missing = [
        name
        for name, tensor in stored.items()
        if name not in listed
        and (tensor.prunable or (tensor.trainable and name in include))
        and any(matches(name, tensor.op_type, glob) for glob in include)
        and not any(matches(name, tensor.op_type, glob) for glob in exclude)
        and (not isinstance(pattern, str) or pattern_fits(tensor, pattern))
        and is_needed(tensor, needed)
    ]
    return [f"{name}: prunable, in the recipe's scope, and not listed" for name in missing]


def _sparsity(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = recipe.get("sparsity")
    return settings if isinstance(settings, Mapping) else {}


def _texts(value: object, default: list[str]) -> list[str]:
    if not isinstance(value, list):
        return default
    return [item for item in value if isinstance(item, str)]


def is_needed(tensor: GraphTensor, needed: set[str]) -> bool:
    """Whether an output depends on a tensor; inside sub-graphs and functions taken for granted.

    Args:
        tensor: The tensor.
        needed: `needed_values` of its model.
    """
    return bool(tensor.scope) or any(use.value in needed for use in tensor.uses)


def needed_values(proto: onnx.ModelProto) -> set[str]:
    """Names of values of the main graph that its outputs depend on."""
    needed = {value.name for value in proto.graph.output}
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            needed.update(_read_by([node]))
    return needed


def _read_by(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that nodes read, their sub-graphs included."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for _, graph in inner_graphs(node):
            names |= _read_by(graph.node) | {value.name for value in graph.output}
    return names
