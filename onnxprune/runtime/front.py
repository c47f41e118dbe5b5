"""ONNX Runtime's own basic optimisation, written down as a model that is compiled next.

BatchNorms are folded into convolutions, constants are computed, and functions are inlined, by the
very code that would do so when the model is loaded.
"""

import tempfile
from pathlib import Path

from onnx import ModelProto, numpy_helper

from onnxprune import model as model_files
from onnxprune.errors import UnsupportedModelError
from onnxprune.external_data import load_external_data, load_mapped
from onnxprune.model import OnnxModel
from onnxprune.runtime.graph import label, names_read
from onnxprune.runtime.library import import_runtime
from onnxprune.stored import dense_array

_KEPT_SEPARATE = ["MatMulAddFusion"]
"""It wraps products of more than two axes into reshapes."""

_OVERRIDABLE_SINCE = 4
"""First IR version in which an initializer need not be an input; one that is can be overridden."""


def optimized(source: OnnxModel) -> ModelProto:
    """The model after ONNX Runtime's basic optimisation; names of values and nodes are kept.

    Only a node without a name gets one, where its label is the name of another node.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model.
    """
    runtime = import_runtime()
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        given = Path(folder) / "given.onnx"
        target = Path(folder) / "basic.onnx"
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        content: str | bytes = str(given)
        if model_files.fits_in_one_message(source.proto):
            content = model_files.serialized(source.proto)
        else:
            model_files.write(source.proto, given)
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
    _tidy(proto, source.proto)
    return proto


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
        stored = {tensor.name for tensor in proto.graph.initializer}
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
