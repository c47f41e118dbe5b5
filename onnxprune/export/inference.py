"""Training flags that a file carries, and how to clear them."""

from collections import ChainMap
from collections.abc import Iterable, Iterator

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from onnxprune.errors import UnsupportedModelError
from onnxprune.payload import inner_graphs, iter_graphs
from onnxprune.stored import constant_value, tensor_array

_Scope = ChainMap[str, TensorProto]
"""Stored tensors by the names under which a node sees them, its own graph first."""


def training_nodes(proto: onnx.ModelProto) -> list[str]:
    """Nodes that the file itself runs in training mode, as `Dropout 'name'`.

    Such a file drops activations at random, or normalises with the statistics of the batch at
    hand, wherever it is deployed.
    """
    return [
        f"{node.op_type} {node.name or node.output[0]!r}"
        for scope, node in _candidates(proto)
        if _trains(scope, node)
    ]


def clear_training(proto: onnx.ModelProto) -> list[str]:
    """Put every node of a model into inference mode; changes `proto`.

    Returns:
        The nodes that were changed, as in `training_nodes`.

    Raises:
        UnsupportedModelError: A training-only output of such a node is used elsewhere.
    """
    changed = []
    used = _used_names(proto)
    for scope, node in list(_candidates(proto)):
        if not _trains(scope, node):
            continue
        label = f"{node.op_type} {node.name or node.output[0]!r}"
        if node.op_type == "Dropout":
            del node.input[2:]
        else:
            extra = [name for name in node.output[1:] if name in used]
            if extra:
                raise UnsupportedModelError(
                    "training statistics of a node are used elsewhere in the graph",
                    where=label,
                    got=extra,
                    remedy="export the model in inference mode",
                )
            del node.output[1:]
            kept = [a for a in node.attribute if a.name != "training_mode"]
            copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
            del node.attribute[:]
            node.attribute.extend(copies)
        changed.append(label)
    return changed


def _candidates(proto: onnx.ModelProto) -> Iterator[tuple[_Scope, NodeProto]]:
    """Nodes that have a training mode, with the constants that they can see."""
    yield from _in_graph(proto.graph, ChainMap())
    for function in proto.functions:
        yield from _in_nodes(function.node, ChainMap())


def _in_graph(graph: GraphProto, outer: _Scope) -> Iterator[tuple[_Scope, NodeProto]]:
    stored = {tensor.name: tensor for tensor in graph.initializer}
    yield from _in_nodes(graph.node, outer.new_child(stored))


def _in_nodes(nodes: Iterable[NodeProto], outer: _Scope) -> Iterator[tuple[_Scope, NodeProto]]:
    scope = outer.new_child()
    for node in nodes:
        tensor = constant_value(node)
        if node.op_type == "Identity" and node.input:
            tensor = scope.get(node.input[0])
        if isinstance(tensor, TensorProto) and node.output:
            scope[node.output[0]] = tensor
        if node.op_type in ("Dropout", "BatchNormalization") and node.domain in ("", "ai.onnx"):
            yield scope, node
        for _, graph in inner_graphs(node):
            yield from _in_graph(graph, scope)


def _trains(scope: _Scope, node: NodeProto) -> bool:
    if node.op_type == "BatchNormalization":
        return any(a.name == "training_mode" and a.i == 1 for a in node.attribute)
    flag = scope.get(node.input[2]) if len(node.input) > 2 else None
    return flag is not None and bool(tensor_array(flag).any())


def _used_names(proto: onnx.ModelProto) -> set[str]:
    names = {name for function in proto.functions for name in function.output}
    names.update(n for function in proto.functions for node in function.node for n in node.input)
    for _, graph in iter_graphs(proto):
        names.update(name for node in graph.node for name in node.input)
        names.update(value.name for value in graph.output)
    return names
