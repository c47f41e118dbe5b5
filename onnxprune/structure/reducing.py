"""Pooling, reductions, resizing, normalisation, softmax."""

import math
from collections.abc import Callable, Sequence

from onnx import NodeProto

from onnxprune.structure.builder import Builder, Whole
from onnxprune.structure.sizes import fixed
from onnxprune.tensor_views import attribute_of

_REDUCTIONS = {
    "ReduceMean": "mean",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceSum": "sum",
    "ReduceL1": "zero",
    "ReduceL2": "zero",
    "ReduceSumSquare": "zero",
    "ReduceProd": "unknown",
    "ReduceLogSum": "unknown",
    "ReduceLogSumExp": "unknown",
}


def _pool(build: Builder, node: NodeProto) -> None:
    value, output = node.input[0], node.output[0]
    spatial = range(2, build.rank(value))
    kind = "zero" if node.op_type.endswith("LpPool") else "same"
    if node.op_type == "AveragePool":
        pads = attribute_of(node, "pads") or ()
        automatic = attribute_of(node, "auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
        beyond = any(pads) or automatic or bool(attribute_of(node, "ceil_mode", 0))
        if beyond and attribute_of(node, "count_include_pad", 0):
            kind = "zero"
    build.reduce(kind, value, spatial, output)


def _global_pool(build: Builder, node: NodeProto) -> None:
    kinds = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max", "GlobalLpPool": "zero"}
    spatial = range(2, build.rank(node.input[0]))
    build.reduce(kinds[node.op_type], node.input[0], spatial, node.output[0])


def _reduction(build: Builder, node: NodeProto) -> None:
    axes = build.ints(node, 1, "axes")
    value = node.input[0]
    if not axes:
        if attribute_of(node, "noop_with_empty_axes", 0):
            raise Whole
        axes = list(range(build.rank(value)))
    _reduced(build, node, _REDUCTIONS[node.op_type], axes)


def _arg(build: Builder, node: NodeProto) -> None:
    _reduced(build, node, "unknown", [int(attribute_of(node, "axis", 0))])


def _reduced(build: Builder, node: NodeProto, kind: str, axes: Sequence[int]) -> None:
    value, output = node.input[0], node.output[0]
    rank = build.rank(value)
    if attribute_of(node, "keepdims", 1):
        build.reduce(kind, value, axes, output)
        return
    gone = {axis % rank for axis in axes}
    kept = build.reduce(kind, value, axes, build.fresh(output))
    profile = [n for axis, n in enumerate(build.profile(kept)) if axis not in gone]
    build.reshaped(kept, profile, output)


def _resize(build: Builder, node: NodeProto) -> None:
    value, output = node.input[0], node.output[0]
    profile = build.profile(value)
    for axis, length in enumerate(profile):
        if length != 1 and fixed(build.size(output, axis)) != length:
            raise Whole
    extrapolates = attribute_of(node, "coordinate_transformation_mode") == b"tf_crop_and_resize"
    cubic = attribute_of(node, "mode", b"nearest") == b"cubic"
    kind = "unknown" if extrapolates else "zero" if cubic else "same"
    build.reduce(kind, value, [a for a, length in enumerate(profile) if length == 1], output)


def _mixing(build: Builder, node: NodeProto) -> None:
    """Softmax and its like: every element along some axes depends on all others."""
    default = -1 if build.version >= 13 else 1
    if node.op_type in ("LpNormalization", "CumSum"):
        default = -1
    axis = int(attribute_of(node, "axis", default))
    rank = build.rank(node.input[0])
    axes = [axis % rank]
    if node.op_type == "CumSum" or node.op_type == "MeanVarianceNormalization":
        axes = list(range(rank))
    elif node.op_type == "LRN":
        axes = [1]
    elif node.op_type != "LpNormalization" and build.version < 13:
        axes = list(range(axis % rank, rank))
    build.reduce("unknown", node.input[0], axes, node.output[0])


def _layer_norm(build: Builder, node: NodeProto) -> None:
    value = node.input[0]
    axis = int(attribute_of(node, "axis", -1)) % build.rank(value)
    axes = range(axis, build.rank(value))
    _affine(build, node, axes, list(node.input[1:3]))


def _instance_norm(build: Builder, node: NodeProto) -> None:
    rank = build.rank(node.input[0])
    channels = _per_channel(build, node.input[1:3], rank)
    _affine(build, node, range(2, rank), channels)


def _group_norm(build: Builder, node: NodeProto) -> None:
    rank = build.rank(node.input[0])
    channels = fixed(build.size(node.input[0], 1))
    if any(fixed(build.size(value, 0)) != channels for value in node.input[1:3]):
        raise Whole  # before operator set 21, one number a group
    _affine(build, node, range(1, rank), _per_channel(build, node.input[1:3], rank))


def _affine(build: Builder, node: NodeProto, axes: Sequence[int], operands: list[str]) -> None:
    """Normalisation over some axes, then scale and shift."""
    output = node.output[0]
    mixed = build.reduce("unknown", node.input[0], axes, build.fresh(output))
    present = [(f, v) for f, v in zip(("mul", "add"), operands, strict=False) if v]
    for index, (function, operand) in enumerate(present):
        name = output if index == len(present) - 1 else build.fresh(output)
        mixed = build.pointwise(function, [mixed, operand], name)


def _per_channel(build: Builder, values: Sequence[str], rank: int) -> list[str]:
    """Stored vectors in the profile of channels on axis 1."""
    result = []
    for value in values:
        if value not in build.stored:
            raise Whole
        shape = build.tensors[build.stored[value].names[-1]].shape
        result.append(build.operand(value, (1, math.prod(shape), *(1,) * (rank - 2))))
    return result


def _batch_norm(build: Builder, node: NodeProto) -> None:
    value, output = node.input[0], node.output[0]
    if not attribute_of(node, "spatial", 1):
        raise Whole
    training = bool(attribute_of(node, "training_mode", 0))
    training |= build.version < 14 and any(node.output[1:])
    training |= build.version < 7 and not attribute_of(node, "is_test", 0)
    rank = build.rank(value)
    scale, shift, *statistics = _per_channel(build, node.input[1:5], rank)
    if training:
        mixed = build.pointwise("unknown", [value], build.fresh(output))
        scaled = build.pointwise("mul", [mixed, scale], build.fresh(output))
        build.pointwise("add", [scaled, shift], output)
        return
    eps = float(attribute_of(node, "epsilon", 1e-5))
    build.pointwise("batch_norm", [value, scale, shift, *statistics], output, (eps,))


HANDLERS: dict[str, Callable[[Builder, NodeProto], None]] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _mixing),
    **dict.fromkeys(("CumSum", "LRN", "MeanVarianceNormalization"), _mixing),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    "SimplifiedLayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "BatchNormalization": _batch_norm,
}
"""How each operator is described; `Whole` is raised for forms that are not."""
