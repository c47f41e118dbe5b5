"""Attention of com.microsoft against ONNX Runtime's kernels."""

from typing import Any

import numpy as np
import pytest

from onnxprune.errors import UnsupportedModelError
from onnxprune.importer import load

from .helpers import assert_equals_runtime, node_model, normal, outputs, runtime_outputs

B, S, HEADS, SIZE = 2, 5, 2, 4
HIDDEN = HEADS * SIZE


def ints(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.int32)


PADDING = ints([1, 1, 1, 1, 0], [1, 1, 1, 0, 0])
MASKS = {
    "none": None,
    "of keys": PADDING,
    "of queries and keys": np.stack([PADDING[0] * np.tri(5), np.tri(5)]).astype(np.int32),
    "lengths": ints(4, 3),
    "ends and starts": ints(4, 5, 1, 0),
}


def attention_inputs(sizes: tuple[int, int, int] = (8, 8, 8)) -> dict[str, np.ndarray | None]:
    return {
        "x": normal(B, S, 6),
        "w": normal(6, sum(sizes), seed=1),
        "b": normal(sum(sizes), seed=2),
    }


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_packed_attention_masks(mask: str, causal: int) -> None:
    inputs = {**attention_inputs(), "mask": MASKS[mask]}
    proto, feed = node_model("Attention", inputs, num_heads=HEADS, unidirectional=causal)
    assert_equals_runtime(proto, feed)


@pytest.mark.parametrize("causal", [0, 1])
def test_packed_attention_with_a_past(causal: int) -> None:
    inputs = {
        **attention_inputs(),
        "mask": np.ones((B, S + 3), dtype=np.int32),
        "past": normal(2, B, HEADS, 3, SIZE, seed=3),
    }
    proto, feed = node_model(
        "Attention", inputs, {"x", "past"}, 2, num_heads=HEADS, unidirectional=causal, scale=0.3
    )
    assert_equals_runtime(proto, feed)


@pytest.mark.parametrize("shape", [(B, HEADS, S, S), (1, HEADS, S, S), (1, 1, S, S)])
def test_packed_attention_with_a_bias_of_the_scores(shape: tuple[int, ...]) -> None:
    inputs = {**attention_inputs(), "mask": PADDING, "past": None, "bias": normal(*shape, seed=4)}
    proto, feed = node_model("Attention", inputs, {"x", "bias"}, num_heads=HEADS)
    assert_equals_runtime(proto, feed)


def test_packed_attention_with_unequal_sizes() -> None:
    proto, feed = node_model(
        "Attention", attention_inputs((8, 8, 12)), num_heads=2, qkv_hidden_sizes=[8, 8, 12]
    )
    module = assert_equals_runtime(proto, feed)
    assert set(module.tensor_names.values()) == {"w", "b"}


def test_filter_value_of_a_mask() -> None:
    inputs = {**attention_inputs(), "mask": PADDING}
    proto, feed = node_model("Attention", inputs, num_heads=HEADS, mask_filter_value=-1.5)
    assert_equals_runtime(proto, feed)


@pytest.mark.parametrize(
    ("attributes", "extra", "reason"),
    [
        ({"do_rotary": 1}, {}, "do_rotary = 1"),
        ({"num_heads": 0}, {}, "num_heads = 0"),
        ({}, {"mask": np.ones((B, 1, S, S), dtype=np.int32)}, "a mask of four dimensions"),
    ],
)
def test_what_packed_attention_does_not_do(
    attributes: dict[str, int], extra: dict[str, np.ndarray], reason: str
) -> None:
    inputs = {**attention_inputs(), **extra}
    proto, _ = node_model("Attention", inputs, **{"num_heads": HEADS, **attributes})
    with pytest.raises(UnsupportedModelError, match=f"Attention: {reason}"):
        load(proto)


def heads(*names: str, keys: int = S) -> dict[str, np.ndarray | None]:
    sizes = {"q": S, "k": keys, "v": keys}
    return {n: normal(B, sizes[n], HIDDEN, seed=i) for i, n in enumerate(names)}


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(
    "inputs",
    [
        heads("q", "k", "v"),
        {**heads("q", "k", "v", keys=7), "b": normal(3 * HIDDEN, seed=5)},
        {**heads("q", "k", "v"), "b": None, "mask": PADDING},
        {**heads("q", "k", "v"), "b": None, "mask": None, "sb": normal(1, HEADS, S, S, seed=6)},
        {
            "q": normal(B, S, HIDDEN),
            "k": normal(B, HEADS, 7, SIZE, seed=1),
            "v": normal(B, HEADS, 7, SIZE, seed=2),
        },
    ],
    ids=["plain", "bias", "mask", "score bias", "split keys"],
)
def test_multi_head_attention(inputs: dict[str, np.ndarray | None], causal: int) -> None:
    keys = [7 in a.shape for a in inputs.values() if a is not None]
    if causal and any(keys):
        return
    feeds = {name for name, array in inputs.items() if array is not None}
    proto, feed = node_model(
        "MultiHeadAttention", inputs, feeds, num_heads=HEADS, unidirectional=causal
    )
    assert_equals_runtime(proto, feed)


def test_packed_keys_are_unpacked() -> None:
    """ONNX Runtime has no CPU kernel for these forms."""
    parts = heads("q", "k", "v")
    apart, _ = node_model("MultiHeadAttention", parts, set(parts), num_heads=HEADS)
    split = {name: array.reshape(B, S, HEADS, SIZE) for name, array in parts.items()}
    wanted = outputs(load(apart).eval(), parts)[0]
    together = {"qkv": np.stack([split["q"], split["k"], split["v"]], axis=3)}
    keys_together = {"q": parts["q"], "kv": np.stack([split["k"], split["v"]], axis=3)}
    for packed in (together, keys_together):
        proto, feed = node_model("MultiHeadAttention", packed, set(packed), num_heads=HEADS)
        np.testing.assert_allclose(outputs(load(proto).eval(), feed)[0], wanted, atol=1e-6)


def test_multi_head_attention_with_a_past() -> None:
    inputs = {
        **heads("q", "k", "v"),
        **dict.fromkeys(("b", "mask", "sb")),
        "past_k": normal(B, HEADS, 3, SIZE, seed=7),
        "past_v": normal(B, HEADS, 3, SIZE, seed=8),
    }
    feeds = {name for name, array in inputs.items() if array is not None}
    proto, feed = node_model("MultiHeadAttention", inputs, feeds, 3, num_heads=HEADS)
    assert_equals_runtime(proto, feed)


def cache(seed: int) -> np.ndarray:
    return np.cos(normal(16, SIZE // 2, seed=seed))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("shape", [(B, S, HIDDEN), (B, HEADS, S, SIZE)])
@pytest.mark.parametrize("positions", [np.array([2]), np.arange(2 * S).reshape(2, S)])
def test_rotary_embedding(positions: np.ndarray, shape: tuple[int, ...], interleaved: int) -> None:
    inputs = {"x": normal(*shape), "p": positions, "cos": cache(1), "sin": cache(2)}
    proto, feed = node_model("RotaryEmbedding", inputs, {"x", "p"}, interleaved=interleaved)
    assert_equals_runtime(proto, feed)


def test_partial_rotary_embedding() -> None:
    inputs = {
        "x": normal(B, S, 16),
        "p": np.array([0]),
        "cos": cache(1),
        "sin": cache(2),
    }
    proto, feed = node_model("RotaryEmbedding", inputs, num_heads=2, rotary_embedding_dim=SIZE)
    assert_equals_runtime(proto, feed)


GROUPED = {"num_heads": 4, "kv_num_heads": 2}


@pytest.mark.parametrize("attributes", [{}, {"local_window_size": 2}, {"scale": 0.7}])
@pytest.mark.parametrize("packed", [False, True])
def test_grouped_query_attention_on_a_prompt(packed: bool, attributes: dict[str, Any]) -> None:
    size = 8
    inputs: dict[str, np.ndarray | None] = {
        "q": normal(B, S, (8 if packed else 4) * size),
        "k": None if packed else normal(B, S, 2 * size, seed=1),
        "v": None if packed else normal(B, S, 2 * size, seed=2),
        "past_k": None,
        "past_v": None,
        "last": ints(S - 1, S - 1),
        "total": np.array(S, dtype=np.int32),
    }
    feeds = {name for name, array in inputs.items() if array is not None}
    proto, feed = node_model("GroupQueryAttention", inputs, feeds, 3, **GROUPED, **attributes)
    assert_equals_runtime(proto, feed)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("last", [(6, 6), (6, 4)])
def test_grouped_query_attention_on_the_next_word(last: tuple[int, int], interleaved: int) -> None:
    size, past = 16, 6
    angles = normal(32, size // 2, seed=3)
    inputs: dict[str, np.ndarray | None] = {
        "q": normal(B, 1, 4 * size),
        "k": normal(B, 1, 2 * size, seed=1),
        "v": normal(B, 1, 2 * size, seed=2),
        "past_k": normal(B, 2, past, size, seed=4),
        "past_v": normal(B, 2, past, size, seed=5),
        "last": ints(*last),
        "total": np.array(past + 1, dtype=np.int32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
    }
    attributes = {"do_rotary": 1, "rotary_interleaved": interleaved, **GROUPED}
    feeds = set(inputs) - {"cos", "sin"}
    proto, feed = node_model("GroupQueryAttention", inputs, feeds, 3, **attributes)
    wanted, actual = runtime_outputs(proto, feed), outputs(load(proto).eval(), feed)
    np.testing.assert_allclose(actual[0], wanted[0], atol=1e-5)
    for ours, theirs in zip(actual[1:], wanted[1:], strict=True):
        assert ours.shape == theirs.shape
        for row, end in enumerate(last):
            np.testing.assert_allclose(
                ours[row, :, : end + 1], theirs[row, :, : end + 1], atol=1e-5
            )
