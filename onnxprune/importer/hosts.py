"""Shape arithmetic on the host.

Exporters compute shapes with graph nodes: `Shape`, `Gather`, `Mul`, `Concat`, and so on. Where all
inputs of such a node are host values, its result is one, too: elements known at import are
computed at once, and for the others scalar calls such as `size * 4` are emitted.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx

from onnxprune.importer.op import Op
from onnxprune.importer.values import FLOAT_TYPES, HOST_LIMIT, Host, as_host, numpy_dtype

Evaluator = Callable[[Op, list[np.ndarray]], "np.ndarray | list[np.ndarray] | None"]

_EVALUATORS: dict[str, Evaluator] = {}
_SINCE = {"Cast": 6, "Tile": 6}
"""Operator set versions before which operators had a form that is not evaluated here."""


def evaluate(op: Op) -> list[Host] | None:
    """The outputs of a node as host values, or None where it has to run on tensors."""
    evaluator = _EVALUATORS.get(op.node.op_type)
    values = op.inputs
    if evaluator is None or op.node.domain not in ("", "ai.onnx") or not values:
        return None
    if op.version < _SINCE.get(op.node.op_type, 1) or op.attr("broadcast", 0):
        return None
    if not all(isinstance(v, Host) and v.array.size <= HOST_LIMIT for v in values if v is not None):
        return None
    if any(isinstance(v, Host) and v.array.dtype.kind not in "biufO" for v in values):
        return None
    arrays = [v.array if isinstance(v, Host) else None for v in values]
    with np.errstate(all="ignore"):
        results = evaluator(op, arrays)  # type: ignore[arg-type]
    if results is None:
        return None
    outputs = results if isinstance(results, list) else [results]
    if any(array.size > HOST_LIMIT for array in outputs):
        return None
    return [
        as_host(np.asarray(array), _output_type(op, index), name)
        for index, (array, name) in enumerate(zip(outputs, op.node.output, strict=False))
    ]


def _output_type(op: Op, index: int) -> int:
    if op.node.op_type == "Cast":
        return int(op.attr("to"))
    value_type = op.output_types[index] if index < len(op.output_types) else None
    if value_type is not None and value_type.tensor_type.elem_type:
        return value_type.tensor_type.elem_type
    return op.elem_type(0)


def trunc_div(a: Any, b: Any) -> Any:
    """Integer division that rounds toward zero."""
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


def choose(condition: Any, a: Any, b: Any) -> Any:
    """`a` if the condition holds, otherwise `b`."""
    return a if condition else b


def negate(condition: Any) -> bool:
    """Logical not of a host condition."""
    return not condition


def _evaluator(*op_types: str) -> Callable[[Evaluator], Evaluator]:
    def keep(function: Evaluator) -> Evaluator:
        for op_type in op_types:
            _EVALUATORS[op_type] = function
        return function

    return keep


def _map(op: Op, function: Callable[..., Any], arrays: list[np.ndarray]) -> np.ndarray:
    """Apply a scalar function to broadcast arrays, emitting a call where an element is a node."""
    broadcast = np.broadcast_arrays(*[np.asarray(array, dtype=object) for array in arrays])
    result = np.empty(broadcast[0].shape, dtype=object)
    for index in np.ndindex(result.shape):
        items = [array[index] for array in broadcast]
        if any(isinstance(item, fx.Node) for item in items):
            result[index] = _emit(op, function, items)
        else:
            result[index] = function(*items)
    return result


def _non_negative(item: Any) -> bool:
    return bool(item.meta.get("non_negative")) if isinstance(item, fx.Node) else item >= 0


def _emit(op: Op, function: Callable[..., Any], items: list[Any]) -> Any:
    neutral = {operator.mul: 1, operator.add: 0}.get(function)
    if neutral is not None:
        left, right = items
        if not isinstance(left, fx.Node) and left == neutral:
            return right
        if not isinstance(right, fx.Node) and right == neutral:
            return left
    if function in (operator.sub, trunc_div, operator.truediv):
        right = items[1]
        if not isinstance(right, fx.Node) and right == (0 if function is operator.sub else 1):
            return items[0]
    all_non_negative = all(_non_negative(item) for item in items)
    if function is trunc_div and all_non_negative:
        function = operator.floordiv
    node = op.call(function, *items)
    node.meta["non_negative"] = all_non_negative and function in _KEEPS_SIGN
    return node


_KEEPS_SIGN = (operator.add, operator.mul, operator.floordiv, operator.mod, operator.truediv, max)

_BINARY: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Pow": operator.pow,
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
}
_NUMPY_BINARY: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
}


def _literal(arrays: list[np.ndarray]) -> bool:
    return not any(array.dtype.hasobject for array in arrays)


@_evaluator(*_NUMPY_BINARY)
def _binary(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    if _literal(arrays):
        return np.asarray(_NUMPY_BINARY[op.node.op_type](*arrays))
    return _map(op, _BINARY[op.node.op_type], arrays)


@_evaluator("Div")
def _div(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    is_float = op.elem_type(0) in FLOAT_TYPES
    if _literal(arrays):
        if is_float:
            return np.asarray(np.divide(*arrays))
        if not arrays[1].all():
            return None
        return np.asarray(np.trunc(arrays[0] / arrays[1])).astype(arrays[0].dtype)
    return _map(op, operator.truediv if is_float else trunc_div, arrays)


@_evaluator("Mod")
def _mod(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    truncates = bool(op.attr("fmod", 0))
    if not _literal(arrays):
        return None if truncates else _map(op, operator.mod, arrays)
    if not arrays[1].all():
        return None
    return np.asarray((np.fmod if truncates else np.mod)(*arrays))


@_evaluator("Pow")
def _pow(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    if op.elem_type(0) not in FLOAT_TYPES:
        return None
    if _literal(arrays):
        return np.power(arrays[0], arrays[1]).astype(arrays[0].dtype)
    return _map(op, operator.pow, arrays)


@_evaluator("Min", "Max")
def _extremes(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    least = op.node.op_type == "Min"
    if _literal(arrays):
        result = arrays[0]
        for array in arrays[1:]:
            result = np.minimum(result, array) if least else np.maximum(result, array)
        return result
    return _map(op, min if least else max, arrays)


@_evaluator("Where")
def _where(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    if _literal(arrays):
        return np.where(*arrays)
    return _map(op, choose, arrays)


@_evaluator("And", "Or", "Not")
def _logic(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    if _literal(arrays):
        functions = {"And": np.logical_and, "Or": np.logical_or, "Not": np.logical_not}
        return np.asarray(functions[op.node.op_type](*arrays))
    return _map(op, negate, arrays) if op.node.op_type == "Not" else None


@_evaluator("Neg", "Floor", "Ceil", "Sqrt")
def _unary(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    name = op.node.op_type
    if _literal(arrays):
        functions = {"Neg": np.negative, "Floor": np.floor, "Ceil": np.ceil, "Sqrt": np.sqrt}
        return np.asarray(functions[name](arrays[0]))
    scalar: dict[str, Callable[..., Any]] = {
        "Neg": operator.neg,
        "Floor": math.floor,
        "Ceil": math.ceil,
        "Sqrt": math.sqrt,
    }
    return _map(op, scalar[name], arrays)


@_evaluator("Cast")
def _cast(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    target, source = int(op.attr("to")), op.elem_type(0)
    try:
        dtype = numpy_dtype(target)
    except (KeyError, TypeError):
        return None
    if dtype.kind not in "biuf":
        return None
    if _literal(arrays):
        return arrays[0].astype(dtype)
    if dtype.kind == "b":
        return _map(op, bool, arrays)
    to_integer = dtype.kind in "iu" and source in FLOAT_TYPES
    return _map(op, math.trunc, arrays) if to_integer else arrays[0]


@_evaluator("Identity")
def _identity(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0]


def _known_ints(op: Op, index: int, attribute: str) -> list[int] | None:
    """Integers of an attribute or input if all are known at import."""
    ints = op.int_list(index, attribute)
    if isinstance(ints, list) and all(isinstance(item, int) for item in ints):
        return ints
    return None


@_evaluator("Unsqueeze")
def _unsqueeze(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    axes = _known_ints(op, 1, "axes")
    return None if axes is None else np.expand_dims(arrays[0], tuple(axes))


@_evaluator("Squeeze")
def _squeeze(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    if not op.has(1) and op.attr("axes") is None:
        return arrays[0].squeeze()
    axes = _known_ints(op, 1, "axes")
    return None if axes is None else arrays[0].squeeze(axis=tuple(axes))


@_evaluator("Reshape")
def _reshape(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    shape = _known_ints(op, 1, "shape")
    return None if shape is None or 0 in shape else arrays[0].reshape(shape)


@_evaluator("Concat")
def _concat(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    if not _literal(arrays):
        arrays = [array.astype(object) for array in arrays]
    return np.concatenate(arrays, axis=op.attr("axis", 1))


@_evaluator("Gather")
def _gather(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    if arrays[1].dtype.hasobject:
        return None
    result = np.take(arrays[0], arrays[1].astype(np.int64), axis=op.attr("axis", 0))
    return _boxed(result, arrays[0])


def _boxed(item: Any, like: np.ndarray) -> np.ndarray:
    """A scalar that NumPy took out of its array, as an array again."""
    if isinstance(item, np.ndarray):
        return item
    box = np.empty((), dtype=like.dtype)
    box[()] = item
    return box


@_evaluator("Slice")
def _slice(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    starts, ends = _known_ints(op, 1, "starts"), _known_ints(op, 2, "ends")
    if starts is None or ends is None:
        return None
    axes = _known_ints(op, 3, "axes") if op.has(3) or op.attr("axes") else list(range(len(starts)))
    steps = _known_ints(op, 4, "steps") if op.has(4) else [1] * len(starts)
    if axes is None or steps is None:
        return None
    index = [slice(None)] * arrays[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -arrays[0].shape[axis] else end
        index[axis] = slice(start, stop, step)
    return arrays[0][tuple(index)]


@_evaluator("Split")
def _split(op: Op, arrays: list[np.ndarray]) -> list[np.ndarray] | None:
    axis, count = op.attr("axis", 0), len(op.node.output)
    sizes = _known_ints(op, 1, "split")
    if sizes is None:
        if op.has(1):
            return None
        chunk = -(-arrays[0].shape[axis] // count)
        sizes = [chunk] * count
    return np.split(arrays[0], np.cumsum(sizes)[:-1], axis=axis)


@_evaluator("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    axes = op.int_list(1, "axes")
    if arrays[0].ndim != 1 or arrays[0].size == 0 or (axes is not None and axes not in ([0], [-1])):
        return None
    if axes is None and op.attr("noop_with_empty_axes", 0):
        return None
    function: dict[str, Callable[..., Any]] = {
        "Prod": operator.mul,
        "Sum": operator.add,
        "Max": max,
        "Min": min,
    }
    if _literal(arrays):
        numpy_name = {"Prod": "prod", "Sum": "sum", "Max": "max", "Min": "min"}
        total = getattr(np, numpy_name[op.node.op_type[6:]])(arrays[0])
        result = np.asarray(total, dtype=arrays[0].dtype)
    else:
        result = arrays[0][:1].reshape(())
        for item in arrays[0][1:]:
            box = np.empty((), dtype=object)
            box[()] = item
            result = _map(op, function[op.node.op_type[6:]], [result, box])
    return result.reshape(1) if op.attr("keepdims", 1) else result


@_evaluator("Range")
def _range(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    if not _literal(arrays) or arrays[2].item() == 0:
        return None
    start, stop, step = (array.item() for array in arrays)
    if abs((stop - start) / step) > HOST_LIMIT:
        return None
    return np.arange(start, stop, step, dtype=arrays[0].dtype)


@_evaluator("Shape")
def _shape(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    end = op.attr("end")
    return np.array(arrays[0].shape[op.attr("start", 0) : end], dtype=np.int64)


@_evaluator("Size")
def _size(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    return np.array(arrays[0].size, dtype=np.int64)


@_evaluator("ConstantOfShape")
def _constant_of_shape(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    if not _literal(arrays) or math.prod(arrays[0].tolist()) > HOST_LIMIT:
        return None
    tensor = op.attr("value")
    if tensor is None:
        return np.zeros(arrays[0].tolist(), dtype=np.float32)
    from onnx import numpy_helper

    value = numpy_helper.to_array(tensor).reshape(())
    return np.full(arrays[0].tolist(), value) if value.dtype.kind in "biuf" else None


@_evaluator("Expand", "Tile")
def _repeat(op: Op, arrays: list[np.ndarray]) -> np.ndarray | None:
    counts = arrays[1]
    if counts.dtype.hasobject or counts.size == 0:
        return None
    if op.node.op_type == "Tile":
        size = arrays[0].size * math.prod(counts.tolist())
        return np.tile(arrays[0], counts.tolist()) if 0 <= size <= HOST_LIMIT else None
    shape = np.broadcast_shapes(arrays[0].shape, tuple(counts.tolist()))
    return None if math.prod(shape) > HOST_LIMIT else np.broadcast_to(arrays[0], shape)


@_evaluator("Transpose")
def _transpose(op: Op, arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0].transpose(op.attr("perm"))
