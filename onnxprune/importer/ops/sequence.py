"""Sequences, which are Python lists of tensors, and optional values, which may be None.

Elements that are known at import are looked up there: a list whose elements are only taken out
again leaves no trace.
"""

import operator
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import TensorProto, TypeProto
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register
from onnxprune.importer.values import Host, Value, as_host

Elements: TypeAlias = list[tuple[Value, TypeProto | None]]
"""Values of a sequence with their types."""


def sequence(*elements: Any) -> list[Any]:
    """A sequence of the given elements."""
    return list(elements)


def insert(elements: list[Any], element: Any, position: int | None) -> list[Any]:
    """A longer copy of a sequence; the new element comes last if there is no position."""
    at = len(elements) if position is None else position
    return [*elements[:at], element, *elements[at:]]


def erase(elements: list[Any], position: int) -> list[Any]:
    """A copy of a sequence without one element."""
    at = range(len(elements))[position]
    return [*elements[:at], *elements[at + 1 :]]


def _known(op: Op) -> Elements | None:
    value = op.value(0)
    return value.meta.get("elements") if isinstance(value, fx.Node) else None


def _with_elements(node: fx.Node, elements: Elements | None) -> fx.Node:
    node.meta["elements"] = elements
    return node


@register("SequenceConstruct", "SequenceEmpty", since=11)
def _construct(op: Op) -> Result:
    elements = [(op.value(index), op.input_types[index]) for index in range(len(op.inputs))]
    return _with_elements(op.call(sequence, *op.tensors()), elements)


@register("SequenceInsert", since=11)
def _insert(op: Op) -> Result:
    elements, position = _known(op), op.integer(2)
    node = op.call(insert, op.tensor(0), op.tensor(1), position)
    if elements is None or isinstance(position, fx.Node):
        return node
    return _with_elements(node, insert(elements, (op.value(1), op.input_types[1]), position))


@register("SequenceErase", since=11)
def _erase(op: Op) -> Result:
    elements, position = _known(op), op.integer(1, -1)
    node = op.call(erase, op.tensor(0), position)
    if elements is None or isinstance(position, fx.Node):
        return node
    return _with_elements(node, erase(elements, position))


@register("SequenceAt", since=11)
def _at(op: Op) -> Result:
    elements, position = _known(op), op.integer(1)
    if elements is None or isinstance(position, fx.Node):
        return op.call(operator.getitem, op.tensor(0), position)
    value, value_type = elements[position]
    op.output_types[0] = value_type or op.output_types[0]
    return value


def _computed(node: fx.Node, elem_type: int, name: str) -> Host:
    box = np.empty((), dtype=object)
    box[()] = node
    return as_host(box, elem_type, name)


@register("SequenceLength", since=11)
def _length(op: Op) -> Result:
    elements = _known(op)
    if elements is not None:
        return Host(np.array(len(elements)), TensorProto.INT64, op.node.output[0])
    length = op.call(len, op.tensor(0))
    length.meta["non_negative"] = True
    return _computed(length, TensorProto.INT64, op.node.output[0])


@register("ConcatFromSequence", since=11)
def _concat(op: Op) -> Result:
    elements = _known(op)
    parts: Any = op.tensor(0)
    if elements:
        parts = [op.builder.materialise(value) for value, _ in elements]
    join = torch.stack if op.attr("new_axis", 0) else torch.cat
    return op.call(join, parts, dim=op.attr("axis"))


def split_by(x: Tensor, sizes: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Parts of the given sizes; one size, without axes, is that of each part."""
    return torch.split(x, sizes.tolist(), dim)


@register("SplitToSequence", since=11)
def _split(op: Op) -> Result:
    axis = op.attr("axis", 0)
    if not op.has(1):
        if op.attr("keepdims", 1):
            return op.call(torch.split, op.tensor(0), 1, dim=axis)
        return op.call(torch.unbind, op.tensor(0), dim=axis)
    if op.rank(1) is None:
        return op.call(split_by, op.tensor(0), op.tensor(1), axis)
    sizes = op.integer(1) if op.rank(1) == 0 else op.ints(1)
    return op.call(torch.split, op.tensor(0), sizes, dim=axis)


def nothing() -> None:
    """An optional value without an element."""
    return None


@register("Optional", since=15)
def _optional(op: Op) -> Result:
    return op.value(0) if op.has(0) else op.call(nothing)


@register("OptionalHasElement", since=15)
def _has_element(op: Op) -> Result:
    name = op.node.output[0]
    if not op.has(0):
        return Host(np.array(False), TensorProto.BOOL, name)
    value, value_type = op.value(0), op.input_types[0]
    is_optional = value_type is None or value_type.HasField("optional_type")
    if isinstance(value, Host) or not is_optional or "type" in value.meta:
        return Host(np.array(True), TensorProto.BOOL, name)
    return _computed(op.call(operator.is_not, value, None), TensorProto.BOOL, name)


@register("OptionalGetElement", since=15)
def _get_element(op: Op) -> Result:
    return op.value(0)
