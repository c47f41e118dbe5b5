"""Which values between sparse convolutions are stored tile by tile.

A pointwise convolution reads such a value without a copy. Nothing but sparse convolutions and what
they add may read it; see the operators' reference.
"""

from collections.abc import Sequence

from onnxprune.runtime.graph import GraphIndex
from onnxprune.runtime.layers import Layer


def tiled_values(graph: GraphIndex, layers: Sequence[Layer]) -> set[str]:
    """Names of the values to be stored tile by tile.

    Starts from all outputs of convolutions that pointwise ones read, and takes back what cannot be
    until nothing changes: a residual has the layout of the sum.

    Args:
        graph: The graph before it is rewritten.
        layers: Layers that sparse operators compute.
    """
    convolutions = [layer for layer in layers if layer.kind == "SparseConv"]
    owner = {position: layer for layer in layers for position in (layer.index, *layer.absorbed)}
    tiled = {
        layer.y
        for layer in convolutions
        if not graph.is_output(layer.y)
        and graph.consumers(layer.y)
        and all(_may_read(owner.get(p), layer.y) for p in graph.consumers(layer.y))
        and any(_gains(owner[p], layer.y) for p in graph.consumers(layer.y))
    }
    while True:
        impossible = set()
        for layer in convolutions:
            if layer.residual is not None and (layer.y in tiled) != (layer.residual in tiled):
                impossible |= {layer.y, layer.residual}
        if not impossible & tiled:
            return tiled
        tiled -= impossible


def _may_read(reader: Layer | None, name: str) -> bool:
    """Whether a layer reads a tiled value at a bearable cost."""
    if reader is None or reader.kind != "SparseConv":
        return False
    return name == reader.residual or (name == reader.x and reader.taps == 1)


def _gains(reader: Layer, name: str) -> bool:
    return name == reader.residual or reader.in_place
