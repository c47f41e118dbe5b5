"""Convolutions and matrix products of com.microsoft: fused, transposed, or of packed weights."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.activation import hard_sigmoid
from onnxprune.importer.ops.standard import as_standard, positive
from onnxprune.importer.registry import Result, UnsupportedNode, register

_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "Relu": F.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}
_PARAMETRISED: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "LeakyRelu": (F.leaky_relu, (0.01,)),
    "Clip": (torch.clamp, (float("-inf"), float("inf"))),
    "HardSigmoid": (hard_sigmoid, (0.2, 0.5)),
}
"""Function of an activation, and the defaults of its parameters."""


def _activated(op: Op, result: fx.Node) -> fx.Node:
    """Apply the activation that a fused node names."""
    name = op.attr("activation")
    if not name:
        return result
    if name in _ACTIVATIONS:
        return op.call(_ACTIVATIONS[name], result)
    if name not in _PARAMETRISED:
        raise UnsupportedNode(f"activation {name!r}")
    function, defaults = _PARAMETRISED[name]
    single = [op.attr("activation_alpha"), op.attr("activation_beta")]
    given = op.attr("activation_params") or [value for value in single if value is not None]
    return op.call(function, result, *given, *defaults[len(given) :])


@register("FusedConv", domain=CONTRIB_DOMAIN)
def _fused_conv(op: Op) -> Result:
    result = as_standard(op, "Conv", op.inputs[:3], op.input_types[:3])
    if op.has(3):
        result = op.call(torch.add, result, op.tensor(3))
    return _activated(op, result)


@register("NhwcConv", domain=CONTRIB_DOMAIN)
def _conv_with_channels_last(op: Op) -> Result:
    moved = [op.method("movedim", op.tensor(index), -1, 1) for index in (0, 1)]
    if not op.attr("kernel_shape"):
        raise UnsupportedNode("its kernel's shape is not known")
    result = as_standard(op, "Conv", [*moved, *op.inputs[2:3]], [None] * len(op.inputs))
    return op.method("movedim", result, 1, -1)


@register("FusedGemm", domain=CONTRIB_DOMAIN)
def _fused_gemm(op: Op) -> Result:
    return _activated(op, as_standard(op, "Gemm", op.inputs, op.input_types))


def fused_matmul(
    a: Tensor,
    b: Tensor,
    alpha: float,
    trans_a: bool,
    trans_b: bool,
    batch_a: bool = False,
    batch_b: bool = False,
) -> Tensor:
    """`alpha * a @ b` with rearranged operands.

    Args:
        a: (..., rows, inner).
        b: (..., inner, columns).
        alpha: Factor of the product.
        trans_a: Whether the last two axes of `a` are exchanged first.
        trans_b: The same for `b`.
        batch_a: Whether the first axis of `a` moves behind the next ones, up to the last but one,
            before that: (rows, batch..., inner) becomes (batch..., rows, inner).
        batch_b: The same for `b`.
    """
    if batch_a:
        a = a.movedim(0, -2)
    if batch_b:
        b = b.movedim(0, -2)
    if trans_a and a.ndim > 1:
        a = a.transpose(-1, -2)
    if trans_b and b.ndim > 1:
        b = b.transpose(-1, -2)
    product = torch.matmul(a, b)
    return product if alpha == 1.0 else product * alpha


@register("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=CONTRIB_DOMAIN)
def _fused_matmul(op: Op) -> Result:
    alpha = op.attr("alpha", 1.0)
    names = ("transA", "transB", "transBatchA", "transBatchB")
    trans_a, trans_b, *batches = (bool(op.attr(name, 0)) for name in names)
    rank = op.rank(1) or 0
    if not trans_a and (not trans_b or rank > 1) and not any(batches):
        b = op.tensor(1)
        if trans_b:
            b = op.method("permute", b, *range(rank - 2), rank - 1, rank - 2)
        product = op.call(torch.matmul, op.tensor(0), b)
        return _activated(op, product if alpha == 1.0 else op.call(operator.mul, product, alpha))
    flags = (trans_a, trans_b, *(batches if any(batches) else ()))
    return _activated(op, op.call(fused_matmul, op.tensor(0), op.tensor(1), alpha, *flags))


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Small unsigned integers that lie in bytes, the lowest bits first, along the last axis."""
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    parts = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return parts.flatten(-2)


def dequantize_packed(
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    bits: int,
    block_size: int,
    rows: int,
    columns: int,
) -> Tensor:
    """The weight that blocks of small integers stand for.

    Args:
        packed: (rows, blocks, bytes in a block), the integers of each block packed into bytes.
        scales: One for each block, row by row.
        zero_points: One for each block, packed as the weight is, or as real numbers; None for half
            of the range.
        bits: Bits of an integer.
        block_size: Columns in a block.
        rows: Rows of the weight.
        columns: Columns of the weight.

    Returns:
        (rows, columns).
    """
    blocks = -(-columns // block_size)
    levels = unpack_bits(packed.reshape(rows, -1), bits)[:, :columns].to(scales.dtype)
    block_of_column = torch.arange(columns, device=packed.device) // block_size
    zeros: Tensor | float = float(2 ** (bits - 1))
    if zero_points is not None:
        per_block = zero_points.reshape(rows, -1)
        if not zero_points.is_floating_point():
            per_block = unpack_bits(per_block, bits)[:, :blocks].to(scales.dtype)
        zeros = per_block[:, block_of_column]
    return (levels - zeros) * scales.reshape(rows, blocks)[:, block_of_column]


@register("MatMulNBits", domain=CONTRIB_DOMAIN, trains=False)
def _matmul_of_packed_weight(op: Op) -> Result:
    bits = op.attr("bits", 4)
    if bits not in (2, 4, 8):
        raise UnsupportedNode(f"bits = {bits}")
    if op.attr("weight_prepacked", 0):
        raise UnsupportedNode("weight_prepacked")
    if op.has(4):
        raise UnsupportedNode("input 'g_idx'")
    sizes = bits, *(positive(op, name) for name in ("block_size", "N", "K"))
    operands = op.tensor(1), op.tensor(2), op.optional(3)
    weight = op.call(dequantize_packed, *operands, *sizes)
    bias = [op.tensor(5)] if op.has(5) else []
    return op.call(F.linear, op.tensor(0), weight, *bias)
