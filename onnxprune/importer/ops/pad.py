"""Padding, also as other operators need it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register


def symmetric_padding(pads: Sequence[int]) -> list[int] | None:
    """One padding for each axis if begins and ends agree, otherwise None."""
    half = len(pads) // 2
    return list(pads[:half]) if list(pads[:half]) == list(pads[half:]) else None


def torch_pads(pads: Sequence[Any]) -> list[Any]:
    """Pads in PyTorch's order: the last axis first, begin and end beside each other."""
    half = len(pads) // 2
    return [pads[axis + side] for axis in range(half - 1, -1, -1) for side in (0, half)]


def same_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    upper: bool,
) -> list[int]:
    """Pads, all begins and then all ends, for outputs of `ceil(size / stride)`."""
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        missing = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        begins.append(missing // 2 if upper else missing - missing // 2)
        ends.append(missing - begins[-1])
    return begins + ends


def certain_same_pads(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], upper: bool
) -> list[int] | None:
    """`same_pads` if they are the same for every size, as with strides of 1, otherwise None."""
    if set(stride) != {1}:
        return None
    return same_pads([1] * len(kernel), kernel, stride, dilation, upper)


def pad_same(
    x: Tensor, kernel: list[int], stride: list[int], dilation: list[int], upper: bool
) -> Tensor:
    """Pad with zeros to an output of `ceil(size / stride)`; `upper` puts an odd one at the end."""
    return F.pad(x, torch_pads(same_pads(x.shape[2:], kernel, stride, dilation, upper)))


def pad_constant(
    x: Tensor, pads: list[int], axes: list[int] | None, value: float | Tensor | None
) -> Tensor:
    """Pad, or crop by negative pads, with one value."""
    fill = value.item() if isinstance(value, Tensor) else value
    return F.pad(x, torch_pads(_all_axes(pads, axes, x.ndim)), value=fill or 0)


def pad_by_index(x: Tensor, pads: list[int], axes: list[int] | None, mode: str) -> Tensor:
    """Pad along any axes with values of the tensor itself: `reflect`, `edge` or `wrap`."""
    full = _all_axes(pads, axes, x.ndim)
    for axis in range(x.ndim):
        begin, end, size = full[axis], full[axis + x.ndim], x.shape[axis]
        if begin == 0 and end == 0:
            continue
        index = torch.arange(-begin, size + end, device=x.device)
        if mode == "edge":
            index = index.clamp(0, size - 1)
        elif mode == "wrap":
            index = index.remainder(size)
        else:
            period = max(2 * (size - 1), 1)
            index = index.remainder(period)
            index = torch.where(index < size, index, period - index)
        x = x.index_select(axis, index)
    return x


def _all_axes(pads: list[int], axes: list[int] | None, rank: int) -> list[int]:
    if axes is None:
        return pads
    full = [0] * (2 * rank)
    for position, axis in enumerate(axes):
        full[axis % rank] = pads[position]
        full[axis % rank + rank] = pads[position + len(axes)]
    return full


@register("Pad")
def _pad(op: Op) -> Result:
    pads: Any = op.int_list(1, "pads" if op.version > 1 else "paddings")
    axes = op.ints(3) if op.has(3) else None
    mode = op.attr("mode", "constant")
    x = op.tensor(0)
    if mode != "constant":
        direct = _direct_pads(op, pads) if axes is None else None
        if direct is not None:
            return op.call(F.pad, x, direct, mode=_MODES[mode])
        return op.call(pad_by_index, x, pads, axes, mode)
    value: Any = op.attr("value", 0.0) if op.version < 11 else None
    if op.has(2):
        value = op.number(2) if op.number(2) is not None else op.tensor(2)
    if axes is None and isinstance(pads, list) and not isinstance(value, fx.Node):
        fill = {} if not value else {"value": value}
        return op.call(F.pad, x, _without_trailing_zeros(torch_pads(pads)), **fill)
    return op.call(pad_constant, x, pads, axes, value)


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _direct_pads(op: Op, pads: Any) -> list[int] | None:
    """Pads for `F.pad` if it can take values of the tensor for them, otherwise None.

    It pads all axes but the first one or two, by known sizes.
    """
    rank = op.rank()
    known = isinstance(pads, list) and all(isinstance(pad, int) and pad >= 0 for pad in pads)
    if not known or rank is None or not op.is_float():
        return None
    ordered = torch_pads(pads)
    for axes in (rank - 2, rank - 1):
        if 1 <= axes <= 3 and not any(ordered[2 * axes :]):
            return ordered[: 2 * axes]
    return None


def _without_trailing_zeros(pads: list[Any]) -> list[Any]:
    while len(pads) > 2 and pads[-1] == 0 and pads[-2] == 0:
        pads = pads[:-2]
    return pads
