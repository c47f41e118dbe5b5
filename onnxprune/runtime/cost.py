"""Whether a sparse operator computes a layer faster than ONNX Runtime's dense one."""

from dataclasses import dataclass

from onnxprune.runtime.graph import GraphIndex
from onnxprune.runtime.layers import Layer
from onnxprune.runtime.weights import block_rows

RATE = {1: 0.38, 4: 0.75}
"""Multiply-adds of sparse kernels in the time of one dense one, by rows that share columns."""

COPY = {"in_place": 0.0, "shifted": 3.0, "strided": 9.0, "turned": 9.0}
"""What it costs to lay out one input value, in dense multiply-adds with it."""

PLANNING = 200.0
"""What it costs to plan one tap of a strided convolution, shared by all channels."""

MATRIX_VECTOR_SPARSITY = 0.8
"""From which sparsity a product with few rows of input gains: it reads less memory."""

LEAST_SPEEDUP = 1.1
"""Expected speedup below which a layer stays dense, since estimates are rough."""

_FEW_OUTPUTS = 8


@dataclass(frozen=True)
class Choice:
    """The decision on one layer.

    Attributes:
        sparse: Whether a sparse operator computes it.
        reason: Why, for people.
        speedup: How many times faster it is expected to be; None without an estimate.
    """

    sparse: bool
    reason: str
    speedup: float | None = None


def choose(layer: Layer, graph: GraphIndex, min_sparsity: float | None) -> Choice:
    """Decide on a layer.

    Args:
        layer: The layer, before anything is fused into it.
        graph: Its graph, for the shape of its input.
        min_sparsity: Decides alone, where given.
    """
    speedup = expected_speedup(layer, graph)
    if min_sparsity is not None:
        if layer.sparsity >= min_sparsity:
            return Choice(True, "as asked", speedup)
        return Choice(False, f"sparsity below {min_sparsity:g}", speedup)
    if layer.nonzeros == layer.weight.size:
        return Choice(False, "no zeros", speedup)
    if layer.outputs < _FEW_OUTPUTS:
        return Choice(False, f"only {layer.outputs} outputs", speedup)
    if _few_tokens(layer, graph):
        if layer.sparsity < MATRIX_VECTOR_SPARSITY:
            return Choice(False, "too dense for a product with few rows", speedup)
        return Choice(True, "sparse enough", speedup)
    if speedup < LEAST_SPEEDUP:
        return Choice(False, "too dense to gain", speedup)
    return Choice(True, "sparse enough", speedup)


def expected_speedup(layer: Layer, graph: GraphIndex) -> float:
    """How many times faster a sparse operator is expected to be.

    Dense time goes by rows of the weight, sparse time by non-zeros, and laying out the input costs
    the same whatever the weight: `1 / (density / RATE + COPY / rows)`.
    """
    density = 1 - layer.sparsity
    kind = _copying(layer)
    copy = COPY[kind] / max(1, layer.outputs)
    if kind == "strided":
        copy += PLANNING / (layer.outputs * layer.weight.shape[1] / layer.taps)
    return 1 / max(density / RATE[block_rows(layer.weight)] + copy, 1e-3)


def _copying(layer: Layer) -> str:
    if layer.kind == "SparseMatMul":
        return "turned"
    if layer.in_place:
        return "shifted"  # tiled inputs are decided on later, and not all can be
    return "shifted" if set(layer.geometry["strides"]) == {1} else "strided"


def _few_tokens(layer: Layer, graph: GraphIndex) -> bool:
    """Whether a product reads fewer rows than a vector has lanes; open sizes of a matrix count
    as few, those of larger inputs (text) do not."""
    if layer.kind != "SparseMatMul":
        return False
    dims = graph.dims(layer.x)
    if dims is None or len(dims) == 2:
        rows = dims[0] if dims else None
        return not isinstance(rows, int) or rows < 16
    total = 1
    for dim in dims[:-1]:
        total *= dim if isinstance(dim, int) else 16
    return total < 16
