"""Floating-point operations of an ONNX graph, from shape inference alone.

Counted are the products and sums of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, two
operations for each multiply-add; biases, activations and normalisation are not.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import AttributeProto, ModelProto, NodeProto

from onnxprune.graph_shapes import Shape, infer_shapes
from onnxprune.model import iter_graphs
from onnxprune.tensors import GraphTensor

_CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
MULTIPLYING = _CONVOLUTIONS | _PRODUCTS | _RECURRENT | {"ConvTranspose"}


@dataclass(frozen=True)
class Flops:
    """Operations for one sample.

    Attributes:
        total: Over the whole graph; None if the shapes of a counted operator are not known.
        by_tensor: For the tensors whose operators all have known shapes, by tensor name.
    """

    total: int | None
    by_tensor: dict[str, int]


def count_flops(proto: ModelProto, tensors: Mapping[str, GraphTensor]) -> Flops:
    """Count operations with batch size 1; other dynamic axes leave counts unknown.

    Args:
        proto: The model; it is not changed, and its large tensors are not copied.
        tensors: What `find_tensors` says of it.
    """
    shapes = infer_shapes(proto)
    nodes = {_key(node): node for node in proto.graph.node}
    repeated = Counter(_key(node) for node in proto.graph.node)
    total: int | None = 0
    for node in proto.graph.node:
        if node.op_type in MULTIPLYING:
            flops = _node_flops(node, shapes)
            total = None if total is None or flops is None else total + flops
    if _counted_elsewhere(proto):
        total = None
    by_tensor = {}
    for tensor in tensors.values():
        flops = 0
        known = False
        for use in tensor.uses:
            if use.op_type not in MULTIPLYING or use.role not in ("weight", "recurrent"):
                continue
            node = nodes.get(use.node)
            counted = None
            if node is not None and repeated[use.node] == 1 and use.value in node.input:
                counted = _node_flops(node, shapes, tensor.size)
            known = counted is not None
            if counted is None:
                break
            flops += counted
        if known:
            by_tensor[tensor.name] = flops
    return Flops(total, by_tensor)


def _node_flops(
    node: NodeProto, shapes: Mapping[str, Shape], weight_size: int | None = None
) -> int | None:
    """Operations of a node, or of one of its recurrent weights where `weight_size` is given."""
    known = [shapes.get(name) for name in node.input]
    output = shapes.get(node.output[0]) if node.output else None
    if len(known) < 2 or known[0] is None or known[1] is None:
        return None
    first, weight = known[0], known[1]
    if node.op_type in _RECURRENT:
        recurrent = known[2] if len(known) > 2 else None
        if len(first) != 3 or recurrent is None:
            return None
        size = math.prod(weight) + math.prod(recurrent) if weight_size is None else weight_size
        return 2 * first[0] * first[1] * size
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(weight[1:])
    if output is None or not first:
        return None
    if node.op_type in _CONVOLUTIONS:
        return 2 * math.prod(output) * math.prod(weight[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    inner = first[-2] if transposed and len(first) > 1 else first[-1]
    return 2 * math.prod(output) * inner


def _counted_elsewhere(proto: ModelProto) -> bool:
    """Whether sub-graphs or functions hold operators that the main graph's shapes do not cover."""
    inner = [node for path, graph in iter_graphs(proto) if path for node in graph.node]
    inner += [node for function in proto.functions for node in function.node]
    inner += [node for node in proto.graph.node if node.op_type in ("Scan", "Loop")]
    return any(
        node.op_type in MULTIPLYING
        for node in inner
        if not any(a.type == AttributeProto.GRAPH for a in node.attribute)
    )


def _key(node: NodeProto) -> str:
    """How `Use.node` names a node."""
    return node.name or next(iter(node.output), "")
