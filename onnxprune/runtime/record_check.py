"""Whether the record of a compiled model is true, as far as the file can answer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from onnxprune.export import SparsityMetadata
from onnxprune.export.claims import brief, entries_of, only_entry, read_claims
from onnxprune.export.metadata import holders
from onnxprune.runtime.graph import GraphIndex, label
from onnxprune.runtime.layers import LINEAR
from onnxprune.runtime.library import DOMAIN
from onnxprune.runtime.record import KEY, CompiledRecord, LayerRecord
from onnxprune.runtime.rewriting import BIAS, PARTS, TAPS
from onnxprune.runtime.rows import block_rows
from onnxprune.runtime.samples import working_graph
from onnxprune.stored import stored_array, stored_shape
from onnxprune.tensor_views import attribute_of

_SPARSE = {
    "SparseConv": ("Conv",),
    "SparseMatMul": ("Gemm", "MatMul"),
    "SparseExpandDepthwise": ("Conv",),
}
"""Operators of the library, and those whose place each takes."""

_ADDED_LATER = {"values", "within"}
"""Fields of a layer that earlier versions have not written."""

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class RecordCheck:
    """The record of a compiled model against fact.

    Attributes:
        record: The record as parsed from JSON; None if there is none, or it is no JSON.
        true: Whether every statement holds that the file can answer; None if the model is not
            compiled and says nothing of it.
        problems: One line for each statement that does not.
    """

    record: dict[str, Any] | None
    true: bool | None
    problems: list[str]


def verify_record(proto: ModelProto) -> RecordCheck:
    """Compare what a compiled model says of its operators with the operators that it has.

    Measured times, reasons and the digest of the source are not in the file, and are not compared.
    """
    problems: list[str] = []
    raw = only_entry(proto, KEY, problems.append)
    operators = [node for node in working_graph(proto).node if node.domain == DOMAIN]
    strays = [place for place, h in holders(proto) if h is not proto and entries_of(h, KEY)]
    problems += [f"{place}: a record stands here, where only the model has one" for place in strays]
    if raw is None:
        if operators and not problems:
            problems.append("the model has operators of the library, and no record of them")
        return RecordCheck(None, False if problems else None, problems)
    record, faults = read_claims(CompiledRecord, raw)
    problems += faults
    if record is not None:
        problems += _missing(raw)
        problems += _Comparison(proto, record).problems()
    return RecordCheck(raw, not problems, problems)


def _missing(raw: dict[str, Any]) -> Iterator[str]:
    """Fields that every version has written and the record lacks; each layer has all of them."""
    of_layers = LayerRecord.model_fields.keys() - _ADDED_LATER
    lacking = [("", CompiledRecord.model_fields.keys() - raw.keys())]
    for number, layer in enumerate(raw["layers"]):
        lacking.append((f"layers.{number}.", of_layers - layer.keys()))
    for where, names in lacking:
        yield from (
            f"{where}{n}: it is missing, and no file may leave it out" for n in sorted(names)
        )


class _Comparison:
    """A record and the graph that it is about."""

    def __init__(self, proto: ModelProto, record: CompiledRecord) -> None:
        self._proto = proto
        self._record = record
        self._index = GraphIndex(working_graph(proto))
        self._by_label: dict[str, list[NodeProto]] = {}
        for node in self._index.graph.node:
            self._by_label.setdefault(label(node), []).append(node)

    def problems(self) -> Iterator[str]:
        """What the record says that is not so."""
        told = [layer for layer in self._record.layers if layer.sparse]
        found = [node for node in self._index.graph.node if _is_sparse(node)]
        if not found:
            yield "the model has no sparse operator, so it is not compiled"
        split = self._index.graph is not self._proto.graph
        if self._record.samples != ("split" if split else "together"):
            yield f"samples: {self._record.samples}, which they are not"
        if split == bool(self._record.samples_reason):
            reason = brief(self._record.samples_reason)
            yield f"samples_reason: {reason!r}, and they are {self._record.samples}"
        if self._record.replaced != len(found):
            yield (
                f"replaced: the model has {len(found)} sparse operators, the record says "
                f"{self._record.replaced}"
            )
        if len(told) != len(found):
            yield (
                f"layers: the model has {len(found)} sparse operators, the record lists {len(told)}"
            )
        for number, layer in enumerate(self._record.layers):
            where = f"layers.{number} ({brief(layer.name)})"
            yield from (f"{where}: {problem}" for problem in self._layer_problems(layer))
        listed = Counter(layer.name for layer in self._record.layers)
        for node in self._index.graph.node:
            is_layer = node.op_type in LINEAR and self._reads_stored(node)
            if (is_layer or node.domain == DOMAIN) and label(node) not in listed:
                yield f"layers: {label(node)}, a {node.op_type}, is not listed"
        for name, count in listed.items():
            if count > max(1, len(self._by_label.get(name, []))):
                yield f"layers: {brief(name)} is listed {count} times"
        yield from self._source_problems()

    def _reads_stored(self, node: NodeProto) -> bool:
        return any(name in self._index.stored for name in node.input[:2])

    def _layer_problems(self, layer: LayerRecord) -> list[str]:
        """What is wrong with a layer; of several nodes of its name, with the likeliest."""
        nodes = self._by_label.get(layer.within or layer.name, [])
        if not nodes:
            key = "within" if layer.within else "name"
            return [f"{key}: the model has no such node"]
        check = (
            self._within_problems
            if layer.within
            else self._sparse_problems
            if layer.sparse
            else self._dense_problems
        )
        try:
            return min((list(check(layer, node)) for node in nodes), key=len)
        except (IndexError, TypeError, ValueError):
            return ["name: the inputs or attributes of that node make no sense"]

    def _sparse_problems(self, layer: LayerRecord, node: NodeProto) -> Iterator[str]:
        if not _is_sparse(node):
            yield f"sparse: the node is a {node.op_type} of no library"
            return
        if layer.op_type not in _SPARSE[node.op_type]:
            yield f"op_type: {layer.op_type} does not become a {node.op_type}"
        values, columns, starts = (self._array(name) for name in node.input[1:4])
        rows = len(starts) - 1
        convolution = node.op_type != "SparseMatMul"
        expanded = node.op_type == "SparseExpandDepthwise"
        kernel = list(attribute_of(node, "kernel_shape", []))
        inner = [int(attribute_of(node, "in_channels" if convolution else "in_features", 0))]
        inner += [1] * len(kernel) if expanded else kernel
        shapes = [[rows, *inner]] if convolution else [[*inner, rows]]
        if layer.op_type == "Gemm":
            shapes.append([rows, *inner])
        if layer.shape not in shapes:
            yield f"shape: {layer.shape} where the operator has {shapes[0]}"
        if not _is_made_of(node.input[1], layer.weight, PARTS[0]):
            yield f"weight: {layer.weight!r} where the operator reads {node.input[1]!r}"
        size = rows * int(np.prod(inner, dtype=np.int64))
        sparsity = 1 - len(columns) / size if size else 0.0
        yield from _differs("sparsity", layer.sparsity, sparsity)
        yield from _differs("block", layer.block, int(attribute_of(node, "block", 1)))
        yield from _differs("values", layer.values, values.dtype.name)
        for key in ("x_layout", "y_layout"):
            yield from _differs(key, getattr(layer, key), _text(node, key, "plain"))
        if layer.reason:
            yield f"reason: {brief(layer.reason)!r}, and the layer does not stay dense"
        if expanded:
            yield from _fused_problems(layer, node, prefix="expand_", bias=5, depthwise=4)
            yield from self._depthwise_problems(node)
        else:
            yield from _fused_problems(layer, node, bias=4, residual=5)
        yield from _times_problems(layer)

    def _depthwise_problems(self, node: NodeProto) -> Iterator[str]:
        """Whether one layer is listed as computed within an operator that computes two."""
        count = sum(layer.within == label(node) for layer in self._record.layers)
        if count != 1:
            yield f"within: {count} layers are listed as computed by this one's operator, and 1 is"

    def _within_problems(self, layer: LayerRecord, node: NodeProto) -> Iterator[str]:
        """What is wrong with a depthwise layer that another one's operator computes."""
        if node.domain != DOMAIN or node.op_type != "SparseExpandDepthwise":
            yield f"within: the node is a {node.op_type}, which computes no second layer"
            return
        if layer.sparse:
            yield "sparse: the operator computes this layer with all of its weights"
        yield from _differs("op_type", layer.op_type, "Conv")
        if not layer.reason:
            yield "reason: it is empty, and the layer stays dense"
        bias = "".join(node.input[6:7])
        earlier = f"{label(node)}.depthwise"  # how earlier versions named it
        if bias and not any(_is_made_of(bias, name, BIAS) for name in (layer.name, earlier)):
            yield f"name: {brief(layer.name)!r} where the operator's second bias is {bias!r}"
        for key in ("x_layout", "y_layout"):
            yield from _differs(key, getattr(layer, key), "plain")
        yield from _differs("values", layer.values, "float32")
        yield from _fused_problems(layer, node, bias=6, residual=7)
        yield from self._taps_problems(layer, node, taps=4)
        yield from _times_problems(layer)

    def _dense_problems(self, layer: LayerRecord, node: NodeProto) -> Iterator[str]:
        companion = node.domain == DOMAIN and node.op_type == "DepthwiseConv"
        if _is_sparse(node):
            yield f"sparse: the node is a {node.op_type}"
            return
        op_type = "Conv" if companion else node.op_type
        yield from _differs("op_type", layer.op_type, op_type)
        if not layer.reason:
            yield "reason: it is empty, and the layer stays dense"
        for key in ("x_layout", "y_layout"):
            yield from _differs(key, getattr(layer, key), "plain")
        yield from _differs("values", layer.values, "float32")
        if companion:
            yield from _fused_problems(layer, node, bias=2, residual=3)
            yield from self._taps_problems(layer, node, taps=1)
        else:
            if layer.fused:
                yield f"fused: {layer.fused}, and the layer stays as it was"
            yield from self._weight_problems(layer, node)
        yield from _times_problems(layer)

    def _taps_problems(self, layer: LayerRecord, node: NodeProto, taps: int) -> Iterator[str]:
        """What is wrong with the weight of a depthwise layer, which is input `taps` of a node.

        Records of earlier versions say nothing of it.
        """
        name = node.input[taps]
        stored = self._index.stored.get(name)
        kernel = [int(size) for size in attribute_of(node, "kernel_shape", [])]
        shape = () if stored is None else stored_shape(stored)
        count = int(np.prod(kernel, dtype=np.int64))
        if len(shape) != 2 or shape[1] != count:
            yield f"shape: the operator reads {brief(name)} of {list(shape)} for {count} taps"
        if taps > 1:
            rows = len(self._array(node.input[3])) - 1
            if shape[:1] != (rows,):
                yield f"shape: the operator reads {brief(name)} of {list(shape)} for {rows} rows"
        if layer.weight or layer.shape:
            yield from _differs("shape", layer.shape, [*shape[:1], 1, *kernel])
            if not _is_made_of(name, layer.weight, TAPS):
                yield f"weight: {brief(layer.weight)!r} where the operator reads {name!r}"
        yield from _differs("sparsity", layer.sparsity, None)
        yield from _differs("block", layer.block, 1)

    def _weight_problems(self, layer: LayerRecord, node: NodeProto) -> Iterator[str]:
        """What is said of the weight of a layer that stays dense; it may be nothing."""
        if not layer.weight:
            yield from _differs("shape", layer.shape, [])
            yield from _differs("sparsity", layer.sparsity, None)
            yield from _differs("block", layer.block, 1)
            return
        stored = self._index.stored.get(layer.weight)
        if stored is None or layer.weight not in node.input:
            yield f"weight: the node reads no stored {brief(layer.weight)!r}"
            return
        yield from _differs("shape", layer.shape, list(stored_shape(stored)))
        if layer.sparsity is None:
            yield from _differs("block", layer.block, 1)
            return
        values = stored_array(stored)
        zeros = values.size - int(np.count_nonzero(values))
        yield from _differs("sparsity", layer.sparsity, zeros / values.size if values.size else 0.0)
        matrix = values.reshape(len(values), -1)
        blocks = {block_rows(matrix), block_rows(matrix.T)} if values.size else {1}
        if layer.block not in blocks:
            yield f"block: {layer.block} where the weight has {sorted(blocks)}"

    def _source_problems(self) -> Iterator[str]:
        """What the source said of its weights, against those that are still known by name.

        Folding a BatchNorm changes values, and makes none of a zero.
        """
        if self._record.sparsity is None:
            return
        claimed, faults = read_claims(SparsityMetadata, self._record.sparsity)
        yield from (f"sparsity: {fault}" for fault in faults)
        said = {tensor.name: tensor for tensor in claimed.tensors} if claimed is not None else {}
        for number, layer in enumerate(self._record.layers):
            tensor = said.get(layer.weight)
            if tensor is None or layer.sparsity is None or tensor.shape != layer.shape:
                continue
            if layer.sparsity < tensor.sparsity - _TOLERANCE:
                yield (
                    f"sparsity: {brief(tensor.name)} has a sparsity of {tensor.sparsity:.6g}, of "
                    f"which layers.{number} has {layer.sparsity:.6g}"
                )

    def _array(self, name: str) -> np.ndarray:
        stored = self._index.stored.get(name)
        return np.zeros(1, np.float32) if stored is None else stored_array(stored)


def _is_sparse(node: NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type in _SPARSE


def _is_made_of(tensor: str, owner: str, part: str) -> bool:
    """Whether a tensor has the name that a part of a weight, or a layer's bias, gets."""
    base = tensor.removesuffix(f".{part}")
    rest = base.removeprefix(owner)
    return base.startswith(owner) and (not rest or (rest[0] == "_" and rest[1:].isdigit()))


def _text(node: NodeProto, name: str, default: str) -> str:
    value = attribute_of(node, name, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _fused_problems(
    layer: LayerRecord, node: NodeProto, *, prefix: str = "", **inputs: int
) -> Iterator[str]:
    """What an operator is said to compute beside the layer, against its inputs and attributes.

    Args:
        layer: What is said of the layer.
        node: The operator.
        prefix: What the name of the activation's attribute begins with.
        inputs: The input for each word of what may be computed beside the activation.
    """
    activation = _text(node, f"{prefix}activation", "")
    computed = {word for word, place in inputs.items() if "".join(node.input[place : place + 1])}
    computed |= {activation} - {""}
    for word in layer.fused:
        if word not in computed:
            yield f"fused: {brief(word)!r}, which the operator does not compute"
    if len(set(layer.fused)) < len(layer.fused):
        yield f"fused: {layer.fused} names something twice"
    # A bias, and what a Gemm adds, may be the layer's own.
    own = {"bias", "residual"} if layer.op_type == "Gemm" else {"bias"}
    for word in sorted(computed - own - set(layer.fused)):
        yield f"fused: it lacks {word!r}, which the operator computes"


def _times_problems(layer: LayerRecord) -> Iterator[str]:
    if (layer.dense_ms is None) != (layer.sparse_ms is None):
        yield "dense_ms and sparse_ms: one is measured without the other"


def _differs(key: str, said: object, found: object) -> Iterator[str]:
    """A line if a statement is not what was found."""
    if isinstance(said, float) and isinstance(found, float):
        same = abs(said - found) <= _TOLERANCE
    else:
        same = said == found
    if not same:
        yield f"{key}: {said} where the file has {found}"
