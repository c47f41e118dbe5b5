"""Which layers of a model become sparse operators."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto

from onnxprune.globs import matches
from onnxprune.model import fits_in_one_message
from onnxprune.runtime.cost import (
    Thresholds,
    Work,
    expected_gain,
    splitting_pays,
    with_depthwise_work,
    work_of,
)
from onnxprune.runtime.graph import GraphIndex, label
from onnxprune.runtime.independence import mixing
from onnxprune.runtime.layers import (
    LINEAR,
    Layer,
    StaysDense,
    absorb,
    read_depthwise,
    read_layer,
    with_depthwise,
)
from onnxprune.runtime.layouts import LayoutRule, tiled_values
from onnxprune.runtime.record import LayerRecord
from onnxprune.runtime.rows import SparseRows, block_rows
from onnxprune.runtime.samples import OLDEST_OPSET
from onnxprune.runtime.sizes import Sizes

SampleRule = Literal["auto", "together", "split"]
"""Whether the samples of a batch are computed together, or one after the other."""

_NOT_SELECTED = "not selected"

WeightKey = tuple[str, bool, float]
"""A stored weight, whether it is transposed, and what it is multiplied by."""


@dataclass(frozen=True)
class CompileOptions:
    """What is replaced, and how.

    Attributes:
        thresholds: From which sparsity on a layer is replaced.
        layouts: Which convolutions read tiled values.
        include: Globs over names of nodes and weights, or `op:TYPE`; only these are replaced,
            depthwise layers between them too.
        exclude: Globs of those that stay as they are.
        samples: Whether the samples of a batch are computed one after the other; `auto` does so
            where it is expected to pay, and both only where they do not depend on each other.
        threads: Threads of the sessions to come; None if that is not known.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    layouts: LayoutRule = "strided"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    samples: SampleRule = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Weight:
    """A weight as sparse operators see it.

    Attributes:
        matrix: The weight `(rows, columns)`.
        nonzeros: How many of its values are not zero.
        block: Neighbouring rows that share their columns.
    """

    matrix: np.ndarray
    nonzeros: int
    block: int

    @classmethod
    def of(cls, matrix: np.ndarray) -> "Weight":
        """Look at a matrix `(rows, columns)`."""
        return cls(matrix, int(np.count_nonzero(matrix != 0)), block_rows(matrix))

    @property
    def sparsity(self) -> float:
        """Zeros, as a share."""
        return (self.matrix.size - self.nonzeros) / self.matrix.size

    @cached_property
    def rows(self) -> SparseRows:
        """Its compressed rows."""
        return SparseRows.of(self.matrix)


class Plan:
    """What becomes of each layer of a model.

    Args:
        proto: The model, optimised; it is not changed.
        options: What is replaced.
        times_ms: Measured times of layers, dense and sparse, by node.
        least_speedup: Dense time over sparse time from which a layer is replaced that was measured;
            None lets `options` decide on all.

    Attributes:
        proto: The model.
        index: Its graph.
        sizes: Its shapes.
        chosen: The layers that become sparse operators, by node.
        companions: Depthwise convolutions between them, by node; see `_find_companions`.
        tiled: Values that are tiled.
    """

    def __init__(
        self,
        proto: ModelProto,
        options: CompileOptions,
        times_ms: Mapping[int, tuple[float, float]] | None = None,
        least_speedup: float | None = None,
    ) -> None:
        self.proto = proto
        self.index = GraphIndex(proto.graph)
        self.sizes = Sizes.of(proto)
        self.chosen: dict[int, Layer] = {}
        self.companions: dict[int, Layer] = {}
        self._options = options
        self._times_ms = times_ms or {}
        self._least_speedup = least_speedup
        self._weights: dict[WeightKey, Weight] = {}
        self._taken: set[int] = set()
        self._records: dict[int, LayerRecord] = {}
        self._records_alone: dict[int, LayerRecord] = {}  # of depthwise layers, if all stay dense
        self._works: dict[int, Work] = {}
        for number, node in enumerate(proto.graph.node):
            if node.op_type in LINEAR:
                self._look_at(number, node)
        if least_speedup is None and self._gains_too_little():
            self.leave_dense("the whole model is expected to gain too little")
        self._find_companions()
        self.tiled = tiled_values(self.index, self.sizes, self.chosen, options.layouts)

    @property
    def replaced(self) -> list[Layer]:
        """All layers that operators of the library take the place of."""
        return [*self.chosen.values(), *self.companions.values()]

    def records(self) -> list[LayerRecord]:
        """What becomes of each layer, in graph order."""
        found = []
        for number, record in self._records.items():
            layer = self.chosen.get(number)
            if layer is not None and layer.kind == "conv":
                layouts = {"x_layout": self.layout(layer.x), "y_layout": self.layout(layer.output)}
                record = record.model_copy(update=layouts)
            found.append(record)
        return found

    def leave_dense(self, reason: str) -> None:
        """Give up every layer, for a reason that the records then state."""
        for number in self.chosen:
            update = {"sparse": False, "reason": reason, "fused": []}
            self._records[number] = self._records[number].model_copy(update=update)
        self._records |= self._records_alone
        self.chosen.clear()
        self.companions.clear()
        self.tiled = set()

    def layout(self, value: str) -> str:
        """Layout of a value."""
        return "tiled" if value in self.tiled else "plain"

    def weight(self, layer: Layer) -> Weight:
        """A layer's weight, looked at once for all layers that share it."""
        key = weight_key(layer)
        if key not in self._weights:
            self._weights[key] = Weight.of(layer.matrix(self.index))
        return self._weights[key]

    def work(self, layer: Layer) -> Work | None:
        """What a layer has to do for one sample; None if inputs decide on how many positions."""
        work = self._work_alone(layer)
        if work is None or layer.depthwise is None:
            return work
        return with_depthwise_work(layer, self.sizes, work)

    def _work_alone(self, layer: Layer) -> Work | None:
        """What a layer has to do without a depthwise one after it."""
        weight = self.weight(layer)
        made = self.index.graph.node[layer.node].output[0]
        columns = math.prod(layer.weight_shape) // layer.rows
        return work_of(layer, self.sizes, made, weight.nonzeros, weight.block, columns)

    def _look_at(self, number: int, node: NodeProto) -> None:
        facts: dict[str, Any] = {"name": label(node), "op_type": node.op_type, "sparse": False}
        try:
            layer = read_layer(self.index, self.sizes, number)
        except StaysDense as reason:
            if not self._multiplies_activations(node):
                self._records[number] = LayerRecord(**facts, reason=str(reason))
            return
        facts |= {"weight": layer.weight, "shape": list(layer.weight_shape)}
        if not self._selected(layer):
            self._records[number] = LayerRecord(**facts, reason=_NOT_SELECTED)
            return
        weight = self.weight(layer)
        facts |= {"sparsity": weight.sparsity, "block": weight.block}
        times = self._times_ms.get(number)
        if times is not None:
            facts |= {"dense_ms": times[0], "sparse_ms": times[1]}
        refusal = ""
        measured = times is not None and self._least_speedup is not None
        for form, (full, work) in enumerate(self._forms(layer, measured=measured)):
            if work is not None:
                self._works[number] = work
            refusal = self._refusal(full, weight, work, times)
            if not refusal:
                self._taken.update(full.absorbed)
                self.chosen[number] = full
                facts |= {"sparse": True, "fused": list(full.fused)}
                if form > 0:  # times are of the first
                    facts |= {"dense_ms": None, "sparse_ms": None}
                break
        self._records[number] = LayerRecord(**facts, reason=refusal)

    def _forms(self, layer: Layer, *, measured: bool) -> list[tuple[Layer, Work | None]]:
        """A layer with what its operator can absorb, the fastest form first, and its work.

        Args:
            layer: The layer by itself.
            measured: Whether its time decides, which was taken in that form.
        """
        alone = absorb(self.index, self.sizes, layer, self._taken)
        work = self._work_alone(alone)
        both = with_depthwise(self.index, self.sizes, alone, self._taken)
        if both is None or both.depthwise is None or work is None:
            return [(alone, work)]
        if not self._selected(both.depthwise):
            return [(alone, work)]
        joint = with_depthwise_work(both, self.sizes, work)
        if joint is None:
            return [(alone, work)]
        return [(both, joint)] if measured else [(both, joint), (alone, work)]

    def _refusal(
        self,
        layer: Layer,
        weight: Weight,
        work: Work | None,
        times: tuple[float, float] | None,
    ) -> str:
        """Why a layer stays dense; empty if it does not."""
        least = self._least_speedup
        if times is None or least is None:
            return self._options.thresholds.refusal(layer, weight.sparsity, weight.block, work)
        slow = times[0] < times[1] * least
        return f"measured to be less than {least:g}× faster" if slow else ""

    def _gains_too_little(self) -> bool:
        """Whether layers that pay are so small a part that their neighbours may lose more.

        Other layouts between layers cost what no layer is charged for.
        """
        least = self._options.thresholds.least_gain
        if not least or not self.chosen or not self.chosen.keys() <= self._works.keys():
            return False
        gain = expected_gain((self._works[n] for n in self.chosen), self._works.values())
        return gain < least

    @cached_property
    def mixing(self) -> str:
        """Why the samples of a batch are computed together; empty if one after the other.

        To be read before the plan is carried out, since it looks at the graph as it was.
        """
        rule = self._options.samples
        if not self.chosen:
            return "no layer was replaced"
        if rule == "together":
            return "not asked for"
        works = [(work, n in self.chosen) for n, work in self._works.items()]
        whole = self.chosen.keys() <= self._works.keys()
        if rule == "auto" and not (whole and splitting_pays(works, self._options.threads)):
            return "expected not to pay"
        opset = max(o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx"))
        if opset < OLDEST_OPSET:
            return f"opset {opset} has no operator for it"
        if not fits_in_one_message(self.proto):
            return "the model is too large for one file"
        return mixing(self.proto, self.index, self.sizes) or ""

    def _find_companions(self) -> None:
        """Depthwise convolutions that read what a sparse one makes.

        ONNX Runtime computes them in a layout of its own, and would convert what lies between them
        and the sparse convolutions, in both directions.
        """
        made = {layer.output for layer in self.chosen.values() if layer.kind == "conv"}
        for number in range(len(self.proto.graph.node)):
            layer = read_depthwise(self.index, self.sizes, number)
            if layer is None or layer.x not in made or number in self._taken:
                continue
            if not self._selected(layer):
                update = {"reason": _NOT_SELECTED}
                self._records[number] = self._records[number].model_copy(update=update)
                continue
            full = absorb(self.index, self.sizes, layer, self._taken)
            self._taken.update(full.absorbed)
            self.companions[number] = full
            self._describe(number, full, "dense, but in the layout of the sparse layer before it")
        for number, layer in self.chosen.items():
            if layer.depthwise is not None:
                operator = label(self.index.graph.node[number])
                reason = "dense, but computed with the sparse layer before it"
                self._describe(layer.depthwise.node, layer.depthwise, reason, within=operator)

    def _describe(self, number: int, layer: Layer, reason: str, **more: str) -> None:
        """Say in a depthwise layer's record what becomes of it."""
        record = self._records[number]
        self._records_alone[number] = record
        weight = {"weight": layer.weight, "shape": list(layer.weight_shape)}
        update = {"reason": reason, "fused": list(layer.fused), **weight, **more}
        self._records[number] = record.model_copy(update=update)

    def _multiplies_activations(self, node: NodeProto) -> bool:
        """Whether nothing stored goes into a product, so that it is no layer."""
        return node.op_type in ("MatMul", "FusedMatMul") and not any(
            name in self.index.stored or name in self.index.overridable or self._unpacked(name)
            for name in node.input[:2]
        )

    def _unpacked(self, value: str) -> bool:
        """Whether a value is computed from stored ones only, as dequantised weights are."""
        maker = self.index.makers.get(value)
        if maker is None:
            return False
        inputs = [name for name in self.index.graph.node[maker].input if name]
        return bool(inputs) and all(name in self.index.stored for name in inputs)

    def _selected(self, layer: Layer) -> bool:
        node = self.index.graph.node[layer.node]

        def named(globs: Iterable[str]) -> bool:
            return any(
                matches(name, node.op_type, glob)
                for glob in globs
                for name in (label(node), layer.weight)
            )

        return named(self._options.include) and not named(self._options.exclude)


def weight_key(layer: Layer) -> WeightKey:
    """What layers with the same compressed weight have in common."""
    return layer.weight, layer.transposed, layer.scale
