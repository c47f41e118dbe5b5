"""ONNX Runtime's own basic optimisation, written down as a model that is compiled next.

BatchNorms are folded into convolutions, constants are computed, and functions are inlined, by the
very code that would do so when the model is loaded.
"""

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from onnxprune import model as model_files
from onnxprune.errors import UnsupportedModelError
from onnxprune.external_data import load_external_data, load_mapped
from onnxprune.model import OnnxModel
from onnxprune.runtime.graph import GraphIndex, label, names_read
from onnxprune.runtime.library import import_runtime
from onnxprune.stored import dense_array

_KEPT_SEPARATE = ["MatMulAddFusion"]
"""It wraps products of more than two axes into reshapes."""

LARGE_BYTES = 2**14
"""Size from which it pays to keep a weight from ONNX Runtime."""

_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})
"""What may become a part of a convolution, or vanish, if its other operand is constant."""

_PASSED = frozenset(
    {"Cast", "Dropout", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""What may vanish, and what ONNX Runtime looks past between a product and a BatchNorm."""

_OVERRIDABLE_SINCE = 4
"""First IR version in which an initializer need not be an input; one that is can be overridden."""


def optimized(source: OnnxModel) -> ModelProto:
    """The model after ONNX Runtime's basic optimisation; names of values and nodes are kept.

    Only a node without a name gets one, where its label is the name of another node. Larger weights
    that nothing of it could change are not shown to ONNX Runtime: copying them takes most of the
    time.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model.
    """
    runtime = import_runtime()
    shown, aside = _without_weights(source.proto)
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        given = Path(folder) / "given.onnx"
        target = Path(folder) / "basic.onnx"
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        content: str | bytes = str(given)
        if model_files.fits_in_one_message(shown):
            content = model_files.serialized(shown)
        else:
            model_files.write(shown, given)
            key = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(key, target.name + ".data")
        try:
            runtime.InferenceSession(
                content,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
                disabled_optimizers=_KEPT_SEPARATE,
            )
        except Exception as error:
            raise UnsupportedModelError(
                "ONNX Runtime cannot load the model, so it cannot be compiled",
                where=source.label,
                got=str(error).strip().partition("\n")[0],
            ) from error
        proto = ModelProto()
        proto.ParseFromString(target.read_bytes())
        if load_external_data(proto, target):
            load_mapped(proto)
    _put_back(proto, aside)
    _tidy(proto, source.proto)
    return proto


def _without_weights(proto: ModelProto) -> tuple[ModelProto, dict[str, TensorProto]]:
    """A model with inputs in the place of larger weights, and these weights.

    Only those that nothing but layers reads, and whose layers nothing follows that basic
    optimisation could put into the weight.
    """
    index = GraphIndex(proto.graph)
    stored = index.stored
    if proto.ir_version < _OVERRIDABLE_SINCE:  # every one is an input, and none can be overridden
        stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    sparse = (tensor.values.name for tensor in proto.graph.sparse_initializer)
    constants = _Constants(proto.graph, (*stored, *sparse))
    aside = {
        name: tensor
        for name, tensor in stored.items()
        if tensor.data_type == TensorProto.FLOAT
        and 4 * math.prod(tensor.dims) >= LARGE_BYTES
        and name not in index.outputs
        and all(_leaves_weight(index, constants, name, n) for n in index.readers.get(name, ()))
    }
    if not aside:
        return proto, {}
    shown = ModelProto()
    _copy_without(proto, shown, "graph")
    _copy_without(proto.graph, shown.graph, "initializer")
    shown.graph.initializer.extend(t for t in proto.graph.initializer if t.name not in aside)
    given = {value.name for value in shown.graph.input}
    shown.graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        for name, tensor in aside.items()
        if name not in given
    )
    return shown, aside


def _copy_without(source: Message, target: Message, field: str) -> None:
    """Copy all of a message but one field into an empty one."""
    for descriptor, value in source.ListFields():
        if descriptor.name == field:
            continue
        place = getattr(target, descriptor.name)
        if isinstance(value, Message):
            place.CopyFrom(value)
        elif hasattr(place, "MergeFrom"):
            place.MergeFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _put_back(proto: ModelProto, aside: Mapping[str, TensorProto]) -> None:
    """Store weights again where inputs took their place, those that are still read."""
    for place in reversed(range(len(proto.graph.input))):
        if proto.graph.input[place].name in aside:
            del proto.graph.input[place]
    read = {name for node in proto.graph.node for name in names_read(node)}
    proto.graph.initializer.extend(tensor for name, tensor in aside.items() if name in read)


def _leaves_weight(index: GraphIndex, constants: "_Constants", weight: str, number: int) -> bool:
    """Whether a node reads a weight as a layer does, so that basic optimisation leaves it."""
    node = index.graph.node[number]
    standard = node.domain in ("", "ai.onnx") and node.op_type in _LAYERS
    if not standard or [n for n, name in enumerate(node.input) if name == weight] != [1]:
        return False
    if constants.holds(node.input[0]):
        return False
    values = [node.output[0]]
    while values:
        for reader in (index.graph.node[n] for n in index.readers.get(values.pop(), ())):
            if reader.domain not in ("", "ai.onnx") or reader.op_type == "BatchNormalization":
                return False
            scaled = reader.op_type in _ARITHMETIC and any(map(constants.holds, reader.input))
            if scaled and node.op_type == "Conv":
                return False
            if scaled or reader.op_type in _PASSED:
                values += reader.output
    return True


class _Constants:
    """Which values of a graph do not depend on its inputs."""

    def __init__(self, graph: GraphProto, stored: Iterable[str]) -> None:
        self._known: dict[str, bool] = dict.fromkeys(stored, True)
        for node in graph.node:
            constant = all(self._known.get(name, False) for name in names_read(node))
            self._known |= dict.fromkeys(node.output, constant)

    def holds(self, value: str) -> bool:
        """Whether a value is one of them."""
        return self._known.get(value, False)


def _tidy(proto: ModelProto, before: ModelProto) -> None:
    """Undo what ONNX Runtime does to the frame of a model."""
    for sparse in proto.graph.sparse_initializer:
        dense = numpy_helper.from_array(dense_array(sparse), sparse.values.name)
        proto.graph.initializer.append(dense)
    del proto.graph.sparse_initializer[:]
    used = {opset.domain for opset in before.opset_import} | _domains(proto)
    for place in reversed(range(len(proto.opset_import))):
        if proto.opset_import[place].domain not in used:
            del proto.opset_import[place]
    if proto.ir_version < _OVERRIDABLE_SINCE:
        stored = {tensor.name for tensor in before.graph.initializer}
        stored |= {tensor.values.name for tensor in before.graph.sparse_initializer}
        for place in reversed(range(len(proto.graph.input))):
            if proto.graph.input[place].name in stored:
                del proto.graph.input[place]
        proto.ir_version = _OVERRIDABLE_SINCE
    _tell_apart(proto)
    known = {value.name for value in proto.graph.value_info}
    alive = {name for node in proto.graph.node for name in (*node.output, *names_read(node))}
    proto.graph.value_info.extend(
        value
        for value in before.graph.value_info
        if value.name in alive and value.name not in known
    )


def _tell_apart(proto: ModelProto) -> None:
    """Name nodes whose label is another node's name: operators and records go by labels."""
    names = {node.name for node in proto.graph.node if node.name}
    taken = names | {label(node) for node in proto.graph.node}
    for node in proto.graph.node:
        if node.name or label(node) not in names:
            continue
        count = 1
        while f"{label(node)}_{count}" in taken:
            count += 1
        node.name = f"{label(node)}_{count}"
        taken.add(node.name)


def _domains(proto: ModelProto) -> set[str]:
    return {node.domain for _, graph in model_files.iter_graphs(proto) for node in graph.node}
