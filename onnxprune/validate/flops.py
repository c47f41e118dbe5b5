"""Floating-point operations of an ONNX graph, from shape inference alone.

Counted are the products and sums of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, two
operations for each multiply-add; biases, activations and normalisation are not.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.model import iter_graphs, value_spec
from onnxprune.tensors import GraphTensor, constant_tensor

_KEPT_ELEMENTS = 1024
"""Stored tensors up to this size stay in the skeleton: shapes are computed from them."""

_MAX_RANK = 64
_MAX_PROPAGATED = 2**20

_CONVOLUTIONS = frozenset({"Conv", "FusedConv"})
_PRODUCTS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_COUNTED = _CONVOLUTIONS | _PRODUCTS | _RECURRENT | {"ConvTranspose"}

_DAMAGE = (
    *(onnx.shape_inference.InferenceError, onnx.checker.ValidationError),
    *(RuntimeError, ValueError, MemoryError),
)
"""What ONNX's shape inference raises on a graph that it does not understand."""

Shape = tuple[int, ...]


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
        if node.op_type in _COUNTED:
            flops = _node_flops(node, shapes)
            total = None if total is None or flops is None else total + flops
    if _counted_elsewhere(proto):
        total = None
    by_tensor = {}
    for tensor in tensors.values():
        flops = 0
        known = False
        for use in tensor.uses:
            if use.op_type not in _COUNTED or use.role not in ("weight", "recurrent"):
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


def infer_shapes(proto: ModelProto) -> dict[str, Shape]:
    """The fully known shapes of the main graph's values, for batch size 1."""
    skeleton = _skeleton(proto)
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    try:
        propagate = _stays_small(skeleton)
        graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=propagate).graph
    except _DAMAGE:
        graph = skeleton.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = value_spec(value).shape
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            shapes[value.name] = tuple(dim for dim in shape if isinstance(dim, int))
    return shapes


def _skeleton(proto: ModelProto) -> ModelProto:
    """A copy whose large tensors are inputs of known shape, and whose batch size is 1."""
    source = proto.graph
    skeleton = ModelProto(ir_version=max(4, proto.ir_version))
    skeleton.opset_import.extend(proto.opset_import)
    skeleton.functions.extend(proto.functions)
    graph = skeleton.graph
    graph.name = source.name
    stored = {tensor.name for tensor in source.initializer}
    stored |= {tensor.values.name for tensor in source.sparse_initializer}
    batch = {
        value.type.tensor_type.shape.dim[0].dim_param
        for value in source.input
        if value.name not in stored and value.type.tensor_type.shape.dim
    } - {""}
    for value in source.input:
        if value.name not in stored:
            _fix_batch(graph.input.add(), value, batch)
    for output in source.output:
        graph.output.add().CopyFrom(output)
        graph.output[-1].type.tensor_type.ClearField("shape")
    for tensor in source.initializer:
        _store(graph, tensor.name, tensor)
    for sparse in source.sparse_initializer:
        _declare(graph, sparse.values.name, sparse.values.data_type, tuple(sparse.dims))
    for node in source.node:
        constant = constant_tensor(node)
        if isinstance(constant, TensorProto) and math.prod(constant.dims) > _KEPT_ELEMENTS:
            _declare(graph, node.output[0], constant.data_type, tuple(constant.dims))
        elif node.op_type == "Range" and node.output:
            _declare(graph, node.output[0], TensorProto.INT64, (None,))
        else:
            graph.node.add().CopyFrom(node)
    return skeleton


def _stays_small(skeleton: ModelProto) -> bool:
    """Whether ONNX can propagate the values of shapes through a graph without writing novels.

    It computes every element, however many a hostile `Range` has, or a row of `Concat` that doubles
    its input each time. The main graph's `Range` nodes are left out of the skeleton.
    """
    lengths: dict[str, int] = {tensor.name: _KEPT_ELEMENTS for tensor in skeleton.graph.initializer}
    for node in skeleton.graph.node:
        known = [lengths.get(name, _MAX_RANK) for name in node.input]
        length = sum(known) if node.op_type == "Concat" else max(known, default=_KEPT_ELEMENTS)
        if length > _MAX_PROPAGATED:
            return False
        lengths.update(dict.fromkeys(node.output, length))
    inner = [node for path, graph in iter_graphs(skeleton) if path for node in graph.node]
    inner += [node for function in skeleton.functions for node in function.node]
    return not any(node.op_type in ("Range", "Concat") for node in inner)


def _fix_batch(copy: onnx.ValueInfoProto, value: onnx.ValueInfoProto, batch: set[str]) -> None:
    copy.CopyFrom(value)
    for index, dim in enumerate(copy.type.tensor_type.shape.dim):
        unknown_first = index == 0 and not dim.HasField("dim_value")
        if unknown_first or dim.dim_param in batch or (index == 0 and dim.dim_value < 0):
            dim.dim_value = 1


def _store(graph: GraphProto, name: str, tensor: TensorProto) -> None:
    if math.prod(tensor.dims) <= _KEPT_ELEMENTS:
        graph.initializer.add().CopyFrom(tensor)
    else:
        _declare(graph, name, tensor.data_type, tuple(tensor.dims))


def _declare(graph: GraphProto, name: str, data_type: int, shape: tuple[int | None, ...]) -> None:
    graph.input.append(onnx.helper.make_tensor_value_info(name, data_type, shape))


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
        node.op_type in _COUNTED
        for node in inner
        if not any(a.type == AttributeProto.GRAPH for a in node.attribute)
    )


def _key(node: NodeProto) -> str:
    """How `Use.node` names a node."""
    return node.name or next(iter(node.output), "")
