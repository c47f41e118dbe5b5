"""Shapes of the values of a graph, for some number of samples, without running it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import EncodeError
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    numpy_helper,
)

from onnxprune.contrib_types import CONTRIB_DOMAIN, infer_contrib
from onnxprune.shape_values import (
    FOLLOWED,
    MOST_VALUES,
    evaluate,
    partial_shape,
)
from onnxprune.shapes import find_schema, infer_node, tensor_type, type_shape
from onnxprune.stored import Stored, constant_value, stored_array, stored_shape, stored_type

Shape = tuple[int, ...]

_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_DATA_ELEMENTS = 64
_SIZED_BY_FLOATS = frozenset({"Resize", "Upsample", "Range"})
"""Operators whose output sizes depend on other numbers than integers."""


PartialShape = tuple[int | None, ...]


def infer_shapes(proto: ModelProto) -> dict[str, Shape]:
    """The fully known shapes of the main graph's values, for batch size 1."""
    shapes = _visited(proto, 1)
    known = {name: type_shape(value_type) for name, value_type in shapes.types.items()}
    return {
        name: tuple(size for size in shape if size is not None)
        for name, shape in known.items()
        if shape is not None and (name in shapes.stored or all(shape))
    }


@dataclass(frozen=True)
class GraphFacts:
    """What is known of the main graph's values without running it.

    Attributes:
        shapes: Sizes, None for each unknown one; values of unknown rank are missing.
        elem_types: Element types as ONNX numbers them.
        numbers: For small integer values all of their elements, where these are known, row-major.
    """

    shapes: Mapping[str, PartialShape]
    elem_types: Mapping[str, int]
    numbers: Mapping[str, tuple[int, ...]]


def infer_facts(proto: ModelProto, batch: int) -> GraphFacts:
    """What can be known of the main graph's values for a batch size.

    Args:
        proto: The model; it is not changed.
        batch: Size of the inputs' batch axes, where the file leaves it open.
    """
    shapes = _visited(proto, batch)
    known = {name: type_shape(value_type) for name, value_type in shapes.types.items()}
    elem_types = {name: int(t.tensor_type.elem_type) for name, t in shapes.types.items()}
    numbers = {}
    for name, elem_type in elem_types.items():
        value = shapes.value(name) if elem_type in _INTEGERS else None
        if value is not None and all(isinstance(item, int) for item in value.flat):
            numbers[name] = tuple(value.flat)
    sizes = {name: shape for name, shape in known.items() if shape is not None}
    return GraphFacts(sizes, elem_types, numbers)


def _visited(proto: ModelProto, batch: int) -> "_Shapes":
    shapes = _Shapes(proto, batch)
    for node in _expanded(proto):
        shapes.visit(node)
    return shapes


def _expanded(proto: ModelProto) -> Iterable[NodeProto]:
    """The nodes of the main graph, and in place of calls those of the model's own functions."""
    source = proto.graph
    if not proto.functions:
        return source.node
    constants = [node for node in source.node if constant_value(node) is not None and node.output]
    taken = {tensor.name for tensor in source.initializer}
    taken |= {tensor.values.name for tensor in source.sparse_initializer}
    taken |= {node.output[0] for node in constants}
    light = ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    light.graph.name = source.name
    light.graph.input.extend(ValueInfoProto(name=name) for name in taken)
    light.graph.input.extend(value for value in source.input if value.name not in taken)
    light.graph.output.extend(source.output)
    light.graph.node.extend(node for node in source.node if constant_value(node) is None)
    try:
        return [*constants, *onnx.inliner.inline_local_functions(light).graph.node]
    except (EncodeError, RuntimeError, ValueError):
        return source.node


class _Shapes:
    """Types of values by name, and the values of those that shapes are computed from."""

    def __init__(self, proto: ModelProto, batch: int) -> None:
        graph = proto.graph
        self.types: dict[str, TypeProto] = {}
        self.stored: dict[str, Stored] = {}
        self._values: dict[str, np.ndarray | None] = {}
        self._versions = {
            "" if opset.domain == "ai.onnx" else opset.domain: int(opset.version)
            for opset in proto.opset_import
        }
        for tensor in graph.initializer:
            self._store(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self._store(sparse.values.name, sparse)
        inputs = [value for value in graph.input if value.name not in self.stored]
        self.types.update(_for_batch({value.name: value.type for value in inputs}, batch))

    def _store(self, name: str, tensor: Stored) -> None:
        self.stored[name] = tensor
        self.types[name] = tensor_type(stored_type(tensor), stored_shape(tensor))

    def value(self, name: str) -> np.ndarray | None:
        """The elements of a small value, None for each that is not known; or None."""
        if name not in self._values:
            self._values[name] = self._decoded(name)
        return self._values[name]

    def _decoded(self, name: str) -> np.ndarray | None:
        tensor = self.stored.get(name)
        if tensor is None or math.prod(stored_shape(tensor)) > MOST_VALUES:
            return None
        array = stored_array(tensor)
        return array.astype(object) if array.dtype.kind in "biuf" else None

    def visit(self, node: NodeProto) -> None:
        """Find the types and values of a node's outputs."""
        constant = constant_value(node)
        if constant is not None and node.output:
            self._store(node.output[0], constant)
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        followed = domain == "" and node.op_type in FOLLOWED and len(node.output) == 1
        if followed and self._evaluate(node):
            return
        if domain == CONTRIB_DOMAIN:
            self.types |= infer_contrib(node, [self.types.get(name) for name in node.input])
        schema = find_schema(domain, node.op_type, self._versions.get(domain, 1))
        if schema is None:
            return
        try:
            found = infer_node(schema, node, self.types, self._data(node), self._versions)
        except onnx.checker.ValidationError:
            return
        self.types |= found
        if followed and node.output[0] in found:
            self._complete_shape(node)

    def _evaluate(self, node: NodeProto) -> bool:
        """Whether the output is a small value of which some elements are known."""
        types = [self.types.get(value) for value in node.input]
        values = [self.value(value) for value in node.input]
        result = evaluate(node, types, values)
        if result is None:
            return False
        array, elem_type = result
        self._values[node.output[0]] = array
        self.types[node.output[0]] = tensor_type(elem_type, array.shape)
        return True

    def _complete_shape(self, node: NodeProto) -> None:
        """Sizes that ONNX does not see because it was not told those that are not known."""
        inferred = self.types[node.output[0]]
        types = [self.types.get(value) for value in node.input]
        shape = partial_shape(node, types, [self.value(value) for value in node.input])
        if shape is not None and None in (type_shape(inferred) or (None,)):
            self.types[node.output[0]] = tensor_type(inferred.tensor_type.elem_type, shape)

    def _data(self, node: NodeProto) -> dict[str, TensorProto]:
        """Those of a node's inputs that its output sizes may depend on."""
        data = {}
        for name in node.input:
            elem_type = self.types[name].tensor_type.elem_type if name in self.types else 0
            integer = elem_type in _INTEGERS
            value = self.value(name) if integer or node.op_type in _SIZED_BY_FLOATS else None
            if value is None or value.size > _DATA_ELEMENTS or any(v is None for v in value.flat):
                continue
            try:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
                data[name] = numpy_helper.from_array(value.astype(dtype), name)
            except (KeyError, OverflowError, TypeError, ValueError):
                continue
        return data


def _for_batch(types: Mapping[str, TypeProto], batch_size: int) -> dict[str, TypeProto]:
    """Types of the inputs, with a size for every axis that is a batch axis by its place or name."""
    batch = {t.tensor_type.shape.dim[0].dim_param for t in types.values() if type_shape(t)} - {""}
    result = {}
    for name, stated in types.items():
        fixed = result[name] = TypeProto()
        fixed.CopyFrom(stated)
        for index, dim in enumerate(fixed.tensor_type.shape.dim):
            unknown = dim.dim_value <= 0 if dim.HasField("dim_value") else True
            if dim.dim_param in batch or (index == 0 and unknown):
                dim.dim_value = batch_size
            elif unknown:
                dim.Clear()
    return result
