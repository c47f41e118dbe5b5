"""Rewrites a pruned model so that sparse operators compute its sparse layers."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from onnxprune import model as model_files
from onnxprune.errors import UnsupportedModelError
from onnxprune.export.metadata import KEY as SPARSITY_KEY
from onnxprune.export.metadata import read_metadata
from onnxprune.globs import matches
from onnxprune.model import OnnxModel
from onnxprune.runtime.cost import Choice, choose
from onnxprune.runtime.fusing import Fuser
from onnxprune.runtime.graph import GraphIndex, tensor
from onnxprune.runtime.layers import Layer, find_layers
from onnxprune.runtime.layout import tiled_values
from onnxprune.runtime.library import DOMAIN, is_compiled, load_runtime
from onnxprune.runtime.weights import block_rows, compressed
from onnxprune.version import __version__

KEY = "onnxprune.compiled"
"""Key of the entry in `ModelProto.metadata_props` of a compiled model."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LayerRecord:
    """What became of one layer.

    Attributes:
        name: Name of the node.
        kind: Operator that computes it now.
        shape: Rows and columns of the weight as a matrix; its stored shape where it stayed dense.
        sparsity: Zeros / size of the weight.
        block: Rows that share their columns, 1 or 4; 0 where it stayed dense.
        x_layout: Layout of the input, empty where it stayed dense.
        y_layout: Layout of the output.
        fused: What is computed with it: bias, residual, and the name of an activation.
        sparse: Whether a sparse operator computes it.
        reason: Why, or why not.
        speedup: How many times faster the cost model expects it to be; None without an estimate.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    block: int
    x_layout: str
    y_layout: str
    fused: tuple[str, ...]
    sparse: bool
    reason: str
    speedup: float | None


@dataclass(frozen=True)
class Compilation:
    """A compiled model.

    Attributes:
        proto: The model with sparse operators; the source's own where nothing pays.
        layers: One record for each layer with stored weights, in graph order.
    """

    proto: ModelProto
    layers: list[LayerRecord]

    @property
    def sparse_layers(self) -> int:
        """Layers that sparse operators compute."""
        return sum(layer.sparse for layer in self.layers)

    def to_json(self) -> list[dict[str, Any]]:
        """The records as JSON values."""
        return [asdict(layer) for layer in self.layers]


def compile_model(
    source: str | os.PathLike[str] | bytes | ModelProto | OnnxModel,
    *,
    min_sparsity: float | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    tiled: bool = True,
) -> Compilation:
    """Let sparse operators compute the layers of a model where that is expected to be faster.

    ONNX Runtime's basic optimisation writes the model first: BatchNorm is folded, constants are
    known. What is left as it is stays stock ONNX.

    Args:
        source: The pruned model; it is not changed.
        min_sparsity: Layers below stay dense, those above become sparse; by default the cost model
            decides.
        include: Globs of node names; others stay dense.
        exclude: Globs of node names that stay dense.
        tiled: Whether values between sparse convolutions may be stored tile by tile.

    Raises:
        ModelFileError: The model cannot be read.
        UnsupportedModelError: It is a compiled model already, or ONNX Runtime refuses it.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    loaded = model_files.read(source)
    if is_compiled(loaded.proto):
        raise UnsupportedModelError(
            "this model is compiled already",
            where=loaded.label,
            remedy="compile the pruned model that it was made from",
        )
    proto = _prepared(loaded)
    graph = GraphIndex(proto)
    layers, refused = find_layers(graph)
    chosen: list[Layer] = []
    dense: list[tuple[Layer, Choice]] = []
    choices: dict[int, Choice] = {}
    for layer in layers:
        choice = choose(layer, graph, min_sparsity)
        if not _selected(layer, include, exclude):
            choice = Choice(False, "not selected")
        choices[layer.index] = choice
        if choice.sparse:
            chosen.append(layer)
        else:
            dense.append((layer, choice))
    fuser, taken = Fuser(graph, proto.opset_import), {layer.index for layer in chosen}
    for layer in chosen:
        fuser.absorb(layer, taken)
    tiles = tiled_values(graph, chosen) if tiled else set()
    records = [_record(layer, choices[layer.index], tiles) for layer in chosen]
    records += [_dense_record(layer, choice) for layer, choice in dense]
    order = {layer.name: layer.index for layer in layers}
    records.sort(key=lambda record: order[record.name])
    records += [
        LayerRecord(r.name, r.kind, r.shape, r.sparsity, 0, "", "", (), False, r.reason, None)
        for r in refused
    ]
    if not chosen:
        return Compilation(loaded.proto, records)
    _rewrite(proto, graph, chosen, tiles)
    _describe(proto, loaded, records)
    return Compilation(proto, records)


def _selected(layer: Layer, include: Sequence[str], exclude: Sequence[str]) -> bool:
    kind = "Conv" if layer.kind == "SparseConv" else "MatMul"

    def named(globs: Sequence[str]) -> bool:
        names = (layer.name, layer.weight_name)
        return any(matches(name, kind, glob) for name in names for glob in globs)

    return named(include) and not named(exclude)


def _prepared(loaded: OnnxModel) -> ModelProto:
    """The model as ONNX Runtime's basic optimisation writes it, with shapes where they are known."""
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        target, content = Path(folder) / "optimised.onnx", Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(target)
        large = not model_files.fits_in_one_message(loaded.proto)
        if large:
            data = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(data, "optimised.data")
        model_files.write(loaded.proto, content)
        try:
            runtime.InferenceSession(str(content), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UnsupportedModelError(
                "ONNX Runtime refuses the model",
                where=loaded.label,
                got=str(error).strip().partition("\n")[0],
            ) from error
        proto: ModelProto = onnx.load(str(target))
        if not large:
            proto = onnx.shape_inference.infer_shapes(proto)
    del proto.metadata_props[:]
    proto.metadata_props.extend(loaded.proto.metadata_props)
    return proto


def _record(layer: Layer, choice: Choice, tiles: set[str]) -> LayerRecord:
    product = layer.kind == "SparseMatMul"
    fused = [
        *(["bias"] if layer.bias is not None else []),
        *(["residual"] if layer.residual else []),
        *([layer.activation] if layer.activation else []),
    ]
    return LayerRecord(
        layer.name,
        layer.kind,
        (layer.outputs, int(layer.weight.shape[1])),
        layer.sparsity,
        block_rows(layer.weight),
        "" if product else _layout(layer.x, tiles),
        "" if product else _layout(layer.y, tiles),
        tuple(fused),
        True,
        choice.reason,
        choice.speedup,
    )


def _dense_record(layer: Layer, choice: Choice) -> LayerRecord:
    kind = "Conv" if layer.kind == "SparseConv" else "MatMul"
    shape = (layer.outputs, int(layer.weight.shape[1]))
    return LayerRecord(
        layer.name, kind, shape, layer.sparsity, 0, "", "", (), False, choice.reason, choice.speedup
    )


def _layout(name: str, tiles: set[str]) -> str:
    return "tiled" if name in tiles else "plain"


def _rewrite(
    proto: ModelProto, graph: GraphIndex, layers: Sequence[Layer], tiles: set[str]
) -> None:
    """Put sparse operators into the graph and drop the weights that nothing reads any more."""
    replaced = {layer.last: layer for layer in layers}
    gone = {position for layer in layers for position in (layer.index, *layer.absorbed)}
    names = _fresh_names(proto)
    shared: dict[tuple[str, bytes], str] = {}
    nodes: list[NodeProto] = []
    for position, node in enumerate(graph.nodes):
        layer = replaced.get(position)
        if layer is not None:
            nodes.append(_node(proto, layer, tiles, names, shared))
        elif position not in gone:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    _drop_unused(proto)
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _node(
    proto: ModelProto,
    layer: Layer,
    tiles: set[str],
    names: Iterator[str],
    shared: dict[tuple[str, bytes], str],
) -> NodeProto:
    def store(role: str, array: np.ndarray) -> str:
        # Layers that share a weight share its compressed form
        key = (role, array.dtype.str.encode() + array.tobytes())
        if key not in shared:
            shared[key] = f"{layer.weight_name}.{role}"
            if any(shared[key] == item.name for item in proto.graph.initializer):
                shared[key] = next(names)
            proto.graph.initializer.append(tensor(shared[key], array))
        return shared[key]

    values, columns, starts = compressed(layer.weight)
    inputs = [layer.x, store("values", values), store("columns", columns), store("rows", starts)]
    if layer.bias is not None or layer.residual:
        bias = layer.bias
        inputs.append("" if bias is None else store("bias", bias.astype(np.float32)))
    if layer.residual:
        inputs.append(layer.residual)
    attributes: dict[str, Any] = {"block": block_rows(layer.weight)}
    if layer.activation:
        attributes |= {
            "activation": layer.activation,
            "alpha": float(layer.alpha),
            "beta": float(layer.beta),
        }
    if layer.kind == "SparseConv":
        attributes |= dict(layer.geometry)
        attributes["in_channels"] = int(layer.weight.shape[1]) // layer.taps
        attributes["x_layout"] = _layout(layer.x, tiles)
        attributes["y_layout"] = _layout(layer.y, tiles)
    else:
        attributes["in_features"] = int(layer.weight.shape[1])
    return helper.make_node(
        layer.kind, inputs, [layer.y], name=layer.name, domain=DOMAIN, **attributes
    )


def _fresh_names(proto: ModelProto) -> Iterator[str]:
    used = {tensor.name for tensor in proto.graph.initializer}
    number = 0
    while True:
        number += 1
        if f"onnxprune.{number}" not in used:
            yield f"onnxprune.{number}"


def _drop_unused(proto: ModelProto) -> None:
    graph = GraphIndex(proto)
    kept = [
        item
        for item in proto.graph.initializer
        if graph.consumers(item.name) or graph.is_output(item.name)
    ]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    made = {name for node in proto.graph.node for name in node.output}
    infos = [info for info in proto.graph.value_info if info.name in made]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(infos)


def _describe(proto: ModelProto, loaded: OnnxModel, records: Sequence[LayerRecord]) -> None:
    """Replace the source's sparsity metadata, which do not hold for the rewritten tensors."""
    said = read_metadata(loaded.proto)
    kept = [entry for entry in proto.metadata_props if entry.key not in (SPARSITY_KEY, KEY)]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    value = {
        "schema_version": SCHEMA_VERSION,
        "tool_version": __version__,
        "source_sha256": loaded.sha256,
        "layers": [
            {"name": r.name, "shape": list(r.shape), "sparsity": r.sparsity, "block": r.block}
            for r in records
            if r.sparse
        ],
        "sparsity": said,
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    proto.metadata_props.add(key=KEY, value=text)
