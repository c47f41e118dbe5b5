"""An If whose condition is known at import: its branch runs in place of it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import onnxprune
from onnxprune.errors import UnsupportedModelError
from onnxprune.importer import ImportedModel, load
from onnxprune.job import prepare
from onnxprune.recipe import Recipe
from onnxprune.tensors import find_tensors
from onnxprune.validate import inspect_model

from .helpers import assert_equals_runtime, normal, outputs, runtime_outputs, text_model

BRANCHES = """
    then_branch = t () => (float[N,4] yt) <float[3,4] v = {1,2,3,4,5,6,7,8,9,10,11,12}> {
        yt = MatMul(h, v)
    },
    else_branch = e () => (float[N,2] ye) { ye = MatMul(h, w) }
"""


def _branched(condition: str, arrays: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """MatMul, and then another one in a branch: `v` (3, 4) in the first, `w` (3, 2) in the other.

    Args:
        condition: Nodes that compute `c`.
        arrays: Further initializers.
    """
    graph = f"g (float[N,3] x) => (float[N,M] y) {{ {condition} h = MatMul(x, u) y = If(c)<"
    return text_model(
        graph + BRANCHES + "> }",
        {"u": normal(3, 3), "w": normal(3, 2, seed=1), **(arrays or {})},
    )


def _modules(module: nn.Module) -> list[str]:
    return [type(m).__name__ for m in module.modules() if type(m).__name__ in ("If", "GraphModule")]


def _names(module: ImportedModel) -> set[str]:
    return set(module.tensor_names.values())


CONDITIONS = {
    "constant": ("c = Constant<value = bool {%d}>()", {}),
    "plain number": ("f = Constant<value_int = %d>() c = Cast<to = 9>(f)", {}),
    "plain list": (
        "f = Constant<value_ints = [%d]>() g = Cast<to = 9>(f) c = Squeeze(g)",
        {},
    ),
    "initializer": ("c = Equal(k, one)", {"k": np.array(1), "one": np.array(1)}),
    "comparison": (
        "a = Constant<value = int64 {%d}>() c = Greater(a, k)",
        {"k": np.array(0)},
    ),
    "logic": (
        "a = Constant<value = bool {%d}>() b = Not(a) d = Not(b) e = And(d, a) c = Or(e, b2)",
        {"b2": np.array(False)},
    ),
    "shape of a weight": (
        "s = Shape(w) n = Gather(s, i) a = Constant<value = int64 {%d}>() "
        "two = Add(a, a) c = Equal(n, two)",
        {"i": np.array(1)},
    ),
}


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("form", CONDITIONS)
def test_only_the_taken_branch_is_imported(form: str, taken: bool) -> None:
    nodes, arrays = CONDITIONS[form]
    if form == "initializer":
        arrays = {**arrays, "k": np.array(int(taken))}
    proto = _branched(nodes % taken if "%d" in nodes else nodes, arrays)
    module = assert_equals_runtime(proto, {"x": normal(5, 3)})
    assert _modules(module) == []
    assert _names(module) == ({"u", "v"} if taken else {"u", "w"})
    assert "If" not in module.code
    assert outputs(module, {"x": normal(2, 3)})[0].shape == (2, 4 if taken else 2)


def test_a_condition_that_an_input_decides_keeps_both_branches() -> None:
    proto = _branched("s = Shape(x) n = Gather(s, i) c = Equal(n, i)", {"i": np.array(0)})
    module = load(proto)
    assert _modules(module) == ["If", "GraphModule", "GraphModule"]
    assert _names(module) == {"u", "v", "w"}


NESTED = """g (float[N,2] x, bool ask) => (float[N,2] y) {
    y = If(yes)<
        then_branch = t () => (float[N,2] a) {
            k = MatMul(x, w)
            no = Not(yes)
            a = If(no)<
                then_branch = t2 () => (float[N,2] dead) { dead = MatMul(k, unused) },
                else_branch = e2 () => (float[N,2] d) {
                    d = If(ask)<
                        then_branch = t3 () => (float[N,2] p) {
                            p = If(yes)<
                                then_branch = t4 () => (float[N,2] q) { q = Add(k, b) },
                                else_branch = e4 () => (float[N,2] r) { r = Add(k, unused) }
                            >
                        },
                        else_branch = e3 () => (float[N,2] z) { z = Identity(k) }
                    >
                }
            >
        },
        else_branch = e () => (float[N,2] other) { other = nobody.Operator(x) }
    >
}"""


def test_nested_conditions_and_what_they_see_of_outer_graphs() -> None:
    proto = text_model(
        NESTED,
        {"w": normal(2, 2), "b": normal(2), "unused": normal(2, 2), "yes": np.array(True)},
        extra=', "nobody" : 1',
    )
    module = load(proto).eval()
    assert _modules(module) == ["If", "GraphModule", "GraphModule"]
    assert _names(module) == {"w", "b"}
    x = normal(4, 2)
    for ask in (True, False):
        (y,) = outputs(module, {"x": x, "ask": np.array(ask)})
        np.testing.assert_allclose(y, x @ normal(2, 2) + ask * normal(2), rtol=1e-5, atol=1e-6)


def test_nested_conditions_equal_onnx_runtime() -> None:
    proto = text_model(
        NESTED.replace("nobody.Operator", "Relu"),
        {"w": normal(2, 2), "b": normal(2), "unused": normal(2, 2), "yes": np.array(True)},
    )
    options = ort.SessionOptions()
    # Its own inlining loses what the inner branches read of the outer ones.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options)
    module = load(proto).eval()
    for ask in (True, False):
        feed = {"x": normal(4, 2), "ask": np.array(ask)}
        (expected,), (actual,) = session.run(None, feed), outputs(module, feed)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_what_only_a_dead_branch_needs_may_be_unsupported() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) {
        strange = nobody.Operator(x)
        y = If(c)<
            then_branch = t () => (float[N,2] a) { a = Relu(x) },
            else_branch = e () => (float[N,2] b) { b = Relu(strange) }
        >
    }"""
    extra = ', "nobody" : 1'
    module = load(text_model(text, {"c": np.array(True)}, extra=extra))
    np.testing.assert_array_equal(outputs(module, {"x": normal(3, 2)})[0], normal(3, 2).clip(0))
    with pytest.raises(UnsupportedModelError, match=r"nobody\.Operator"):
        load(text_model(text, {"c": np.array(False)}, extra=extra))


def test_a_branch_inside_a_loop_reads_the_turn() -> None:
    proto = text_model(
        """g (int64 n, float[2] x) => (float[2] last) {
            last = Loop(n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool c2, float[2] s2) {
                    c2 = Identity(c)
                    s2 = If(yes)<
                        then_branch = t () => (float[2] a) {
                            f = Cast<to = 1>(i)
                            p = Mul(x, f)
                            a = Add(s, p)
                        },
                        else_branch = e () => (float[2] d) { d = Identity(s) }
                    >
                }
            >
        }""",
        {"yes": np.array(True)},
    )
    module = assert_equals_runtime(proto, {"n": np.array(4), "x": normal(2)})
    assert _modules(module) == ["GraphModule"]  # the loop's body


def test_shapes_and_fusions_work_through_a_branch() -> None:
    """A GELU that begins in front of the If and ends behind it is one call."""
    proto = text_model(
        """g (float[N,3] x) => (float[N,3] y) {
            d = Div(x, root)
            y0 = If(yes)<
                then_branch = t () => (float[N,3] a) { f = Erf(d) a = Add(f, one) },
                else_branch = e () => (float[N,3,1] b) { b = Unsqueeze(d, axes) }
            >
            p = Mul(x, y0)
            y = Mul(p, half)
        }""",
        {
            "yes": np.array(True),
            "axes": np.array([2]),
            **{"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
        },
    )
    module = assert_equals_runtime(proto, {"x": normal(4, 3)})
    assert "gelu(x)" in module.code
    assert "erf" not in module.code


def _train(module: Any, x: np.ndarray) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(x)).square().mean().backward()
        optimizer.step()


def test_branch_tensors_train_and_come_back_into_the_branch(tmp_path: Path) -> None:
    proto, x = _branched("c = Constant<value = bool {1}>()"), normal(6, 3)
    module = load(proto).train()
    before = {name: t.clone() for name, t in module.export_tensors().items()}
    onnxprune.export(module, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx") == proto
    _train(module, x)
    after = module.export_tensors()
    assert set(after) == {"u", "v"}
    assert all(not torch.equal(before[name], after[name]) for name in after)
    onnxprune.export(module, tmp_path / "trained.onnx")
    written = onnx.load(tmp_path / "trained.onnx")
    (inner,) = written.graph.node[2].attribute[0].g.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(inner), after["v"].numpy())
    (actual,) = outputs(module.eval(), {"x": x})
    np.testing.assert_allclose(runtime_outputs(written, {"x": x})[0], actual, rtol=1e-5, atol=1e-6)
    untouched = {t.name: onnx.numpy_helper.to_array(t) for t in written.graph.initializer}
    np.testing.assert_array_equal(untouched["w"], normal(3, 2, seed=1))


def test_a_norm_in_a_branch_keeps_its_statistics_under_their_names() -> None:
    arrays = {name: normal(3, seed=seed) for seed, name in enumerate("sbm")}
    proto = text_model(
        """g (float[N,3,4] x) => (float[N,3,4] y) {
            y = If(c) <
                then_branch = t () => (float[N,3,4] a) {
                    a = BatchNormalization<momentum = 0.75>(x, s, b, m, v)
                },
                else_branch = e () => (float[N,3,4] z) { z = Relu(x) }
            >
        }""",
        {**arrays, "v": np.float32([0.5, 1, 2]), "c": np.array(True)},
        opset=15,
    )
    x = normal(8, 3, 4)
    module = assert_equals_runtime(proto, {"x": x})
    assert set(module.buffer_names.values()) == {"m", "v"}
    module.train()(torch.from_numpy(x))
    wanted = 0.75 * arrays["m"] + 0.25 * x.mean((0, 2))
    np.testing.assert_allclose(module.export_tensors()["m"], wanted, rtol=1e-5, atol=1e-6)


def _dead(proto: onnx.ModelProto) -> set[str]:
    return {name for name, tensor in find_tensors(proto).items() if not tensor.trainable}


def test_tensors_of_a_dead_branch_are_no_parameters() -> None:
    taken = _branched("c = Constant<value = bool {1}>()")
    assert _dead(taken) == {"c", "w"}
    assert _dead(_branched("c = Constant<value = bool {0}>()")) == {"c", "v"}
    facts = inspect_model(taken)
    assert facts.prunable_parameters == 9 + 12
    open_question = "s = Shape(x) n = Gather(s, i) c = Equal(n, i)"
    assert _dead(_branched(open_question, {"i": np.array(0)})) == {"i"}


@pytest.mark.parametrize("form", ["constant", "shape of a weight"])
def test_the_plan_of_a_prune_job_leaves_dead_branches_out(form: str, tmp_path: Path) -> None:
    nodes, arrays = CONDITIONS[form]
    onnx.save(_branched(nodes % 1, arrays), tmp_path / "m.onnx")
    recipe = Recipe.from_dict({"finetune": {"epochs": 0}})
    job = prepare(tmp_path / "m.onnx", tmp_path / "out.onnx", recipe)
    assert set(job.plan.tensors) == {"u", "v"}
