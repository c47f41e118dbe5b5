"""Sizes that follow from the weights.

A file may state all sizes of its values, but a module should work for other batches and images.
Certain are the number of axes, the sizes of stored tensors, those that a reshape is given as
numbers, and what follows from them: a convolution has as many channels as its weight has rows.
"""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from onnxprune.importer.ops.shape import expand
from onnxprune.shapes import type_shape

Known: TypeAlias = tuple[int | None, ...] | None
"""Sizes, None for each that is not certain; None for an unknown number of axes."""

_SAME = {
    *(
        F.relu,
        F.relu6,
        F.gelu,
        F.silu,
        F.mish,
        F.hardswish,
        F.hardsigmoid,
        F.softplus,
        F.leaky_relu,
    ),
    *(F.elu, F.softmax, F.log_softmax, F.layer_norm, F.group_norm, F.instance_norm, F.dropout),
    *(torch.sigmoid, torch.tanh, torch.erf, torch.sqrt, torch.exp, torch.log, torch.abs),
    *(torch.reciprocal, torch.clamp, torch.square, operator.neg, torch.isnan, torch.logical_not),
}
_SAME_METHODS = frozenset({"to", "float", "contiguous", "clone"})
_BROADCASTING = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.pow),
    *(torch.where, torch.maximum, torch.minimum),
    *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq),
    *(torch.logical_and, torch.logical_or, torch.logical_xor),
}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, torch.amin, torch.linalg.vector_norm}
_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d}
_POOLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}


class Sizes:
    """The certain sizes of the values of a graph.

    Args:
        root: Module whose parameters, buffers and sub-modules the graph reads.
        graph: The graph.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self._root = root
        self._known: dict[fx.Node, Known] = {}
        for node in graph.nodes:
            self.learn(node)

    def of(self, node: fx.Node) -> Known:
        """Sizes of a value."""
        if node not in self._known:
            self.learn(node)
        return self._known[node]

    def learn(self, node: fx.Node) -> None:
        """Find out the sizes of a value whose operands are known."""
        stated = type_shape(node.meta.get("type"))
        try:
            found = self._inferred(node)
        except (ArithmeticError, LookupError):
            found = None  # sizes contradict each other, as the call itself will say when it runs
        if found is None and stated is not None:
            found = (None,) * len(stated)
        self._known[node] = found

    def forget(self, old: fx.Node, new: fx.Node) -> None:
        """Let a value take the place of another one."""
        self._known[new] = self._known.pop(old, None)

    def _inferred(self, node: fx.Node) -> Known:
        target = str(node.target) if node.op == "get_attr" else node.meta.get("stored")
        if target is not None:
            stored = getattr(self._root, target, None)
            return tuple(stored.shape) if isinstance(stored, Tensor) else None
        operands = [self._operand(argument) for argument in node.args]
        if node.op == "call_module":
            return _of_module(self._root.get_submodule(str(node.target)), operands)
        if node.op == "call_method":
            return _of_method(node, operands)
        if node.op == "call_function":
            return self._of_function(node, operands)
        return None

    def _operand(self, argument: Any) -> Known:
        if isinstance(argument, fx.Node):
            return self.of(argument)
        return () if isinstance(argument, int | float) else None

    def _of_function(self, node: fx.Node, operands: list[Known]) -> Known:
        first = operands[0] if operands else None
        if node.target in _BROADCASTING:
            return _broadcast(operands)
        if node.target is torch.reshape:
            return _reshaped(node.args[1])
        if node.target is expand and isinstance(node.args[1], list | tuple):
            return _broadcast([first, _reshaped(node.args[1])])
        if node.target is torch.matmul:
            return _product(operands[0], operands[1])
        if node.target is operator.getitem and _is_split(node.args[0]):
            return self._part(node.args[0], node.args[1])  # type: ignore[arg-type]
        if node.target is torch.cat and isinstance(node.args[0], list | tuple):
            return _joined([self._operand(part) for part in node.args[0]], node.kwargs.get("dim"))
        if first is None or not first:
            return None
        if node.target in _SAME:
            return first
        if node.target is F.linear and operands[1] is not None:
            return (*first[:-1], operands[1][0])
        if node.target in _CONVOLUTIONS and operands[1] is not None:
            return (first[0], operands[1][0], *[None] * (len(operands[1]) - 2))
        if node.target in _POOLS:
            return (*first[:2], *[None] * (len(first) - 2))
        if node.target in _REDUCTIONS:
            return _reduced(first, node.kwargs.get("dim"), node.kwargs.get("keepdim"))
        if node.target is torch.select and isinstance(node.args[1], int):
            axis = node.args[1] % len(first)
            return first[:axis] + first[axis + 1 :]
        if node.target is operator.getitem:
            index = node.args[1]
            return _sliced(first, index if isinstance(index, tuple) else (index,))
        if node.target is F.pad and isinstance(node.args[1], list):
            return _padded(first, node.args[1])
        return None

    def _part(self, split: fx.Node, index: Any) -> Known:
        """Sizes of one of the parts that a tensor is split into."""
        whole, parts, axis = self._operand(split.args[0]), split.args[1], split.kwargs.get("dim")
        if whole is None or not isinstance(parts, list | tuple) or not isinstance(axis, int):
            return None
        size = parts[index] if isinstance(parts[index], int) else None
        axis %= len(whole)
        return (*whole[:axis], size, *whole[axis + 1 :])


def _is_split(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is torch.split


def _of_module(module: nn.Module, operands: list[Known]) -> Known:
    first = operands[0] if operands else None
    kind = type(module).__name__
    if kind == "BatchNormalization" and first is not None and len(first) > 1:
        return (first[0], int(module.running_mean.numel()), *first[2:])  # type: ignore[operator]
    return first if kind == "Dropout" else None


def _of_method(node: fx.Node, operands: list[Known]) -> Known:
    first, axes = operands[0], node.args[1:]
    if first is None or not all(isinstance(axis, int | torch.dtype) for axis in axes):
        return None
    if node.target in _SAME_METHODS:
        return first
    if node.target == "permute" and len(axes) == len(first):
        return tuple(first[axis] for axis in axes)  # type: ignore[index]
    if node.target == "t" and len(first) == 2:
        return first[::-1]
    if node.target == "unsqueeze":
        axis = int(axes[0]) % (len(first) + 1)  # type: ignore[arg-type]
        return (*first[:axis], 1, *first[axis:])
    if node.target == "squeeze" and axes:
        axis = int(axes[0]) % len(first)  # type: ignore[arg-type]
        return first[:axis] + first[axis + 1 :]
    return None


def _broadcast(operands: Sequence[Known]) -> Known:
    if any(sizes is None for sizes in operands):
        return None
    rank = max(len(sizes) for sizes in operands if sizes is not None)
    result: list[int | None] = []
    for axis in range(rank):
        column = [
            sizes[axis - rank + len(sizes)]
            for sizes in operands
            if sizes is not None and axis - rank + len(sizes) >= 0
        ]
        large = [size for size in column if size is not None and size != 1]
        result.append(large[0] if large else None if None in column else 1)
    return tuple(result)


def _reshaped(shape: Any) -> Known:
    if not isinstance(shape, list | tuple):
        return None
    return tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in shape)


def _product(a: Known, b: Known) -> Known:
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = _broadcast([a[:-2], b[:-2]])
    return None if batch is None else (*batch, a[-2], b[-1])


def _joined(parts: list[Known], dim: Any) -> Known:
    if not parts or not isinstance(dim, int) or any(part is None for part in parts):
        return None
    rows = [part for part in parts if part is not None]
    axis = dim % len(rows[0])
    columns = list(zip(*rows, strict=False))
    result = [next((size for size in column if size is not None), None) for column in columns]
    along = columns[axis]
    result[axis] = None if None in along else sum(size for size in along if size is not None)
    return tuple(result)


def _reduced(sizes: tuple[int | None, ...], dim: Any, keepdim: Any) -> Known:
    if not isinstance(dim, tuple):
        return None
    axes = {axis % len(sizes) for axis in dim}
    if keepdim:
        return tuple(1 if axis in axes else size for axis, size in enumerate(sizes))
    return tuple(size for axis, size in enumerate(sizes) if axis not in axes)


def _sliced(sizes: tuple[int | None, ...], index: tuple[Any, ...]) -> Known:
    if len(index) > len(sizes) or not all(isinstance(item, slice | int) for item in index):
        return None
    kept = [
        size if item == slice(None) else None
        for size, item in zip(sizes, index, strict=False)
        if isinstance(item, slice)
    ]
    return (*kept, *sizes[len(index) :])


def _padded(sizes: tuple[int | None, ...], pads: list[Any]) -> Known:
    result = list(sizes)
    for pair in range(len(pads) // 2):
        if pads[2 * pair : 2 * pair + 2] != [0, 0]:
            result[len(sizes) - 1 - pair] = None
    return tuple(result)
