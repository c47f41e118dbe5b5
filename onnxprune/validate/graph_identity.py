"""Whether two models have the same graph and differ in trained values only."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from onnxprune.payload import iter_graphs, iter_named_tensors
from onnxprune.stored import stored_array, stored_shape, stored_type
from onnxprune.tensors import GraphTensor

_TENSOR_FIELDS = ("t", "tensors", "sparse_tensor", "sparse_tensors")
_PLAIN_VALUES = ("value_float", "value_floats", "value_int", "value_ints")
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
    ours, theirs = _node_texts(model), _node_texts(baseline)
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


def _node_texts(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """A text for each node of each graph and function."""
    texts = {}
    for path, graph in iter_graphs(proto):
        ends = [value.name for value in graph.output] if path else []
        texts[path or "main graph"] = [*_texts(graph.node), *ends]
    for function in proto.functions:
        key = f"function {function.domain}::{function.name}"
        texts[key] = [*function.input, *function.output, *_texts(function.node)]
    return texts


def _texts(nodes: Iterable[NodeProto]) -> list[str]:
    return [
        f"{node.domain}::{node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)} "
        + " ".join(sorted(_attribute_text(attribute) for attribute in node.attribute))
        for node in nodes
    ]


def _attribute_text(attribute: AttributeProto) -> str:
    """An attribute without tensors and graphs, which are compared on their own."""
    bare = AttributeProto()
    if attribute.name not in _PLAIN_VALUES and not attribute.graphs:
        held = (*_TENSOR_FIELDS, "g")
        if not any(field.name in held for field, _ in attribute.ListFields()):
            bare.CopyFrom(attribute)
    bare.doc_string = ""
    return f"{attribute.name}={bare.SerializeToString(deterministic=True).hex()}"


def _first_difference(ours: list[str], theirs: list[str]) -> str:
    for index, (found, wanted) in enumerate(zip(ours, theirs, strict=False)):
        if found != wanted:
            return f"node {index} is {_short(found)} where the baseline has {_short(wanted)}"
    return f"{len(ours)} nodes where the baseline has {len(theirs)}"


def _short(text: str) -> str:
    """A node's text without its attributes."""
    return text.partition(" -> ")[0] + " -> " + text.partition(" -> ")[2].partition(" ")[0]


def _tensor_facts(proto: onnx.ModelProto, tensors: Mapping[str, GraphTensor]) -> dict[str, str]:
    """Type and shape of every stored tensor by its place, and a digest where it is not trained."""
    trained = {
        id(tensor.proto) for tensor in tensors.values() if tensor.trainable or _is_running(tensor)
    }
    facts = {}
    for name, stored in iter_named_tensors(proto):
        kind = onnx.TensorProto.DataType.Name(stored_type(stored))
        text = f"{kind}{list(stored_shape(stored))}"
        if id(stored) not in trained:
            text += f" with digest {_digest(stored_array(stored))}"
        facts[name.removeprefix("|")] = text
    return facts


def _is_running(tensor: GraphTensor) -> bool:
    return tensor.role in _RUNNING


def _digest(values: np.ndarray) -> str:
    data = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]
