"""Frequencies of rotary and sinusoidal positions, which look like learned operands and are none.

Exporters keep the table of frequencies that positions are multiplied with, since the number of
positions is free. A network that learns frequencies of its inputs has the same operators, so the
other operand decides: positions are counted.
"""

from collections.abc import Callable, Sequence

from onnx import NodeProto

from onnxprune.tensor_views import REARRANGING

_PASSES = REARRANGING | {"Concat", "Expand", "Slice", "Mul"}
"""Operators between the product and its sine and cosine."""

_COUNTED_THROUGH = REARRANGING | {"Expand", "Slice", "Gather", "CumSum"}
_MAX_DEPTH = 12

Producer = Callable[[str], "NodeProto | None"]
Consumers = Callable[[str], Sequence[NodeProto]]


def is_frequency(
    node: NodeProto, slot: int, producer: Producer, consumers: Consumers, integers: set[str]
) -> bool:
    """Whether an operand of a product holds the frequencies of counted positions.

    Args:
        node: The node that reads it.
        slot: Which of its inputs it is.
        producer: The node that computes a value, if one does.
        consumers: The nodes that read a value.
        integers: Graph inputs and stored tensors of an integer type.
    """
    if node.op_type not in ("Mul", "MatMul", "Einsum") or len(node.input) != 2:
        return False
    if not _is_counted(node.input[1 - slot], producer, integers, 0):
        return False
    return _ends(node.output[0], consumers) == {"Sin", "Cos"}


def _is_counted(name: str, producer: Producer, integers: set[str], depth: int) -> bool:
    """Whether a value comes from positions: those of a Range, or integers that are given."""
    if name in integers:
        return True
    node = producer(name)
    if node is None or depth > _MAX_DEPTH:
        return False
    if node.op_type == "Range":
        return True
    if node.op_type not in _COUNTED_THROUGH or not node.input:
        return False
    return _is_counted(node.input[0], producer, integers, depth + 1)


def _ends(start: str, consumers: Consumers) -> set[str]:
    """The operators that a value reaches through those that only pass it on."""
    ends: set[str] = set()
    names, seen = [start], {start}
    while names:
        for node in consumers(names.pop()):
            if node.op_type not in _PASSES:
                ends.add(node.op_type)
            elif node.output[0] not in seen:
                seen.add(node.output[0])
                names.append(node.output[0])
    return ends
