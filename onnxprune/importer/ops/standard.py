"""What builders of com.microsoft operators share: required attributes, standard relatives."""

from collections.abc import Sequence

from onnx import NodeProto, TypeProto
from torch import fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import UnsupportedNode, find_entry
from onnxprune.importer.values import Value

_VERSION = 17
"""Operator set version that variants of standard operators follow."""


def positive(op: Op, name: str) -> int:
    """An attribute that has to be a positive integer; ONNX has no schema that checks it.

    Raises:
        UnsupportedNode: It is not.
    """
    value = op.attr(name)
    if not isinstance(value, int) or value < 1:
        raise UnsupportedNode(f"{name} = {value}")
    return value


def as_standard(
    op: Op,
    op_type: str,
    inputs: Sequence[Value | None],
    input_types: Sequence[TypeProto | None],
    version: int = _VERSION,
) -> fx.Node:
    """Emit a node's first output by the builder of a standard operator with the same attributes.

    Args:
        op: The node.
        op_type: The standard operator.
        inputs: What it takes for its inputs.
        input_types: Their types, None where unknown.
        version: Operator set version that it is read by.
    """
    entry = find_entry("", op_type, version)
    if entry is None:
        raise UnsupportedNode(f"there is no {op_type} in version {version}")
    node = NodeProto()
    node.CopyFrom(op.node)
    node.op_type, node.domain = op_type, ""
    variant = Op(
        node,
        version,
        list(inputs),
        list(input_types),
        op.output_types,
        op.used_outputs,
        op.builder,
        op.convert_graph,
    )
    result = entry.builder(variant)
    if isinstance(result, Sequence):
        result = result[0]  # type: ignore[assignment]
    return op.builder.materialise(result)  # type: ignore[arg-type]
