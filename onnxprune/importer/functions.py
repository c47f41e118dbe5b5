"""Bodies of ONNX functions: the model's own, and those that the standard gives for operators."""

from collections.abc import Iterable, Iterator

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto

from onnxprune.shapes import Schema
from onnxprune.stored import Stored, constant_value


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
    objects; the others are copies, see `copied_values`. An attribute that the call leaves open is
    left out.
    """
    return [_instantiated(node, attributes) if _has_references(node) else node for node in nodes]


def copied_values(node: NodeProto, copy: NodeProto) -> Iterator[tuple[Stored, Stored]]:
    """What the sub-graphs of a node store, with what stands for it in a copy of the node."""
    copies = {attribute.name: attribute for attribute in copy.attribute}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            continue
        pairs = zip(_graphs(attribute), _graphs(copies[attribute.name]), strict=True)
        for graph, graph_copy in pairs:
            yield from zip(graph.initializer, graph_copy.initializer, strict=True)
            yield from zip(graph.sparse_initializer, graph_copy.sparse_initializer, strict=True)
            for inner, inner_copy in zip(graph.node, graph_copy.node, strict=True):
                value, value_copy = constant_value(inner), constant_value(inner_copy)
                if value is not None and value_copy is not None:
                    yield value, value_copy
                yield from copied_values(inner, inner_copy)


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
