"""Activation functions."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register

_PLAIN: dict[str, Callable[..., Any]] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
}


@register(*_PLAIN)
def _plain(op: Op) -> Result:
    return op.call(_PLAIN[op.node.op_type], op.tensor(0))


@register("LeakyRelu")
def _leaky_relu(op: Op) -> Result:
    return op.call(F.leaky_relu, op.tensor(0), op.attr("alpha", 0.01))


@register("Elu")
def _elu(op: Op) -> Result:
    return op.call(F.elu, op.tensor(0), op.attr("alpha", 1.0))


@register("Celu", since=12)
def _celu(op: Op) -> Result:
    return op.call(F.celu, op.tensor(0), op.attr("alpha", 1.0))


def selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """Scaled ELU with any constants."""
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


@register("Selu")
def _scaled_elu(op: Op) -> Result:
    alpha = op.attr("alpha", 1.67326319217681884765625)
    gamma = op.attr("gamma", 1.05070102214813232421875)
    return op.call(selu, op.tensor(0), alpha, gamma)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """max(0, min(1, alpha * x + beta))."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


@register("HardSigmoid")
def _hard_sigmoid(op: Op) -> Result:
    alpha, beta = op.attr("alpha", 0.2), op.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return op.call(F.hardsigmoid, op.tensor(0))
    return op.call(hard_sigmoid, op.tensor(0), alpha, beta)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """`x` above `alpha`, otherwise 0."""
    return torch.where(x > alpha, x, 0.0)


@register("ThresholdedRelu", since=10)
def _thresholded(op: Op) -> Result:
    return op.call(thresholded_relu, op.tensor(0), op.attr("alpha", 1.0))


def shrink(x: Tensor, bias: float, threshold: float) -> Tensor:
    """Move values toward zero by `bias`; those within the threshold become 0."""
    moved = torch.where(x < -threshold, x + bias, torch.where(x > threshold, x - bias, 0))
    return moved.to(x.dtype)


@register("Shrink", since=9)
def _shrink(op: Op) -> Result:
    return op.call(shrink, op.tensor(0), op.attr("bias", 0.0), op.attr("lambd", 0.5))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Leaky ReLU with a slope that broadcasts to `x`."""
    return torch.where(x < 0, (slope * x).to(x.dtype), x)


@register("PRelu", since=7)
def _parametric_relu(op: Op) -> Result:
    return op.call(prelu, op.tensor(0), op.tensor(1))


@register("Gelu", since=20)
@register("Gelu", domain="com.microsoft")
def _gelu(op: Op) -> Result:
    return op.call(F.gelu, op.tensor(0), approximate=op.attr("approximate", "none"))


def swish(x: Tensor, alpha: float) -> Tensor:
    """X * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@register("Swish", since=24)
def _swish(op: Op) -> Result:
    alpha = op.attr("alpha", 1.0)
    return op.call(F.silu, op.tensor(0)) if alpha == 1.0 else op.call(swish, op.tensor(0), alpha)


@register("QuickGelu", domain="com.microsoft")
def _quick_gelu(op: Op) -> Result:
    return op.call(swish, op.tensor(0), op.attr("alpha", 1.702))


@register("BiasGelu", "FastGelu", domain="com.microsoft")
def _biased_gelu(op: Op) -> Result:
    x = op.tensor(0)
    if op.has(1):
        x = op.call(torch.add, x, op.tensor(1))
    approximate = "tanh" if op.node.op_type == "FastGelu" else "none"
    return op.call(F.gelu, x, approximate=approximate)
