"""Reductions, and cumulative sums."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register

Axes = list[int] | None


def _empty(x: Tensor, axes: list[int]) -> bool:
    return any(x.shape[axis] == 0 for axis in axes)


def _filled(x: Tensor, axes: list[int], keepdim: bool, value: float | int | bool) -> Tensor:
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    if not keepdim:
        shape = [size for axis, size in enumerate(x.shape) if axis not in axes]
    return torch.full(shape, value, dtype=x.dtype, device=x.device)


def _lowest(x: Tensor) -> float | int | bool:
    if x.dtype == torch.bool:
        return False
    return -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min


def _highest(x: Tensor) -> float | int | bool:
    if x.dtype == torch.bool:
        return True
    return math.inf if x.is_floating_point() else torch.iinfo(x.dtype).max


def _max(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    if _empty(x, axes):
        return _filled(x, axes, keepdim, _lowest(x))
    return torch.amax(x, dim=axes, keepdim=keepdim)


def _min(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    if _empty(x, axes):
        return _filled(x, axes, keepdim, _highest(x))
    return torch.amin(x, dim=axes, keepdim=keepdim)


def _sum(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return torch.sum(x, dim=axes, keepdim=keepdim, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    if not x.is_floating_point() and not x.is_complex():
        count = math.prod(x.shape[axis] for axis in axes)
        return torch.div(_sum(x, axes, keepdim), count, rounding_mode="trunc")
    return torch.mean(x, dim=axes, keepdim=keepdim)


def _prod(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keepdim, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return _sum(x.abs(), axes, keepdim)


def _l2(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    squares = _sum_square(x, axes, keepdim)
    return squares.sqrt() if x.is_floating_point() else squares.double().sqrt().to(x.dtype)


def _sum_square(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return _sum(x * x, axes, keepdim)


def _log_sum(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return torch.log(_sum(x, axes, keepdim)).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    if _empty(x, axes):
        return _filled(x, axes, keepdim, -math.inf)
    values = x if x.is_floating_point() else x.double()
    return torch.logsumexp(values, dim=axes, keepdim=keepdim).to(x.dtype)


_KINDS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "L1": _l1,
    "L2": _l2,
    "LogSum": _log_sum,
    "LogSumExp": _log_sum_exp,
    "Max": _max,
    "Mean": _mean,
    "Min": _min,
    "Prod": _prod,
    "Sum": _sum,
    "SumSquare": _sum_square,
}


def reduce(x: Tensor, kind: str, axes: Axes, keepdim: bool, noop_with_empty_axes: bool) -> Tensor:
    """Reduce a tensor over axes.

    Args:
        x: Tensor of any shape.
        kind: What to compute, such as `Sum` or `LogSumExp`.
        axes: Axes, counted from the end if negative; None or none at all stands for every axis.
        keepdim: Whether reduced axes stay, with size 1.
        noop_with_empty_axes: Whether no axes means to reduce nothing.
    """
    if not axes:
        axes = [] if noop_with_empty_axes else list(range(x.ndim))
    axes = sorted({axis % x.ndim for axis in axes}) if x.ndim else []
    if not axes:
        element_wise = x.unsqueeze(0)
        return _KINDS[kind](element_wise, [0], False)
    return _KINDS[kind](x, axes, keepdim)


_DIRECT: dict[str, Callable[..., Any]] = {
    "Sum": torch.sum,
    "Mean": torch.mean,
    "Max": torch.amax,
    "Min": torch.amin,
}


@register(*[f"Reduce{kind}" for kind in _KINDS])
def _reduction(op: Op) -> Result:
    kind = op.node.op_type.removeprefix("Reduce")
    axes: Any = op.int_list(1, "axes")
    keepdim = bool(op.attr("keepdims", 1))
    noop = bool(op.attr("noop_with_empty_axes", 0))
    dims = _certain_dims(op, axes, keepdim, noop)
    direct = None if dims is None else _direct(op, kind, dims)
    if direct is not None:
        return direct
    return op.call(reduce, op.tensor(0), kind, axes, keepdim, noop)


def _certain_dims(op: Op, axes: Any, keepdim: bool, noop: bool) -> dict[str, Any] | None:
    """Axes as PyTorch's reductions of floats take them, None where they could mean others."""
    rank, sizes = op.rank(), op.shape() or ()
    if not (op.elem_type() and op.is_float()) or 0 in sizes:
        return None
    keep = {"keepdim": True} if keepdim else {}
    if axes is None or axes == []:
        if noop or (keepdim and rank is None):
            return None
        return {"dim": tuple(range(rank)), **keep} if rank and keepdim else {}
    if rank == 0 or not isinstance(axes, list) or not all(isinstance(a, int) for a in axes):
        return None
    return {"dim": tuple(axes), **keep}


def _direct(op: Op, kind: str, dims: dict[str, Any]) -> fx.Node | None:
    """A reduction of floats that PyTorch has, otherwise None."""
    x = op.tensor(0)
    if kind in _DIRECT:
        return op.call(_DIRECT[kind], x, **dims)
    if kind in ("L1", "L2"):
        return op.call(torch.linalg.vector_norm, x, *([1] if kind == "L1" else []), **dims)
    if kind == "SumSquare":
        return op.call(torch.sum, op.call(operator.mul, x, x), **dims)
    if kind == "LogSum":
        return op.call(torch.log, op.call(torch.sum, x, **dims))
    if kind == "LogSumExp" and dims:
        return op.call(torch.logsumexp, x, **dims)
    if kind == "Prod" and len(dims.get("dim", (0,))) == 1:
        return op.call(torch.prod, x, **{**dims, **({"dim": dims["dim"][0]} if dims else {})})
    return None


def cumulate(x: Tensor, kind: str, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """Cumulative `sum` or `prod` along an axis."""
    if reverse:
        x = x.flip(axis)
    if exclusive:
        neutral = torch.full_like(x.narrow(axis, 0, 1), 0 if kind == "sum" else 1)
        x = torch.cat([neutral, x.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    function = torch.cumsum if kind == "sum" else torch.cumprod
    result = function(x, dim=axis, dtype=x.dtype)
    return result.flip(axis) if reverse else result


@register("CumSum", since=11)
@register("CumProd", since=26)
def _cumulative(op: Op) -> Result:
    kind = op.node.op_type.removeprefix("Cum").lower()
    flags = bool(op.attr("exclusive", 0)), bool(op.attr("reverse", 0))
    return op.call(cumulate, op.tensor(0), kind, op.integer(1), *flags)
