"""Sparse models, and whether two models compute the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import ModelProto, numpy_helper

from onnxprune.runtime import CompiledModel, CompileOptions, Thresholds, compile_model, register
from onnxprune.runtime.layouts import LayoutRule
from onnxprune.runtime.record_check import verify_record
from onnxprune.tensors import find_tensors

from .reference import run

ANY = Thresholds.any_size(0.3)
"""Replaces small layers, too."""


def net(body: str, **weights: np.ndarray) -> ModelProto:
    """A model from the parser's text of a graph, and its initializers."""
    text = f'<ir_version: 8, opset_import: ["" : 20, "com.microsoft" : 1]> {body}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    return proto


def sparse(*shape: int, density: float = 0.3, seed: int = 0, block: int = 1) -> np.ndarray:
    """Random weights of a density, where groups of `block` outputs share their zeros."""
    rng = np.random.default_rng(seed)
    kept = rng.random((shape[0] // block, *shape[1:])) < density
    return (rng.standard_normal(shape) * np.repeat(kept, block, axis=0)).astype(np.float32)


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pruned(proto: ModelProto, sparsity: float = 0.9) -> ModelProto:
    """A copy with the smallest weights of every prunable tensor at zero."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for tensor in find_tensors(copy).values():
        if tensor.prunable and isinstance(tensor.proto, onnx.TensorProto):
            values = tensor.array().copy()
            order = np.argsort(np.abs(values), axis=None, kind="stable")
            values.ravel()[order[: int(sparsity * values.size)]] = 0
            tensor.proto.CopyFrom(numpy_helper.from_array(values, tensor.proto.name))
    return copy


def compiled(
    proto: ModelProto | Path, layouts: LayoutRule = "pointwise", thresholds: Thresholds = ANY
) -> CompiledModel:
    result = compile_model(proto, CompileOptions(thresholds, layouts))
    if result.record.replaced:
        assert verify_record(result.proto).problems == []
    return result


def operators(proto: ModelProto) -> list[str]:
    """Operators of the graph in order."""
    return [node.op_type for node in proto.graph.node]


def sparse_nodes(proto: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.domain == "onnxprune"]


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def runtime_outputs(proto: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs under ONNX Runtime with the library of kernels, on two threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    register(options)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def check_equal(
    source: ModelProto,
    result: CompiledModel,
    feeds: dict[str, np.ndarray],
    kernels: bool,
    replaced: int | None = None,
    expected: Sequence[np.ndarray] | None = None,
) -> None:
    """The compiled model computes what the source does: by the description, and by the kernels."""
    assert replaced is None or result.record.replaced == replaced, result.record.layers
    expected = run(source, feeds) if expected is None else expected
    outcomes = [run(result.proto, feeds)]
    if kernels:
        outcomes.append(runtime_outputs(result.proto, feeds))
    for found in outcomes:
        for a, b in zip(expected, found, strict=True):
            assert a.shape == b.shape
            scale = np.sqrt(np.mean(np.square(a, dtype=np.float64))) if a.any() else 1.0
            assert np.abs(a - b).max(initial=0) <= 3e-5 * scale
