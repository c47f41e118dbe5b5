"""Where a sparse operator pays: the static rule, before anything is timed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxprune.runtime.layers import Layer
from onnxprune.runtime.sizes import Sizes

TIME_BOUND = 2
"""Positions up to which a layer reads each weight so rarely that memory decides its time."""

_VECTOR = 16
_BLOCK_COLUMNS = 128
"""Pixels of a vector, and columns that the kernels take at once of unstructured weights.

They take more of blocked and of very sparse ones, for which this expects a little too much time."""

_FAR_WEIGHTS = 2.0
_NEAR_SUMS = 0.5
"""What a weight, and a row of sums, cost in an operator that also computes a depthwise convolution,
as multiples: it reads pixels from the second-level cache, and leaves sums in the first."""

_LEAST_EXPANDED_BYTES = 2**17
_LEAST_EXPANDED_PIXELS = 512
_MOST_EXPANDED_WEIGHTS = 5
"""Where a depthwise convolution goes into the operator of the pointwise one before it: if what lies
between them is large, and each of its channels has few weights that are not zero."""

_LEAST_LAYER_MS = 0.2
"""Mean time of layers from which on threads may meet after each of every sample."""

_FEW_POSITIONS = 16
_MOST_REREAD = 0.25
"""Layers with fewer positions may take this share of the time, if samples are split."""

_ROUNDING = 5e-4
"""Layers pruned to a threshold have it up to the rounding of their number of zeros."""


@dataclass(frozen=True)
class Work:
    """What a layer has to do for one sample.

    Attributes:
        kind: `1x1`, `kxk` (a convolution with several taps), or `product`.
        strided: Whether it is a convolution that leaves pixels out.
        rows: Outputs.
        columns: What one output reads.
        nonzeros: Weights that are not zero.
        block: Rows that share their columns.
        positions: Pixels or tokens of the output.
        traffic: Bytes of the input, the output and the residual.
        between: Bytes that a depthwise convolution in the same operator saves from being written
            and read; 0 without one.
    """

    kind: str
    strided: bool
    rows: int
    columns: int
    nonzeros: int
    block: int
    positions: int
    traffic: int
    between: int = 0


@dataclass(frozen=True)
class Machine:
    """What things cost on one type of processor.

    Nanoseconds, fitted by `benchmarks/layer_costs.py` to layers of several networks. What counts is
    their ratio. Costs that the fit cannot tell apart are 0.

    Attributes:
        name: The processor.
        dense_ns: Costs in ONNX Runtime, by the names of `dense_works`.
        sparse_ns: Costs of the sparse kernels, by the names of `sparse_works`.
    """

    name: str
    dense_ns: Mapping[str, float]
    sparse_ns: Mapping[str, float]

    def dense_ms(self, work: Work) -> float:
        """Expected time of a layer in ONNX Runtime, for one sample and thread."""
        return _milliseconds(dense_works(work), self.dense_ns)

    def sparse_ms(self, work: Work) -> float:
        """Expected time of a layer with the sparse kernels, for one sample and thread."""
        return _milliseconds(sparse_works(work), self.sparse_ns)


MACHINES = (
    Machine(
        "Intel Xeon with AVX-512 at 2.5 GHz",
        {
            "1x1 products": 0.0176,
            "kxk products": 0.0206,
            "product products": 0.0152,
            "vector products": 0.366,
            "traffic": 0.0295,
            "calls": 15_000.0,
        },
        {
            "weights": 0.335,
            "blocked weights": 0.243,
            "gathered weights": 1.35,
            "sums": 7.51,
            "1x1 copies": 0.637,
            "1x1, strided copies": 41.4,
            "kxk copies": 0.95,
            "kxk, strided copies": 10.1,
            "product copies": 4.39,
            "traffic": 0.00811,
            "calls": 23_400.0,
        },
    ),
    Machine(
        "AMD EPYC, Zen 5",
        {
            "1x1 products": 0.00873,
            "kxk products": 0.00836,
            "product products": 0.00878,
            "vector products": 0.11,
            "traffic": 0.006,
            "calls": 5_690.0,
        },
        {
            "weights": 0.23,
            "blocked weights": 0.137,
            "gathered weights": 0.379,
            "sums": 1.63,
            "1x1 copies": 0.0,
            "1x1, strided copies": 2.34,
            "kxk copies": 0.0,
            "kxk, strided copies": 1.74,
            "product copies": 0.429,
            "traffic": 0.00597,
            "calls": 10_300.0,
        },
    ),
    Machine(
        "AMD EPYC, Zen 3",
        {
            "1x1 products": 0.0254,
            "kxk products": 0.0248,
            "product products": 0.0249,
            "vector products": 0.264,
            "traffic": 0.00934,
            "calls": 10_600.0,
        },
        {
            "weights": 0.504,
            "blocked weights": 0.386,
            "gathered weights": 0.558,
            "sums": 3.39,
            "1x1 copies": 0.189,
            "1x1, strided copies": 10.9,
            "kxk copies": 0.401,
            "kxk, strided copies": 5.15,
            "product copies": 1.66,
            "traffic": 0.0209,
            "calls": 13_200.0,
        },
    ),
    Machine(
        "AMD EPYC, Zen 4",
        {
            "1x1 products": 0.0187,
            "kxk products": 0.0184,
            "product products": 0.0184,
            "vector products": 0.188,
            "traffic": 0.00756,
            "calls": 7_690.0,
        },
        {
            "weights": 0.378,
            "blocked weights": 0.279,
            "gathered weights": 0.498,
            "sums": 1.79,
            "1x1 copies": 0.769,
            "1x1, strided copies": 8.37,
            "kxk copies": 0.309,
            "kxk, strided copies": 3.95,
            "product copies": 1.82,
            "traffic": 0.0,
            "calls": 9_430.0,
        },
    ),
)
"""Processors that the rule was measured on. A replaced layer is to be slower on none of them."""


@dataclass(frozen=True)
class Thresholds:
    """Least sparsity of layers that are replaced, as shares in [0, 1).

    Attributes:
        unstructured: Where zeros lie anywhere.
        block: Where four neighbouring outputs share their zeros.
        vector: Where a weight meets one or two positions only, as in a classifier.
        least_outputs: Layers with fewer outputs stay dense.
        least_products: So do layers with fewer multiplications a sample.
        least_speedup: Expected dense time over expected sparse time from which a layer is
            replaced, as the geometric mean over `MACHINES` without the one that gains most; one
            that would be slower on any of them is not. 0 lets sparsity alone decide, as it does
            where the inputs decide on sizes.
        least_gain: Share of the dense layers' expected time that a model has to gain as a whole,
            or else it stays as it is; 0 does not ask for that.
    """

    unstructured: float = 0.70
    block: float = 0.55
    vector: float = 0.80
    least_outputs: int = 16
    least_products: int = 100_000
    least_speedup: float = 1.25
    least_gain: float = 0.05

    @classmethod
    def any_size(cls, sparsity: float) -> "Thresholds":
        """Layers of any size are replaced from this sparsity on, whatever is expected of them."""
        return cls(
            unstructured=sparsity,
            block=sparsity,
            vector=sparsity,
            least_outputs=1,
            least_products=1,
            least_speedup=0,
            least_gain=0,
        )

    def refusal(self, layer: Layer, sparsity: float, block: int, work: Work | None) -> str:
        """Why a layer stays dense; empty if it does not.

        Args:
            layer: The layer.
            sparsity: Zeros of its weight, as a share.
            block: Rows that share their columns.
            work: What it has to do; None where that depends on the inputs.
        """
        if layer.rows < self.least_outputs:
            return f"{layer.rows} outputs, fewer than {self.least_outputs}"
        products = None if work is None else work.positions * math.prod(layer.weight_shape)
        if products is not None and products < self.least_products:
            return f"{products:,} multiplications, fewer than {self.least_products:,}"
        least = self.block if block > 1 else self.unstructured
        if work is not None and work.positions <= TIME_BOUND:
            least = self.vector
        if sparsity < least - _ROUNDING:
            return f"sparsity below {least:.0%}"
        if work is not None and self.least_speedup:
            if expected_speedup(work) < self.least_speedup:
                return f"expected to be {expected_speedup(work):.2f}× as fast"
            for machine in MACHINES:
                if (speedup := machine.dense_ms(work) / machine.sparse_ms(work)) < 1:
                    return f"expected to be {speedup:.2f}× as fast on {machine.name}"
        return ""


def work_of(
    layer: Layer, sizes: Sizes, output: str, nonzeros: int, block: int, columns: int
) -> Work | None:
    """What a layer has to do; None if inputs decide on how many positions.

    Args:
        layer: The layer.
        sizes: Shapes of the graph.
        output: The value that the layer's own node makes.
        nonzeros: Weights that are not zero.
        block: Rows that share their columns.
        columns: What one output reads.
    """
    count = positions(layer, sizes, output)
    read = sizes.per_sample(layer.x, without=-1 if layer.kind == "product" else 1)
    if count is None or read is None:
        return None
    taps = math.prod(layer.attributes.get("kernel_shape", [1]))
    channels = columns // taps
    residual = layer.rows * count if layer.residual is not None and not layer.depthwise else 0
    return Work(
        "product" if layer.kind == "product" else "1x1" if taps == 1 else "kxk",
        max(layer.attributes.get("strides", [1])) > 1,
        layer.rows,
        columns,
        nonzeros,
        block,
        count,
        4 * (channels * read + layer.rows * count + residual),
    )


def with_depthwise_work(layer: Layer, sizes: Sizes, work: Work) -> Work | None:
    """What a pointwise layer has to do in one operator with the depthwise one after it.

    Args:
        layer: Both, in one.
        sizes: Shapes of the graph.
        work: What the pointwise one has to do by itself.

    Returns:
        None where two operators are expected to be faster, or inputs decide on sizes.
    """
    if layer.depthwise is None:
        return None
    made = sizes.per_sample(layer.depthwise.output, without=1)
    image = [size for size in (sizes.certain(layer.depthwise.x) or ())[2:] if size is not None]
    if made is None or len(image) != len(layer.attributes["kernel_shape"]):
        return None
    expanded = 4 * work.rows * work.positions
    pixels = math.prod(image)
    if (
        4 * work.rows * pixels < _LEAST_EXPANDED_BYTES
        or pixels < _LEAST_EXPANDED_PIXELS
        or work.nonzeros > _MOST_EXPANDED_WEIGHTS * work.rows
    ):
        return None
    written = 4 * work.rows * made * (1 if layer.residual is None else 2)
    return replace(work, traffic=work.traffic - expanded + written, between=2 * expanded)


def positions(layer: Layer, sizes: Sizes, output: str) -> int | None:
    """Pixels or tokens of a sample for which a layer reads its weight; None if inputs decide.

    Args:
        layer: The layer.
        sizes: Shapes of the graph.
        output: The value that the layer's own node makes.
    """
    axis = -1 if layer.kind == "product" else 1
    return sizes.per_sample(output, without=axis)


def dense_works(work: Work) -> dict[str, float]:
    """How often ONNX Runtime does what costs time, by name."""
    products = float(work.rows * work.columns * work.positions)
    few = work.positions <= TIME_BOUND
    return {
        f"{'vector' if few else work.kind} products": products,
        "traffic": float(work.traffic + work.between),
        "calls": 2.0 if work.between else 1.0,
    }


def sparse_works(work: Work) -> dict[str, float]:
    """How often the sparse kernels do what costs time, by name."""
    if work.positions <= TIME_BOUND:
        gathered = float(work.nonzeros * work.positions)
        return {"gathered weights": gathered, "traffic": float(work.traffic), "calls": 1.0}
    vectors = -(-work.positions // _VECTOR)
    if work.between:
        return {
            "weights": _FAR_WEIGHTS * work.nonzeros * vectors,
            "sums": _NEAR_SUMS * work.rows * vectors,
            "traffic": float(work.traffic),
            "calls": 1.0,
        }
    slab = float(work.columns * vectors)
    return {
        "blocked weights" if work.block > 1 else "weights": float(work.nonzeros * vectors),
        "sums": float(work.rows * -(-work.columns // _BLOCK_COLUMNS) * vectors),
        f"{work.kind}{', strided' if work.strided else ''} copies": slab,
        "traffic": float(work.traffic),
        "calls": 1.0,
    }


def expected_speedup(work: Work) -> float:
    """Expected dense time over expected sparse time of a layer, as the mean over `MACHINES`.

    The one that gains most is left out: it may not make up for what others hardly gain.
    """
    found = sorted(machine.dense_ms(work) / machine.sparse_ms(work) for machine in MACHINES)
    return statistics.geometric_mean(found[:-1])


def expected_gain(chosen: Iterable[Work], every: Iterable[Work]) -> float:
    """What replacing layers saves, as a share of the dense time of all.

    The mean over `MACHINES` without the one that gains most.
    """
    chosen, every = list(chosen), list(every)
    found = sorted(
        sum(machine.dense_ms(work) - machine.sparse_ms(work) for work in chosen)
        / sum(machine.dense_ms(work) for work in every)
        for machine in MACHINES
    )
    return statistics.mean(found[:-1])


def splitting_pays(layers: Sequence[tuple[Work, bool]], threads: int | None) -> bool:
    """Whether computing samples one after the other is expected to be faster than together.

    It saves memory traffic between layers. On several threads it has them meet more often, which
    short layers do not bear; and a layer that reads each weight once for a sample reads them all
    again for the next one.

    Args:
        layers: What each layer of a model has to do, and whether it is sparse.
        threads: Threads of a session; None if that is not known.
    """

    def expected(some: Iterable[tuple[Work, bool]]) -> float:
        return sum(
            statistics.mean(m.sparse_ms(work) if sparse else m.dense_ms(work) for m in MACHINES)
            for work, sparse in some
        )

    whole = expected(layers)
    reread = expected(layer for layer in layers if layer[0].positions < _FEW_POSITIONS)
    short = threads != 1 and whole < _LEAST_LAYER_MS * len(layers)
    return bool(layers) and not short and reread <= _MOST_REREAD * whole


def _milliseconds(works: Mapping[str, float], costs: Mapping[str, float]) -> float:
    return sum(costs[name] * count for name, count in works.items()) / 1e6
