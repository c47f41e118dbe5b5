"""Standard attention: one call of PyTorch's function where that does the same, else the body."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from onnxprune.importer import ImportedModel, load
from onnxprune.importer.ops.attention import causal_mask, padded_mask

from .helpers import node_model, normal, outputs, text_model

attend = F.scaled_dot_product_attention
BOOLS = np.random.default_rng(3).random((2, 1, 3, 5)) < 0.6
BOOLS[0, 0, 1], BOOLS[..., 0, 0] = False, True
MASKS = {
    "none": None,
    "bool": BOOLS,
    "float": np.where(BOOLS, normal(2, 4, 3, 5, seed=4), -np.inf).astype(np.float32),
    "short": BOOLS[..., :2],
    "short float": np.where(BOOLS, 0.5, -np.inf).astype(np.float32)[0, 0, :, :4],
}
PAST = {"past_key": normal(2, 2, 2, 8, seed=5), "past_value": normal(2, 2, 2, 6, seed=6)}


def split(kv_heads: int = 2, keys: int = 5) -> dict[str, np.ndarray | None]:
    """Queries, keys and values that are split into heads; 4 heads of queries."""
    return {
        "q": normal(2, 4, 3, 8),
        "k": normal(2, kv_heads, keys, 8, seed=1),
        "v": normal(2, kv_heads, keys, 6, seed=2),
    }


def packed(inputs: dict[str, np.ndarray | None]) -> dict[str, np.ndarray | None]:
    """The same with all heads beside each other."""
    return {
        name: None if x is None else np.moveaxis(x, 1, 2).reshape(*x[:, 0].shape[:2], -1)
        for name, x in inputs.items()
    }


def imported(
    inputs: dict[str, np.ndarray | None], count: int = 1, opset: int = 23, **attributes: Any
) -> ImportedModel:
    """Import a node with all of its inputs fed, and compare it with ONNX's reference."""
    proto, feed = node_model(
        "Attention", inputs, set(inputs), count, opset, domain="", **attributes
    )
    module = load(proto).eval()
    for actual, expected in zip(
        outputs(module, feed), ReferenceEvaluator(proto).run(None, feed), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    return module


def kwargs(module: ImportedModel) -> dict[str, Any]:
    (node,) = [node for node in module.graph.nodes if node.target is attend]
    return dict(node.kwargs)


def targets(module: ImportedModel) -> set[Any]:
    return {node.target for node in module.graph.nodes}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [0, 1])
def test_masks_with_shared_keys(mask: str, causal: int) -> None:
    module = imported({**split(), "mask": MASKS[mask]}, is_causal=causal)
    given = kwargs(module)
    assert given["enable_gqa"]
    assert ("attn_mask" in given) == (mask != "none")
    assert ("is_causal" in given) == (mask == "none" and causal == 1)
    assert (padded_mask in targets(module)) == mask.startswith("short")
    assert (causal_mask in targets(module)) == (mask != "none" and causal == 1)


@pytest.mark.parametrize("mask", ["none", "bool", "float", "short"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_past_and_what_comes_of_it(mask: str, causal: int, is_packed: bool) -> None:
    inputs = split(keys=3)
    heads = {"q_num_heads": 4, "kv_num_heads": 2} if is_packed else {}
    inputs = {**(packed(inputs) if is_packed else inputs), "mask": MASKS[mask], **PAST}
    module = imported(inputs, 3, is_causal=causal, **heads)
    assert attend in targets(module)


@pytest.mark.parametrize(("scale", "given"), [(None, None), (8**-0.5, None), (0.7, 0.7)])
@pytest.mark.parametrize("is_packed", [True, False])
def test_the_usual_scale_goes_without_saying(
    scale: float | None, given: float | None, is_packed: bool
) -> None:
    attributes: dict[str, Any] = {} if scale is None else {"scale": scale}
    inputs = split(kv_heads=4)
    if is_packed:
        inputs, attributes = packed(inputs), {**attributes, "q_num_heads": 4, "kv_num_heads": 4}
    assert kwargs(imported(inputs, **attributes)) == ({} if given is None else {"scale": given})


LEFT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"softcap": 2.0}),
    ({}, {"count": 4, "qk_matmul_output_mode": 1}),
    ({}, {"softmax_precision": onnx.TensorProto.DOUBLE}),
    (
        {"mask": None, "past_key": None, "past_value": None, "valid": np.array([2, 5])},
        {"opset": 24},
    ),
]


@pytest.mark.parametrize(("extra", "attributes"), LEFT, ids=["cap", "scores", "double", "valid"])
def test_what_pytorch_has_not_got_is_left_to_the_body(
    extra: dict[str, Any], attributes: dict[str, Any]
) -> None:
    module = imported({**split(kv_heads=4), **extra}, **attributes)
    assert attend not in targets(module)
    assert torch.matmul in targets(module)


def test_sizes_that_are_open() -> None:
    graph = """g (float[N,H,T,8] q, float[N,G,S,8] k, float[N,G,S,8] v, MASK m)
        => (float[N,H,T,8] y) { y = Attention<scale = 0.35355338>(q, k, v, m) }"""
    shapes = [(2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 8)]
    q, k, v = (torch.from_numpy(normal(*s, seed=i)) for i, s in enumerate(shapes))
    mask = torch.from_numpy(BOOLS)
    expected = attend(q, k, v, attn_mask=mask, enable_gqa=True)
    for sizes in ("N,1,T,S", "N,1,T,M"):
        module = load(text_model(graph.replace("MASK", f"bool[{sizes}]"), opset=23))
        torch.testing.assert_close(module(q, k, v, mask), expected)
        assert (padded_mask in targets(module)) == sizes.endswith("M")
        assert kwargs(module).keys() == {"attn_mask", "enable_gqa"}
    short = attend(q, k[:, :, :4], v[:, :, :4], attn_mask=mask[..., :4], enable_gqa=True)
    torch.testing.assert_close(module(q, k, v, mask[..., :4]), short)


def _leaves(inputs: dict[str, np.ndarray | None]) -> Iterator[Tensor]:
    for array in inputs.values():
        assert array is not None
        yield torch.from_numpy(array).requires_grad_(array.dtype == np.float32)


@pytest.mark.parametrize("mask", ["bool", "float"])
def test_gradients_where_a_query_has_no_key(mask: str) -> None:
    inputs = {**split(kv_heads=4), "mask": MASKS[mask]}
    proto, _ = node_model("Attention", inputs, set(inputs), opset=23, domain="")
    query, key, value, bias = _leaves(inputs)
    result = load(proto)(query, key, value, bias)
    assert not result[0, :, 1].any()
    result.square().sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    assert query.grad is not None
    assert not query.grad[0, :, 1].any()


def test_half_precision() -> None:
    inputs = {name: x.astype(np.float16) for name, x in split().items() if x is not None}
    proto, feed = node_model("Attention", {**inputs}, set(inputs), opset=23, domain="")
    (expected,) = ReferenceEvaluator(proto).run(None, feed)
    module = load(proto)
    (actual,) = outputs(module, feed)
    assert attend in targets(module)
    np.testing.assert_allclose(actual, expected, rtol=4e-3, atol=4e-3)
