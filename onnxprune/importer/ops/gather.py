"""Reading elements by index."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register
from onnxprune.importer.values import Host


def wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices as int64, with negative ones counted from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def embedding(weight: Tensor, indices: Tensor) -> Tensor:
    """Rows of a matrix; negative indices count from the end."""
    return F.embedding(wrapped(indices, weight.shape[0]), weight)


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Elements along one axis, whose place the axes of `indices` take."""
    axis %= x.ndim
    flat = x.index_select(axis, wrapped(indices, x.shape[axis]).reshape(-1))
    return flat.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@register("Gather")
def _gather(op: Op) -> Result:
    axis, index = op.attr("axis", 0), op.inputs[1]
    if isinstance(index, Host) and index.array.ndim == 0:
        position = index.items()[0]
        if axis == 0:
            return op.call(operator.getitem, op.tensor(0), position)
        return op.method("select", op.tensor(0), axis, position)
    if axis == 0 and op.rank() == 2 and op.is_float():
        return op.call(embedding, op.tensor(0), op.tensor(1))
    return op.call(gather, op.tensor(0), op.tensor(1), axis)


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Elements along one axis, one index for each element of the result."""
    return torch.gather(x, axis, wrapped(indices, x.shape[axis]))


@register("GatherElements", since=11)
def _gather_elements(op: Op) -> Result:
    return op.call(gather_elements, op.tensor(0), op.tensor(1), op.attr("axis", 0))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """Elements or slices at index tuples, which lie along the last axis of `indices`."""
    indices = indices.long()
    batch = x.shape[:batch_dims]
    count = batch.numel()
    flat_x = x.reshape(count, *x.shape[batch_dims:])
    flat_indices = indices.reshape(count, -1, indices.shape[-1])
    rows = torch.arange(count, device=x.device).unsqueeze(1)
    found = flat_x[(rows, *flat_indices.unbind(-1))]
    return found.reshape((*indices.shape[:-1], *x.shape[batch_dims + indices.shape[-1] :]))


@register("GatherND", since=11)
def _gather_nd(op: Op) -> Result:
    return op.call(gather_nd, op.tensor(0), op.tensor(1), op.attr("batch_dims", 0))


def compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """Slices at which a one-dimensional condition holds."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    index = torch.nonzero(condition).squeeze(-1)
    return x.index_select(axis, index)


@register("Compress", since=9)
def _compress(op: Op) -> Result:
    return op.call(compress, op.tensor(0), op.tensor(1), op.attr("axis"))


def reverse_sequence(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    """Reverse the first `lengths[b]` steps of each sequence."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device).unsqueeze(0)
    ends = lengths.long().unsqueeze(1)
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device).unsqueeze(1)
    return moved[rows, order].movedim((0, 1), (batch_axis, time_axis))


@register("ReverseSequence", since=10)
def _reverse_sequence(op: Op) -> Result:
    axes: tuple[Any, Any] = op.attr("batch_axis", 1), op.attr("time_axis", 0)
    result: fx.Node = op.call(reverse_sequence, op.tensor(0), op.tensor(1), *axes)
    return result


def non_zero(x: Tensor) -> Tensor:
    """Positions of non-zero elements, (rank, count)."""
    return torch.nonzero(x).t()


@register("NonZero", since=9)
def _non_zero(op: Op) -> Result:
    return op.call(non_zero, op.tensor(0))
