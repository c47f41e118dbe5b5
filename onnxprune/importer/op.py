"""One ONNX node as its builder sees it."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, TensorProto, TypeProto
from torch import fx, nn

from onnxprune.importer.builder import GraphBuilder, to_ints
from onnxprune.importer.registry import UnsupportedNode
from onnxprune.importer.values import FLOAT_TYPES, TORCH_DTYPES, WIDE_UNSIGNED_TYPES, Host, Value
from onnxprune.shapes import type_shape

Ints = list[Any] | fx.Node
"""Integers known at import or computed by fx nodes, or one node that computes them all."""

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def short_float(value: float) -> float:
    """The number with the fewest digits that float32 rounds to the same value.

    The largest float32 numbers stay as they are: with fewer digits they are beyond its range, and
    PyTorch refuses to convert them.
    """
    short = float(str(np.float32(value)))
    return value if abs(short) > _LARGEST_FLOAT32 else short


class Op:
    """Inputs, attributes and types of a node, and the means to emit its PyTorch form.

    Attributes:
        node: The ONNX node.
        version: Operator set version that it is to be read by.
        inputs: Its values, None for an optional input that is left out.
        builder: The graph under construction.
        used_outputs: For each output, whether anything reads it.
        convert_graph: Converts a sub-graph, given it and the types of its inputs, into a builder
            and the sub-graph's outputs.
        inline_graph: Converts a sub-graph without inputs in place of the node, into its outputs and
            their types.
    """

    def __init__(
        self,
        node: NodeProto,
        version: int,
        inputs: list[Value | None],
        input_types: list[TypeProto | None],
        output_types: list[TypeProto | None],
        used_outputs: list[bool],
        builder: GraphBuilder,
        convert_graph: Callable[..., Any] | None = None,
        inline_graph: Callable[..., Any] | None = None,
    ) -> None:
        self.node = node
        self.version = version
        self.inputs = inputs
        self.input_types = input_types
        self.output_types = output_types
        self.used_outputs = used_outputs
        self.builder = builder
        self.convert_graph = convert_graph
        self.inline_graph = inline_graph
        self._attributes = {attribute.name: attribute for attribute in node.attribute}

    @property
    def label(self) -> str:
        """Name of the node, or of its first output."""
        return self.node.name or next(iter(self.node.output), self.node.op_type)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value; strings are decoded."""
        attribute = self._attributes.get(name)
        if attribute is None:
            return default
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, float):
            return short_float(value)
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, list) and value and isinstance(value[0], bytes):
            return [item.decode() for item in value]
        return value

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """An input as it is."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise UnsupportedNode(f"its input {index} is missing")
        return value

    def tensor(self, index: int) -> fx.Node:
        """An input as a tensor."""
        return self.builder.materialise(self.value(index))

    def optional(self, index: int) -> fx.Node | None:
        """An input as a tensor, or None if it is left out."""
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[fx.Node]:
        """All inputs as tensors."""
        return [self.tensor(index) for index in range(len(self.inputs)) if self.has(index)]

    def number(self, index: int) -> Any:
        """A host value of one element as a number or as the node that computes it, else None."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, Host) or value.array.size != 1:
            return None
        item = value.items()[0]
        if isinstance(item, float) and value.elem_type != TensorProto.DOUBLE:
            return short_float(item)
        return item if isinstance(item, int | float | bool | fx.Node) else None

    def integer(self, index: int, default: int | None = None) -> Any:
        """An input of one element as an integer, or the node that computes it."""
        if not self.has(index):
            return default
        number = self.number(index)
        if number is None:
            return self.call(int, self.tensor(index))
        return number if isinstance(number, fx.Node) else int(number)

    def scalar(self, index: int) -> Any:
        """An input of one element as a number if the host knows it, otherwise as a tensor."""
        number = self.number(index)
        return self.optional(index) if number is None else number

    def operand(self, index: int) -> Any:
        """An input of a broadcasting operator: a plain number where the result is the same."""
        number = self.number(index)
        if number is None:
            return self.tensor(index)
        rank = self.value(index).array.ndim  # type: ignore[union-attr]
        for other in range(len(self.inputs)):
            other_rank = self.rank(other)
            is_tensor = other != index and isinstance(self.inputs[other], fx.Node)
            if is_tensor and (rank == 0 or (other_rank is not None and other_rank >= rank)):
                return number
        return self.tensor(index)

    def constant(self, index: int, what: str = "") -> np.ndarray:
        """An input whose numbers are needed at import.

        Raises:
            UnsupportedNode: They are computed while the model runs.
        """
        value = self.value(index)
        if isinstance(value, Host) and value.literal:
            return value.array
        raise UnsupportedNode(f"its input {what or index} is computed while the model runs")

    def is_constant(self, index: int) -> bool:
        """Whether an input's numbers are known at import."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return isinstance(value, Host) and value.literal

    def ints(self, index: int) -> Ints:
        """A shape-like input."""
        value = self.value(index)
        if isinstance(value, Host):
            return value.items()
        return self.call(to_ints, value)

    def int_list(self, index: int, attribute: str) -> Ints | None:
        """Integers that older versions give as an attribute and newer ones as an input."""
        if attribute in self._attributes:
            return list(self.attr(attribute))
        return self.ints(index) if self.has(index) else None

    def elem_type(self, index: int = 0) -> int:
        """ONNX element type of an input, 0 if unknown."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, Host):
            return value.elem_type
        value_type = self.input_types[index] if index < len(self.input_types) else None
        return value_type.tensor_type.elem_type if value_type is not None else 0

    def dtype(self, index: int = 0) -> torch.dtype:
        """PyTorch type of an input.

        Raises:
            UnsupportedNode: The file does not determine it.
        """
        dtype = TORCH_DTYPES.get(self.elem_type(index))
        if dtype is None:
            raise UnsupportedNode(f"the element type of its input {index} is not known")
        return dtype

    def is_float(self, index: int = 0) -> bool:
        """Whether an input is of a floating-point type, or of unknown type."""
        return self.elem_type(index) in FLOAT_TYPES or self.elem_type(index) == 0

    def is_wide_unsigned(self, index: int = 0) -> bool:
        """Whether an input is of an unsigned type that PyTorch can hardly compute with."""
        return self.elem_type(index) in WIDE_UNSIGNED_TYPES

    def shape(self, index: int = 0) -> tuple[int | None, ...] | None:
        """Sizes of an input as the file states them; None for what it does not."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, Host):
            return value.array.shape
        return type_shape(self.input_types[index]) if index < len(self.input_types) else None

    def rank(self, index: int = 0) -> int | None:
        """Number of axes of an input, None if unknown."""
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def known_rank(self, index: int = 0) -> int:
        """Number of axes of an input.

        Raises:
            UnsupportedNode: The file does not determine it.
        """
        rank = self.rank(index)
        if rank is None:
            raise UnsupportedNode(f"the number of axes of its input {index} is not known")
        return rank

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Emit a function call."""
        return self.builder.call(function, *args, **kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Emit a method call on the first argument."""
        return self.builder.method(name, *args, **kwargs)

    def module(self, module: nn.Module, *args: Any) -> fx.Node:
        """Add a sub-module under the node's name and emit a call of it."""
        return self.builder.module(self.label, module, *args)

    def unpack(self, node: fx.Node, count: int) -> list[fx.Node]:
        """Take the elements of a call that returns a sequence."""
        return [self.call(operator.getitem, node, index) for index in range(count)]
