"""Whether two models have the same graph and differ in trained values only."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from onnxprune.payload import iter_graphs, iter_named_tensors
from onnxprune.stored import stored_array, stored_shape, stored_type
from onnxprune.tensors import GraphTensor

_TENSOR_FIELDS = ("t", "tensors", "sparse_tensor", "sparse_tensors")
_PLAIN_VALUES = ("value_float", "value_floats", "value_int", "value_ints")
_MOST_SHOWN = 80
_RUNNING = ("running_mean", "running_var")


def graph_differences(
    model: onnx.ModelProto,
    baseline: onnx.ModelProto,
    model_tensors: Mapping[str, GraphTensor],
    baseline_tensors: Mapping[str, GraphTensor],
) -> list[str]:
    """What differs but trained values, running statistics, and how tensors are stored.

    Nodes are compared with their attributes and in their order, in the main graph, sub-graphs and
    functions; tensors by type and shape, and by value where they are not trained.

    Args:
        model: The model.
        baseline: The model that it is compared with.
        model_tensors: What `find_tensors` says of the one.
        baseline_tensors: What it says of the other.
    """
    ours, theirs = _parts(model), _parts(baseline)
    problems = [
        f"{place}: {_first_difference(ours.get(place, []), theirs.get(place, []))}"
        for place in dict.fromkeys([*theirs, *ours])
        if ours.get(place) != theirs.get(place)
    ]
    found, wanted = _tensor_facts(model, model_tensors), _tensor_facts(baseline, baseline_tensors)
    for name in dict.fromkeys([*wanted, *found]):
        if name not in found:
            problems.append(f"{name}: the tensor is gone")
        elif name not in wanted:
            problems.append(f"{name}: the baseline has no such tensor")
        elif found[name] != wanted[name]:
            problems.append(f"{name}: {found[name]} where the baseline has {wanted[name]}")
    return problems


@dataclass(frozen=True)
class _Part:
    """A node, or a name at the edge of a graph.

    Attributes:
        text: Operator, inputs and outputs.
        attributes: Of each attribute but tensors and graphs, which are compared on their own: its
            name, its exact bytes, and how a message shows it.
        is_node: Whether it is a node.
    """

    text: str
    attributes: tuple[tuple[str, bytes, str], ...] = ()
    is_node: bool = False


def _parts(proto: onnx.ModelProto) -> dict[str, list[_Part]]:
    """The nodes of each graph and function, with the values at their edges, and operator sets.

    Graphs whose nodes share a name are one after the other in one list.
    """
    opsets = sorted(f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in proto.opset_import)
    parts = {"operator sets": [*map(_Part, opsets)]}
    for path, graph in iter_graphs(proto):
        place = path or "main graph"
        edges = [_Part(f"{side} {value.name}") for side, value in _edges(graph)]
        parts.setdefault(place, []).extend(map(_node, graph.node))
        parts.setdefault(f"{place}, inputs and outputs", []).extend(edges)
    for function in proto.functions:
        key = f"function {function.domain}::{function.name}"
        names = (*function.input, *function.output, *function.attribute)
        defaults = tuple(sorted(_attribute(default) for default in function.attribute_proto))
        sets = sorted(f"{opset.domain} {opset.version}" for opset in function.opset_import)
        edge = [*map(_Part, names), *map(_Part, sets), _Part("defaults", defaults)]
        parts[key] = [*edge, *map(_node, function.node)]
    if proto.training_info:
        held = b"".join(i.SerializeToString(deterministic=True) for i in proto.training_info)
        parts["training info"] = [_Part("training info", (("held", held, "other content"),))]
    return parts


def _edges(graph: onnx.GraphProto) -> list[tuple[str, onnx.ValueInfoProto]]:
    """Inputs that nothing is stored for, and outputs, in their order."""
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {sparse.values.name for sparse in graph.sparse_initializer}
    inputs = [("input", value) for value in graph.input if value.name not in stored]
    return inputs + [("output", value) for value in graph.output]


def _node(node: NodeProto) -> _Part:
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    operator += f" ({node.overload})" if node.overload else ""
    text = f"{operator}({', '.join(node.input)}) -> {', '.join(node.output)}"
    attributes = tuple(sorted(_attribute(attribute) for attribute in node.attribute))
    return _Part(text, attributes, is_node=True)


def _attribute(attribute: AttributeProto) -> tuple[str, bytes, str]:
    bare = AttributeProto()
    if attribute.name not in _PLAIN_VALUES and not attribute.graphs:
        held = (*_TENSOR_FIELDS, "g")
        if not any(field.name in held for field, _ in attribute.ListFields()):
            bare.CopyFrom(attribute)
    bare.doc_string = ""
    shown = f"{attribute.name} of another kind"
    if bare.type:
        shown = f"{attribute.name} = {onnx.helper.get_attribute_value(bare)!s}"
    return attribute.name, bare.SerializeToString(deterministic=True), shown[:_MOST_SHOWN]


def _first_difference(ours: list[_Part], theirs: list[_Part]) -> str:
    for index, (found, wanted) in enumerate(zip(ours, theirs, strict=False)):
        if found.text != wanted.text:
            number = f"node {index}" if found.is_node and wanted.is_node else f"entry {index}"
            return f"{number} is {found.text} where the baseline has {wanted.text}"
        if found != wanted:
            has, had = (_only_in(*pair) for pair in ((found, wanted), (wanted, found)))
            return f"node {index}, {found.text}, has {has} where the baseline has {had}"
    what = "nodes" if all(part.is_node for part in (*ours, *theirs)) else "entries"
    return f"{len(ours)} {what} where the baseline has {len(theirs)}"


def _only_in(part: _Part, other: _Part) -> str:
    found = [shown for *exact, shown in part.attributes if (*exact, shown) not in other.attributes]
    return ", ".join(found) or "no such attribute"


def _tensor_facts(proto: onnx.ModelProto, tensors: Mapping[str, GraphTensor]) -> dict[str, str]:
    """Type and shape of every stored tensor by its place, and a digest where it is not trained."""
    trained = {
        id(tensor.proto) for tensor in tensors.values() if tensor.trainable or _is_running(tensor)
    }
    facts: dict[str, str] = {}
    for name, stored in iter_named_tensors(proto):
        kind = onnx.TensorProto.DataType.Name(stored_type(stored))
        text = f"{kind}{list(stored_shape(stored))}"
        if id(stored) not in trained:
            text += f" with digest {_digest(stored_array(stored))}"
        key = name.removeprefix("|")
        facts[key] = f"{facts[key]}, then {text}" if key in facts else text
    return facts


def _is_running(tensor: GraphTensor) -> bool:
    return tensor.role in _RUNNING


def _digest(values: np.ndarray) -> str:
    data = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]
