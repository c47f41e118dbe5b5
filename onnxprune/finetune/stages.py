"""Cutting an fx graph into consecutive stages, so that parameters can be gathered by stage."""

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from onnxprune.errors import UnsupportedModelError

_OUTSIDE = ("placeholder", "get_attr", "output")


def split_into_stages(module: fx.GraphModule, count: int) -> list[nn.Module]:
    """Move nodes and parameters of a module into sub-modules that run one after the other.

    The stages have about the same number of parameter bytes. A parameter that several stages read
    stays where it was and is passed to them, as are buffers. The module computes the same, call by
    call, and keeps its class, its inputs, its buffers and the modules that it calls.

    Args:
        module: Its parameters are its own, not those of the modules that it calls, as in imported
            models. It is changed in place: parameters move, under the name that they had, into
            modules called `stage_0`, `stage_1` and so on.
        count: Number of stages, at least 1; there are fewer where parameters are few.

    Returns:
        The stages in their order; none without parameters.

    Raises:
        UnsupportedModelError: A module that the graph calls has parameters of its own.
    """
    parameters = dict(module.named_parameters(recurse=False))
    _check_parameters(module, parameters)
    stage_of = _assign(module.graph, parameters, count)
    homes = _homes(module.graph, parameters, stage_of)
    outer = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder" or (node.op == "get_attr" and homes.get(node.target) is None):
            values[node] = outer.node_copy(node)
    stages: list[nn.Module] = []
    for number in range(max(stage_of.values(), default=-1) + 1):
        graph, inputs, outputs = _stage_graph(module.graph, number, stage_of, homes)
        stage = fx.GraphModule(module, graph, class_name="Stage")
        name = _free_name(module, f"stage_{number}")
        module.add_module(name, stage)
        call = outer.call_module(name, tuple(values[node] for node in inputs))
        for position, node in enumerate(outputs):
            values[node] = outer.call_function(operator.getitem, (call, position))
        stages.append(stage)
    for key, home in homes.items():
        if home is not None:
            delattr(module, key)
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    outer.node_copy(output, values.__getitem__)
    module.graph = outer
    return stages


def _check_parameters(module: fx.GraphModule, own: Mapping[str, nn.Parameter]) -> None:
    foreign = [name for name, _ in module.named_parameters() if name not in own]
    if foreign:
        raise UnsupportedModelError(
            "a model can be sharded only where its graph reads all parameters itself",
            got=", ".join(foreign[:5]),
            expected="an imported model",
        )


def _assign(
    graph: fx.Graph, parameters: Mapping[str, nn.Parameter], count: int
) -> dict[fx.Node, int]:
    """The stage of every node that computes, never falling in the order of the graph.

    Parameters that several nodes read do not count: if these fall into different stages, the
    parameters belong to none.
    """
    reads = [
        (reader, str(node.target))
        for node in graph.nodes
        if node.op == "get_attr" and node.target in parameters
        for reader in node.users
    ]
    readers = Counter(key for _, key in reads)
    size_of: Counter[fx.Node] = Counter()
    for reader, key in reads:
        if readers[key] == 1:
            size_of[reader] += parameters[key].nbytes
    share = max(1, size_of.total()) / count
    stage_of: dict[fx.Node, int] = {}
    stage, total, filled = 0, 0, False
    for node in graph.nodes:
        if node.op in _OUTSIDE:
            continue
        size = size_of[node]
        if size and filled and (total + size / 2) / share >= stage + 1:
            stage, filled = stage + 1, False
        stage_of[node] = stage
        total += size
        filled = filled or size > 0
    return stage_of


def _homes(
    graph: fx.Graph, parameters: Mapping[str, nn.Parameter], stage_of: Mapping[fx.Node, int]
) -> dict[str, int | None]:
    """The only stage that reads each parameter; None where there are several, or the output."""
    readers: dict[str, set[int | None]] = {key: set() for key in parameters}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in parameters:
            readers[node.target] |= {stage_of.get(user) for user in node.users}
    return {key: next(iter(who)) if len(who) == 1 else None for key, who in readers.items()}


def _stage_graph(
    whole: fx.Graph,
    number: int,
    stage_of: Mapping[fx.Node, int],
    homes: Mapping[str, int | None],
) -> tuple[fx.Graph, list[fx.Node], list[fx.Node]]:
    """The graph of one stage, with the nodes that it takes from outside and hands out."""
    nodes = [node for node in whole.nodes if stage_of.get(node) == number]
    graph = fx.Graph()
    inputs: dict[fx.Node, None] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            private = source.op == "get_attr" and homes.get(str(source.target)) == number
            if stage_of.get(source) != number and not private:
                inputs[source] = None
    inside: dict[fx.Node, Any] = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in inside:
                inside[source] = graph.node_copy(source)
        inside[node] = graph.node_copy(node, inside.__getitem__)
    outputs = [node for node in nodes if any(stage_of.get(u) != number for u in node.users)]
    graph.output(tuple(inside[node] for node in outputs))
    return graph, list(inputs), outputs


def _free_name(module: nn.Module, name: str) -> str:
    while hasattr(module, name):
        name += "_"
    return name
