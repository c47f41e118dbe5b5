"""Calls that do nothing, and changes of shape that have a name."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from onnxprune.importer.fusion.pattern import Argument, Call, Module, Var
from onnxprune.importer.fusion.rule import Match, Rules
from onnxprune.importer.ops.dropout import Dropout
from onnxprune.importer.values import TORCH_DTYPES

RULES = Rules()
"""Flatten, and casts, slices, pads, concatenations and dropout without an effect."""

_x = Var()
_argument = Argument()


@RULES.replace(Call(torch.reshape, _x, _argument))
def _flatten(match: Match) -> fx.Node | None:
    x, shape = match[_x], match[_argument]
    if not isinstance(shape, list | tuple) or len(shape) != 2 or shape[1] != -1:
        return None
    if (match.rank(x) or 0) < 2 or not match.is_size(shape[0], x, 0):
        return None
    return match.call(torch.flatten, x, 1)


@RULES.replace(Call("to", _x, _argument))
def _cast(match: Match) -> fx.Node | None:
    x_type = match[_x].meta.get("type")
    known = TORCH_DTYPES.get(x_type.tensor_type.elem_type) if x_type is not None else None
    return match[_x] if known is not None and known == match[_argument] else None


@RULES.replace(Call(operator.getitem, _x, _argument))
def _slice(match: Match) -> fx.Node | None:
    index = match[_argument]
    whole = isinstance(index, tuple) and all(_is_whole(item) for item in index)
    return match[_x] if whole else None


def _is_whole(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


@RULES.replace(Call(torch.cat, _argument, dim=Argument()))
def _concatenation(match: Match) -> fx.Node | None:
    parts = match[_argument]
    return parts[0] if isinstance(parts, list | tuple) and len(parts) == 1 else None


@RULES.replace(Call(F.pad, _x, _argument))
def _pad(match: Match) -> fx.Node | None:
    pads = match[_argument]
    return match[_x] if isinstance(pads, list) and not any(pads) else None


_dropout = Module(Dropout, _x)


@RULES.replace(_dropout)
def _no_dropout(match: Match) -> fx.Node | None:
    return match[_x] if match.module(_dropout).ratio == 0 else None
