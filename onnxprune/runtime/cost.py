"""Where a sparse operator pays: the static rule, before anything is timed."""

import math
from dataclasses import dataclass

from onnxprune.runtime.layers import Layer
from onnxprune.runtime.sizes import Sizes

TIME_BOUND = 2
"""Positions up to which a layer reads each weight so rarely that memory decides its time."""

_ROUNDING = 5e-4
"""Layers pruned to a threshold have it up to the rounding of their number of zeros."""


@dataclass(frozen=True)
class Thresholds:
    """Least sparsity of layers that are replaced, as shares in [0, 1).

    Attributes:
        unstructured: Where zeros lie anywhere.
        block: Where four neighbouring outputs share their zeros.
        vector: Where a weight meets one or two positions only, as in a classifier.
        least_outputs: Layers with fewer outputs stay dense.
        least_products: So do layers with fewer multiplications a sample.
        least_channels: So do convolutions of several taps with fewer input channels, as first
            layers are: for each channel that is read, all of its windows have to be laid out.
    """

    unstructured: float = 0.70
    block: float = 0.55
    vector: float = 0.80
    least_outputs: int = 16
    least_products: int = 100_000
    least_channels: int = 8

    def refusal(self, layer: Layer, sparsity: float, block: int, positions: int | None) -> str:
        """Why a layer stays dense; empty if it does not.

        Args:
            layer: The layer.
            sparsity: Zeros of its weight, as a share.
            block: Rows that share their columns.
            positions: Pixels or tokens of a sample; None where they depend on the inputs.
        """
        if layer.rows < self.least_outputs:
            return f"{layer.rows} outputs, fewer than {self.least_outputs}"
        taps = math.prod(layer.attributes.get("kernel_shape", [1]))
        channels = layer.attributes.get("in_channels", self.least_channels)
        if taps > 1 and channels < self.least_channels:
            return f"{channels} input channels, fewer than {self.least_channels}"
        products = None if positions is None else positions * math.prod(layer.weight_shape)
        if products is not None and products < self.least_products:
            return f"{products:,} multiplications, fewer than {self.least_products:,}"
        least = self.block if block > 1 else self.unstructured
        if positions is not None and positions <= TIME_BOUND:
            least = self.vector
        if sparsity < least - _ROUNDING:
            return f"sparsity below {least:.0%}"
        return ""


def positions(layer: Layer, sizes: Sizes, output: str) -> int | None:
    """Pixels or tokens of a sample for which a layer reads its weight; None if inputs decide.

    Args:
        layer: The layer.
        sizes: Shapes of the graph.
        output: The value that the layer's own node makes.
    """
    axis = 1 if layer.kind == "conv" else -1
    return sizes.per_sample(output, without=axis)
