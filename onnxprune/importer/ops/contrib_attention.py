"""Attention of com.microsoft, which ONNX Runtime's transformer optimiser writes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.quantized_linear import scaled_integer_matmul
from onnxprune.importer.ops.standard import positive
from onnxprune.importer.registry import Result, UnsupportedNode, register

_FILTER_VALUE = -10000.0


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(batch, sequence, heads * size) to (batch, heads, sequence, size)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, sequence, size) to (batch, sequence, heads * size)."""
    return x.transpose(1, 2).flatten(2)


def key_padding_bias(mask: Tensor, batch: int, keys: int, filter_value: float) -> Tensor:
    """What a mask adds to the scores.

    Args:
        mask: (batch,) numbers of valid keys; (2 * batch,) ends and then starts of the valid keys;
            (batch, keys) or (batch, queries, keys) with 1 for valid and 0 for others.
        batch: Number of sequences.
        keys: Number of keys.
        filter_value: Added where a key is not valid.

    Returns:
        (batch, 1, queries or 1, keys).
    """
    if mask.ndim == 1:
        positions = torch.arange(keys, device=mask.device)
        valid = positions < mask[:batch].unsqueeze(1)
        if mask.shape[0] == 2 * batch:
            valid = valid & (positions >= mask[batch:].unsqueeze(1))
    else:
        valid = mask > 0
    if valid.ndim == 2:
        valid = valid.unsqueeze(1)
    return torch.where(valid.unsqueeze(1), 0.0, filter_value)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    score_bias: Tensor | None,
    causal: bool,
    scale: float | None,
    filter_value: float,
) -> Tensor:
    """Scaled dot-product attention with the masks that com.microsoft knows.

    Args:
        query: (batch, heads, queries, size); with a cache it stands at the end of the keys.
        key: (batch, heads, keys, size).
        value: (batch, heads, keys, value size).
        mask: As in `key_padding_bias`; None for all valid.
        score_bias: Added to the scores; broadcasts to (batch, heads, queries, keys).
        causal: Whether a query sees only the keys up to its own place.
        scale: Factor of the scores; None for 1 / sqrt(size).
        filter_value: Added to the scores of invalid keys.

    Returns:
        (batch, queries, heads * value size).
    """
    queries, keys = query.shape[2], key.shape[2]
    if causal and (queries != keys or mask is not None or score_bias is not None):
        places = torch.arange(queries, device=query.device).unsqueeze(1) + (keys - queries)
        later = torch.arange(keys, device=query.device) > places
        seen = torch.zeros_like(later, dtype=query.dtype)
        seen = seen.masked_fill(later, torch.finfo(query.dtype).min)
        score_bias = seen if score_bias is None else score_bias + seen
        causal = False
    if mask is not None:
        padding = key_padding_bias(mask, query.shape[0], keys, filter_value)
        score_bias = padding if score_bias is None else score_bias + padding
    result = F.scaled_dot_product_attention(
        query, key, value, attn_mask=score_bias, is_causal=causal, scale=scale
    )
    return merge_heads(result)


def packed_attention(
    projected: Tensor,
    mask: Tensor | None,
    past: Tensor | None,
    score_bias: Tensor | None,
    num_heads: int,
    sizes: list[int] | None,
    causal: bool,
    scale: float | None,
    filter_value: float,
) -> tuple[Tensor, Tensor]:
    """Attention on queries, keys and values that lie beside each other.

    Args:
        projected: (batch, sequence, query size + key size + value size).
        mask: As in `key_padding_bias`, over the keys of `past`, too.
        past: (2, batch, heads, past keys, size), earlier keys and values; None for none.
        score_bias: Added to the scores.
        num_heads: Number of heads.
        sizes: Sizes of queries, keys and values over all heads; None for equal ones.
        causal: Whether a query sees only the keys up to its own place.
        scale: Factor of the scores; None for 1 / sqrt(size).
        filter_value: Added to the scores of invalid keys.

    Returns:
        (batch, sequence, value size), and all keys and values in the form of `past`.
    """
    parts = projected.chunk(3, dim=-1) if sizes is None else projected.split(sizes, dim=-1)
    query, key, value = (split_heads(part, num_heads) for part in parts)
    if past is not None:
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
    result = masked_attention(query, key, value, mask, score_bias, causal, scale, filter_value)
    present = torch.stack([key, value]) if key.shape == value.shape else key
    return result, present


def _scale(op: Op) -> float | None:
    return op.attr("scale", 0.0) or None


def _refuse(op: Op, *attributes: str) -> None:
    for name in attributes:
        if op.attr(name, 0):
            raise UnsupportedNode(f"{name} = {op.attr(name)}")


def _refuse_inputs(op: Op, names: dict[int, str]) -> None:
    for index, name in names.items():
        if op.has(index):
            raise UnsupportedNode(f"input {name!r}")


def _packed(op: Op, projected: fx.Node, mask: int, past: int, score_bias: int | None) -> Result:
    _refuse(op, "do_rotary", "past_present_share_buffer")
    if op.rank(mask) == 4:
        raise UnsupportedNode("a mask of four dimensions")
    bias = None if score_bias is None else op.optional(score_bias)
    sizes = op.attr("qkv_hidden_sizes")
    settings = positive(op, "num_heads"), list(sizes) if sizes else None
    flags = bool(op.attr("unidirectional", 0)), _scale(op)
    filter_value = op.attr("mask_filter_value", _FILTER_VALUE)
    operands = projected, op.optional(mask), op.optional(past), bias
    result = op.call(packed_attention, *operands, *settings, *flags, filter_value)
    return op.unpack(result, len(op.node.output))


@register("Attention", domain=CONTRIB_DOMAIN)
def _attention(op: Op) -> Result:
    _refuse_inputs(op, {6: "past_sequence_length"})
    projected = op.call(torch.matmul, op.tensor(0), op.tensor(1))
    if op.has(2):
        projected = op.call(torch.add, projected, op.tensor(2))
    return _packed(op, projected, 3, 4, 5)


@register("QAttention", domain=CONTRIB_DOMAIN, trains=False)
def _quantized_attention(op: Op) -> Result:
    zeros = op.optional(6), op.optional(7)
    operands = op.tensor(0), op.tensor(1), op.tensor(3), op.tensor(4), *zeros, op.tensor(2)
    return _packed(op, op.call(scaled_integer_matmul, *operands), 5, 8, None)


def multi_head_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    score_bias: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    num_heads: int,
    causal: bool,
    scale: float | None,
    filter_value: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention on queries, keys and values that are projected already.

    Args:
        query: (batch, queries, heads * size); or (batch, sequence, heads, 3, size) with keys and
            values in it.
        key: (batch, keys, heads * size); (batch, heads, keys, size); (batch, keys, heads, 2, size)
            with the values in it; or None where the query holds it.
        value: (batch, keys, heads * value size), or (batch, heads, keys, value size).
        bias: Added to the queries, keys and values, beside each other; None for 0.
        mask: As in `key_padding_bias`.
        score_bias: Added to the scores.
        past_key: (batch, heads, past keys, size); None for none.
        past_value: (batch, heads, past keys, value size).
        num_heads: Number of heads.
        causal: Whether a query sees only the keys up to its own place.
        scale: Factor of the scores; None for 1 / sqrt(size).
        filter_value: Added to the scores of invalid keys.

    Returns:
        (batch, queries, heads * value size), and all keys and values, split into heads.
    """
    if query.ndim == 5:
        query, key, value = (part.flatten(2) for part in query.unbind(3))
    elif key is not None and key.ndim == 5:
        key, value = (part.flatten(2) for part in key.unbind(3))
    assert key is not None
    assert value is not None
    if bias is not None:
        query_size = query.shape[-1]
        query = query + bias[:query_size]
        if key.ndim == 3:
            key = key + bias[query_size : 2 * query_size]
            value = value + bias[2 * query_size :]
    query = split_heads(query, num_heads)
    key, value = (split_heads(t, num_heads) if t.ndim == 3 else t for t in (key, value))
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
    result = masked_attention(query, key, value, mask, score_bias, causal, scale, filter_value)
    return result, key, value


@register("MultiHeadAttention", domain=CONTRIB_DOMAIN)
def _multi_head_attention(op: Op) -> Result:
    _refuse_inputs(op, {8: "past_sequence_length", 9: "cache_indirection"})
    if any(op.used_outputs[3:]):
        raise UnsupportedNode("its output 'qk' is used")
    operands: list[Any] = [op.tensor(0), *(op.optional(index) for index in range(1, 8))]
    settings = positive(op, "num_heads"), bool(op.attr("unidirectional", 0)), _scale(op)
    filter_value = op.attr("mask_filter_value", _FILTER_VALUE)
    result = op.call(multi_head_attention, *operands, *settings, filter_value)
    return op.unpack(result, min(len(op.node.output), 3))
