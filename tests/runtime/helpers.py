"""Sparse models, and whether two models compute the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

from onnxprune.runtime import CompiledModel, CompileOptions, Thresholds, compile_model, register
from onnxprune.runtime.layouts import LayoutRule
from onnxprune.runtime.record_check import verify_record
from onnxprune.runtime.rows import SparseRows
from onnxprune.tensors import find_tensors

from .reference import run

ANY = Thresholds.any_size(0.3)
"""Replaces small layers, too."""

LARGEST_ERROR = 1e-5
"""Largest difference to what float64 computes, as a share of the output's root mean square."""

LEAST_SCALE = 0.1
"""Of drawn sums of numbers around 1: where all of them cancel, only what was rounded is left."""

_WEIGHTS = ("values", "columns", "row_starts")
INPUTS: dict[str, tuple[str, ...]] = {
    "SparseConv": ("x", *_WEIGHTS, "bias", "residual"),
    "SparseMatMul": ("x", *_WEIGHTS, "bias", "residual"),
    "DepthwiseConv": ("x", "taps", "bias", "residual"),
    "SparseExpandDepthwise": ("x", *_WEIGHTS, "taps", "bias", "depthwise_bias", "residual"),
}
"""What each operator reads, in order."""


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


def compressed(matrix: np.ndarray, *, half: bool = False) -> dict[str, np.ndarray]:
    """The inputs that hold a matrix `(rows, columns)`."""
    rows = SparseRows.of(matrix)
    values = rows.values.astype(np.float16) if half else rows.values
    return {"values": values, "columns": rows.columns, "row_starts": rows.row_starts}


def operator(
    kind: str,
    tensors: Mapping[str, np.ndarray],
    rank: int,
    *,
    residual: bool = False,
    name: str = "one",
    **given: Any,
) -> ModelProto:
    """A model of one operator.

    Args:
        kind: The operator.
        tensors: Its initializers, by the names in `INPUTS`; others are left out.
        rank: Axes of `x`, and of the result.
        residual: Whether `residual` is an input of the model.
        name: The node's name.
        given: Its attributes.
    """
    fed = ["x", *(["residual"] if residual else [])]
    read = [input if input in tensors or input in fed else "" for input in INPUTS[kind]]
    node = helper.make_node(kind, read, ["y"], name, domain="onnxprune", **given)
    values = [
        helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [None] * rank)
        for value in (*fed, "y")
    ]
    stored = [numpy_helper.from_array(array, key) for key, array in tensors.items()]
    graph = helper.make_graph([node], "g", values[:-1], values[-1:], stored)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("onnxprune", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


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


def opened(proto: ModelProto, threads: int = 2) -> onnxruntime.InferenceSession:
    """A session with the library of kernels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    register(options)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def runtime_outputs(
    proto: ModelProto, feeds: dict[str, np.ndarray], threads: int = 2
) -> list[np.ndarray]:
    """Outputs under ONNX Runtime with the library of kernels."""
    return list(opened(proto, threads).run(None, feeds))


def error(expected: np.ndarray, found: np.ndarray, least_scale: float = 0.0) -> float:
    """Largest difference, as a share of the root mean square of what is expected.

    A mean square below `least_scale` counts as that, and one of 0 as 1.
    """
    assert found.shape == expected.shape
    if not expected.size:
        return 0.0
    scale = max(least_scale, float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))))
    return float(np.abs(found.astype(np.float64) - expected).max()) / (scale or 1.0)


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
            assert error(a, b) <= LARGEST_ERROR
