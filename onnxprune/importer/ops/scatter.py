"""Writing elements by index."""

import torch
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.ops.gather import wrapped
from onnxprune.importer.registry import Result, register

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str
) -> Tensor:
    """A copy of `x` with updates written, or combined, along one axis."""
    index, updates = wrapped(indices, x.shape[axis]), updates.to(x.dtype)
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _REDUCTIONS[reduction])


@register("ScatterElements", "Scatter", since=9)
def _scatter_elements(op: Op) -> Result:
    settings = op.attr("axis", 0), op.attr("reduction", "none")
    return op.call(scatter_elements, op.tensor(0), op.tensor(1), op.tensor(2), *settings)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """A copy of `x` with slices written, or combined, at index tuples."""
    depth = indices.shape[-1]
    outer, inner = x.shape[:depth], x.shape[depth:]
    flat_index = torch.zeros(indices.shape[:-1], dtype=torch.long, device=x.device)
    for axis in range(depth):
        flat_index = flat_index * outer[axis] + wrapped(indices[..., axis], outer[axis])
    rows = x.reshape(outer.numel(), -1)
    index = flat_index.reshape(-1, 1).expand(-1, inner.numel())
    values = updates.to(x.dtype).reshape(index.shape)
    if reduction == "none":
        written = torch.scatter(rows, 0, index, values)
    else:
        written = torch.scatter_reduce(rows, 0, index, values, _REDUCTIONS[reduction])
    return written.reshape(x.shape)


@register("ScatterND", since=11)
def _scatter_nd(op: Op) -> Result:
    reduction = op.attr("reduction", "none")
    return op.call(scatter_nd, op.tensor(0), op.tensor(1), op.tensor(2), reduction)


def tensor_scatter(
    cache: Tensor, update: Tensor, starts: Tensor | None, axis: int, circular: bool
) -> Tensor:
    """A copy of a cache with an update written from `starts[b]` on, along an axis.

    Args:
        cache: (batch, ...).
        update: The same shape, but fewer steps along the axis.
        starts: (batch,) first position in each sample, None for the beginning.
        axis: Axis of the steps.
        circular: Whether positions beyond the end continue at the beginning.
    """
    axis %= cache.ndim
    steps = torch.arange(update.shape[axis], device=cache.device)
    index = steps.unsqueeze(0) if starts is None else starts.unsqueeze(1) + steps
    index = index % cache.shape[axis] if circular else index
    shape = [1] * cache.ndim
    shape[0], shape[axis] = index.shape
    index = index.reshape(shape)
    return torch.scatter(cache, axis, index.expand_as(update), update)


@register("TensorScatter", since=24)
def _tensor_scatter(op: Op) -> Result:
    settings = op.attr("axis", -2), op.attr("mode", "linear") == "circular"
    return op.call(tensor_scatter, op.tensor(0), op.tensor(1), op.optional(2), *settings)
