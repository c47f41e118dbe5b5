"""Which uses of stored tensors the outputs of a model depend on."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import onnx
from onnx import NodeProto

from onnxprune.payload import inner_graphs
from onnxprune.slots import PRUNABLE_OPS, WEIGHT_ROLES
from onnxprune.tensors import GraphTensor

Reading: TypeAlias = tuple[str, str, int, str]
"""Label of a node, its operator, an input's index, and the name of the value that it reads."""


def needed_readings(proto: onnx.ModelProto) -> set[Reading]:
    """What the nodes read that outputs of the model depend on, in sub-graphs and functions, too.

    A node inside a sub-graph or a function counts if the node that holds or calls it does, and if
    outputs of the sub-graph or function depend on it.
    """
    walk = _Walk(proto)
    walk.needed_from_outside(proto.graph.node, (value.name for value in proto.graph.output))
    return walk.readings


def is_needed(tensor: GraphTensor, needed: set[Reading]) -> bool:
    """Whether an output depends on a tensor; for a prunable one, on its products.

    Args:
        tensor: The tensor.
        needed: `needed_readings` of its model.
    """
    return any(
        (use.node, use.op_type, use.slot, use.value) in needed
        for use in tensor.uses
        if not tensor.prunable or (use.role in WEIGHT_ROLES and use.op_type in PRUNABLE_OPS)
    )


class _Walk:
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._functions = {(f.domain, f.name): f for f in proto.functions}
        self._visited: set[tuple[str, str]] = set()
        self.readings: set[Reading] = set()

    def needed_from_outside(self, nodes: Sequence[NodeProto], wanted: Iterable[str]) -> set[str]:
        """Names that a graph needs for some of its values, its own ones included."""
        needed = set(wanted)
        for node in reversed(nodes):
            if needed.isdisjoint(node.output):
                continue
            label = node.name or next(iter(node.output), "")
            for slot, name in enumerate(node.input):
                if name:
                    needed.add(name)
                    self.readings.add((label, node.op_type, slot, name))
            for _, graph in inner_graphs(node):
                needed |= self.needed_from_outside(graph.node, (o.name for o in graph.output))
            self._visit_function((node.domain, node.op_type))
        return needed

    def _visit_function(self, key: tuple[str, str]) -> None:
        function = self._functions.get(key)
        if function is not None and key not in self._visited:
            self._visited.add(key)
            self.needed_from_outside(function.node, function.output)
