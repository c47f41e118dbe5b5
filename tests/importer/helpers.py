"""Models for the importer's tests, and the comparison with ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper, parser

from onnxprune.importer import ImportedModel, load


def text_model(
    graph: str, arrays: dict[str, np.ndarray] | None = None, opset: int = 17, extra: str = ""
) -> onnx.ModelProto:
    """A model from the text of its graph and its initializers.

    Args:
        graph: Graph in ONNX's text form.
        arrays: Initializers.
        opset: Version of the default operator set.
        extra: Further operator sets, such as `, "com.microsoft" : 1`.
    """
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}{extra}]> {graph}')
    for name, array in (arrays or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outputs(module: ImportedModel, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Results of an imported module."""
    with torch.no_grad():
        result = module(**{name: torch.from_numpy(array) for name, array in feed.items()})
    return [tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,))]


def runtime_outputs(model: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Results of ONNX Runtime on the CPU."""
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def assert_equals_runtime(
    model: Any, *feeds: dict[str, np.ndarray], tolerance: float = 1e-4
) -> ImportedModel:
    """Import a model and compare it with ONNX Runtime on each feed; returns the module."""
    module = load(model).eval()
    for feed in feeds:
        expected = runtime_outputs(model, feed)
        actual = outputs(module, feed)
        assert [a.shape for a in actual] == [e.shape for e in expected]
        assert [a.dtype for a in actual] == [e.dtype for e in expected]
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)
    return module


def half_model() -> onnx.ModelProto:
    """A float16 linear layer."""
    return text_model(
        "g (float16[N,4] x) => (float16[N,2] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": normal(4, 2).astype(np.float16), "b": np.array([1, 2], dtype=np.float16)},
    )
