"""What follows a layer and can be computed with it: bias, residual and activation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxprune.runtime.graph import GraphIndex, float_type, scalar, tensor
from onnxprune.runtime.layers import Layer, channel_vector, row_vector
from onnxprune.runtime.library import load_runtime

_ELEMENTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs", "Sqrt", "Exp", "Erf", "Tanh", "Sigmoid"),
        *("HardSigmoid", "HardSwish", "Relu", "LeakyRelu", "Clip", "Min", "Max", "Gelu", "Softplus"),
        *("Identity", "Swish"),
    }
)
_MOST_NODES = 12
_GRID = np.concatenate([np.linspace(-12, 12, 4801), [-60.0, 60.0]]).astype(np.float32)


@dataclass(frozen=True)
class _Known:
    name: str
    function: Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.array([erf(value) for value in x])


_KNOWN = (
    _Known("Relu", lambda x: np.maximum(x, 0)),
    _Known("HardSwish", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    _Known("Silu", lambda x: x * _sigmoid(x)),
    _Known("Gelu", lambda x: x / 2 * (1 + _erf(x / np.sqrt(2)))),
    _Known(
        "GeluTanh", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    ),
    _Known("Sigmoid", _sigmoid),
)


class Fuser:
    """Absorbs into layers what follows them.

    Args:
        graph: The graph.
        opsets: Operator sets of the model.
    """

    def __init__(self, graph: GraphIndex, opsets: Sequence[onnx.OperatorSetIdProto]) -> None:
        self._graph = graph
        self._opsets = opsets
        self._activations: dict[bytes, tuple[str, float, float] | None] = {}

    def absorb(self, layer: Layer, taken: set[int]) -> None:
        """Let a layer stand for the nodes after it, as far as it can compute them.

        Args:
            layer: Changed.
            taken: Positions of nodes that other layers stand for; those of this one are added.
        """
        while self._absorb_addition(layer, taken):
            pass
        self._absorb_activation(layer, taken)
        taken.update([layer.index, *layer.absorbed])

    def _absorb_addition(self, layer: Layer, taken: set[int]) -> bool:
        graph = self._graph
        consumers = graph.consumers(layer.y)
        if len(consumers) != 1 or graph.is_output(layer.y) or consumers[0] in taken:
            return False
        node = graph.nodes[consumers[0]]
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            return False
        others = [name for name in node.input if name != layer.y]
        if len(others) != 1:
            return False
        stored = graph.constant(others[0])
        if stored is not None:
            added = self._bias(layer, stored)
            if added is None:
                return False
            layer.bias = added if layer.bias is None else np.asarray(layer.bias + added)
        elif layer.residual is None and graph.same_shape(others[0], layer.y):
            layer.residual = others[0]
        else:
            return False
        layer.absorbed.append(consumers[0])
        layer.y = node.output[0]
        return True

    def _bias(self, layer: Layer, stored: np.ndarray) -> np.ndarray | None:
        """A stored addend as one value for each output."""
        rank = len(self._graph.dims(layer.y) or ())
        if not float_type(stored):
            return None
        if layer.kind == "SparseConv":
            axes = len(layer.geometry["kernel_shape"])
            return channel_vector(stored, layer.outputs, axes) if stored.ndim <= axes + 2 else None
        # An addend with more axes than the product would give it more axes, too
        if rank and stored.ndim <= rank:
            return row_vector(stored, layer.outputs)
        return row_vector(stored, layer.outputs) if stored.ndim == 1 else None

    def _absorb_activation(self, layer: Layer, taken: set[int]) -> None:
        if self._graph.is_output(layer.y):
            return
        for positions, exit_name in self._closed_sets(layer.y, taken):
            found = self._recognised(positions, layer.y, exit_name)
            if found is not None:
                layer.activation, layer.alpha, layer.beta = found
                layer.absorbed.extend(positions)
                layer.y = exit_name
                return

    def _closed_sets(self, start: str, taken: set[int]) -> list[tuple[list[int], str]]:
        """Groups of element-wise nodes that read only `start` and numbers, and whose inner values
        nothing else reads; the largest first."""
        graph = self._graph
        inside: list[int] = []
        values = {start}
        pending = sorted(graph.consumers(start))
        while pending and len(inside) < _MOST_NODES:
            position = pending.pop(0)
            node = graph.nodes[position]
            if (
                position in inside
                or position in taken
                or node.op_type not in _ELEMENTWISE
                or node.domain not in ("", "ai.onnx", "com.microsoft")
                or len(node.output) != 1
            ):
                continue
            if all(
                not name or name in values or scalar(graph.constant(name)) is not None
                for name in node.input
            ):
                inside.append(position)
                values.add(node.output[0])
                pending = sorted({*pending, *graph.consumers(node.output[0])})
        found = []
        for count in range(len(inside), 0, -1):
            part = sorted(inside)[:count]
            exit_name = graph.nodes[part[-1]].output[0]
            inner = {start, *(graph.nodes[p].output[0] for p in part[:-1])}
            if not any(
                graph.is_output(name) or not set(graph.consumers(name)) <= set(part)
                for name in inner
            ):
                found.append((part, exit_name))
        return found

    def _recognised(
        self, positions: list[int], start: str, exit_name: str
    ) -> tuple[str, float, float] | None:
        nodes = [self._graph.nodes[position] for position in positions]
        model = self._model_of(nodes, start, exit_name)
        key = b"|".join(
            node.op_type.encode() + b"".join(a.SerializeToString() for a in node.attribute)
            for node in nodes
        ) + b"".join(t.raw_data for t in model.graph.initializer)
        if key not in self._activations:
            self._activations[key] = _match(_evaluated(model))
        return self._activations[key]

    def _model_of(
        self, nodes: list[onnx.NodeProto], start: str, exit_name: str
    ) -> onnx.ModelProto:
        """A model that computes these nodes for a vector of numbers."""
        stored = {}
        for node in nodes:
            for name in node.input:
                array = self._graph.constant(name) if name else None
                if array is not None:
                    stored[name] = array.reshape(())
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "activation",
            [value(start, onnx.TensorProto.FLOAT, [len(_GRID)])],
            [value(exit_name, onnx.TensorProto.FLOAT, None)],
            [tensor(name, array) for name, array in stored.items()],
        )
        return helper.make_model(graph, opset_imports=list(self._opsets), ir_version=8)


def _evaluated(model: onnx.ModelProto) -> np.ndarray | None:
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(None, {session.get_inputs()[0].name: _GRID})[0]
    except Exception:  # whatever it is, it is no activation that we know
        return None
    return np.asarray(values, np.float64) if values.shape == _GRID.shape else None


def _match(values: np.ndarray | None) -> tuple[str, float, float] | None:
    """The activation that has these values on the grid, with its parameters."""
    if values is None or not np.isfinite(values).all():
        return None
    x = _GRID.astype(np.float64)
    for known in _KNOWN:
        if _close(values, known.function(x)):
            return known.name, 0.0, 0.0
    low, high = float(values.min()), float(values.max())
    if low < high and _close(values, np.clip(x, low, high)):
        inner = float(x.min()) < low, float(x.max()) > high
        return "Clip", low if inner[0] else -3.4e38, high if inner[1] else 3.4e38
    slope = float(values[0] / x[0])
    if 0 < slope < 1 and _close(values, np.where(x < 0, slope * x, x)):
        return "LeakyRelu", slope, 0.0
    below, above = np.searchsorted(x[:-2], (-1.0, 1.0))
    slope = float((values[above] - values[below]) / (x[above] - x[below]))
    start = float(values[above] - slope * x[above])
    if slope > 0 and _close(values, np.clip(slope * x + start, 0, 1)):
        return "HardSigmoid", slope, start
    return None


def _close(values: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.all(np.abs(values - wanted) <= 2e-6 * np.maximum(1, np.abs(wanted))))
