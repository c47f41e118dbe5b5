"""What each layer of a model costs: multiply-adds, bytes, and time where a profile tells it.

A layer is a stored weight of an operator that multiplies: Conv, ConvTranspose, Gemm, MatMul and
recurrent ones, prunable or not. Multiply-adds at actual density are theory: they leave out those
with a weight that is zero, which dense kernels compute all the same.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from onnxprune.runtime import is_compiled
from onnxprune.runtime.dense_view import dense_view
from onnxprune.slots import WEIGHT_ROLES
from onnxprune.tensors import GraphTensor, find_tensors
from onnxprune.validate.flops import MULTIPLYING, count_flops
from onnxprune.validate.operator_times import KernelTime

MAX_LAYERS = 2000
"""Most layers of a model that are described; those with most multiply-adds, if there are more."""

_RENAMED = re.compile(r"(?:fused )?(.*?)(?:/\w*Fusion)?(?:_nchwc)?(?:_token_\d+)?", re.S)
"""How ONNX Runtime names a node that it made of one named as in the group."""
_KERNELS = MULTIPLYING | {"SparseConv", "SparseMatMul", "DepthwiseConv", "SparseExpandDepthwise"}
_MOST_FOLLOWED = 16


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one sample.

    Attributes:
        name: ONNX name of its weight.
        op_type: Its operator.
        shape: Stored shape of the weight.
        size: Weights.
        nonzeros: Weights that are not zero.
        size_bytes: Bytes of the weight as a dense tensor.
        prunable: Whether pruning takes it by default.
        multiply_adds: As if no weight were zero; None where shapes are not known.
        multiply_adds_sparse: Without those whose weight is zero, in theory; None as above.
        ms: Time in a call, with what ONNX Runtime fused into it; None where it was not profiled,
            or where no single node of the profile is this layer.
    """

    name: str
    op_type: str
    shape: list[int]
    size: int
    nonzeros: int
    size_bytes: int
    prunable: bool
    multiply_adds: int | None
    multiply_adds_sparse: int | None
    ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The layer as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ModelCost:
    """What the layers of a model cost for one sample.

    Attributes:
        multiply_adds: Of the whole graph as if no weight were zero, also of products of two
            activations; None where shapes of some operator are not known.
        layers: The layers in graph order.
        left_out: Layers beyond `MAX_LAYERS`.
    """

    multiply_adds: int | None
    layers: list[LayerCost]
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """The object that results files hold."""
        return asdict(self)


def model_cost(proto: ModelProto, kernels: Sequence[KernelTime] | None = None) -> ModelCost:
    """Count what each layer costs, with batch size 1.

    Args:
        proto: The model, also a compiled one; it is not changed.
        kernels: What a profile of it says of each node.
    """
    view = dense_view(proto) if is_compiled(proto) else proto
    stored = find_tensors(view)
    flops = count_flops(view, stored)
    place = {node.name or next(iter(node.output), ""): i for i, node in enumerate(view.graph.node)}
    tensors = sorted(
        (tensor for tensor in stored.values() if _is_layer(tensor)),
        key=lambda tensor: min(place.get(use.node, len(place)) for use in tensor.uses),
    )
    times = layer_times(view, tensors, kernels or [])
    layers = [
        _layer_cost(tensor, flops.by_tensor.get(tensor.name), times.get(tensor.name))
        for tensor in tensors
    ]
    costly = sorted(range(len(layers)), key=lambda i: (-(layers[i].multiply_adds or 0), i))
    kept = [layers[index] for index in sorted(costly[:MAX_LAYERS])]
    whole = None if flops.total is None else flops.total // 2
    return ModelCost(whole, kept, len(layers) - len(kept))


def _is_layer(tensor: GraphTensor) -> bool:
    return tensor.role in WEIGHT_ROLES and any(use.op_type in MULTIPLYING for use in tensor.uses)


def _layer_cost(tensor: GraphTensor, flops: int | None, ms: float | None) -> LayerCost:
    nonzeros = int(np.count_nonzero(tensor.array()))
    dense = None if flops is None else flops // 2
    sparse = None
    if dense is not None:
        sparse = round(dense * nonzeros / tensor.size) if tensor.size else 0
    return LayerCost(
        name=tensor.name,
        op_type=tensor.op_type,
        shape=list(tensor.shape),
        size=tensor.size,
        nonzeros=nonzeros,
        size_bytes=tensor.size * tensor.dtype.itemsize,
        prunable=tensor.prunable,
        multiply_adds=dense,
        multiply_adds_sparse=sparse,
        ms=ms,
    )


def layer_times(
    proto: ModelProto, tensors: Iterable[GraphTensor], kernels: Sequence[KernelTime]
) -> dict[str, float]:
    """Time of each layer, by the name of its weight.

    ONNX Runtime fuses what follows on a layer into it and then names the node after the last part,
    so a layer is looked for under its own name and outputs and those of what follows it alone. A
    layer is left out where that fails, or where two weights would share a node's time.

    Args:
        proto: The model that was profiled.
        tensors: Weights of the main graph.
        kernels: What the profile says of each node.
    """
    times: dict[str, float | None] = {}
    for kernel in kernels:
        if kernel.op_type in _KERNELS:
            match = _RENAMED.fullmatch(kernel.name)
            name = match[1] if match else kernel.name
            times[name] = None if name in times else kernel.ms
    graph = _Nodes(proto)
    claims = {
        tensor.name: [
            next((name for name in graph.names_from(use.node) if name in times), "")
            for use in tensor.uses
            if use.op_type in MULTIPLYING
        ]
        for tensor in tensors
        if not tensor.scope
    }
    claimed = Counter(name for names in claims.values() for name in names)
    found = {}
    for tensor_name, names in claims.items():
        parts = [times.get(name) for name in names if claimed[name] == 1]
        known = [part for part in parts if part is not None]
        if len(known) == len(names):
            found[tensor_name] = sum(known)
    return found


class _Nodes:
    """Nodes of the main graph by name, and who reads what they make.

    With each goes its name in profiles: ONNX Runtime counts nodes without one, constants left out,
    of which it makes initializers first.
    """

    def __init__(self, proto: ModelProto) -> None:
        self._named: dict[str, tuple[NodeProto, str]] = {}
        self._readers: dict[str, list[tuple[NodeProto, str]]] = {}
        place = 0
        for node in proto.graph.node:
            entry = (node, node.name or f"{node.op_type}_{place}")
            place += node.op_type != "Constant"
            self._named[node.name or next(iter(node.output), "")] = entry
            for value in set(node.input):
                self._readers.setdefault(value, []).append(entry)
        self._results = {value.name for value in proto.graph.output}

    def names_from(self, name: str) -> list[str]:
        """Names of a node and its outputs, and of what follows while it has a single reader."""
        names: list[str] = []
        entry = self._named.get(name)
        while entry is not None and len(names) < 2 * _MOST_FOLLOWED:
            node, own = entry
            names += [own, *filter(None, node.output)]
            readers = self._readers.get(node.output[0], []) if len(node.output) == 1 else []
            alone = len(readers) == 1 and node.output[0] not in self._results
            follows = alone and readers[0][0].op_type not in MULTIPLYING
            entry = readers[0] if follows else None
        return names
