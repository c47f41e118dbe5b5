"""Models for the importer's tests, and the comparison with ONNX Runtime."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper, parser

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


def node_model(
    op_type: str,
    inputs: dict[str, np.ndarray | None],
    feeds: set[str] | None = None,
    outputs: int = 1,
    opset: int = 17,
    domain: str = "com.microsoft",
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node, and what to feed to it.

    Args:
        op_type: Operator.
        inputs: Its inputs in order; None for one that is left out.
        feeds: Which of them are inputs of the model, the first one by default; the others are
            initializers.
        outputs: Number of outputs, called y0, y1 and so on.
        opset: Version of the default operator set.
        domain: Domain of the operator.
        attributes: Its attributes.
    """
    given = {name: array for name, array in inputs.items() if array is not None}
    fed = {next(iter(given))} if feeds is None else feeds
    names = [f"y{index}" for index in range(outputs)]
    slots = [name if name in given else "" for name in inputs]
    node = helper.make_node(op_type, slots, names, domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(given[name].dtype), given[name].shape
            )
            for name in given
            if name in fed
        ],
        [onnx.ValueInfoProto(name=name) for name in names],
        [numpy_helper.from_array(a, name) for name, a in given.items() if name not in fed],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return proto, {name: given[name] for name in given if name in fed}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def outputs(module: ImportedModel, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Results of an imported module."""
    with torch.no_grad():
        result = module(**{name: torch.from_numpy(array) for name, array in feed.items()})
    return [
        tensor.detach().numpy() for tensor in (result if isinstance(result, tuple) else (result,))
    ]


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
