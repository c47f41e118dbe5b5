"""Types of a node's outputs, from ONNX's own shape inference, which is not to be trusted.

ONNX infers shapes in C++ that is built with assertions: sizes that no model has (a convolution of
an input that is smaller than its kernel has a negative one) end the whole process there. Whatever
can lead to that is taken out of a node before it is handed over.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto

Schema: TypeAlias = Any
"""`onnx.defs.OpSchema`, whose type stubs leave out what concerns functions."""

_FAILURES = (
    *(ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
    onnx.shape_inference.InferenceError,
)
_HOLLOW_ELEMENTS = 1024
"""Tensors in sub-graphs that are larger are handed over without their values."""

_LARGEST = 2**31
"""What no attribute of one integer exceeds, an axis or a number of groups."""

_NOT_KNOWN = "a value that is not known"


def tensor_type(elem_type: int, shape: Iterable[int | None] | None) -> TypeProto:
    """The ONNX type of a tensor; an unknown rank is given as None."""
    result = TypeProto()
    result.tensor_type.elem_type = elem_type
    if shape is not None:
        result.tensor_type.shape.SetInParent()
        for size in shape:
            dim = result.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return result


def type_shape(value_type: TypeProto | None) -> tuple[int | None, ...] | None:
    """Sizes that a type states, None for each unknown one, or None for an unknown rank."""
    if value_type is None or not value_type.tensor_type.HasField("shape"):
        return None
    return tuple(
        int(dim.dim_value) if dim.HasField("dim_value") else None
        for dim in value_type.tensor_type.shape.dim
    )


@functools.lru_cache(maxsize=4096)
def find_schema(domain: str, op_type: str, version: int) -> Schema | None:
    """The standard's description of an operator in an operator set version."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):
        return None


def infer_node(
    schema: Schema,
    node: NodeProto,
    types: Mapping[str, TypeProto],
    data: Mapping[str, TensorProto],
    versions: Mapping[str, int],
) -> dict[str, TypeProto]:
    """Types of a node's outputs as far as ONNX can tell; sizes in them are never negative.

    Args:
        schema: The description of its operator.
        node: The node; it is not changed.
        types: Types by name: those of its inputs, and what its sub-graphs can see.
        data: Values of its inputs as far as they are known.
        versions: Operator set version of each domain.

    Raises:
        onnx.checker.ValidationError: The node does not fit its operator.
    """
    if _is_trap(node):
        return {}
    known = {name: types.get(name) or TypeProto() for name in node.input if name}
    if not schema.has_type_and_shape_inference_function:
        return types_by_constraint(schema, node, known)
    least = 0
    if any(True for _ in _graphs(node)):
        known |= {name: types[name] for name in _read_inside(node) if name in types}
        node = _tamed(node)
    elif node.op_type == "Slice":
        least = 1  # where there is nothing, ONNX cannot step back
    given = {name: _with_sizes_from(least, value_type) for name, value_type in known.items()}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, given, dict(data), opset_imports=opsets
        )
    except _FAILURES:
        return {}
    return {name: _with_sizes_from(0, value_type) for name, value_type in found.items()}


def _is_trap(node: NodeProto) -> bool:
    """Whether a node has attributes that ONNX indexes its arrays with, unchecked."""
    numbers = {a.name: a.i for a in node.attribute if a.type == AttributeProto.INT}
    return (
        (node.op_type != "Constant" and any(abs(i) > _LARGEST for i in numbers.values()))
        or (node.op_type == "GatherND" and numbers.get("batch_dims", 0) < 0)
        or (node.op_type == "Split" and numbers.get("num_outputs") not in (None, len(node.output)))
        or any(_is_trap(inner) for graph in _graphs(node) for inner in graph.node)
    )


def _with_sizes_from(least: int, value_type: TypeProto) -> TypeProto:
    """A type whose sizes below `least` are unknown, also those of what a sequence holds."""
    if not any(dim.dim_value < least for dim in _sizes(value_type)):
        return value_type
    result = TypeProto()
    result.CopyFrom(value_type)
    for dim in _sizes(result):
        if dim.dim_value < least:
            dim.Clear()
    return result


def _sizes(value_type: TypeProto) -> Iterator[Any]:
    kind = value_type.WhichOneof("value")
    if kind == "tensor_type":
        for dim in value_type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                yield dim
    elif kind in ("sequence_type", "optional_type"):
        yield from _sizes(getattr(value_type, kind).elem_type)


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _read_inside(node: NodeProto) -> Iterator[str]:
    """What the sub-graphs of a node read."""
    for graph in _graphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from inner.input
            yield from _read_inside(inner)


def _tamed(node: NodeProto) -> NodeProto:
    """A copy of a node whose sub-graphs are safe to hand over, and not large."""
    copy = NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
    copy.input.extend(node.input)
    copy.output.extend(node.output)
    if node.op_type == "Slice":
        # What it cuts may have sizes that make no sense, so let it be unknown how it cuts.
        copy.input[1:] = [name and _NOT_KNOWN for name in node.input[1:]]
    for attribute in node.attribute:
        target = copy.attribute.add(name=attribute.name, type=attribute.type)
        if attribute.type == AttributeProto.GRAPH:
            target.g.CopyFrom(_tamed_graph(attribute.g))
        elif attribute.type == AttributeProto.GRAPHS:
            target.graphs.extend(_tamed_graph(graph) for graph in attribute.graphs)
        elif attribute.type == AttributeProto.TENSOR:
            target.t.CopyFrom(_hollow(attribute.t))
        else:
            target.CopyFrom(attribute)
    return copy


def _tamed_graph(graph: GraphProto) -> GraphProto:
    copy = GraphProto(name=graph.name)
    copy.input.extend(graph.input)
    copy.output.extend(graph.output)
    copy.initializer.extend(_hollow(tensor) for tensor in graph.initializer)
    copy.sparse_initializer.extend(graph.sparse_initializer)
    copy.node.extend(_tamed(node) for node in graph.node)
    return copy


def _hollow(tensor: TensorProto) -> TensorProto:
    """A tensor, without its values if there are many."""
    if math.prod(tensor.dims) <= _HOLLOW_ELEMENTS:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def types_by_constraint(
    schema: Schema, node: NodeProto, types: Mapping[str, TypeProto]
) -> dict[str, TypeProto]:
    """Element types of outputs that the standard ties to an input, for want of its inference.

    The first output of an operator that works element by element has the first input's shape, too.
    """
    by_constraint = {
        formal.type_str: types[name]
        for formal, name in reversed(list(zip(schema.inputs, node.input, strict=False)))
        if name in types and types[name].HasField("tensor_type")
    }
    found = {}
    for index, (formal, name) in enumerate(zip(schema.outputs, node.output, strict=False)):
        source = by_constraint.get(formal.type_str)
        if not name or source is None:
            continue
        keeps_shape = index == 0 and schema.name in _KEEP_SHAPE
        elem_type = source.tensor_type.elem_type
        found[name] = source if keeps_shape else tensor_type(elem_type, None)
    return found


_KEEP_SHAPE = frozenset(
    {"Abs", "BatchNormalization", "Ceil", "Clip", "Dropout", "Elu", "Exp", "Floor"}
    | {"GroupNormalization", "HardSigmoid", "InstanceNormalization", "LeakyRelu", "Log"}
    | {"MeanVarianceNormalization", "Neg", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid"}
    | {"Sqrt", "Tanh", "Add", "Div", "Mul", "Sub"}
)
