"""Training flags that a file carries, and how to clear them."""

import onnx
from onnx import numpy_helper

from onnxprune.errors import UnsupportedModelError
from onnxprune.model import iter_graphs
from onnxprune.tensors import constant_tensor


def training_nodes(proto: onnx.ModelProto) -> list[str]:
    """Nodes that the file itself runs in training mode, as `Dropout 'name'`.

    Such a file drops activations at random, or normalises with the statistics of the batch at
    hand, wherever it is deployed.
    """
    return [
        f"{node.op_type} {node.name or node.output[0]!r}"
        for graph, node in _candidates(proto)
        if _trains(graph, node)
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
    for graph, node in _candidates(proto):
        if not _trains(graph, node):
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


def _candidates(proto: onnx.ModelProto) -> list[tuple[onnx.GraphProto, onnx.NodeProto]]:
    return [
        (graph, node)
        for _, graph in iter_graphs(proto)
        for node in graph.node
        if node.op_type in ("Dropout", "BatchNormalization")
    ]


def _trains(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    if node.op_type == "BatchNormalization":
        return any(a.name == "training_mode" and a.i == 1 for a in node.attribute)
    return len(node.input) > 2 and bool(node.input[2]) and _constant_true(graph, node.input[2])


def _constant_true(graph: onnx.GraphProto, name: str) -> bool:
    for tensor in graph.initializer:
        if tensor.name == name:
            return bool(numpy_helper.to_array(tensor).any())
    for node in graph.node:
        if name in node.output:
            tensor = constant_tensor(node)
            return isinstance(tensor, onnx.TensorProto) and bool(
                numpy_helper.to_array(tensor).any()
            )
    return False


def _used_names(proto: onnx.ModelProto) -> set[str]:
    names: set[str] = set()
    for _, graph in iter_graphs(proto):
        names.update(name for node in graph.node for name in node.input)
        names.update(value.name for value in graph.output)
    return names
