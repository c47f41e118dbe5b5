"""Shapes, and operators that change the shape alone."""

import math
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register
from onnxprune.importer.values import Host, as_host
from onnxprune.shapes import tensor_type


def shape_tensor(x: Tensor, start: int, end: int | None) -> Tensor:
    """The shape as an int64 tensor on the host, for tensors of unknown rank."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@register("Shape")
def _shape(op: Op) -> Result:
    start, end, rank = op.attr("start", 0), op.attr("end"), op.rank()
    stored = op.builder.stored_shape(op.value(0))
    if stored is not None:
        return Host(np.array(stored[start:end], np.int64), TensorProto.INT64, op.node.output[0])
    x = op.tensor(0)
    if rank is None:
        return op.call(shape_tensor, x, start, end)
    axes = range(rank)[start:end]
    sizes = np.array([op.builder.size(x, axis) for axis in axes] + [None], dtype=object)[:-1]
    return as_host(sizes, TensorProto.INT64, op.node.output[0])


@register("Size")
def _size(op: Op) -> Result:
    count = op.method("numel", op.tensor(0))
    count.meta["non_negative"] = True
    box = np.empty((), dtype=object)
    box[()] = count
    return Host(box, TensorProto.INT64, op.node.output[0])


def reshape(x: Tensor, shape: list[int], allow_zero: bool) -> Tensor:
    """Reshape where a size of 0 copies the input's, unless `allow_zero`."""
    if not allow_zero:
        shape = [x.shape[axis] if dim == 0 else dim for axis, dim in enumerate(shape)]
    return torch.reshape(x, shape)


@register("Reshape")
def _reshape(op: Op) -> Result:
    dims: Any = op.int_list(1, "shape")
    allow_zero = bool(op.attr("allowzero", 0))
    x = op.tensor(0)
    if not isinstance(dims, list):
        return _with_rank(op, op.call(reshape, x, dims, allow_zero), _length(op, 1))
    if not allow_zero:
        dims = [
            op.builder.size(x, axis) if isinstance(dim, int) and dim == 0 else dim
            for axis, dim in enumerate(dims)
        ]
    node = op.call(torch.reshape, x, tuple(dims))
    node.meta["sizes"] = tuple(dims)
    return _with_rank(op, node, len(dims))


def _same_sizes(known: Any, wanted: Any) -> bool:
    if not isinstance(known, tuple) or not isinstance(wanted, list) or len(known) != len(wanted):
        return False
    return all(
        a is b or (isinstance(a, int) and a == b and a > 0)
        for a, b in zip(known, wanted, strict=True)
    )


def _length(op: Op, index: int) -> int | None:
    known = op.shape(index)
    return known[0] if known else None


def _with_rank(op: Op, node: fx.Node, rank: int | None) -> fx.Node:
    """Remember the number of axes where type inference does not find it."""
    if rank is not None and op.elem_type():
        node.meta["type"] = tensor_type(op.elem_type(), (None,) * rank)
    return node


def flatten(x: Tensor, axis: int) -> Tensor:
    """Two axes: all before `axis`, and the others."""
    sizes = list(x.shape)
    return x.reshape(math.prod(sizes[:axis]), math.prod(sizes[axis:]))


@register("Flatten")
def _flatten(op: Op) -> Result:
    axis, rank = op.attr("axis", 1), op.rank()
    if axis == 1 and rank is not None and rank >= 2:
        return op.call(torch.flatten, op.tensor(0), 1)
    return op.call(flatten, op.tensor(0), axis + (rank or 0) if axis < 0 else axis)


def reverse_axes(x: Tensor) -> Tensor:
    """All axes in reverse order."""
    return x.permute(tuple(reversed(range(x.ndim))))  # of a scalar there are none


@register("Transpose")
def _transpose(op: Op) -> Result:
    perm = op.attr("perm")
    if not perm:
        return op.call(reverse_axes, op.tensor(0))
    return op.method("permute", op.tensor(0), *perm)


def unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    """New axes of size 1, at positions counted in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@register("Unsqueeze")
def _unsqueeze(op: Op) -> Result:
    axes: Any = op.int_list(1, "axes")
    if isinstance(axes, list) and len(axes) == 1:
        return op.method("unsqueeze", op.tensor(0), axes[0])
    return op.call(unsqueeze, op.tensor(0), axes)


def squeeze(x: Tensor, axes: list[int]) -> Tensor:
    """Remove the given axes of size 1."""
    return torch.squeeze(x, tuple(axes)) if axes else x


@register("Squeeze")
def _squeeze(op: Op) -> Result:
    axes: Any = op.int_list(1, "axes")
    if axes is None:
        return op.method("squeeze", op.tensor(0))
    if isinstance(axes, list) and len(axes) == 1:
        return op.method("squeeze", op.tensor(0), axes[0])
    return op.call(squeeze, op.tensor(0), axes)


def expand(x: Tensor, shape: list[int]) -> Tensor:
    """Broadcast in both directions: sizes of 1 give way on either side."""
    rank = max(x.ndim, len(shape))
    sizes = [1] * (rank - x.ndim) + list(x.shape)
    wanted = [1] * (rank - len(shape)) + list(shape)
    target = [have if want == 1 else want for have, want in zip(sizes, wanted, strict=True)]
    return x.expand(target)


def _expand_sizes(op: Op, shape: Any) -> list[Any] | None:
    """Arguments of `Tensor.expand` where it does the same as ONNX's `Expand`, otherwise None."""
    sizes = op.shape()
    if not isinstance(shape, list) or sizes is None or len(sizes) > len(shape):
        return None
    added = len(shape) - len(sizes)
    result = list(shape)
    for axis, size in enumerate(sizes, start=added):
        want = shape[axis]
        if isinstance(want, int):
            result[axis] = -1 if want in (1, size) else want
        elif size != 1:
            return None
    return result or None  # the method does not take nothing at all


@register("Expand", since=8)
def _expand(op: Op) -> Result:
    shape: Any = op.ints(1)
    x = op.tensor(0)
    if _same_sizes(x.meta.get("sizes"), shape):
        return x
    sizes = _expand_sizes(op, shape)
    node = op.call(expand, x, shape) if sizes is None else op.method("expand", x, *sizes)
    length = len(shape) if isinstance(shape, list) else _length(op, 1)
    rank = op.rank()
    if length is None or rank is None:
        return node
    return _with_rank(op, node, max(rank, length))


def tile_axis(x: Tensor, count: int, axis: int) -> Tensor:
    """Repeat along one axis."""
    return torch.cat([x] * count, dim=axis)


@register("Tile", until=6)
def _tile_axis(op: Op) -> Result:
    return op.call(tile_axis, op.tensor(0), op.integer(1), op.integer(2))


@register("Tile", since=6)
def _tile(op: Op) -> Result:
    return op.call(torch.tile, op.tensor(0), op.ints(1))


@register("Concat")
def _concat(op: Op) -> Result:
    return op.call(torch.cat, op.tensors(), dim=op.attr("axis", 1))


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """Depth to space with the block's position in the outer part of the channels (DCR)."""
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


@register("DepthToSpace")
def _depth_to_space(op: Op) -> Result:
    block = op.attr("blocksize")
    if op.attr("mode", "DCR") == "CRD":
        return op.call(torch.nn.functional.pixel_shuffle, op.tensor(0), block)
    return op.call(depth_to_space, op.tensor(0), block)


def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Blocks of pixels to channels, with the block's position in the outer part."""
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


@register("SpaceToDepth")
def _space_to_depth(op: Op) -> Result:
    if op.attr("mode", "DCR") == "CRD":
        return op.call(torch.nn.functional.pixel_unshuffle, op.tensor(0), op.attr("blocksize"))
    return op.call(space_to_depth, op.tensor(0), op.attr("blocksize"))
