"""Matrix products."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register

_FUSED_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


@register("MatMul")
def _matmul(op: Op) -> Result:
    if op.is_wide_unsigned():
        wide = [op.method("to", op.tensor(index), torch.int64) for index in (0, 1)]
        return op.method("to", op.call(torch.matmul, *wide), op.dtype(0))
    return op.call(torch.matmul, op.tensor(0), op.tensor(1))


@register("Einsum", since=12)
def _einsum(op: Op) -> Result:
    return op.call(torch.einsum, op.attr("equation").replace(" ", ""), *op.tensors())


def _scalar(op: Op, name: str) -> float | int:
    value = op.attr(name, 1.0)
    return int(value) if float(value).is_integer() else float(value)


@register("Gemm", since=7)
@register("FusedGemm", domain="com.microsoft")
def _gemm(op: Op) -> Result:
    alpha, beta = _scalar(op, "alpha"), _scalar(op, "beta")
    a, b = op.tensor(0), op.tensor(1)
    if op.attr("transA", 0):
        a = op.method("t", a)
    plain = alpha == 1 and beta == 1 and op.is_float()
    if plain and op.attr("transB", 0) and (not op.has(2) or op.rank(2) == 1):
        result = op.call(F.linear, a, b, *([op.tensor(2)] if op.has(2) else []))
    else:
        if op.attr("transB", 0):
            b = op.method("t", b)
        result = _affine(op, a, b, alpha, beta)
    return activated(op, result)


def _affine(op: Op, a: fx.Node, b: fx.Node, alpha: float, beta: float) -> fx.Node:
    if op.has(2) and beta != 0:
        factors = {} if alpha == 1 and beta == 1 else {"beta": beta, "alpha": alpha}
        return op.call(torch.addmm, op.tensor(2), a, b, **factors)
    result = op.call(torch.matmul, a, b)
    return result if alpha == 1 else op.call(operator.mul, result, alpha)


def activated(op: Op, result: fx.Node) -> fx.Node:
    """Apply the activation that a com.microsoft fused operator names."""
    name = op.attr("activation")
    if not name:
        return result
    if name == "LeakyRelu":
        return op.call(F.leaky_relu, result, op.attr("activation_alpha", 0.01))
    if name not in _FUSED_ACTIVATIONS:
        raise UnsupportedNode(f"activation {name!r}")
    return op.call(_FUSED_ACTIVATIONS[name], result)


def fused_matmul(a: Tensor, b: Tensor, alpha: float, trans_a: bool, trans_b: bool) -> Tensor:
    """`alpha * a @ b`, with the last two axes of either operand exchanged first."""
    if trans_a and a.ndim > 1:
        a = a.transpose(-1, -2)
    if trans_b and b.ndim > 1:
        b = b.transpose(-1, -2)
    product = torch.matmul(a, b)
    return product if alpha == 1.0 else product * alpha


@register("FusedMatMul", domain="com.microsoft")
def _fused(op: Op) -> Result:
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        raise UnsupportedNode("transposed batch axes")
    flags = bool(op.attr("transA", 0)), bool(op.attr("transB", 0))
    return op.call(fused_matmul, op.tensor(0), op.tensor(1), op.attr("alpha", 1.0), *flags)


def integer_matmul(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """Product of 8-bit matrices in int32, with zero points taken off first."""
    left, right = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        zero = a_zero.to(torch.int32)
        left = left - (zero.unsqueeze(-1) if zero.ndim == 1 and zero.numel() > 1 else zero)
    if b_zero is not None:
        right = right - b_zero.to(torch.int32)
    return torch.matmul(left, right)


@register("MatMulInteger", since=10)
def _matmul_integer(op: Op) -> Result:
    return op.call(integer_matmul, op.tensor(0), op.tensor(1), op.optional(2), op.optional(3))
