"""Rotary position embedding, and the grouped-query attention of com.microsoft that uses it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.contrib_attention import merge_heads, split_heads
from onnxprune.importer.ops.standard import positive
from onnxprune.importer.registry import Result, UnsupportedNode, register


def rotate(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs of elements by angles that grow with the position.

    Args:
        x: (batch, heads, sequence, size).
        positions: (batch or 1, sequence).
        cos: (positions, rotated size // 2); elements beyond the rotated size stay as they are.
        sin: The same.
        interleaved: Whether pairs lie beside each other, not half the rotated size apart.
    """
    half = cos.shape[-1]
    rotated, rest = x[..., : 2 * half], x[..., 2 * half :]
    c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated[..., :half], rotated[..., half:]
    turned = [first * c - second * s, second * c + first * s]
    if interleaved:
        return torch.cat([torch.stack(turned, dim=-1).flatten(-2), rest], dim=-1)
    return torch.cat([*turned, rest], dim=-1)


def rotary_embedding(
    x: Tensor,
    position_ids: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    interleaved: bool,
) -> Tensor:
    """Rotary embedding of (batch, sequence, heads * size) or (batch, heads, sequence, size).

    Args:
        x: Queries or keys.
        position_ids: (1,), the position of the first element; or (batch, sequence).
        cos: (positions, rotated size // 2).
        sin: The same.
        num_heads: Number of heads; 0 where the caches tell it.
        interleaved: Whether pairs lie beside each other.
    """
    heads = x
    if x.ndim == 3:
        count = num_heads or x.shape[-1] // (2 * cos.shape[-1])
        heads = split_heads(x, count)
    positions = position_ids
    if positions.ndim == 1:
        steps = torch.arange(heads.shape[2], device=x.device)
        positions = (steps + position_ids).unsqueeze(0)
    result = rotate(heads, positions, cos, sin, interleaved)
    return merge_heads(result) if x.ndim == 3 else result


@register("RotaryEmbedding", domain=CONTRIB_DOMAIN)
def _rotary_embedding(op: Op) -> Result:
    if op.attr("is_packed_batching", 0):
        raise UnsupportedNode("is_packed_batching")
    if op.attr("scale", 1.0) != 1.0:
        raise UnsupportedNode(f"scale = {op.attr('scale')}")
    operands = [op.tensor(index) for index in range(4)]
    flags = op.attr("num_heads", 0), bool(op.attr("interleaved", 0))
    return op.call(rotary_embedding, *operands, *flags)


def grouped_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last_keys: Tensor,
    total: int,
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    kv_heads: int,
    scale: float | None,
    window: int,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention in which several query heads share the keys and values of one head.

    Args:
        query: (batch, sequence, heads * size), or with keys and values beside the queries.
        key: (batch, sequence, kv_heads * size); None where the query holds it.
        value: The same.
        past_key: (batch, kv_heads, past, size), of which each sequence has filled a part.
        past_value: The same.
        last_keys: (batch,), index of the last key of each sequence.
        total: Number of keys of the longest sequence.
        cos: Cache of the rotary embedding; None for no rotation.
        sin: The same.
        num_heads: Number of query heads.
        kv_heads: Number of key and value heads.
        scale: Factor of the scores; None for 1 / sqrt(size).
        window: Number of keys that a query sees, its own included; negative for all.
        interleaved: Whether pairs of the rotary embedding lie beside each other.

    Returns:
        (batch, sequence, heads * size), and all keys and values, split into heads.
    """
    if key is None or value is None:
        size = query.shape[-1] // (num_heads + 2 * kv_heads)
        query, key, value = query.split([num_heads * size, kv_heads * size, kv_heads * size], -1)
    heads = split_heads(query, num_heads)
    fresh = [split_heads(key, kv_heads), split_heads(value, kv_heads)]
    steps = torch.arange(heads.shape[2], device=query.device)
    valid = last_keys.reshape(-1).to(torch.long) + 1
    first = (valid - steps.numel()).clamp(min=0)
    places = first.unsqueeze(1) + steps
    if cos is not None and sin is not None:
        heads = rotate(heads, places, cos, sin, interleaved)
        fresh[0] = rotate(fresh[0], places, cos, sin, interleaved)
    length = max(total, 0 if past_key is None else past_key.shape[2])
    index = places[:, None, :, None].expand_as(fresh[0])
    present = []
    for past, new in zip((past_key, past_value), fresh, strict=True):
        buffer = new.new_zeros(*new.shape[:2], length, new.shape[3])
        if past is not None:
            buffer = torch.cat([past, buffer[:, :, past.shape[2] :]], dim=2)
        present.append(buffer.scatter(2, index, new))
    order = torch.arange(length, device=query.device)
    seen = order <= places.unsqueeze(-1)
    if window > 0:
        seen = seen & (order > places.unsqueeze(-1) - window)
    repeats = num_heads // kv_heads
    keys, values = (part.repeat_interleave(repeats, dim=1) for part in present)
    result = F.scaled_dot_product_attention(
        heads, keys, values, attn_mask=seen.unsqueeze(1), scale=scale
    )
    return merge_heads(result), present[0], present[1]


_LATER_INPUTS = {
    9: "position_ids",
    10: "attention_bias",
    11: "head_sink",
    12: "k_scale",
    13: "v_scale",
    14: "q_norm_weight",
    15: "k_norm_weight",
}


@register("GroupQueryAttention", domain=CONTRIB_DOMAIN)
def _grouped_query_attention(op: Op) -> Result:
    for name in ("softcap", "smooth_softmax", "qk_output", "sliding_window_cache"):
        if op.attr(name, 0) not in (0, -1):
            raise UnsupportedNode(f"{name} = {op.attr(name)}")
    for index, name in _LATER_INPUTS.items():
        if op.has(index):
            raise UnsupportedNode(f"input {name!r}")
    if not op.attr("causal", 1):
        raise UnsupportedNode("causal = 0")
    operands = [op.tensor(0), *(op.optional(index) for index in range(1, 5)), op.tensor(5)]
    caches = [op.optional(7), op.optional(8)] if op.attr("do_rotary", 0) else [None, None]
    heads = positive(op, "num_heads"), positive(op, "kv_num_heads")
    settings = op.attr("scale", 0.0) or None, op.attr("local_window_size", -1)
    interleaved = bool(op.attr("rotary_interleaved", 0))
    result = op.call(
        grouped_query_attention,
        *operands,
        op.integer(6),
        *caches,
        *heads,
        *settings,
        interleaved,
    )
    return op.unpack(result, min(len(op.node.output), 3))
