"""Which values lie in memory tile by tile, so that sparse convolutions need not copy them.

A tiled value can be read by sparse convolutions, and by operators that compute each element from
those at the same place. Everything else needs the plain layout, and so do the graph's outputs.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from onnx import NodeProto

from onnxprune.runtime.graph import GraphIndex
from onnxprune.runtime.layers import Layer
from onnxprune.runtime.sizes import Sizes

LayoutRule = Literal["plain", "pointwise", "strided", "all"]
"""Which convolutions read tiled values: none, 1×1 of stride 1, 1×1 of any stride, all."""

_READS_TILED: dict[LayoutRule, Callable[[Layer], bool]] = {
    "plain": lambda layer: False,
    "pointwise": lambda layer: layer.pointwise,
    "strided": lambda layer: layer.strided_pointwise,
    "all": lambda layer: layer.kind == "conv",
}

_ELEMENTWISE = frozenset(
    {"Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Erf", "Gelu"}
    | {"Identity", "Neg", "Exp", "Abs", "Add", "Sub", "Mul", "Div"}
)


def tiled_values(
    index: GraphIndex, sizes: Sizes, layers: Mapping[int, Layer], rule: LayoutRule
) -> set[str]:
    """The values that shall be tiled.

    The largest set in which every value is made by a sparse convolution (or elementwise from tiled
    ones) and read only by what can: it starts from all values and loses what breaks a condition
    until nothing does.

    Args:
        index: The graph before layers are replaced.
        sizes: Its shapes.
        layers: The layers that become sparse operators, by node.
        rule: Which convolutions read tiled values.
    """
    network = _Network(index, sizes, layers, rule)
    tiled = network.candidates()
    while True:
        broken = {value for value in tiled if not network.holds(value, tiled)}
        if not broken:
            return tiled
        tiled -= broken


class _Network:
    """The graph as it will be, with the layers in place of what they absorb."""

    def __init__(
        self, index: GraphIndex, sizes: Sizes, layers: Mapping[int, Layer], rule: LayoutRule
    ) -> None:
        self._index = index
        self._sizes = sizes
        self._reads_tiled = _READS_TILED[rule]
        self._owner = {part: layer for layer in layers.values() for part in layer.absorbed}
        self._made_by = {layer.output: layer for layer in layers.values() if layer.kind == "conv"}

    def candidates(self) -> set[str]:
        """Values that could be tiled if everything around them is."""
        found = set(self._made_by)
        for number, node in enumerate(self._index.graph.node):
            if number not in self._owner and self._elementwise(node) is not None:
                found.update(node.output)
        return found - self._index.outputs

    def holds(self, value: str, tiled: set[str]) -> bool:
        """Whether a value can be tiled if these are."""
        layer = self._made_by.get(value)
        if layer is not None:
            if layer.residual is not None and layer.residual not in tiled:
                return False
        else:
            node = self._index.graph.node[self._index.makers[value]]
            operands = self._elementwise(node)
            if operands is None or not set(operands) <= tiled:
                return False
        readers = self._index.readers.get(value, [])
        return all(self._can_read(reader, value, tiled) for reader in readers)

    def _can_read(self, number: int, value: str, tiled: set[str]) -> bool:
        layer = self._owner.get(number)
        if layer is None:
            node = self._index.graph.node[number]
            return self._elementwise(node) is not None and node.output[0] in tiled
        as_input = layer.x != value or self._reads_tiled(layer)
        as_residual = layer.residual != value or layer.output in tiled
        return layer.kind == "conv" and as_input and as_residual

    def _elementwise(self, node: NodeProto) -> list[str] | None:
        """The operands of an elementwise node that are no constant scalars; None for others."""
        standard = node.domain in ("", "ai.onnx")
        if not standard or node.op_type not in _ELEMENTWISE or len(node.output) != 1:
            return None
        operands = []
        for name in filter(None, node.input):
            constant = self._index.array(name)
            if constant is None:
                operands.append(name)
            elif constant.size != 1 or constant.ndim > 1:
                return None
        output = node.output[0]
        if not operands or not all(self._sizes.same(name, output) for name in operands):
            return None
        return operands
