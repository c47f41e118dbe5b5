"""Shape arithmetic: the numbers that exporters compute from shapes with graph nodes.

A value is an array of Python numbers, with None for each that is not known.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto

from onnxprune.shapes import type_shape
from onnxprune.tensor_views import attribute_of

MOST_VALUES = 1024
"""Values of more elements are not followed."""

_LARGEST_INTEGER = 2**63
_DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)

Values: TypeAlias = Sequence["np.ndarray | None"]
Types: TypeAlias = Sequence["TypeProto | None"]
Sizes: TypeAlias = "tuple[int | None, ...] | None"


def evaluate(node: NodeProto, types: Types, values: Values) -> tuple[np.ndarray, int] | None:
    """Elements and element type of the output of a node of the default domain.

    Args:
        node: The node.
        types: Types of its inputs.
        values: What is known of its inputs.

    Returns:
        None if nothing is known of the elements, or if there are many.
    """
    evaluator = _EVALUATORS.get(node.op_type)
    if evaluator is None:
        return None
    try:
        result = evaluator(node, types, values)
        elem_type = _elem_type(node, types)
    except _DAMAGE:
        return None
    if result is None or elem_type == 0:
        return None
    if not isinstance(result, np.ndarray):  # what NumPy makes of an array of rank 0
        result = _array([result], ())
    if result.size > MOST_VALUES:
        return None
    return _array([_bounded(item) for item in result.flat], result.shape), elem_type


def _elem_type(node: NodeProto, types: Types) -> int:
    """Element type of what a node computes; 0 if it is not known."""
    if node.op_type in ("Shape", "Size"):
        return TensorProto.INT64
    if node.op_type in ("Equal", "Less", "Greater", "Not"):
        return TensorProto.BOOL
    if node.op_type == "Cast":
        return int(attribute_of(node, "to"))
    if node.op_type == "ConstantOfShape":
        value = attribute_of(node, "value")
        return TensorProto.FLOAT if value is None else int(value.data_type)
    source = types[1 if node.op_type == "Where" else 0]
    return 0 if source is None else source.tensor_type.elem_type


def partial_shape(node: NodeProto, types: Types, values: Values) -> Sizes:
    """The output shape of a node whose input says only for some axes how long they become."""
    try:
        if node.op_type == "Reshape":
            return _reshaped(type_shape(types[0]), values[1], attribute_of(node, "allowzero", 0))
        if node.op_type == "ConstantOfShape" and values[0] is not None:
            return tuple(values[0])
        if node.op_type == "Expand" and values[1] is not None:
            return _broadcast(type_shape(types[0]), tuple(values[1]))
    except _DAMAGE:
        pass
    return None


def _reshaped(sizes: Sizes, target: np.ndarray | None, allow_zero: int) -> Sizes:
    if target is None or target.ndim != 1:
        return None
    result: list[int | None] = []
    for axis, size in enumerate(target):
        if size == 0 and not allow_zero:
            size = sizes[axis] if sizes is not None and axis < len(sizes) else None
        result.append(size if size is not None and size >= 0 else None)
    if result.count(None) == 1 and sizes is not None and None not in sizes:
        rest = math.prod(size for size in result if size is not None)
        whole = math.prod(size for size in sizes if size is not None)
        if rest and whole % rest == 0:
            result[result.index(None)] = whole // rest
    return tuple(result)


def _broadcast(sizes: Sizes, target: tuple[int | None, ...]) -> Sizes:
    if sizes is None:
        return None
    rank = max(len(sizes), len(target))
    pairs = zip(_padded(sizes, rank), _padded(target, rank), strict=True)
    return tuple(b if a == 1 else a if a is not None or b == 1 else b for a, b in pairs)


def _padded(sizes: tuple[int | None, ...], rank: int) -> tuple[int | None, ...]:
    return (1,) * (rank - len(sizes)) + sizes


def _bounded(item: Any) -> Any:
    """A number, if 64 bits hold it: products of products would soon fill the memory."""
    too_large = isinstance(item, int) and not -_LARGEST_INTEGER <= item < _LARGEST_INTEGER
    return None if too_large else item


def _array(items: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def _truncated_quotient(a: Any, b: Any) -> Any:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return abs(a) // abs(b) * (1 if (a >= 0) == (b >= 0) else -1)


_SCALAR: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": _truncated_quotient,
    "Mod": operator.mod,
    "Equal": operator.eq,
    "Less": operator.lt,
    "Greater": operator.gt,
    "Min": min,
    "Max": max,
    "Where": lambda condition, a, b: a if condition else b,
    "Not": operator.not_,
    "Neg": operator.neg,
    "Floor": lambda a: float(math.floor(a)),
    "Ceil": lambda a: float(math.ceil(a)),
}


def _elementwise(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    truncates = node.op_type == "Mod" and attribute_of(node, "fmod", 0)
    shape = np.broadcast_shapes(*[value.shape for value in known])
    if truncates or math.prod(shape) > MOST_VALUES:
        return None
    function = _SCALAR[node.op_type]
    columns = [np.broadcast_to(value, shape).flat for value in known]
    items = [None if None in row else function(*row) for row in zip(*columns, strict=True)]
    return _array(items, shape)


def _shape(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    sizes = type_shape(types[0])
    if sizes is None:
        return None
    end = attribute_of(node, "end", len(sizes))
    sizes = sizes[attribute_of(node, "start", 0) : end]
    return _array(sizes, (len(sizes),))


def _size(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    sizes = type_shape(types[0])
    if sizes is None or None in sizes:
        return None
    return _array([math.prod(size for size in sizes if size is not None)], ())


def _cast(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    kind = onnx.helper.tensor_dtype_to_np_dtype(attribute_of(node, "to")).kind
    convert = {"b": bool, "i": int, "u": int, "f": float}[kind]
    first = _first(values)
    return _array([None if item is None else convert(item) for item in first.flat], first.shape)


def _first(values: Values) -> np.ndarray:
    if values[0] is None:
        raise LookupError
    return values[0]


def _ints(node: NodeProto, values: Values, slot: int, name: str) -> list[int] | None:
    """Integers that newer operator sets give as an input and older ones as an attribute."""
    if slot < len(values) and node.input[slot]:
        value = values[slot]
        return None if value is None else [operator.index(item) for item in value.flat]
    return attribute_of(node, name)


def _gather(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    first, indices = _first(values), values[1]
    if indices is None or first.size * indices.size > MOST_VALUES * _MOST_COPIES:
        return None
    return np.take(first, indices.astype(np.int64), axis=attribute_of(node, "axis", 0))


def _concat(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    parts: list[np.ndarray] = []
    for value, value_type in zip(values, types, strict=True):
        (length,) = type_shape(value_type) or (None,) if value is None else (value.size,)
        if length is None or length > MOST_VALUES or len(parts) > MOST_VALUES:
            return None
        parts.append(_array([None] * length, (length,)) if value is None else value)
    return np.concatenate(parts, axis=attribute_of(node, "axis", 1))


def _slice(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    first = _first(values)
    starts, ends = _ints(node, values, 1, "starts"), _ints(node, values, 2, "ends")
    if starts is None or ends is None:
        return None
    axes = _ints(node, values, 3, "axes") or range(len(starts))
    steps = _ints(node, values, 4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -first.shape[axis] else end
        key = [slice(None)] * first.ndim
        key[axis] = slice(start, stop, step)
        first = first[tuple(key)]
    return first


def _squeeze(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    axes = _ints(node, values, 1, "axes")
    return _first(values).squeeze(None if axes is None else tuple(axes))


def _unsqueeze(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    axes = _ints(node, values, 1, "axes")
    return None if axes is None else np.expand_dims(_first(values), tuple(axes))


def _reshape(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    shape = _ints(node, values, 1, "shape")
    return None if shape is None or 0 in shape else _first(values).reshape(shape)


def _transpose(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    return _first(values).transpose(attribute_of(node, "perm"))


def _product(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    first = _first(values)
    keep = attribute_of(node, "keepdims", 1)
    if first.ndim != 1 or None in first:
        return None
    return _array([math.prod(first)], (1,) if keep else ())


def _range(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    start, limit, step = (operator.index(_first([value]).item()) for value in values)
    numbers = range(start, limit, step)
    if len(numbers) > MOST_VALUES:
        return None
    return _array(list(numbers), (len(numbers),))


def _filled(node: NodeProto, types: Types, values: Values) -> np.ndarray | None:
    sizes = [operator.index(size) for size in _first(values)]
    if math.prod(sizes) > MOST_VALUES or min(sizes, default=0) < 0:
        return None
    value = attribute_of(node, "value")
    item = 0.0 if value is None else onnx.numpy_helper.to_array(value).item()
    return _array([item] * math.prod(sizes), sizes)


_MOST_COPIES = 64

_EVALUATORS: dict[str, Callable[[NodeProto, Types, Values], np.ndarray | None]] = {
    **dict.fromkeys(_SCALAR, _elementwise),
    "Shape": _shape,
    "Size": _size,
    "Identity": lambda node, types, values: values[0],
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "ReduceProd": _product,
    "Range": _range,
    "ConstantOfShape": _filled,
}

FOLLOWED = _EVALUATORS.keys() | {"Expand"}
"""Operators for which `evaluate` or `partial_shape` may know something."""
