"""Matrix products."""

import operator

import torch
import torch.nn.functional as F
from torch import fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register


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


@register("Gemm")
def _gemm(op: Op) -> Result:
    alpha, beta = _scalar(op, "alpha"), _scalar(op, "beta")
    a, b = op.tensor(0), op.tensor(1)
    if op.attr("transA", 0):
        a = op.method("t", a)
    trans_b = bool(op.attr("transB", 0))
    plain = alpha == 1 and beta == 1 and op.is_float()
    biased = op.has(2) and op.rank(2) == 1
    if plain and (biased or (trans_b and not op.has(2))):
        weight = b if trans_b else op.method("t", b)
        return op.call(F.linear, a, weight, *([op.tensor(2)] if biased else []))
    if trans_b:
        b = op.method("t", b)
    return _affine(op, a, b, alpha, beta)


def _affine(op: Op, a: fx.Node, b: fx.Node, alpha: float, beta: float) -> fx.Node:
    if op.has(2) and beta != 0:
        factors = {} if alpha == 1 and beta == 1 else {"beta": beta, "alpha": alpha}
        return op.call(torch.addmm, op.tensor(2), a, b, **factors)
    result = op.call(torch.matmul, a, b)
    return result if alpha == 1 else op.call(operator.mul, result, alpha)
