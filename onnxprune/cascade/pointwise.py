"""Functions of single elements, as far as constants go through them.

A constant is a number in float64; NaN stands for what varies with the input.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.cascade.flow import Pointwise

_LARGEST = 65504.0
"""The largest float16; beyond it a constant may be infinite where the model runs."""

_SELU = (1.6732632423543772, 1.0507009873554805)


def constant(step: Pointwise, inputs: Sequence[Tensor]) -> Tensor:
    """The output of a step where its inputs are constants, NaN where it varies.

    Args:
        step: The step.
        inputs: Constants (float64) of profiles that can be broadcast.
    """
    return settled(FUNCTIONS[step.function](*inputs, *step.settings))


def settled(values: Tensor) -> Tensor:
    """Values, with NaN in place of those that are not safely finite."""
    return values.where(values.abs() <= _LARGEST, math.nan)


def unused(step: Pointwise, inputs: Sequence[Tensor], which: int) -> Tensor | None:
    """Where an input makes no difference because another one is exactly zero; None for nowhere.

    Args:
        step: The step.
        inputs: Constants of its inputs.
        which: Index of the input in question.
    """
    if step.function == "mul":
        other_zero = inputs[1 - which] == 0
        # Of two zeros one has to stay what it is.
        return other_zero if which == 1 else other_zero & (inputs[0] != 0)
    if step.function == "batch_norm" and which in (0, 3, 4):
        return inputs[1] == 0
    return None


def _mul(a: Tensor, b: Tensor) -> Tensor:
    product = a * b
    return product.masked_fill((a == 0) | (b == 0), 0.0)


def _batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    result = (x - mean) / (var + eps).sqrt() * scale + shift
    return torch.where(scale == 0, shift, result)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    a, b, condition = torch.broadcast_tensors(a, b, condition)
    return torch.where(a == b, a, math.nan)


def _same(*inputs: Tensor) -> Tensor:
    first, *others = torch.broadcast_tensors(*inputs)
    for other in others:
        first = torch.where(first == other, first, math.nan)
    return first


def _unknown(*inputs: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(*(value.shape for value in inputs))
    return torch.full((), math.nan, dtype=torch.float64).expand(shape)


def _padding(x: Tensor, fill: float) -> Tensor:
    return torch.where(x == fill, x, math.nan)


def _hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _gelu(x: Tensor, approximate: float) -> Tensor:
    return F.gelu(x, approximate="tanh" if approximate else "none")


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "identity": lambda x: x,
    "unknown": _unknown,
    "same": _same,
    "padding": _padding,
    "batch_norm": _batch_norm,
    "add": torch.add,
    "sub": torch.sub,
    "mul": _mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "pow": torch.pow,
    "where": _where,
    "prelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "scale": lambda x, factor: x * factor,
    "clip": lambda x, low, high: x.clamp(low, high),
    "relu": torch.relu,
    "leaky_relu": lambda x, alpha: torch.where(x < 0, alpha * x, x),
    "elu": lambda x, alpha: torch.where(x < 0, alpha * torch.expm1(x), x),
    "celu": lambda x, alpha: torch.where(x < 0, alpha * torch.expm1(x / alpha), x),
    "selu": lambda x, alpha=_SELU[0], gamma=_SELU[1]: (
        gamma * torch.where(x < 0, alpha * torch.expm1(x), x)
    ),
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "silu": lambda x, alpha: x * torch.sigmoid(alpha * x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "gelu": _gelu,
    "erf": torch.erf,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "neg": torch.neg,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
}
"""By name; each takes constants and the settings of a step.

Only continuous functions are here: of others (`Floor`, comparisons) a rounding error of the
constant could change the result, so they are `unknown`. `padding` is what a constant becomes where
another one is padded, `same` what is joined from several.
"""
