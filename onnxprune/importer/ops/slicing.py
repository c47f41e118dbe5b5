"""Parts of tensors by position: Slice, Split, and what pads or crops around a centre."""

import itertools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.importer.op import Ints, Op
from onnxprune.importer.ops.pad import torch_pads
from onnxprune.importer.registry import Result, register

_OPEN_END = 10**9
"""From here on an end means that of the axis, which is never as long."""


def slice_tensor(
    x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None
) -> Tensor:
    """Slice along any axes, backwards too."""
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if step > 0:
            index = [slice(None)] * (axis % x.ndim) + [slice(start, end, step)]
            x = x[tuple(index)]
            continue
        first = min(start + size if start < 0 else start, size - 1)
        last = max(end + size if end < 0 else end, -1)
        positions = torch.arange(first, min(last, first), step, device=x.device)
        x = x.index_select(axis, positions)
    return x


def _all_known(*lists: Ints | None) -> bool:
    return all(
        isinstance(ints, list) and all(isinstance(item, int) for item in ints) for ints in lists
    )


def _plain_slices(op: Op, starts: Any, ends: Any, axes: Any, steps: Any) -> tuple[Any, ...] | None:
    """The index of `x[...]` if the slice can be written so, otherwise None."""
    if not all(isinstance(ints, list) for ints in (starts, ends, axes, steps)):
        return None
    rank = op.rank()
    if not _all_known(axes, steps) or min(steps, default=1) <= 0:
        return None
    if rank is None and min(axes, default=0) < 0:
        return None
    axes = [axis + (rank or 0) if axis < 0 else axis for axis in axes]
    index: list[Any] = [slice(None)] * (max(axes, default=-1) + 1)
    sizes = op.shape() or ()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = sizes[axis] if axis < len(sizes) else None
        begin = None if isinstance(start, int) and start == 0 else start
        stop = None if isinstance(end, int) and end >= (size or _OPEN_END) else end
        index[axis] = slice(begin, stop, None if step == 1 else step)
    while index and index[-1] == slice(None):
        index.pop()
    return tuple(index)


@register("Slice")
def _slice(op: Op) -> Result:
    starts, ends = op.int_list(1, "starts"), op.int_list(2, "ends")
    axes, steps = op.int_list(3, "axes"), op.int_list(4, "steps")
    x = op.tensor(0)
    if isinstance(starts, list):
        known_axes = list(range(len(starts))) if axes is None else axes
        known_steps = [1] * len(starts) if steps is None else steps
        index = _plain_slices(op, starts, ends, known_axes, known_steps)
        if index is not None:
            return op.call(operator.getitem, x, index) if index else x
    return op.call(slice_tensor, x, starts, ends, axes, steps)


def split_evenly(x: Tensor, count: int, dim: int) -> list[Tensor]:
    """Parts of equal size, the last one smaller if need be, or even empty."""
    size = x.shape[dim]
    chunk = -(-size // count)
    bounds = [min(chunk * part, size) for part in range(count + 1)]
    return [x.narrow(dim, low, high - low) for low, high in itertools.pairwise(bounds)]


@register("Split")
def _split(op: Op) -> Result:
    axis, count = op.attr("axis", 0), len(op.node.output)
    sizes: Any = op.int_list(1, "split")
    if sizes is None:
        parts = op.call(split_evenly, op.tensor(0), count, axis)
    else:
        parts = op.call(torch.split, op.tensor(0), sizes, dim=axis)
    return op.unpack(parts, count)


def center_crop_pad(x: Tensor, shape: list[int], axes: list[int] | None) -> Tensor:
    """Crop or pad with zeros around the centre to the given sizes."""
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for axis, size in zip(axes, shape, strict=True):
        missing = size - x.shape[axis]
        begins[axis] = missing // 2 if missing >= 0 else -((-missing) // 2)
        ends[axis] = missing - begins[axis]
    return F.pad(x, torch_pads(begins + ends))


@register("CenterCropPad", since=18)
def _center_crop_pad(op: Op) -> Result:
    result: fx.Node = op.call(center_crop_pad, op.tensor(0), op.ints(1), op.attr("axes"))
    return result
