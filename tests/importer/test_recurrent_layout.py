"""Recurrent nodes with the batch first, which ONNX Runtime refuses, against time first."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.importer import load

from .helpers import assert_equals_runtime, normal, outputs

BATCH, STEPS, INPUTS, HIDDEN = 3, 5, 4, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def _tensors(kind: str, directions: int, lengths: bool) -> dict[str, np.ndarray]:
    gates = GATES[kind] * HIDDEN
    tensors = {
        "W": normal(directions, gates, INPUTS, seed=1),
        "R": normal(directions, gates, HIDDEN, seed=2),
        "B": normal(directions, 2 * gates, seed=3),
        "lengths": np.array([5, 2, 4], dtype=np.int32) if lengths else None,
        "h0": normal(directions, BATCH, HIDDEN, seed=4),
    }
    if kind == "LSTM":
        tensors["c0"] = normal(directions, BATCH, HIDDEN, seed=5)
    return tensors


def _model(kind: str, direction: str, layout: int, lengths: bool) -> onnx.ModelProto:
    tensors = _tensors(kind, DIRECTIONS[direction], lengths)
    if layout:
        for name in {"h0", "c0"} & tensors.keys():
            tensors[name] = tensors[name].swapaxes(0, 1)
    names = [name if tensors[name] is not None else "" for name in tensors]
    results = ["Y", "Y_h", "Y_c"] if kind == "LSTM" else ["Y", "Y_h"]
    settings: dict[str, Any] = {"layout": layout} if layout else {}
    node = helper.make_node(
        kind, ["X", *names], results, hidden_size=HIDDEN, direction=direction, **settings
    )
    shape = [BATCH, STEPS, INPUTS] if layout else [STEPS, BATCH, INPUTS]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
        [numpy_helper.from_array(t, name) for name, t in tensors.items() if t is not None],
    )
    opset = helper.make_opsetid("", 14)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9)


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", GATES)
def test_batch_first_is_time_first_transposed(kind: str, direction: str, lengths: bool) -> None:
    x = normal(STEPS, BATCH, INPUTS)
    time_first = _model(kind, direction, 0, lengths)
    reference = outputs(assert_equals_runtime(time_first, {"X": x}), {"X": x})
    batch_first = load(_model(kind, direction, 1, lengths)).eval()
    y, *states = outputs(batch_first, {"X": x.swapaxes(0, 1)})
    assert y.shape == (BATCH, STEPS, DIRECTIONS[direction], HIDDEN)
    np.testing.assert_allclose(y, reference[0].transpose(2, 0, 1, 3), rtol=1e-6, atol=1e-6)
    for state, expected in zip(states, reference[1:], strict=True):
        np.testing.assert_allclose(state, expected.swapaxes(0, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", GATES)
def test_both_layouts_train_alike_and_come_back(kind: str, tmp_path: Any) -> None:
    x = torch.from_numpy(normal(STEPS, BATCH, INPUTS))
    trained = []
    for layout in (0, 1):
        module = load(_model(kind, "bidirectional", layout, False)).train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(x.transpose(0, 1) if layout else x)[0].square().sum().backward()
        optimizer.step()
        onnxprune.export(module, tmp_path / f"{layout}.onnx")
        proto = onnx.load(tmp_path / f"{layout}.onnx")
        arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        trained.append(arrays)
    start = _tensors(kind, 2, False)
    for name in ("W", "R", "B", "h0"):
        first, second = (arrays[name] for arrays in trained)
        second = second.swapaxes(0, 1) if name == "h0" else second
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
        assert np.abs(first - start[name]).max() > 1e-3
