"""Activation functions that exporters write out."""

import math

import torch
import torch.nn.functional as F
from torch import fx

from onnxprune.importer.fusion.pattern import Call, Either, Number, Var
from onnxprune.importer.fusion.rule import Match, Rules
from onnxprune.importer.ops.activation import swish

RULES = Rules()
"""GELU, SiLU and its scaled form, Mish, softplus, hard sigmoid, hard swish and ReLU6."""

_x = Var()
_alpha = Number()
_cubic = Either((Call(torch.pow, _x, 3) * 0.044715, _x * _x * _x * 0.044715))
_quadratic = Either((Call(torch.pow, _x, 2) * 0.044715, _x * _x * 0.044715))
_sqrt_2_pi = math.sqrt(2 / math.pi)


@RULES.replace(_x * (Call(torch.erf, _x / math.sqrt(2)) + 1) * 0.5)
def _gelu(match: Match) -> fx.Node:
    return match.call(F.gelu, match[_x])


@RULES.replace(
    _x * (Call(torch.tanh, (_x + _cubic) * _sqrt_2_pi) + 1) * 0.5,
    _x * (Call(torch.tanh, _x * (_quadratic + 1) * _sqrt_2_pi) + 1) * 0.5,
)
def _tanh_gelu(match: Match) -> fx.Node:
    return match.call(F.gelu, match[_x], approximate="tanh")


@RULES.replace(_x * Call(torch.sigmoid, _x))
def _silu(match: Match) -> fx.Node:
    return match.call(F.silu, match[_x])


@RULES.replace(_x * Call(torch.sigmoid, _x * _alpha))
def _swish(match: Match) -> fx.Node:
    if match[_alpha] == 1:
        return match.call(F.silu, match[_x])
    return match.call(swish, match[_x], match[_alpha])


_softplus = Either((Call(F.softplus, _x), Call(torch.log, Call(torch.exp, _x) + 1)))


@RULES.replace(_x * Call(torch.tanh, _softplus))
def _mish(match: Match) -> fx.Node:
    return match.call(F.mish, match[_x])


@RULES.replace(Call(torch.log, Call(torch.exp, _x) + 1))
def _softplus_of(match: Match) -> fx.Node:
    return match.call(F.softplus, match[_x])


@RULES.replace(
    _x * Call(torch.clamp, _x + 3, min=0, max=6) / 6,
    _x * Call(torch.clamp, _x / 6 + 0.5, min=0, max=1),
    _x * Call(F.hardsigmoid, _x),
)
def _hard_swish(match: Match) -> fx.Node:
    return match.call(F.hardswish, match[_x])


@RULES.replace(
    Call(torch.clamp, _x + 3, min=0, max=6) / 6,
    Call(torch.clamp, _x / 6 + 0.5, min=0, max=1),
)
def _hard_sigmoid_of(match: Match) -> fx.Node:
    return match.call(F.hardsigmoid, match[_x])


@RULES.replace(Call(torch.clamp, _x, min=0, max=6))
def _relu6(match: Match) -> fx.Node | None:
    return match.call(F.relu6, match[_x]) if match.is_float(match[_x]) else None
