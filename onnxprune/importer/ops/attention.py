"""Scaled dot-product attention of the ONNX standard."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.ops.contrib_attention import merge_heads, split_heads
from onnxprune.importer.registry import LeftToBody, Result, register
from onnxprune.importer.values import HALF_DTYPES

_QUERY, _KEY, _VALUE, _MASK, _PAST_KEY, _PAST_VALUE, _VALID_KEYS = range(7)
_SCORES = 3
"""Output with the scores before or after some step, which a fused function has not got."""


def padded_mask(mask: Tensor, keys: int) -> Tensor:
    """A mask for all keys: those beyond its end are left out.

    Args:
        mask: (..., at most keys), added to the scores or True where a key counts.
        keys: Number of keys.
    """
    missing = keys - mask.shape[-1]
    if missing == 0:
        return mask
    return F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -math.inf)


def causal_mask(query: Tensor, key: Tensor, past_keys: int, mask: Tensor | None = None) -> Tensor:
    """A mask by which queries see the past keys, and of their own block those up to their place.

    Args:
        query: (..., queries, size).
        key: (..., keys, size).
        past_keys: How many keys come before the first query's own.
        mask: Another mask to combine with, added to the scores or True where a key counts.
    """
    ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
    seen = ones.tril(past_keys)
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else torch.where(seen, mask, -math.inf)


@register("Attention", since=23)
def _attention(op: Op) -> Result:
    rank = op.rank(_QUERY)
    if rank not in (3, 4) or not _is_plain(op):
        raise LeftToBody
    query, key, value = op.tensor(_QUERY), op.tensor(_KEY), op.tensor(_VALUE)
    if rank == 3:
        query = op.call(split_heads, query, op.attr("q_num_heads"))
        key, value = (op.call(split_heads, x, op.attr("kv_num_heads")) for x in (key, value))
    if op.has(_PAST_KEY):
        key = op.call(torch.cat, [op.tensor(_PAST_KEY), key], dim=2)
        value = op.call(torch.cat, [op.tensor(_PAST_VALUE), value], dim=2)
    settings = _settings(op, query, key, rank)
    result = op.call(F.scaled_dot_product_attention, query, key, value, **settings)
    return [op.call(merge_heads, result) if rank == 3 else result, key, value]


def _is_plain(op: Op) -> bool:
    """Whether the node does nothing that PyTorch's function does not."""
    elem_type = _held(op.elem_type(_QUERY))
    operands = [i for i in (_KEY, _VALUE, _PAST_KEY, _PAST_VALUE) if op.has(i)]
    heads = [op.attr(name, 0) for name in ("q_num_heads", "kv_num_heads")]
    windows = [op.attr(name, -1) for name in ("left_window_size", "right_window_size")]
    return (
        elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
        and all(_held(op.elem_type(index)) == elem_type for index in operands)
        and (not op.has(_MASK) or _held(op.elem_type(_MASK)) in (elem_type, TensorProto.BOOL))
        and _held(op.attr("softmax_precision", elem_type)) == elem_type
        and (min(heads) > 0 or op.rank(_QUERY) == 4)
        and max(windows) < 0
        and op.attr("softcap", 0.0) == 0
        and op.attr("scale", 1.0) > 0
        and op.has(_PAST_KEY) == op.has(_PAST_VALUE)
        and not op.has(_VALID_KEYS)
        and not any(op.used_outputs[_SCORES:])
    )


def _held(elem_type: int) -> int:
    """The type in which a tensor of a type is held."""
    return TensorProto.FLOAT if elem_type in HALF_DTYPES else elem_type


def _settings(op: Op, query: fx.Node, key: fx.Node, rank: int) -> dict[str, Any]:
    """Keyword arguments that are not as PyTorch takes them to be anyway."""
    settings: dict[str, Any] = {}
    causal, mask = op.attr("is_causal", 0) == 1, op.optional(_MASK)
    if mask is not None and not _covers_all_keys(op, rank):
        mask = op.call(padded_mask, mask, op.method("size", key, 2))
    if causal and mask is None and not op.has(_PAST_KEY):
        settings["is_causal"] = True
    elif causal:
        past = op.method("size", op.tensor(_PAST_KEY), 2) if op.has(_PAST_KEY) else 0
        mask = op.call(causal_mask, query, key, past, *([] if mask is None else [mask]))
    if mask is not None:
        settings["attn_mask"] = mask
    heads, size = _heads_and_size(op, rank)
    scale = op.attr("scale")
    if scale is not None and not (size and math.isclose(scale, size**-0.5, rel_tol=1e-6)):
        settings["scale"] = scale
    if None in heads or heads[0] != heads[1]:
        settings["enable_gqa"] = True
    return settings


def _covers_all_keys(op: Op, rank: int) -> bool:
    """Whether the file says that the mask has an element for each key."""
    size = _dimension(op, _MASK, -1)
    return bool(size) and not op.has(_PAST_KEY) and size == _dimension(op, _KEY, rank - 2)


def _dimension(op: Op, index: int, axis: int) -> int | str | None:
    """A size as a number or by its name."""
    value_type = op.input_types[index]
    if not op.rank(index) or value_type is None:
        return None
    dimension = value_type.tensor_type.shape.dim[axis]
    return dimension.dim_value or dimension.dim_param


def _heads_and_size(op: Op, rank: int) -> tuple[list[int | None], int | None]:
    """Numbers of heads of queries and keys, and the size of a head, as far as known."""
    query, key = op.shape(_QUERY) or (None,) * rank, op.shape(_KEY) or (None,) * rank
    if rank == 4:
        return [query[1], key[1]], query[3]
    heads = op.attr("q_num_heads")
    return [heads, op.attr("kv_num_heads")], query[2] // heads if query[2] else None
