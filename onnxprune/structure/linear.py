"""Convolutions and matrix products."""

import math
from collections.abc import Callable, Sequence

from onnx import NodeProto

from onnxprune.cascade.flow import Link, Stored
from onnxprune.structure.builder import Builder, Whole, view_shape
from onnxprune.structure.sizes import fixed
from onnxprune.tensor_views import attribute_of


def _weight(build: Builder, value: str) -> tuple[Stored, tuple[int, ...]]:
    """A stored weight and its shape where it is read."""
    if value not in build.stored:
        raise Whole
    stored = build.stored[value]
    return stored, view_shape(stored, build.tensors[stored.names[-1]].shape)


def _linked(stored: Stored, shape: Sequence[int], axes: Sequence[int]) -> Stored:
    return Stored(stored.names, (*stored.view, Link(tuple(shape), tuple(axes))))


def _channels(build: Builder, value: str, axis: int, channels: int) -> str:
    """A value of which only the elements along one axis are told apart, if there are as many."""
    profile = build.any_profile(value)
    if not profile:
        return value
    value = build.uniform(value, [a for a in range(len(profile)) if a != axis % len(profile)])
    if profile[axis] not in (1, channels):
        raise Whole
    return value


def _conv(build: Builder, node: NodeProto) -> None:
    stored, shape = _weight(build, node.input[1])
    groups = int(attribute_of(node, "group", 1))
    taps = math.prod(shape[2:])
    if node.op_type == "Conv":
        outs, ins = shape[0] // groups, shape[1]
        weight = _linked(stored, (groups, outs, ins, taps), range(4))
        padded = _pads(node, shape[2:])
    else:
        ins, outs = shape[0] // groups, shape[1]
        weight = _linked(stored, (groups, ins, outs, taps), (0, 2, 1, 3))
        padded = taps > 1 or _pads(node, shape[2:]) or _spreads(node)
    value = _channels(build, node.input[0], 1, groups * ins)
    profile = (1, groups * outs, *(1 for _ in shape[2:]))
    form = (groups, outs, ins, taps)
    biased = len(node.input) > 2 and bool(node.input[2])
    output = build.fresh(node.output[0]) if biased else node.output[0]
    build.product(weight, form, value, output, profile, padded)
    if biased:
        bias = _vector(build, node.input[2], profile)
        build.pointwise("add", [output, bias], node.output[0])


def _pads(node: NodeProto, kernel: Sequence[int]) -> bool:
    """Whether a convolution reads beyond the borders, or writes there."""
    if any(attribute_of(node, "pads") or ()):
        return True
    auto_pad = attribute_of(node, "auto_pad", b"NOTSET")
    return auto_pad in (b"SAME_UPPER", b"SAME_LOWER") and math.prod(kernel) > 1


def _spreads(node: NodeProto) -> bool:
    """Whether a transposed convolution leaves places between the elements that it makes."""
    sparse = any(stride != 1 for stride in attribute_of(node, "strides") or ())
    return (
        sparse
        or attribute_of(node, "output_shape") is not None
        or any(attribute_of(node, "output_padding") or ())
    )


def _vector(build: Builder, value: str, profile: Sequence[int]) -> str:
    """A value of one element a channel, in the profile of what it is added to."""
    channels = math.prod(profile)
    if value in build.stored:
        return build.operand(value, profile)
    own = build.profile(value)
    if own == (1,):
        return build.reshaped(value, (1,) * len(profile), build.fresh(value))
    if own != (channels,):
        raise Whole
    return build.reshaped(value, profile, build.fresh(value))


def _gemm(build: Builder, node: NodeProto) -> None:
    transposed = [bool(attribute_of(node, name, 0)) for name in ("transA", "transB")]
    alpha, beta = (float(attribute_of(node, name, 1.0)) for name in ("alpha", "beta"))
    biased = len(node.input) > 2 and bool(node.input[2])
    plain = alpha == 1 and not biased
    output = node.output[0] if plain else build.fresh(node.output[0])
    _matrix(build, list(node.input[:2]), transposed, output)
    if alpha != 1:
        name = build.fresh(output) if biased else node.output[0]
        output = build.pointwise("scale", [output], name, (alpha,))
    if biased:
        bias = node.input[2]
        if beta != 1:
            bias = build.pointwise("scale", [bias], build.fresh(bias), (beta,))
        build.pointwise("add", [output, bias], node.output[0])


def _matmul(build: Builder, node: NodeProto) -> None:
    values = list(node.input[:2])
    if any(_is_matrix(build, value) for value in values):
        _matrix(build, values, [False, False], node.output[0])
    else:
        _matmul_of_values(build, values, node.output[0])


def _is_matrix(build: Builder, value: str) -> bool:
    if value not in build.stored:
        return False
    shape = _weight(build, value)[1]
    return len(shape) >= 2 and math.prod(shape[:-2]) == 1


def _matrix(build: Builder, values: Sequence[str], transposed: Sequence[bool], output: str) -> None:
    """The product of a value and a stored matrix, on either side."""
    right = values[1] in build.stored
    slot = 1 if right else 0
    if values[1 - slot] in build.stored:
        raise Whole
    stored, shape = _weight(build, values[slot])
    *_, rows, columns = shape
    if math.prod(shape[:-2]) != 1:
        raise Whole
    outs_first = transposed[1] if right else not transposed[0]
    outs, ins = (rows, columns) if outs_first else (columns, rows)
    order = (0, 1, 2, 3) if outs_first else (0, 2, 1, 3)
    weight = _linked(stored, (1, rows, columns, 1), order)
    along_last = transposed[0] is False if right else transposed[1]
    value = values[1 - slot]
    rank = build.rank(value)
    if rank < 2 and not (rank == 1 and right and along_last and len(shape) == 2):
        raise Whole
    value = _channels(build, value, -1 if along_last else -2, ins)
    profile = [1] * max(rank, len(shape) if rank > 1 else 1)
    profile[-1 if right else -2] = outs
    build.product(weight, (1, outs, ins, 1), value, output, tuple(profile), False)


def _matmul_of_values(build: Builder, values: Sequence[str], output: str) -> None:
    """The product of two values, as attention has it, from products of single elements.

    It is unfolded to (..., rows, inner, columns) and summed over the inner axis.
    """
    first, second = values
    ranks = [build.rank(value) for value in values]
    if min(ranks) < 2:
        raise Whole
    rank = max(ranks)
    a = (1,) * (rank - ranks[0]) + build.profile(first)
    b = (1,) * (rank - ranks[1]) + build.profile(second)
    left = build.reshaped(first, (*a, 1), build.fresh(first))
    right = build.reshaped(second, (*b[:-2], 1, *b[-2:]), build.fresh(second))
    terms = build.pointwise("mul", [left, right], build.fresh(output))
    inner = fixed(build.size(first, -1))
    known = None if inner is None else (inner, inner)
    build.sizes[terms] = (*(None for _ in range(rank - 1)), known, None)
    total = build.reduce("sum", terms, [rank - 1], build.fresh(output))
    profile = build.profile(total)
    build.reshaped(total, (*profile[: rank - 1], profile[rank]), output)


HANDLERS: dict[str, Callable[[Builder, NodeProto], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""How each operator is described; `Whole` is raised for forms that are not."""
