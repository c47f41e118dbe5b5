"""Axes that a node names, against the number of axes that there are."""

from collections.abc import Sequence

import onnx
from onnx import NodeProto, TypeProto

from onnxprune.shapes import type_shape

_ONE_MORE = frozenset({"Flatten", "OneHot", "Softmax", "LogSoftmax", "Hardmax"})
"""Operators whose axis may also be the place behind the last one."""

_AXIS = _ONE_MORE | {
    *("ArgMax", "ArgMin", "Compress", "Concat", "Gather", "GatherElements", "LayerNormalization"),
    *("LpNormalization", "RMSNormalization", "Scatter", "ScatterElements", "Split", "TopK"),
}
"""Operators whose attribute `axis` counts axes of their first input."""


def check_axes(node: NodeProto, domain: str, types: Sequence[TypeProto | None]) -> None:
    """Refuse a node of the standard whose axes are not there, which ONNX's inference lets pass.

    Args:
        node: The node.
        domain: Its operator set.
        types: Types of its inputs.

    Raises:
        ValueError: What is wrong.
    """
    sizes = type_shape(types[0]) if types and not domain else None
    if not sizes:  # a scalar is what some exporters state for an unknown number of axes
        return
    rank = len(sizes)
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "axis" and node.op_type in _AXIS:
            more = int(node.op_type in _ONE_MORE)
            if not -rank - more <= value < rank + more:
                raise ValueError(f"axis {value} of an input with {rank} axes")
        is_perm = attribute.name == "perm" and node.op_type == "Transpose"
        if is_perm and sorted(value) != list(range(rank)):
            raise ValueError(f"perm {list(value)} of an input with {rank} axes")
