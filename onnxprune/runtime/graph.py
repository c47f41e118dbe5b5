"""A graph that is being rewritten: who makes, reads and stores which value."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

Dims = tuple[int | str | None, ...]


class GraphIndex:
    """The main graph of a model, looked at from its values. Does not change with the model.

    Attributes:
        nodes: Nodes in order.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, proto: ModelProto) -> None:
        graph = proto.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.outputs = {value.name for value in graph.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        for value in graph.input:
            # An initializer that is also an input may be replaced by the caller
            self._initializers.pop(value.name, None)
        self._producers: dict[str, int] = {}
        self._consumers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.output:
                self._producers[name] = index
            for name in {*node.input, *_names_in_subgraphs(node)}:
                self._consumers[name].append(index)
        self._dims = _dims_of(proto)
        self._arrays: dict[str, np.ndarray | None] = {}

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer or a `Constant` node; None for anything else."""
        if name not in self._arrays:
            self._arrays[name] = self._read(name)
        return self._arrays[name]

    def _read(self, name: str) -> np.ndarray | None:
        if name in self._initializers:
            return numpy_helper.to_array(self._initializers[name])
        producer = self._producers.get(name)
        node = None if producer is None else self.nodes[producer]
        if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            return None
        for attribute in node.attribute:
            if attribute.name == "value":
                return numpy_helper.to_array(attribute.t)
        return None

    def consumers(self, name: str) -> list[int]:
        """Nodes that read a value, by position."""
        return self._consumers.get(name, [])

    def producer(self, name: str) -> int | None:
        """The node that makes a value, by position; None for inputs and initializers."""
        return self._producers.get(name)

    def is_output(self, name: str) -> bool:
        """Whether a value is an output of the graph."""
        return name in self.outputs

    def dims(self, name: str) -> Dims | None:
        """Shape of a value: sizes, names of open axes, or None for an unknown axis."""
        return self._dims.get(name)

    def same_shape(self, first: str, second: str) -> bool:
        """Whether two values certainly have the same shape."""
        a, b = self.dims(first), self.dims(second)
        return a is not None and a == b and all(dim is not None for dim in a)


def attribute(node: NodeProto, name: str, otherwise: object = None) -> object:
    """The value of an attribute."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return otherwise


def _names_in_subgraphs(node: NodeProto) -> Iterator[str]:
    for item in node.attribute:
        graphs = [item.g] if item.type == AttributeProto.GRAPH else list(item.graphs)
        for graph in graphs:
            yield from _names_read(graph)


def _names_read(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        yield from _names_in_subgraphs(node)
    for value in graph.output:
        yield value.name


def _dims_of(proto: ModelProto) -> dict[str, Dims]:
    found: dict[str, Dims] = {}
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = tuple(
                int(dim.dim_value) if dim.HasField("dim_value") else (dim.dim_param or None)
                for dim in tensor.shape.dim
            )
    return found


def float_type(array: np.ndarray | None) -> bool:
    """Whether an array holds 32-bit floats."""
    return array is not None and array.dtype == np.float32


def scalar(array: np.ndarray | None) -> float | None:
    """The value of an array with one element."""
    if array is None or array.size != 1 or array.dtype.kind != "f":
        return None
    return float(array.reshape(-1)[0])


def tensor(name: str, array: np.ndarray) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.ascontiguousarray(array), name)
