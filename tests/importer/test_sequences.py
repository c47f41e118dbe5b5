"""Sequences and optional values."""

import numpy as np
import pytest
import torch

from .helpers import assert_equals_runtime, normal, text_model

ARRAYS = {
    "zero": np.array(0),
    "last": np.array(-1),
    "two": np.array(2),
    "sizes": np.array([1, 3]),
}


@pytest.mark.parametrize(
    "body",
    [
        "s = SequenceConstruct(x, z, x) y = ConcatFromSequence<axis = 1>(s)",
        "s = SequenceConstruct(x, z) y = ConcatFromSequence<axis = 0, new_axis = 1>(s)",
        "s = SequenceConstruct(x, z) t = SequenceInsert(s, n, zero) y = SequenceAt(t, zero)",
        "s = SequenceConstruct(x, z) t = SequenceInsert(s, n, last) u = SequenceErase(t, zero) "
        "y = ConcatFromSequence<axis = 0>(u)",
        "s = SequenceConstruct(x, z, n) t = SequenceErase(s) y = SequenceAt(t, last)",
        "s = SplitToSequence<axis = 1>(x) y = SequenceAt(s, last)",
        "s = SplitToSequence<axis = 1, keepdims = 0>(x) y = SequenceAt(s, two)",
        "s = SplitToSequence<axis = 1>(x, sizes) y = SequenceAt(s, last)",
        "s = SplitToSequence<axis = 0>(x, two) y = SequenceAt(s, last)",
        "s = SplitToSequence(x) t = SequenceInsert(s, n) y = ConcatFromSequence<axis = 0>(t)",
        "s = SplitToSequence(x) t = SequenceErase(s, zero) y = ConcatFromSequence<axis = 0>(t)",
        "s = SequenceEmpty() t = SequenceInsert(s, x) y = SequenceAt(t, i)",
        "s = SplitToSequence(x) c = SequenceLength(s) f = Cast<to = 1>(c) y = Mul(x, f)",
        "s = SequenceConstruct(x, z) c = SequenceLength(s) f = Cast<to = 1>(c) y = Mul(x, f)",
    ],
)
def test_sequences(body: str) -> None:
    used = {name: ARRAYS[name] for name in ARRAYS if name in body}
    proto = text_model(
        f"g (float[3,4] x, int64 i) => (float[a,b] y) {{ z = Neg(x) n = Exp(x) {body} }}", used
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert_equals_runtime(proto, {"x": normal(3, 4), "i": np.array(0)})


def test_known_sequences_leave_no_trace() -> None:
    module = assert_equals_runtime(
        text_model(
            """g (float[3,4] x) => (float[6,4] y) {
                z = Neg(x)
                s = SequenceConstruct(x, z)
                a = SequenceAt(s, zero)
                b = SequenceAt(s, last)
                t = SequenceConstruct(b, a)
                y = ConcatFromSequence<axis = 0>(t)
            }""",
            ARRAYS,
        ),
        {"x": normal(3, 4)},
    )
    assert "sequence" not in module.code
    assert "torch.cat([z, x], " in module.code


def test_gradients_pass_through_sequences() -> None:
    module = assert_equals_runtime(
        text_model(
            """g (float[3,4] x, int64 i) => (float[1,4] y) {
                h = MatMul(x, w)
                s = SplitToSequence(h)
                y = SequenceAt(s, i)
            }""",
            {"w": normal(4, 4)},
        ),
        {"x": normal(3, 4), "i": np.array(1)},
    )
    module(torch.from_numpy(normal(3, 4)), torch.tensor(1)).sum().backward()
    np.testing.assert_allclose(module.w.grad[:, 0], normal(3, 4)[1])


def test_sequence_map_through_its_body() -> None:
    proto = text_model(
        """g (float[3,4] x) => (float[3,4] y) {
            s = SplitToSequence(x)
            t = SequenceMap(s, x) <
                body = b (float[1,4] p, float[3,4] q) => (float[1,4] r) {
                    m = ReduceMax<axes = [0]>(q)
                    r = Sub(p, m)
                }
            >
            y = ConcatFromSequence<axis = 0>(t)
        }"""
    )
    assert_equals_runtime(proto, {"x": normal(3, 4)})


@pytest.mark.parametrize("given", ["Optional(x)", "Optional<type = float[3]>()"])
def test_optional_values(given: str) -> None:
    proto = text_model(
        f"""g (float[3] x) => (float[3] y, bool h) {{
            o = {given}
            h = OptionalHasElement(o)
            y = If(h) <
                then_branch = t () => (float[3] a) {{ a = OptionalGetElement(o) }},
                else_branch = e () => (float[3] b) {{ b = Neg(x) }}
            >
        }}"""
    )
    assert_equals_runtime(proto, {"x": normal(3)})
