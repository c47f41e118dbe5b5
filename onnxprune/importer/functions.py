"""Bodies of ONNX functions: the model's own, and those that the standard gives for operators."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto

from onnxprune.importer.values import tensor_type

Schema: TypeAlias = Any
"""`onnx.defs.OpSchema`, whose type stubs leave out what concerns functions."""


def find_schema(domain: str, op_type: str, version: int) -> Schema | None:
    """The standard's description of an operator in an operator set version."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def types_by_constraint(
    schema: Schema, node: NodeProto, types: dict[str, TypeProto]
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


def standard_body(
    schema: Schema, node: NodeProto, version: int, input_types: list[TypeProto | None]
) -> FunctionProto | None:
    """The function body that the standard gives for a node, or None.

    Args:
        schema: The operator's description.
        node: The node, whose attributes and optional inputs may decide over the body.
        version: Operator set version of the graph.
        input_types: Types of the node's inputs as far as known.
    """
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= version]
        if versions:
            data = schema.get_function_with_opset_version(max(versions))
            return FunctionProto.FromString(data)
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        if versions:
            types = [(t or TypeProto()).SerializeToString() for t in input_types]
            data = schema.get_context_dependent_function_with_opset_version(
                max(versions), node.SerializeToString(), types
            )
            return FunctionProto.FromString(data) if data else None
    return None


def bound_attributes(
    node: NodeProto, function: FunctionProto, schema: Schema | None
) -> dict[str, AttributeProto]:
    """Attributes that a call gives to a function body, defaults included."""
    bound = {attribute.name: attribute for attribute in function.attribute_proto}
    if schema is not None:
        for name, attribute in schema.attributes.items():
            if attribute.default_value.name:
                bound[name] = attribute.default_value
    bound.update({attribute.name: attribute for attribute in node.attribute})
    return bound


def instantiate(
    nodes: Iterable[NodeProto], attributes: dict[str, AttributeProto]
) -> list[NodeProto]:
    """Nodes of a function body with its attribute references replaced by their values.

    Nodes without references are returned as they are, so that the tensors in them stay the same
    objects; an attribute that the call leaves open is left out.
    """
    return [_instantiated(node, attributes) if _has_references(node) else node for node in nodes]


def _has_references(node: NodeProto) -> bool:
    return any(
        attribute.ref_attr_name
        or any(_has_references(inner) for graph in _graphs(attribute) for inner in graph.node)
        for attribute in node.attribute
    )


def _graphs(attribute: AttributeProto) -> list[onnx.GraphProto]:
    return [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _instantiated(node: NodeProto, attributes: dict[str, AttributeProto]) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            source = attributes.get(attribute.ref_attr_name)
            if source is not None:
                copied = result.attribute.add()
                copied.CopyFrom(source)
                copied.name = attribute.name
            continue
        copied = result.attribute.add()
        copied.CopyFrom(attribute)
        for graph in _graphs(copied):
            inner = instantiate(graph.node, attributes)
            fresh = [NodeProto.FromString(n.SerializeToString()) for n in inner]
            del graph.node[:]
            graph.node.extend(fresh)
    return result
