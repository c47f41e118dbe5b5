"""How a stored tensor looks where an ONNX node reads it: its shape, and which stored axis is where.

Between a tensor and its use there may be nodes that rearrange it (`Transpose`, `Reshape`), that
select from it (`Slice`, `Split`, `Gather`), or that join it with others (`Concat`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from onnx import NodeProto

REARRANGING = frozenset(
    {"Identity", "Transpose", "Reshape", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Flatten"}
)
"""Operators that keep all elements of their first input."""

SELECTING = frozenset(
    {"Slice", "Split", "SplitToSequence", "SequenceAt", "Gather", "Expand", "Tile"}
)
"""Operators that keep or repeat some elements of their first input."""

T = TypeVar("T")
Ints = Callable[[str], "list[int] | None"]
"""Looks up integers that the file stores under a name; None if it does not."""


@dataclass(frozen=True)
class View(Generic[T]):
    """A stored tensor as it looks where it is used.

    Attributes:
        tensor: What is stored.
        shape: Sizes of the value that it is all or a part of; empty if unknown.
        axes: For each axis the stored axis that it is, or None for a mixed or new one.
    """

    tensor: T
    shape: tuple[int, ...]
    axes: tuple[int | None, ...]

    def axis(self, index: int) -> int | None:
        """The stored axis that an axis of the view is."""
        return self.axes[index] if -len(self.axes) <= index < len(self.axes) else None


def forwarded(view: View[T], node: NodeProto, output: str, ints: Ints) -> View[T]:
    """The view after a rearranging or selecting node has passed it on.

    Args:
        view: The node's first input.
        node: The node.
        output: Which of its outputs is looked at.
        ints: Looks up what the file stores for shapes and axes.
    """
    rank = len(view.shape)
    if node.op_type in ("Identity", "Cast", "CastLike"):
        return view
    if node.op_type == "Transpose":
        perm = attribute_of(node, "perm") or list(range(rank))[::-1]
        if sorted(perm) == list(range(rank)):
            shape = tuple(view.shape[i] for i in perm)
            return replace(view, shape=shape, axes=tuple(view.axes[i] for i in perm))
    if node.op_type in SELECTING:
        return _resized(view, _selected_shape(view, node, output, ints))
    return _reshaped(view, _target_shape(view, node, ints))


def joined(parts: Sequence[Sequence[View[T]]], node: NodeProto) -> list[View[T]]:
    """The views after a `Concat`, given those of each of its inputs."""
    shapes = [views[0].shape for views in parts]
    axis = int(attribute_of(node, "axis", 0))
    known = all(len(shape) == len(shapes[0]) > 0 for shape in shapes)
    if not known or not -len(shapes[0]) <= axis < len(shapes[0]):
        return [_unknown(view) for views in parts for view in views]
    shape = list(shapes[0])
    shape[axis] = sum(other[axis] for other in shapes)
    return [_resized(view, tuple(shape)) for views in parts for view in views]


def attribute_of(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute of a node, or a default."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default


def _unknown(view: View[T]) -> View[T]:
    return replace(view, shape=(), axes=())


def _resized(view: View[T], shape: tuple[int, ...] | None) -> View[T]:
    """A view whose axes have other sizes and are still the same axes."""
    if shape is None or len(shape) != len(view.axes):
        return _unknown(view)
    return replace(view, shape=shape)


def _selected_shape(
    view: View[T], node: NodeProto, output: str, ints: Ints
) -> tuple[int, ...] | None:
    """Shape after a node that selects or repeats without adding or dropping axes."""
    if node.op_type in ("SplitToSequence", "SequenceAt"):
        return None
    shape = list(view.shape)
    axis = int(attribute_of(node, "axis", 0))
    if node.op_type == "Split" and -len(shape) <= axis < len(shape):
        shape[axis] = _split_size(shape[axis], node, output, ints)
    elif node.op_type == "Slice":
        sizes = _sliced(shape, node, ints)
        return None if sizes is None else tuple(sizes)
    elif node.op_type == "Gather" and -len(shape) <= axis < len(shape):
        indices = ints(node.input[1]) if len(node.input) > 1 else None
        if indices is None or len(indices) < 2:
            return None
        shape[axis] = len(indices)
    elif node.op_type in ("Expand", "Tile"):
        counts = ints(node.input[1]) if len(node.input) > 1 else None
        if counts is None or len(counts) != len(shape):
            return None
        pairs = zip(shape, counts, strict=True)
        repeat = node.op_type == "Tile"
        shape = [size * count if repeat else max(size, count) for size, count in pairs]
    return tuple(shape)


def _split_size(size: int, node: NodeProto, output: str, ints: Ints) -> int:
    sizes = attribute_of(node, "split")
    if sizes is None and len(node.input) > 1:
        sizes = ints(node.input[1])
    index = list(node.output).index(output)
    if sizes is not None and index < len(sizes):
        return int(sizes[index])
    return size // max(len(node.output), 1)


def _sliced(shape: list[int], node: NodeProto, ints: Ints) -> list[int] | None:
    names = ("starts", "ends", "axes", "steps")
    given = [attribute_of(node, name) for name in names]
    for index, name in enumerate(node.input[1:5]):
        given[index] = ints(name) if name else None
    starts, ends, axes, steps = given
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        if not -len(shape) <= axis < len(shape) or step == 0:
            return None
        shape[axis] = len(range(*slice(start, end, step).indices(shape[axis])))
    return shape


def _target_shape(view: View[T], node: NodeProto, ints: Ints) -> tuple[int, ...] | None:
    """Shape after Reshape, Flatten, Squeeze or Unsqueeze; None if the file does not say."""
    rank = len(view.shape)
    if node.op_type == "Flatten":
        axis = attribute_of(node, "axis", 1)
        axis += rank if axis < 0 else 0
        return int(np.prod(view.shape[:axis])), int(np.prod(view.shape[axis:]))
    wanted = attribute_of(node, "shape" if node.op_type == "Reshape" else "axes")
    if wanted is None and len(node.input) > 1:
        wanted = ints(node.input[1])
    if node.op_type == "Squeeze":
        if wanted is None:
            return tuple(dim for dim in view.shape if dim != 1)
        drop = {axis % rank for axis in wanted} if rank else set()
        return tuple(dim for axis, dim in enumerate(view.shape) if axis not in drop)
    if wanted is None:
        return None
    if node.op_type == "Unsqueeze":
        new = {axis % (rank + len(wanted)) for axis in wanted}
        rest = iter(view.shape)
        return tuple(1 if i in new else next(rest, 1) for i in range(rank + len(wanted)))
    sizes = [view.shape[i] if dim == 0 and i < rank else int(dim) for i, dim in enumerate(wanted)]
    if sizes.count(-1) == 1:
        known = int(np.prod([dim for dim in sizes if dim != -1]))
        sizes[sizes.index(-1)] = int(np.prod(view.shape)) // known if known else 0
    return tuple(sizes)


def _reshaped(view: View[T], shape: tuple[int, ...] | None) -> View[T]:
    """Carry axis names through a reshape: an axis keeps its name if no other one is mixed in."""
    if shape is None:
        return _unknown(view)
    old = [(dim, axis) for dim, axis in zip(view.shape, view.axes, strict=True) if dim != 1]
    axes: list[int | None] = [None] * len(shape)
    before: dict[int, tuple[int, int | None]] = {}
    offset = 1
    for dim, axis in old:
        before[offset] = (dim, axis)
        offset *= dim
    offset = 1
    for index, dim in enumerate(shape):
        if dim != 1 and before.get(offset, (None, None))[0] == dim:
            axes[index] = before[offset][1]
        offset *= dim
    return replace(view, shape=shape, axes=tuple(axes))
