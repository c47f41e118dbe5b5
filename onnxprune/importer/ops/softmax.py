"""Softmax and its relatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register

_FUNCTIONS = {"Softmax": F.softmax, "LogSoftmax": F.log_softmax}


def hardmax(x: Tensor, dim: int) -> Tensor:
    """1 at the first largest element along an axis, 0 elsewhere."""
    index = torch.argmax(x, dim=dim, keepdim=True)
    return torch.zeros_like(x).scatter(dim, index, 1)


@register("Softmax", "LogSoftmax", since=13)
def _softmax(op: Op) -> Result:
    return op.call(_FUNCTIONS[op.node.op_type], op.tensor(0), dim=op.attr("axis", -1))


@register("Hardmax", since=13)
def _hard_max(op: Op) -> Result:
    return op.call(hardmax, op.tensor(0), op.attr("axis", -1))


def flattened_softmax(x: Tensor, axis: int) -> Tensor:
    """Softmax over all axes from `axis` on."""
    axis = axis % max(x.ndim, 1)
    return F.softmax(x.flatten(axis), dim=-1).reshape(x.shape)


def flattened_log_softmax(x: Tensor, axis: int) -> Tensor:
    """Logarithm of the softmax over all axes from `axis` on."""
    axis = axis % max(x.ndim, 1)
    return F.log_softmax(x.flatten(axis), dim=-1).reshape(x.shape)


def flattened_hardmax(x: Tensor, axis: int) -> Tensor:
    """Hardmax over all axes from `axis` on."""
    axis = axis % max(x.ndim, 1)
    return hardmax(x.flatten(axis), -1).reshape(x.shape)


_FLATTENED = {
    "Softmax": flattened_softmax,
    "LogSoftmax": flattened_log_softmax,
    "Hardmax": flattened_hardmax,
}


@register("Softmax", "LogSoftmax", "Hardmax", until=13)
def _softmax_of_flattened(op: Op) -> Result:
    axis, rank = op.attr("axis", 1), op.rank()
    if rank is not None and axis in (rank - 1, -1):
        return op.call(_FUNCTIONS.get(op.node.op_type, hardmax), op.tensor(0), dim=axis)
    return op.call(_FLATTENED[op.node.op_type], op.tensor(0), axis)
