"""Inner tensors of a graph as further outputs, of a copy that only training reads."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import onnx
from onnx import AttributeProto, GraphProto, ValueInfoProto

from onnxprune.errors import UsageError
from onnxprune.export.writeback import write_back
from onnxprune.model import OnnxModel

_CLOSE_MATCHES = 5


def tapped(source: OnnxModel, names: Sequence[str], key: str) -> OnnxModel:
    """A model with inner tensors as outputs after its own.

    The nodes and stored tensors are the same, so what is trained in the copy fits the original,
    which stays as it is.

    Args:
        source: The model.
        names: Tensors that a node of the main graph computes. Outputs of the graph may be among
            them, and stay where they are.
        key: The recipe key that names them, for messages.

    Raises:
        UsageError: There is no such tensor, or none that samples decide.
    """
    graph = source.proto.graph
    present = {value.name for value in graph.output}
    added = [name for name in dict.fromkeys(names) if name not in present]
    for name in added:
        _check_inner(graph, name, source.label, key)
    if not added:
        return source
    proto = write_back(source.proto, {})
    stated = {value.name: value for value in proto.graph.value_info}
    for name in added:
        proto.graph.output.append(_without_sizes(stated.get(name), name))
    return replace(source, proto=proto)


def _without_sizes(stated: ValueInfoProto | None, name: str) -> ValueInfoProto:
    """An output of a name; of what the file says of it the element type, as sizes may be stale."""
    value = ValueInfoProto(name=name)
    if stated is not None and stated.type.HasField("tensor_type"):
        value.type.tensor_type.elem_type = stated.type.tensor_type.elem_type
    return value


def _check_inner(graph: GraphProto, name: str, label: str, key: str) -> None:
    constants = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    computed = [n for node in graph.node for n in node.output if n and n not in constants]
    if name in computed:
        return
    stored = constants | {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    where = f"{label}, {key}"
    if name in stored or name in {value.name for value in graph.input}:
        raise UsageError(
            "this tensor is stored or fed, not computed, and so the same in both models",
            where=where,
            got=name,
            expected="a tensor that a node of the graph computes",
        )
    if name in set(_inside(graph.node)):
        raise UsageError(
            "this tensor lies inside an If, Loop or Scan, and cannot be read from outside",
            where=where,
            got=name,
            expected="a tensor of the main graph",
            remedy="name an output of the node that holds the sub-graph",
        )
    close = difflib.get_close_matches(name, computed, _CLOSE_MATCHES, cutoff=0.5)
    raise UsageError(
        "the graph has no tensor of this name",
        where=where,
        got=name,
        expected=f"one like {', '.join(map(repr, close))}" if close else None,
        remedy="take a name from a viewer such as Netron; names are those of edges, not of nodes",
    )


def _inside(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    """Names of tensors that nodes inside sub-graphs compute."""
    for node in nodes:
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for graph in graphs:
                for inner in graph.node:
                    yield from (name for name in inner.output if name)
                yield from _inside(graph.node)
