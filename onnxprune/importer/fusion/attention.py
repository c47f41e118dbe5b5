"""Scaled dot-product attention that exporters write out."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from onnxprune.importer.fusion.pattern import Argument, Call, Either, Module, Number, Var
from onnxprune.importer.fusion.rule import Match, Rules
from onnxprune.importer.ops.dropout import Dropout
from onnxprune.importer.ops.dropped_attention import DroppedAttention

RULES = Rules()
"""Softmax of products of queries and keys, times values.

The scale may be on the products, on the queries, on the keys, or shared among them; a mask may be
added, or choose between the products and minus infinity; weights may be dropped. Newer exporters
write out that a query without any key gets zeros, which is what PyTorch's function gives it.
"""

_query, _key, _value = Var(), Var(), Var()
_scales = Number(), Number(), Number()
_axis = Argument()
_added, _kept, _excluded = Var(), Var(), Var()
_zero = Argument()
_products = Call(
    torch.matmul,
    Either((_query * _scales[0], _query)),
    Either((_key * _scales[1], _key)),
)
_scores = Either((_products * _scales[2], _products))
_weights = Call(
    F.softmax,
    Either(
        (
            _scores,
            _scores + _added,
            Call(torch.where, _kept, _scores, -math.inf),
            Call(torch.where, _excluded, -math.inf, _scores),
        )
    ),
    dim=_axis,
)
_guarded = Either((_weights, Call(torch.where, Call(torch.isnan, _weights), _zero, _weights)))
_dropout = Module(Dropout, _guarded)


@RULES.replace(Call(torch.matmul, _guarded, _value), Call(torch.matmul, _dropout, _value))
def _attention(match: Match) -> fx.Node | None:
    query, value = match[_query], match[_value]
    rank = match.rank(query)
    if rank is None or rank < 3 or match.rank(value) != rank or match.rank(match[_key]) != rank:
        return None
    if match[_axis] not in (-1, rank - 1) or not _mask_fits(match, rank) or not _is_guard(match):
        return None
    factors = [match.get(number) for number in _scales]
    scale = math.prod(factor for factor in factors if factor is not None)
    key, mask = _untransposed(match, rank), _mask(match)
    if match.get(_dropout) is not None:
        dropout = match.module(_dropout)
        module = DroppedAttention(dropout.ratio, dropout.training_mode)
        return match.in_place_of(_dropout, module, query, key, value, mask, _rounded(match, scale))
    arguments: dict[str, Any] = {} if mask is None else {"attn_mask": mask}
    if not _is_usual(match, scale):
        arguments["scale"] = _rounded(match, scale)
    return match.call(F.scaled_dot_product_attention, query, key, value, **arguments)


def _is_guard(match: Match) -> bool:
    """Whether weights that are not a number become 0, if anything."""
    zero = match.get(_zero)
    stored = match.stored(zero)
    if stored is not None and stored.numel() == 1 and not isinstance(stored, nn.Parameter):
        zero = stored.item()
    return zero is None or (isinstance(zero, int | float) and zero == 0)


def _mask_fits(match: Match, rank: int) -> bool:
    """Whether the mask, if there is one, broadcasts to the scores and not they to it."""
    masks = [match.get(mask) for mask in (_added, _kept, _excluded)]
    mask = next((mask for mask in masks if mask is not None), None)
    if mask is None:
        return True
    sizes = match.sizes(mask)
    if sizes is None or len(sizes) > rank:
        return False
    query, key = match.sizes(match[_query]) or (), match.sizes(match[_key]) or ()
    scores = (*query[:-1], key[-1])
    pairs = zip(sizes[::-1], scores[::-1], strict=False)
    return all(own in (None, 1) or size != 1 for own, size in pairs)


def _mask(match: Match) -> fx.Node | None:
    """What `F.scaled_dot_product_attention` takes for the mask."""
    if match.get(_excluded) is not None:
        return match.call(torch.logical_not, match[_excluded])
    return match.get(_added) or match.get(_kept)


_keys = Var()
_shape, _flat_shape = Argument(), Argument()
_flat = Call(
    torch.reshape, Call("permute", Call(torch.reshape, _keys, _flat_shape), 0, 2, 1), _shape
)
"""How the newer exporter of PyTorch transposes keys with several batch axes."""


def _untransposed(match: Match, rank: int) -> fx.Node:
    """The keys as (..., keys, size)."""
    key: fx.Node = match[_key]
    if key.op == "call_method" and key.target == "permute":
        axes = [axis % rank for axis in key.args[1:] if isinstance(axis, int)]
        if axes == [*range(rank - 2), rank - 1, rank - 2] and isinstance(key.args[0], fx.Node):
            return key.args[0]
    flat = match.another(_flat, key)
    if flat is not None and _transposes(flat, rank):
        keys: fx.Node = flat[_keys]
        return keys
    return match.method("transpose", key, -2, -1)


def _transposes(flat: Match, rank: int) -> bool:
    """Whether reshaping to three axes and back does nothing but exchange the last two."""
    keys, inner, outer = flat[_keys], flat[_flat_shape], flat[_shape]
    if flat.rank(keys) != rank or len(inner) != 3 or len(outer) != rank:
        return False
    axes = [*range(rank - 2), rank - 1, rank - 2]
    sizes = zip([*inner[1:], *outer], [rank - 2, rank - 1, *axes], strict=True)
    return inner[0] == -1 and all(flat.is_size(value, keys, axis) for value, axis in sizes)


def _is_usual(match: Match, scale: float) -> bool:
    """Whether the scale is 1 / sqrt(size), which goes without saying."""
    sizes = match.sizes(match[_query])
    size = sizes[-1] if sizes is not None else None
    return bool(size) and match.equal(scale * math.sqrt(size or 1), 1.0)


def _rounded(match: Match, scale: float) -> float:
    """The scale without the noise of float32, which a factor of the file is held in."""
    rounded = float(f"{scale:.7g}")
    return rounded if match.equal(rounded, scale) else scale
