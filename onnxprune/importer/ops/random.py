"""Random tensors, drawn from PyTorch's generator."""

import torch
from onnx import TensorProto
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register
from onnxprune.importer.values import TORCH_DTYPES


def normal(
    shape: list[int], mean: float, scale: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, dtype=dtype, device=device) * scale + mean


def uniform(
    shape: list[int], low: float, high: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Uniformly distributed numbers."""
    return torch.rand(shape, dtype=dtype, device=device) * (high - low) + low


def normal_like(x: Tensor, mean: float, scale: float, dtype: torch.dtype | None) -> Tensor:
    """Normally distributed numbers in a tensor's shape."""
    return normal(list(x.shape), mean, scale, dtype or x.dtype, x.device)


def uniform_like(x: Tensor, low: float, high: float, dtype: torch.dtype | None) -> Tensor:
    """Uniformly distributed numbers in a tensor's shape."""
    return uniform(list(x.shape), low, high, dtype or x.dtype, x.device)


def _limits(op: Op) -> tuple[float, float]:
    if "Normal" in op.node.op_type:
        return op.attr("mean", 0.0), op.attr("scale", 1.0)
    return op.attr("low", 0.0), op.attr("high", 1.0)


@register("RandomNormal", "RandomUniform")
def _random(op: Op) -> Result:
    function = normal if op.node.op_type == "RandomNormal" else uniform
    dtype = TORCH_DTYPES[op.attr("dtype", 1)]
    return op.call(function, op.attr("shape"), *_limits(op), dtype, op.builder.device())


@register("RandomNormalLike", "RandomUniformLike")
def _random_like(op: Op) -> Result:
    function = normal_like if op.node.op_type == "RandomNormalLike" else uniform_like
    dtype = TORCH_DTYPES.get(op.attr("dtype", 0))
    return op.call(function, op.tensor(0), *_limits(op), dtype)


def multinomial(log_odds: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Classes drawn with the given unnormalised log-probabilities; (batch, count)."""
    return torch.multinomial(torch.softmax(log_odds, dim=-1), count, replacement=True).to(dtype)


@register("Multinomial", since=7)
def _multinomial(op: Op) -> Result:
    dtype = TORCH_DTYPES[op.attr("dtype", TensorProto.INT32)]
    return op.call(multinomial, op.tensor(0), op.attr("sample_size", 1), dtype)


def bernoulli(probability: Tensor, dtype: torch.dtype | None) -> Tensor:
    """1 with the given probabilities, otherwise 0."""
    return torch.bernoulli(probability).to(dtype or probability.dtype)


@register("Bernoulli", since=15)
def _bernoulli(op: Op) -> Result:
    return op.call(bernoulli, op.tensor(0), TORCH_DTYPES.get(op.attr("dtype", 0)))
