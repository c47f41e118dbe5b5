"""Numbers that a file decides, such as the condition of an If of which one branch never runs."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from onnx import NodeProto, TensorProto

from onnxprune.tensor_views import attribute_of

Number: TypeAlias = bool | int | float

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "And": lambda a, b: bool(a and b),
    "Or": lambda a, b: bool(a or b),
    "Xor": lambda a, b: bool(a) != bool(b),
    "Not": operator.not_,
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
}
_SAME = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that leave the one element of their first input as it is."""

_CASTS: dict[int, Callable[[Any], Number]] = {
    TensorProto.BOOL: bool,
    TensorProto.INT32: int,
    TensorProto.INT64: int,
    TensorProto.FLOAT: float,
}


def computed(node: NodeProto, operands: Sequence[Number | None]) -> Number | None:
    """What a node computes from single numbers; None if that is not known.

    Args:
        node: A comparison, a logical operator, a cast, or one that only changes the shape.
        operands: The number in each of its inputs, None for one that is not known.
    """
    if node.domain not in ("", "ai.onnx") or not operands:
        return None
    first = operands[0]
    if node.op_type in _SAME:
        return first
    if any(operand is None for operand in operands):
        return None
    if node.op_type == "Cast":
        cast = _CASTS.get(int(attribute_of(node, "to", 0)))
        return None if cast is None or first is None else cast(first)
    function = _FUNCTIONS.get(node.op_type)
    return None if function is None else bool(function(*operands))
