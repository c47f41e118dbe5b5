"""Names of a graph that is being converted: what they stand for, and which nodes are needed."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from onnx import AttributeProto, NodeProto, TypeProto

from onnxprune.importer.values import Value


@dataclass
class Scope:
    """Values and types by name, in a graph or in the body of a function.

    Attributes:
        versions: Operator set version of each domain.
        outer: Scope around a sub-graph; a function body has none.
        readers: How often each name is read in this scope.
    """

    versions: dict[str, int]
    outer: "Scope | None" = None
    depth: int = 0
    values: dict[str, Value | None] = field(default_factory=dict)
    types: dict[str, TypeProto] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)

    def find(self, name: str) -> tuple[Value | None, TypeProto | None]:
        """A value and its type; None for one that could not be converted."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name], scope.types.get(name)
            scope = scope.outer
        return None, None


def needed_nodes(
    nodes: list[NodeProto], outputs: Iterable[str], readers: Counter[str]
) -> list[NodeProto]:
    """Nodes that the outputs depend on, in their order; counts who reads each name."""
    readers.update(outputs)
    needed = []
    for node in reversed(nodes):
        if any(readers[name] for name in node.output if name):
            needed.append(node)
            _count_reads(node, readers)
    return needed[::-1]


def _count_reads(node: NodeProto, readers: Counter[str]) -> None:
    readers.update(name for name in node.input if name)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            readers.update(value.name for value in graph.output)
            for inner in graph.node:
                _count_reads(inner, readers)


def without_inputs(node: NodeProto, absent: set[str]) -> NodeProto:
    """A node of a function body with the inputs emptied that the caller leaves out."""
    if not absent.intersection(node.input):
        return node
    result = NodeProto()
    result.CopyFrom(node)
    result.input[:] = ["" if name in absent else name for name in node.input]
    return result


def visible_types(scope: Scope | None) -> dict[str, TypeProto]:
    """Types of all values that a graph can see, the inner ones first."""
    types: dict[str, TypeProto] = {}
    while scope is not None:
        types = {**scope.types, **types}
        scope = scope.outer
    return types
