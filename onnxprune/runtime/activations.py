"""Activation functions, told by what they compute and not by how a graph spells them.

What follows a layer elementwise is a function of one number as long as nothing but constant scalars
comes in. It is computed on a grid and compared with the functions that the sparse operators know.
"""

import functools
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from onnxprune.runtime.graph import GraphIndex
from onnxprune.tensor_views import attribute_of

MOST_NODES = 16
"""No activation function that exporters write out takes more nodes."""

_TAIL = 10.0 ** np.linspace(1.1, 38.5, 150)
_GRID = np.concatenate([-_TAIL[::-1], np.linspace(-12, 12, 961), _TAIL])
_TOLERANCE = 2e-6
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Activation:
    """What the sparse operators compute last.

    Attributes:
        name: Value of the attribute `activation`, empty for none.
        alpha: First setting.
        beta: Second setting.
    """

    name: str = ""
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class Follower:
    """An activation that a graph spells out.

    Attributes:
        activation: The function.
        nodes: Indices of the nodes that spell it.
        output: The value that it ends in.
    """

    activation: Activation
    nodes: tuple[int, ...]
    output: str


def find_activation(index: GraphIndex, value: str, rank: int) -> Follower | None:
    """The longest known activation function of a value that is needed for nothing else.

    Args:
        index: The graph.
        value: The value.
        rank: Its number of axes, or less; constants with more axes are not taken for scalars.
    """
    computed = {value: _GRID}
    taken: list[int] = []
    waiting = list(index.readers.get(value, []))
    heapq.heapify(waiting)
    found = None
    while waiting and len(taken) < MOST_NODES:
        number = heapq.heappop(waiting)
        if number in taken:
            continue
        node = index.graph.node[number]
        result = _evaluated(index, node, computed, rank)
        if result is None:
            continue
        taken.append(number)
        output = node.output[0]
        computed[output] = result
        for reader in index.readers.get(output, []):
            heapq.heappush(waiting, reader)
        inside = [name for name in computed if name != output]
        if all(_only_read_by(index, name, taken) for name in inside):
            activation = identify(result)
            if activation is not None:
                found = Follower(activation, tuple(taken), output)
    return found


def _only_read_by(index: GraphIndex, value: str, nodes: Sequence[int]) -> bool:
    return value not in index.outputs and set(index.readers.get(value, [])) <= set(nodes)


def identify(values: np.ndarray) -> Activation | None:
    """The activation function that has these values on the grid; None if it is not known."""
    for name, expected in _known_values().items():
        if _same(values, expected):
            return Activation(name)
    low, high = float(values[0]), float(values[-1])
    if low < high and _same(values, np.clip(_GRID, low, high)):
        return Activation(
            "Clip",
            low if low > _GRID[0] else -_LARGEST,
            high if high < _GRID[-1] else _LARGEST,
        )
    if not np.isfinite(values).all():
        return None
    slope = float(values[0] / _GRID[0])
    if _same(values, np.where(_GRID < 0, slope * _GRID, _GRID)):
        return Activation("LeakyRelu", slope)
    middle = int(np.searchsorted(_GRID, 0))
    beta = float(values[middle])
    alpha = float((values[middle + 1] - values[middle - 1]) / (_GRID[middle + 1] * 2))
    if _same(values, np.clip(alpha * _GRID + beta, 0, 1)):
        return Activation("HardSigmoid", alpha, beta)
    return None


def _same(values: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.allclose(values, expected, rtol=_TOLERANCE, atol=_TOLERANCE))


def _evaluated(
    index: GraphIndex, node: NodeProto, computed: dict[str, np.ndarray], rank: int
) -> np.ndarray | None:
    """A node's output on the grid; None if it is no function of one number and constants."""
    function = _FUNCTIONS.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
    if function is None or len(node.output) != 1:
        return None
    inputs: list[np.ndarray | None] = []
    for name in node.input:
        value = computed.get(name)
        if name and value is None:
            value = index.array(name)
            if (
                value is None
                or value.size != 1
                or value.ndim > rank
                or value.dtype.kind not in "fi"
            ):
                return None
        inputs.append(value)
    with np.errstate(all="ignore"):
        result = function(node, *(None if x is None else np.float64(x) for x in inputs))
    return np.broadcast_to(np.ravel(result), _GRID.shape)


def _clip(
    node: NodeProto, x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> np.ndarray:
    low = attribute_of(node, "min", -math.inf) if low is None else low
    high = attribute_of(node, "max", math.inf) if high is None else high
    return np.minimum(np.maximum(x, low), high)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _leaky(x: np.ndarray, slope: float | np.ndarray) -> np.ndarray:
    return np.where(x < 0, slope * x, x)


def _gelu_op(node: NodeProto, x: np.ndarray) -> np.ndarray:
    return _gelu_tanh(x) if attribute_of(node, "approximate", b"none") == b"tanh" else _gelu(x)


def _hard_sigmoid(node: NodeProto, x: np.ndarray) -> np.ndarray:
    return np.clip(attribute_of(node, "alpha", 0.2) * x + attribute_of(node, "beta", 0.5), 0, 1)


_KNOWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda x: x,
    "Relu": lambda x: np.maximum(x, 0),
    "HardSwish": _hard_swish,
    "Silu": lambda x: x * _sigmoid(x),
    "Gelu": _gelu,
    "GeluTanh": _gelu_tanh,
    "Sigmoid": _sigmoid,
}


@functools.cache
def _known_values() -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        return {name: function(_GRID) for name, function in _KNOWN.items()}


_CONTRIB = "com.microsoft"
_FUNCTIONS: dict[tuple[str, str], Callable[..., np.ndarray]] = {
    ("", "Add"): lambda node, a, b: a + b,
    ("", "Sub"): lambda node, a, b: a - b,
    ("", "Mul"): lambda node, a, b: a * b,
    ("", "Div"): lambda node, a, b: a / b,
    ("", "Pow"): lambda node, a, b: np.power(a, b),
    ("", "Min"): lambda node, *values: np.minimum.reduce(np.broadcast_arrays(*values)),
    ("", "Max"): lambda node, *values: np.maximum.reduce(np.broadcast_arrays(*values)),
    ("", "Identity"): lambda node, x: x,
    ("", "Neg"): lambda node, x: -x,
    ("", "Exp"): lambda node, x: np.exp(x),
    ("", "Sqrt"): lambda node, x: np.sqrt(x),
    ("", "Reciprocal"): lambda node, x: 1 / x,
    ("", "Erf"): lambda node, x: _erf(x),
    ("", "Tanh"): lambda node, x: np.tanh(x),
    ("", "Sigmoid"): lambda node, x: _sigmoid(x),
    ("", "Relu"): lambda node, x: np.maximum(x, 0),
    ("", "Clip"): _clip,
    ("", "LeakyRelu"): lambda node, x: _leaky(x, attribute_of(node, "alpha", 0.01)),
    ("", "PRelu"): lambda node, x, slope: _leaky(x, slope),
    ("", "HardSwish"): lambda node, x: _hard_swish(x),
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "Swish"): lambda node, x: x * _sigmoid(attribute_of(node, "alpha", 1.0) * x),
    ("", "Gelu"): _gelu_op,
    (_CONTRIB, "Gelu"): lambda node, x: _gelu(x),
    (_CONTRIB, "FastGelu"): lambda node, x: _gelu_tanh(x),
    (_CONTRIB, "QuickGelu"): lambda node, x: x * _sigmoid(attribute_of(node, "alpha", 1.702) * x),
}
