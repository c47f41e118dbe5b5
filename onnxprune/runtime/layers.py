"""Layers of a graph that a sparse operator can compute: their weights as matrices."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from onnx import NodeProto

from onnxprune.runtime.graph import GraphIndex, attribute, float_type

MOST_COLUMNS = 65_536
"""Columns are numbered by 16 bits."""


@dataclass
class Layer:
    """A convolution or a product with stored weights.

    Attributes:
        index: Position of the node.
        name: Name of the node, or of its output where it has none.
        kind: Which operator computes it.
        weight: The matrix, `(outputs, columns)`; a column is an input feature, or an input channel
            and a tap of the kernel.
        weight_name: Name of the stored tensor.
        x: Name of the value that it reads.
        y: Name of the value that it makes.
        bias: What is added to each output, `(outputs,)`.
        geometry: Attributes of a SparseConv: kernel_shape, strides, pads, dilations.
        residual: Name of a value that is added to the result.
        activation: What is applied to the sum; see the operators' reference.
        alpha: Its first parameter.
        beta: Its second one.
        absorbed: Positions of further nodes that the layer stands for.
        last: Position at which its inputs are all there.
    """

    index: int
    name: str
    kind: Literal["SparseConv", "SparseMatMul"]
    weight: np.ndarray
    weight_name: str
    x: str
    y: str
    bias: np.ndarray | None = None
    geometry: dict[str, list[int]] = field(default_factory=dict)
    residual: str | None = None
    activation: str = ""
    alpha: float = 0.0
    beta: float = 0.0
    absorbed: list[int] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Position of the last node that the layer stands for."""
        return max([self.index, *self.absorbed])

    @property
    def outputs(self) -> int:
        """Rows of the matrix."""
        return int(self.weight.shape[0])

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return int(np.count_nonzero(self.weight))

    @property
    def sparsity(self) -> float:
        """Zeros / size of the matrix."""
        return 1 - self.nonzeros / self.weight.size if self.weight.size else 0.0

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return int(np.prod(self.geometry.get("kernel_shape", [1])))

    @property
    def in_place(self) -> bool:
        """Whether a tiled input is read without a copy: a pointwise convolution, unpadded."""
        return (
            self.kind == "SparseConv"
            and self.taps == 1
            and set(self.geometry["strides"]) == {1}
            and not any(self.geometry["pads"])
        )


@dataclass(frozen=True)
class Refused:
    """A layer that stays as it is.

    Attributes:
        name: Name of the node.
        kind: Its operator.
        reason: Why, for people.
        sparsity: Of its weight.
        shape: Of its weight as stored.
    """

    name: str
    kind: str
    reason: str
    sparsity: float
    shape: tuple[int, ...]


def find_layers(graph: GraphIndex) -> tuple[list[Layer], list[Refused]]:
    """Convolutions and products with stored 32-bit weights, in graph order.

    Returns:
        Those that a sparse operator can compute, and those with weights that it cannot.
    """
    layers: list[Layer] = []
    refused: list[Refused] = []
    for index, node in enumerate(graph.nodes):
        if node.domain not in ("", "ai.onnx") or node.op_type not in _READERS:
            continue
        weight = graph.constant(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.ndim < 2 or not node.output:
            continue
        found = (
            _READERS[node.op_type](graph, index, node, weight)
            if float_type(weight)
            else f"its weight is {weight.dtype.name}; sparse kernels compute float32"
        )
        if isinstance(found, str):
            zeros = 1 - np.count_nonzero(weight) / weight.size if weight.size else 0.0
            refused.append(Refused(_name(node), node.op_type, found, zeros, weight.shape))
        else:
            layers.append(found)
    return layers, refused


def _name(node: NodeProto) -> str:
    return node.name or node.output[0]


def _convolution(
    graph: GraphIndex, index: int, node: NodeProto, weight: np.ndarray
) -> Layer | str:
    axes = weight.ndim - 2
    if axes not in (1, 2):
        return f"it has {axes} spatial axes; 1 and 2 are supported"
    if attribute(node, "group", 1) != 1:
        return "it has groups"
    kernel = list(weight.shape[2:])
    strides = _ints(node, "strides", [1] * axes)
    dilations = _ints(node, "dilations", [1] * axes)
    pads = _pads(node, kernel, strides, dilations)
    if pads is None:
        return "its padding (auto_pad) depends on the input's size"
    if min(pads, default=0) < 0:
        return "it has negative padding"
    matrix = weight.reshape(weight.shape[0], -1)
    if matrix.shape[1] > MOST_COLUMNS:
        return f"each output has {matrix.shape[1]} weights; at most {MOST_COLUMNS} are supported"
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = graph.constant(node.input[2])
        if not float_type(bias):
            return "its bias is not stored"
    return Layer(
        index,
        _name(node),
        "SparseConv",
        matrix,
        node.input[1],
        node.input[0],
        node.output[0],
        bias,
        {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations},
    )


def _ints(node: NodeProto, name: str, otherwise: list[int]) -> list[int]:
    values = attribute(node, name)
    return [int(value) for value in values] if isinstance(values, list) and values else otherwise


def _pads(
    node: NodeProto, kernel: list[int], strides: list[int], dilations: list[int]
) -> list[int] | None:
    """Padding before and after each axis; None where it depends on the input."""
    auto = attribute(node, "auto_pad", b"NOTSET")
    if auto in (b"NOTSET", b""):
        return _ints(node, "pads", [0] * (2 * len(kernel)))
    if auto == b"VALID":
        return [0] * (2 * len(kernel))
    if any(stride != 1 for stride in strides):
        return None
    totals = [(size - 1) * step for size, step in zip(kernel, dilations, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if auto == b"SAME_UPPER" else large + small


def _gemm(graph: GraphIndex, index: int, node: NodeProto, weight: np.ndarray) -> Layer | str:
    if weight.ndim != 2:
        return "its weight is no matrix"
    if attribute(node, "transA", 0):
        return "its input is transposed"
    matrix = weight if attribute(node, "transB", 0) else weight.T
    if matrix.shape[1] > MOST_COLUMNS:
        return f"it has {matrix.shape[1]} inputs; at most {MOST_COLUMNS} are supported"
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    bias = None
    if len(node.input) > 2 and node.input[2]:
        stored = graph.constant(node.input[2])
        if stored is None or not float_type(stored):
            return "its bias is not stored"
        bias = row_vector(stored, matrix.shape[0])
        if bias is None:
            return f"its bias has the shape {list(stored.shape)}, not one value for each output"
        bias = np.asarray(bias * np.float32(beta), np.float32)
    return Layer(
        index,
        _name(node),
        "SparseMatMul",
        np.asarray(matrix * np.float32(alpha), np.float32),
        node.input[1],
        node.input[0],
        node.output[0],
        bias,
    )


def _matmul(graph: GraphIndex, index: int, node: NodeProto, weight: np.ndarray) -> Layer | str:
    if weight.ndim != 2:
        return "its weight is a stack of matrices"
    if weight.shape[0] > MOST_COLUMNS:
        return f"it has {weight.shape[0]} inputs; at most {MOST_COLUMNS} are supported"
    return Layer(
        index, _name(node), "SparseMatMul", weight.T, node.input[1], node.input[0], node.output[0]
    )


def row_vector(array: np.ndarray, size: int) -> np.ndarray | None:
    """An array that broadcasts along the last axis only, as `(size,)`; None for another one."""
    if array.size == 1:
        return np.full(size, array.reshape(-1)[0], np.float32)
    if array.size == size and array.shape[-1] == size:
        return array.reshape(size)
    return None


def channel_vector(array: np.ndarray, size: int, axes: int) -> np.ndarray | None:
    """An array that broadcasts along the channel axis only, as `(size,)`; None for another one.

    Args:
        array: What is added to a value `(N, channels, spatial axes…)`.
        size: Number of channels.
        axes: Number of spatial axes.
    """
    if array.size == 1:
        return np.full(size, array.reshape(-1)[0], np.float32)
    position = array.ndim - axes - 1
    if array.size == size and 0 <= position <= 1 and array.shape[position] == size:
        return array.reshape(size)
    return None


_READERS = {"Conv": _convolution, "Gemm": _gemm, "MatMul": _matmul}
