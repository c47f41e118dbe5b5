"""Layers with constant weights in a graph, and what follows them that they can compute as well."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from onnxprune.runtime.activations import Activation, find_activation
from onnxprune.runtime.graph import GraphIndex
from onnxprune.runtime.rows import MOST_COLUMNS
from onnxprune.runtime.sizes import Sizes
from onnxprune.stored import stored_array, stored_shape
from onnxprune.tensor_views import attribute_of

LINEAR = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"}
    | {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "MatMulNBits"}
)
"""Operators that a record lists, with a reason where they stay dense."""


class StaysDense(Exception):
    """Why a sparse operator cannot take a layer's place."""


@dataclass(frozen=True)
class Layer:
    """A layer that a sparse operator can compute.

    Attributes:
        node: Index of the node.
        kind: `conv`, `product`, `depthwise`, or `expanded`, a pointwise convolution whose operator
            also computes the depthwise one that reads it.
        x: The value that it reads.
        weight: Name of the stored weight.
        weight_shape: Its stored shape.
        transposed: Whether the weight is stored as `(columns, rows)` of the matrix.
        scale: What the stored weight is multiplied by.
        attributes: Attributes of the sparse operator.
        bias: `(rows,)`, or None.
        residual: A value that is added, or None.
        activation: What is computed last, or, of `expanded`, before the depthwise convolution.
        absorbed: Indices of the nodes that it takes the place of, in graph order.
        output: The value that it ends in.
        fused: What was absorbed, in words.
        depthwise: The depthwise convolution of `expanded`, with what follows it; else None.
    """

    node: int
    kind: str
    x: str
    weight: str
    weight_shape: tuple[int, ...]
    transposed: bool
    scale: float
    attributes: dict[str, Any]
    bias: np.ndarray | None
    residual: str | None
    activation: Activation
    absorbed: tuple[int, ...]
    output: str
    fused: tuple[str, ...] = field(default=())
    depthwise: "Layer | None" = None

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.weight_shape[-1 if self.transposed else 0]

    def matrix(self, index: GraphIndex) -> np.ndarray:
        """The weight as `(rows, columns)`."""
        values = stored_array(index.stored[self.weight])
        flat = values.T if self.transposed else values.reshape(len(values), -1)
        return flat if self.scale == 1 else (flat * np.float32(self.scale)).astype(np.float32)

    @property
    def pointwise(self) -> bool:
        """Whether each pixel is computed from the one at its place."""
        return self.strided_pointwise and set(self.attributes["strides"]) == {1}

    @property
    def strided_pointwise(self) -> bool:
        """Whether each pixel is computed from a single one."""
        return (
            self.kind == "conv"
            and set(self.attributes["kernel_shape"]) == {1}
            and not any(self.attributes["pads"])
        )


def read_layer(index: GraphIndex, sizes: Sizes, number: int) -> Layer:
    """The layer of one node, without what follows it.

    Raises:
        StaysDense: A sparse operator cannot take its place.
    """
    node = index.graph.node[number]
    if node.domain in ("", "ai.onnx"):
        if node.op_type == "Conv":
            return _conv(index, sizes, number, node)
        if node.op_type == "MatMul":
            return _matmul(index, number, node)
        if node.op_type == "Gemm":
            return _gemm(index, sizes, number, node)
    raise StaysDense(f"there is no sparse operator for {node.op_type}")


def read_depthwise(index: GraphIndex, sizes: Sizes, number: int) -> Layer | None:
    """A convolution of each channel by a kernel of its own; None for any other node."""
    node = index.graph.node[number]
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return None
    try:
        shape = stored_shape(_weight(index, node.input[1]))
        group = attribute_of(node, "group", 1)
        if len(shape) not in (3, 4) or shape[1] != 1 or group != shape[0] or group == 1:
            return None
        attributes, bias = _window(index, sizes, node, shape)
    except StaysDense:
        return None
    return _layer(index, number, "depthwise", node.input[0], node.input[1], attributes, bias)


def absorb(index: GraphIndex, sizes: Sizes, layer: Layer, taken: set[int]) -> Layer:
    """The layer with the bias, the residual and the activation that follow it.

    Args:
        index: The graph.
        sizes: Its shapes.
        layer: The layer by itself.
        taken: Nodes that other layers have absorbed.
    """
    layer = _with_bias(index, sizes, layer, taken)
    layer = _with_residual(index, sizes, layer, taken)
    rank = sizes.rank(layer.output) or (1 if layer.kind == "product" else 3)
    follower = find_activation(index, layer.output, rank)
    if follower is None or taken & set(follower.nodes):
        return layer
    name = follower.activation.name
    return replace(
        layer,
        activation=follower.activation,
        absorbed=tuple(sorted({*layer.absorbed, *follower.nodes})),
        output=follower.output,
        fused=(*layer.fused, name) if name else layer.fused,
    )


def with_depthwise(index: GraphIndex, sizes: Sizes, layer: Layer, taken: set[int]) -> Layer | None:
    """A layer with the depthwise convolution that alone reads what it makes; None without one.

    Args:
        index: The graph.
        sizes: Its shapes.
        layer: The layer with what it absorbs.
        taken: Nodes that other layers have absorbed.
    """
    reader = index.sole_reader(layer.output)
    if not layer.pointwise or layer.residual is not None or reader is None or reader in taken:
        return None
    depthwise = read_depthwise(index, sizes, reader)
    if depthwise is None or depthwise.x != layer.output:
        return None
    full = absorb(index, sizes, depthwise, taken)
    return replace(
        layer,
        kind="expanded",
        residual=full.residual,
        absorbed=tuple(sorted({*layer.absorbed, *full.absorbed})),
        output=full.output,
        fused=(*layer.fused, "depthwise"),
        depthwise=full,
    )


def _weight(index: GraphIndex, name: str) -> TensorProto:
    tensor = index.stored.get(name)
    if tensor is None:
        if name in index.overridable:
            raise StaysDense("its weight is an input that a caller can override")
        maker = index.makers.get(name)
        if maker is None:
            raise StaysDense("its weight is an input")
        made = index.graph.node[maker]
        tensor = index.stored.get(made.input[0]) if made.op_type == "Cast" else None
        if tensor is None:  # ONNX Runtime casts weights of other types for the CPU
            raise StaysDense(f"its weight is computed by {made.op_type}")
    if tensor.data_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        raise StaysDense(f"its weight is {kind}; sparse operators compute in float32")
    if name not in index.stored:
        raise StaysDense("its weight is computed by Cast")
    if not math.prod(stored_shape(tensor)):
        raise StaysDense("its weight is empty")
    return tensor


def _check_columns(columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise StaysDense(f"an output reads {columns} inputs, more than {MOST_COLUMNS}")


def _conv(index: GraphIndex, sizes: Sizes, number: int, node: NodeProto) -> Layer:
    shape = stored_shape(_weight(index, node.input[1]))
    if attribute_of(node, "group", 1) != 1:
        raise StaysDense("it has groups")
    if len(shape) not in (3, 4):
        raise StaysDense(f"it has {len(shape) - 2} spatial axes")
    _check_columns(math.prod(shape[1:]))
    window, bias = _window(index, sizes, node, shape)
    attributes = {"in_channels": shape[1], **window}
    return _layer(index, number, "conv", node.input[0], node.input[1], attributes, bias)


def _window(
    index: GraphIndex, sizes: Sizes, node: NodeProto, shape: Sequence[int]
) -> tuple[dict[str, list[int]], np.ndarray | None]:
    """Attributes of a convolution's window, and its bias."""
    axes = len(shape) - 2
    strides = list(attribute_of(node, "strides", [1] * axes))
    dilations = list(attribute_of(node, "dilations", [1] * axes))
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = index.array(node.input[2])
        if bias is None or bias.shape != (shape[0],):
            raise StaysDense("its bias is computed")
    window = {
        "kernel_shape": list(shape[2:]),
        "strides": strides,
        "pads": _pads(node, sizes, shape[2:], strides, dilations),
        "dilations": dilations,
    }
    return window, bias


def _pads(
    node: NodeProto,
    sizes: Sizes,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Padding before each axis, then after each."""
    mode = attribute_of(node, "auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", ""):
        pads = list(attribute_of(node, "pads", [0] * 2 * len(kernel)))
        if min(pads) < 0:
            raise StaysDense("its padding is negative")
        return pads
    if mode == "VALID":
        return [0] * 2 * len(kernel)
    shape = sizes.certain(node.input[0])
    before, after = [], []
    for axis, (taps, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = None if shape is None else shape[axis + 2]
        if stride == 1:
            total = (taps - 1) * dilation
        elif size is None:
            raise StaysDense(f"auto_pad={mode} with stride {stride} on an axis of open size")
        else:
            total = (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size
        if total < (-1 if mode == "SAME_UPPER" else -2):
            raise StaysDense(f"auto_pad={mode} with stride {stride} begins within the image")
        less, more = max(total, 0) // 2, (max(total, 0) + 1) // 2
        before.append(less if mode == "SAME_UPPER" else more)
        after.append(more if mode == "SAME_UPPER" else less)
    return [*before, *after]


def _matmul(index: GraphIndex, number: int, node: NodeProto) -> Layer:
    x, weight = node.input
    if weight not in index.stored and x in index.stored:
        raise StaysDense("its weight is the first operand")
    shape = stored_shape(_weight(index, weight))
    if len(shape) != 2:
        raise StaysDense(f"its weight has {len(shape)} axes")
    _check_columns(shape[0])
    attributes = {"in_features": shape[0]}
    return _layer(index, number, "product", x, weight, attributes, None, transposed=True)


def _gemm(index: GraphIndex, sizes: Sizes, number: int, node: NodeProto) -> Layer:
    x, weight, *rest = node.input
    if weight not in index.stored and x in index.stored:
        raise StaysDense("its weight is the first operand")
    shape = stored_shape(_weight(index, weight))
    if attribute_of(node, "transA", 0):
        raise StaysDense("its input is transposed")
    transposed = not attribute_of(node, "transB", 0)
    rows = shape[1] if transposed else shape[0]
    columns = shape[0] if transposed else shape[1]
    _check_columns(columns)
    beta = float(attribute_of(node, "beta", 1.0))
    bias, residual = None, None
    if rest and rest[0]:
        constant = index.array(rest[0])
        bias = None if constant is None else _row_constant(constant, rows, -1, 2)
        if bias is not None:
            bias = (bias * np.float32(beta)).astype(np.float32)
        elif constant is None and beta == 1 and sizes.same(rest[0], node.output[0]):
            residual = rest[0]
        else:
            raise StaysDense("its third operand is neither a constant bias nor a residual")
    layer = _layer(
        index,
        number,
        "product",
        x,
        weight,
        {"in_features": columns},
        bias,
        transposed=transposed,
        scale=float(attribute_of(node, "alpha", 1.0)),
    )
    return replace(layer, residual=residual)


def _layer(
    index: GraphIndex,
    number: int,
    kind: str,
    x: str,
    weight: str,
    attributes: dict[str, Any],
    bias: np.ndarray | None,
    *,
    transposed: bool = False,
    scale: float = 1.0,
) -> Layer:
    return Layer(
        node=number,
        kind=kind,
        x=x,
        weight=weight,
        weight_shape=stored_shape(index.stored[weight]),
        transposed=transposed,
        scale=scale,
        attributes=attributes,
        bias=bias,
        residual=None,
        activation=Activation(),
        absorbed=(number,),
        output=index.graph.node[number].output[0],
    )


def _row_constant(constant: np.ndarray, rows: int, axis: int, rank: int) -> np.ndarray | None:
    """A constant `(rows,)` that broadcasts along one axis of a value; None if it does not.

    Args:
        constant: What is added.
        rows: Size of the axis.
        axis: The axis, from the end.
        rank: Number of axes of the value.
    """
    if constant.ndim > rank or constant.dtype != np.float32:
        return None
    if constant.size == 1:
        return np.full(rows, constant.ravel()[0], np.float32)
    if constant.size != rows or constant.ndim < -axis or constant.shape[axis] != rows:
        return None
    return constant.reshape(rows)


def _sole_add(index: GraphIndex, value: str, taken: set[int]) -> tuple[int, str] | None:
    """The only reader of a value, if it is an Add that is still free, and what it adds."""
    reader = index.sole_reader(value)
    if reader is None or reader in taken:
        return None
    node = index.graph.node[reader]
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or len(node.input) != 2:
        return None
    if len(set(node.input)) != 2:
        return None
    return reader, next(name for name in node.input if name != value)


def _with_bias(index: GraphIndex, sizes: Sizes, layer: Layer, taken: set[int]) -> Layer:
    found = _sole_add(index, layer.output, taken)
    rank = sizes.rank(layer.output)
    if found is None or layer.residual is not None:
        return layer
    constant = index.array(found[1])
    if constant is None:
        return layer
    if layer.kind != "product":
        axes = len(layer.attributes["kernel_shape"])
        bias = _row_constant(constant, layer.rows, -axes - 1, axes + 2)
    else:
        bias = _row_constant(constant, layer.rows, -1, rank or 1)
    if bias is None:
        return layer
    return replace(
        layer,
        bias=bias if layer.bias is None else layer.bias + bias,
        absorbed=(*layer.absorbed, found[0]),
        output=index.graph.node[found[0]].output[0],
        fused=(*layer.fused, "bias"),
    )


def _with_residual(index: GraphIndex, sizes: Sizes, layer: Layer, taken: set[int]) -> Layer:
    found = _sole_add(index, layer.output, taken)
    if found is None or layer.residual is not None or found[1] in index.stored:
        return layer
    if not sizes.same(found[1], layer.output):
        return layer
    return replace(
        layer,
        residual=found[1],
        absorbed=(*layer.absorbed, found[0]),
        output=index.graph.node[found[0]].output[0],
        fused=(*layer.fused, "residual"),
    )
