"""Products with a stored matrix."""

import torch
import torch.nn.functional as F
from torch import fx

from onnxprune.importer.fusion.pattern import Call, Either, Stored, Var
from onnxprune.importer.fusion.rule import Match, Rules

RULES = Rules()
"""`x @ weight + bias` for weights stored as (in, out), and as (out, in) behind a transpose.

On the CPU `F.linear` takes as long as a product and a sum; on a GPU the bias costs nothing more.
"""

_x = Var()
_in_out = Stored(2)
_out_in = Stored(2)
_bias = Stored(1)
_transposed = Either((Call("permute", _out_in, 1, 0), Call("t", _out_in)))


@RULES.replace(Call(torch.matmul, _x, _transposed) + _bias, Call(torch.matmul, _x, _in_out) + _bias)
def _affine(match: Match) -> fx.Node | None:
    rows, columns = match.sizes(match.get(_out_in) or match[_in_out]) or (None, None)
    out = rows if match.get(_out_in) else columns
    if match.sizes(match[_bias]) != (out,):
        return None
    weight = match.get(_out_in) or match.method("t", match[_in_out])
    return match.call(F.linear, match[_x], weight, match[_bias])


@RULES.replace(Call(torch.matmul, _x, _transposed))
def _product(match: Match) -> fx.Node:
    return match.call(F.linear, match[_x], match[_out_in])
