"""`torch.export` and `torch.compile` of imported modules."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from onnxprune.importer import ImportedModel, load
from tests.conftest import small_classifier

from .helpers import normal, text_model

ATTENTION = """g (float[N,T,8] x) => (float[N,T,8] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    kt = Transpose<perm = [0, 2, 1]>(k)
    s = MatMul(q, kt)
    p = Softmax<axis = -1>(s)
    a = MatMul(p, v)
    shape = Shape(x)
    flat = Reshape(a, two)
    r = Add(flat, b)
    y = Reshape(r, shape)
}"""


def _attention() -> onnx.ModelProto:
    weights = {name: normal(8, 8, seed=i) for i, name in enumerate(("wq", "wk", "wv"))}
    return text_model(ATTENTION, {**weights, "b": normal(8, seed=9), "two": np.array([-1, 8])})


def _norm() -> onnx.ModelProto:
    return small_classifier()


def _images(batch: int) -> Tensor:
    return torch.from_numpy(normal(batch, 3, 8, 8, seed=batch))


def _words(batch: int) -> Tensor:
    return torch.from_numpy(normal(batch, batch + 2, 8, seed=batch))


MODELS = {"classifier": (_norm, _images, {0}), "attention": (_attention, _words, {0, 1})}


@pytest.mark.parametrize("name", MODELS)
def test_export_with_free_sizes(name: str) -> None:
    make, inputs, axes = MODELS[name]
    module = load(make()).eval()
    shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    program = torch.export.export(module, (inputs(3),), dynamic_shapes=shapes)
    assert set(program.graph_signature.parameters) == set(module.tensor_names)
    x = inputs(5)
    torch.testing.assert_close(program.module()(x), module(x))


def _step(module: ImportedModel, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    run(x).square().sum().backward()
    gradients = {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
    return {**gradients, **{key: b.clone() for key, b in module.named_buffers()}}


@pytest.mark.parametrize("name", MODELS)
def test_compiled_training_equals_eager(name: str) -> None:
    make, inputs, _ = MODELS[name]
    eager, other = load(make()).train(), load(make()).train()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (3, 5):
        expected = _step(eager, eager, inputs(batch))
        actual = _step(other, compiled, inputs(batch))
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-5, atol=1e-5)
