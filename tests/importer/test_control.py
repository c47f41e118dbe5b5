"""If, Loop and Scan."""

import numpy as np
import onnx
import pytest
import torch

import onnxprune
from onnxprune.importer import load

from .helpers import assert_equals_runtime, normal, outputs, text_model


def test_branches_train_the_weights_that_they_use() -> None:
    proto = text_model(
        """g (float[N,2] x, bool c) => (float[N,2] y) {
            y = If(c) <
                then_branch = t () => (float[N,2] a) <float[2,2] v = {1, 2, 3, 4}> {
                    h = MatMul(x, v)
                    a = MatMul(h, w)
                },
                else_branch = e () => (float[N,2] b) { b = MatMul(x, w) }
            >
        }""",
        {"w": normal(2, 2)},
    )
    x = normal(3, 2)
    module = assert_equals_runtime(
        proto, {"x": x, "c": np.array(True)}, {"x": x, "c": np.array(False)}
    )
    assert set(module.tensor_names.values()) == {"w", "v"}
    module(torch.from_numpy(x), torch.tensor(False)).sum().backward()
    assert module.w.grad is not None
    assert module.v.grad is None


def test_loop_carries_and_collects() -> None:
    proto = text_model(
        """g (int64 n, float[2] x) => (float[2] last, float[T,2] all) {
            go = Constant<value = bool {1}>()
            last, all = Loop(n, go, x) <
                body = b (int64 i, bool c, float[2] s) => (bool c2, float[2] s2, float[2] out) {
                    c2 = Identity(c)
                    s2 = Add(s, x)
                    out = Mul(s2, s)
                }
            >
        }"""
    )
    assert_equals_runtime(proto, {"n": np.array(3), "x": normal(2)})


def test_loop_without_turns_collects_nothing() -> None:
    proto = text_model(
        """g (int64 n, float[N,2] x) => (float[N,2] last, float[T,N,2] all) {
            last, all = Loop(n, , x) <
                body = b (int64 i, bool c, float[N,2] s) => (bool c2, float[N,2] s2, float[N,2] o) {
                    c2 = Identity(c)
                    s2 = Add(s, x)
                    o = Identity(s2)
                }
            >
        }"""
    )
    module = assert_equals_runtime(proto, {"n": np.array(2), "x": normal(3, 2)})
    last, collected = outputs(module, {"n": np.array(0), "x": normal(3, 2)})
    np.testing.assert_array_equal(last, normal(3, 2))
    assert (collected.shape[0], collected.shape[2], collected.dtype) == (0, 2, np.float32)


BRANCHED_NORM = """g (float[N,3,4] x, bool c) => (float[N,3,4] y) {
    y = If(c) <
        then_branch = t () => (float[N,3,4] a) {
            a = BatchNormalization<epsilon = 0.01, momentum = 0.75>(x, s, b, m, v)
        },
        else_branch = e () => (float[N,3,4] z) { z = Relu(x) }
    >
}"""


def _branched_norm() -> onnx.ModelProto:
    arrays = {name: normal(3, seed=seed) for seed, name in enumerate("sbm")}
    return text_model(BRANCHED_NORM, {**arrays, "v": np.float32([0.5, 1, 2])}, opset=15)


def test_batch_norm_in_a_branch_trains_its_statistics(tmp_path) -> None:
    proto, x = _branched_norm(), normal(8, 3, 4)
    module = assert_equals_runtime(
        proto, {"x": x, "c": np.array(True)}, {"x": x, "c": np.array(False)}
    )
    assert set(module.buffer_names.values()) == {"m", "v"}
    module.train()
    module(torch.from_numpy(x), torch.tensor(False))
    np.testing.assert_array_equal(module.export_tensors()["m"], normal(3, seed=2))
    module(torch.from_numpy(x), torch.tensor(True)).sum().backward()
    wanted = 0.75 * normal(3, seed=2) + 0.25 * x.mean((0, 2))
    np.testing.assert_allclose(module.export_tensors()["m"], wanted, rtol=1e-5, atol=1e-6)
    assert module.s.grad is not None
    onnxprune.export(module, tmp_path / "trained.onnx")
    exported = onnx.load(tmp_path / "trained.onnx")
    assert_equals_runtime(exported, {"x": x, "c": np.array(True)})
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in exported.graph.initializer}
    np.testing.assert_allclose(stored["m"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", ["", "scan_input_axes = [1], scan_output_axes = [-1], "])
@pytest.mark.parametrize("backward", [0, 1])
def test_scan(settings: str, backward: int) -> None:
    proto = text_model(
        f"""g (float[3] s, float[4,4,3] x) => (float[3] last, float[a,b,c] all) {{
            last, all = Scan<{settings}num_scan_inputs = 1, scan_input_directions = [{backward}],
                body = b (float[3] t, float[4,3] p) => (float[3] t2, float[4,3] o) {{
                    q = ReduceSum<keepdims = 0>(p, zero)
                    t2 = Add(t, q)
                    o = Mul(p, t2)
                }}
            >(s, x)
        }}""",
        {"zero": np.array([0])},
    )
    assert_equals_runtime(proto, {"s": normal(3), "x": normal(4, 4, 3)})


@pytest.mark.parametrize("lengths", [False, True])
def test_scan_over_batches_before_version_9(lengths: bool) -> None:
    first = "n" if lengths else ""
    proto = text_model(
        f"""g (float[B,2] s, float[B,T,2] x) => (float[B,2] last, float[B,T,2] all) {{
            last, all = Scan<num_scan_inputs = 1, directions = [1],
                body = b (float[2] t, float[2] p) => (float[2] t2, float[2] o) {{
                    t2 = Add(t, p)
                    o = Mul(p, t2)
                }}
            >({first}, s, x)
        }}""",
        {"n": np.array([3, 1, 2])} if lengths else {},
        opset=8,
    )
    assert_equals_runtime(proto, {"s": normal(3, 2), "x": normal(3, 3, 2)})


def test_loop_over_a_sequence() -> None:
    proto = text_model(
        """g (int64 n, float[2,3] x) => (float[K,3] y) {
            none = SequenceEmpty()
            all = Loop(n, , none) <
                body = b (int64 i, bool c, seq(float[2,3]) s) => (bool c2, seq(float[2,3]) s2) {
                    c2 = Identity(c)
                    f = Cast<to = 1>(i)
                    z = Mul(x, f)
                    s2 = SequenceInsert(s, z)
                }
            >
            y = ConcatFromSequence<axis = 0>(all)
        }"""
    )
    module = load(proto).eval()
    x = normal(2, 3)
    (y,) = outputs(module, {"n": np.array(3), "x": x})
    np.testing.assert_allclose(y, np.concatenate([0 * x, x, 2 * x]))
