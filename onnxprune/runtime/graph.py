"""Who makes and who reads each value of a graph."""

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto

from onnxprune.payload import inner_graphs
from onnxprune.stored import stored_array


class GraphIndex:
    """The main graph of a model whose nodes are in topological order; nothing is changed.

    Attributes:
        graph: The graph.
        stored: Initializers by name that nobody can override.
        readers: Nodes that read a value, by index, those with sub-graphs that read it included.
        makers: Index of the node that makes a value.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        given = {value.name for value in graph.input}
        self.overridable = {t.name for t in graph.initializer if t.name in given}
        self.stored: dict[str, TensorProto] = {
            tensor.name: tensor for tensor in graph.initializer if tensor.name not in given
        }
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[int]] = {}
        self.makers: dict[str, int] = {}
        for index, node in enumerate(graph.node):
            for name in dict.fromkeys(names_read(node)):
                self.readers.setdefault(name, []).append(index)
            for name in node.output:
                if name:
                    self.makers[name] = index

    def array(self, name: str) -> np.ndarray | None:
        """The values of an initializer; None for any other value."""
        tensor = self.stored.get(name)
        return None if tensor is None else stored_array(tensor)

    def sole_reader(self, value: str) -> int | None:
        """The only node that reads a value, which is no output of the graph; None else."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.outputs else None


def names_read(node: NodeProto) -> Iterator[str]:
    """Names of all values that a node reads, those that its sub-graphs read included."""
    yield from (name for name in node.input if name)
    for _, graph in inner_graphs(node):
        for inner in graph.node:
            yield from names_read(inner)
        yield from (value.name for value in graph.output)


def label(node: NodeProto) -> str:
    """How messages name a node."""
    return str(node.name or (node.output[0] if node.output else node.op_type))
