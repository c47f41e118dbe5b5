"""Operators that copy elements: reshape, transpose, select, join, pad."""

import math
from collections.abc import Callable

import numpy as np
from onnx import NodeProto

from onnxprune.structure.builder import LARGEST_PROFILE, Builder, Whole, regrouped
from onnxprune.structure.sizes import fixed
from onnxprune.tensor_views import attribute_of


def _places(build: Builder, value: str) -> np.ndarray:
    """The place of each element of a profile."""
    profile = build.profile(value)
    return np.arange(math.prod(profile), dtype=np.int64).reshape(profile)


def _reshape(build: Builder, node: NodeProto) -> None:
    value, output = node.input[0], node.output[0]
    profile = build.profile(value)
    if value not in build.sizes or output not in build.sizes:
        raise Whole
    index = regrouped(profile, build.sizes[value], build.sizes[output])
    build.move([value], index, output)


def _transpose(build: Builder, node: NodeProto) -> None:
    places = _places(build, node.input[0])
    axes = attribute_of(node, "perm") or list(range(places.ndim))[::-1]
    build.move(node.input, places.transpose(axes), node.output[0])


def _expand(build: Builder, node: NodeProto) -> None:
    places = _places(build, node.input[0])
    output = node.output[0]
    if build.rank(output) < places.ndim:
        raise Whole
    shape = (1,) * (build.rank(output) - places.ndim) + places.shape
    build.move(node.input[:1], places.reshape(shape), output)


def _concat(build: Builder, node: NodeProto) -> None:
    output = node.output[0]
    profiles = [build.profile(value) for value in node.input]
    rank = len(profiles[0])
    axis = int(attribute_of(node, "axis", 1)) % max(rank, 1)
    sizes = [fixed(build.size(value, axis)) for value in node.input]
    single = all(size == 1 for size in sizes)
    if not single and all(profile[axis] == 1 for profile in profiles):
        build.pointwise("same", node.input, output)
        return
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise Whole
    shape = np.broadcast_shapes(*[(*p[:axis], *p[axis + 1 :]) for p in profiles])
    if math.prod(shape) * sum(known) > LARGEST_PROFILE:
        raise Whole
    parts = []
    offset = 0
    for value, size in zip(node.input, known, strict=True):
        places = _places(build, value)
        full = (*shape[:axis], size, *shape[axis:])
        parts.append(np.broadcast_to(places, full) + offset)
        offset += places.size
    build.move(node.input, np.concatenate(parts, axis), output)


def _split(build: Builder, node: NodeProto) -> None:
    value = node.input[0]
    places = _places(build, value)
    axis = int(attribute_of(node, "axis", 0)) % places.ndim
    start = 0
    for output in node.output:
        if places.shape[axis] == 1:
            part = places
        else:
            size = fixed(build.size(output, axis)) if output else None
            if size is None:
                raise Whole
            part = places.take(range(start, start + size), axis)
            start += size
        if output:
            build.move([value], part, output)


def _slice(build: Builder, node: NodeProto) -> None:
    value = node.input[0]
    places = _places(build, value)
    if all(length == 1 for length in places.shape):
        build.move([value], places, node.output[0])
        return
    starts, ends = build.ints(node, 1, "starts"), build.ints(node, 2, "ends")
    axes, steps = build.ints(node, 3, "axes"), build.ints(node, 4, "steps")
    if starts is None or ends is None or len(starts) != len(ends):
        raise Whole
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = places.shape[axis]
        if length != 1:
            stop = None if step < 0 and end < -length else end
            places = places.take(range(*slice(start, stop, step).indices(length)), axis)
    build.move([value], places, node.output[0])


def _gather(build: Builder, node: NodeProto) -> None:
    value, indices = node.input
    places = _places(build, value)
    axis = int(attribute_of(node, "axis", 0)) % places.ndim
    rank = build.rank(indices)
    if places.shape[axis] == 1:
        shape = (*places.shape[:axis], *(1,) * rank, *places.shape[axis + 1 :])
        build.move([value], places.reshape(shape), node.output[0])
        return
    if indices not in build.numbers:
        raise Whole
    sizes = [fixed(size) for size in build.sizes[indices]]
    chosen = np.array(build.numbers[indices], dtype=np.int64).reshape([s or 0 for s in sizes])
    build.move([value], places.take(chosen, axis), node.output[0])


def _pad(build: Builder, node: NodeProto) -> None:
    value, output = node.input[0], node.output[0]
    places = _places(build, value)
    pads = build.ints(node, 1, "pads" if build.version > 1 else "paddings")
    axes = build.ints(node, 3, "") or list(range(places.ndim))
    mode = attribute_of(node, "mode", b"constant")
    if pads is None or len(pads) != 2 * len(axes):
        raise Whole
    fill = _fill(build, node)
    borders = False
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        length = places.shape[axis]
        if length == 1:
            borders |= before > 0 or after > 0
        elif before or after:
            if mode != b"constant" or fill is None:
                raise Whole
            inside = places.take(range(max(-before, 0), length - max(-after, 0)), axis)
            widths = [(0, 0)] * places.ndim
            widths[axis] = (max(before, 0), max(after, 0))
            places = np.pad(inside, widths, constant_values=-1)
    if not borders or mode in (b"reflect", b"edge", b"wrap"):
        build.move([value], places, output, fill or 0.0)
        return
    inner = build.move([value], places, build.fresh(output), fill or 0.0)
    if fill is None:
        build.pointwise("unknown", [inner], output)
    else:
        build.pointwise("padding", [inner], output, (fill,))


def _fill(build: Builder, node: NodeProto) -> float | None:
    """The number that `Pad` puts in; None if it is not known."""
    if len(node.input) > 2 and node.input[2]:
        build.profile(node.input[2])
        operand = build.operands.get(node.input[2])
        if operand is None or operand.fixed is None:
            return None
        return float(operand.fixed.item())
    return float(attribute_of(node, "value", 0.0))


def _depth_to_space(build: Builder, node: NodeProto) -> None:
    value, output = node.input[0], node.output[0]
    profile = build.profile(value)
    block = int(attribute_of(node, "blocksize"))
    value = build.uniform(value, (2, 3))
    channels = profile[1] // block**2
    if profile[1] == 1:
        build.reshaped(value, (*profile[:2], 1, 1), output)
        return
    by_column = attribute_of(node, "mode", b"DCR") == b"CRD"
    shape = (profile[0], channels, block**2) if by_column else (profile[0], block**2, channels)
    split = build.reshaped(value, shape, build.fresh(output))
    equal = build.reduce("same", split, (2 if by_column else 1,), build.fresh(output))
    build.reshaped(equal, (profile[0], channels, 1, 1), output)


def _space_to_depth(build: Builder, node: NodeProto) -> None:
    value, output = build.uniform(node.input[0], (2, 3)), node.output[0]
    block = int(attribute_of(node, "blocksize"))
    places = _places(build, value)
    if places.shape[1] > 1:
        places = np.concatenate([places] * block**2, axis=1)
    build.move([value], places, output)


HANDLERS: dict[str, Callable[[Builder, NodeProto], None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
"""How each operator is described; `Whole` is raised for forms that are not."""
