"""Convolutions."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.ops.pad import (
    certain_same_pads,
    pad_same,
    symmetric_padding,
    torch_pads,
)
from onnxprune.importer.registry import Result, UnsupportedNode, register

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def kernel_shape(op: Op, weight: int = 1) -> list[int]:
    """Spatial sizes of the kernel, from the attribute or the weight.

    Raises:
        UnsupportedNode: They are not known, or there are more than three.
    """
    kernel = op.attr("kernel_shape") or list((op.shape(weight) or ())[2:])
    if not kernel or any(size is None for size in kernel):
        raise UnsupportedNode("its kernel's shape is not known")
    if len(kernel) > 3:
        raise UnsupportedNode(f"{len(kernel)} spatial axes")
    return list(kernel)


@register("Conv")
def _conv(op: Op) -> Result:
    kernel = kernel_shape(op)
    axes = len(kernel)
    stride, dilation = op.attr("strides", [1] * axes), op.attr("dilations", [1] * axes)
    x, padding = padded(op, op.tensor(0), kernel, stride, dilation)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    operands = _given((x, op.tensor(1), None if _is_zero(op, 2) else op.optional(2)))
    return op.call(_CONV[axes], *operands, **_unusual(geometry, op.attr("group", 1)))


def _is_zero(op: Op, index: int) -> bool:
    """Whether an input is a constant zero, which exporters write for no bias."""
    return op.is_constant(index) and not op.constant(index).any()


_USUAL = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


def _unusual(geometry: dict[str, list[int]], groups: int) -> dict[str, Any]:
    """Arguments that differ from their defaults."""
    arguments: dict[str, Any] = {} if groups == 1 else {"groups": groups}
    for name, sizes in geometry.items():
        if set(sizes) != {_USUAL[name]}:
            arguments[name] = tuple(sizes)
    return arguments


def _given(operands: tuple[fx.Node | None, ...]) -> list[fx.Node]:
    return [operand for operand in operands if operand is not None]


def padded(
    op: Op, x: fx.Node, kernel: list[int], stride: list[int], dilation: list[int]
) -> tuple[fx.Node, list[int]]:
    """The input with what padding the convolution cannot do itself, and the padding it can."""
    auto_pad = op.attr("auto_pad", "NOTSET")
    pads = [0] * (2 * len(kernel))
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        upper = auto_pad == "SAME_UPPER"
        certain = certain_same_pads(kernel, stride, dilation, upper)
        if certain is None:
            return op.call(pad_same, x, kernel, stride, dilation, upper), pads
        pads = certain
    elif auto_pad != "VALID":
        pads = op.attr("pads", pads)
    symmetric = symmetric_padding(pads)
    if symmetric is None:
        return op.call(F.pad, x, torch_pads(pads)), [0] * len(kernel)
    return x, symmetric


def conv_transpose_to(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    dilation: list[int],
    groups: int,
    output_padding: list[int],
    output_shape: list[int] | None,
    upper: bool,
) -> Tensor:
    """Transposed convolution to a given output size, or to `size * stride`.

    Args:
        x: (batch, in_channels, spatial...).
        weight: (in_channels, out_channels // groups, spatial...).
        bias: (out_channels,), or None.
        stride: One for each spatial axis, as are `dilation` and `output_padding`.
        dilation: Distance of kernel elements.
        groups: Number of channel groups.
        output_padding: Added at the end of each axis.
        output_shape: Spatial sizes of the output; None for `size * stride`.
        upper: Whether an odd surplus is taken off at the end.
    """
    sizes = x.shape[2:]
    target = output_shape or [n * s for n, s in zip(sizes, stride, strict=True)]
    pads_begin, pads_end = [], []
    for axis, size in enumerate(sizes):
        extent = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        surplus = (size - 1) * stride[axis] + output_padding[axis] + extent - target[axis]
        begin = max(surplus // 2 if upper else surplus - surplus // 2, 0)
        pads_begin.append(begin)
        pads_end.append(surplus - begin)
    pads = pads_begin + pads_end
    return cropped_conv_transpose(x, weight, bias, stride, dilation, groups, output_padding, pads)


def cropped_conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    dilation: list[int],
    groups: int,
    output_padding: list[int],
    pads: list[int],
) -> Tensor:
    """Transposed convolution whose ends are cropped by different amounts.

    Args:
        x: (batch, in_channels, spatial...).
        weight: (in_channels, out_channels // groups, spatial...).
        bias: (out_channels,), or None.
        stride: One for each spatial axis, as are `dilation` and `output_padding`.
        dilation: Distance of kernel elements.
        groups: Number of channel groups.
        output_padding: Added at the end of each axis.
        pads: All begins, then all ends; negative ones pad.
    """
    full = _CONV_TRANSPOSE[x.ndim - 2](
        x, weight, None, tuple(stride), 0, 0, groups, tuple(dilation)
    )
    axes = len(stride)
    crop = [-pad for pad in pads[:axes]]
    crop += [out - pad for out, pad in zip(output_padding, pads[axes:], strict=True)]
    full = F.pad(full, torch_pads(crop))
    return full if bias is None else full + bias.reshape(-1, *[1] * axes)


@register("ConvTranspose")
def _conv_transpose(op: Op) -> Result:
    axes = len(kernel_shape(op))
    stride, dilation = op.attr("strides", [1] * axes), op.attr("dilations", [1] * axes)
    output_padding, groups = op.attr("output_padding", [0] * axes), op.attr("group", 1)
    operands = (op.tensor(0), op.tensor(1), op.optional(2))
    auto_pad = op.attr("auto_pad", "NOTSET")
    output_shape = op.attr("output_shape")
    if output_shape or auto_pad.startswith("SAME"):
        output_shape = output_shape[-axes:] if output_shape else None
        upper = auto_pad == "SAME_UPPER"
        target = (output_shape, upper)
        return op.call(
            conv_transpose_to, *operands, stride, dilation, groups, output_padding, *target
        )
    pads = [0] * (2 * axes) if auto_pad == "VALID" else op.attr("pads", [0] * (2 * axes))
    padding = symmetric_padding(pads)
    fits = all(out < max(s, d) for out, s, d in zip(output_padding, stride, dilation, strict=True))
    if padding is None or not fits:
        return op.call(
            cropped_conv_transpose, *operands, stride, dilation, groups, output_padding, pads
        )
    geometry = {"stride": stride, "padding": padding, "output_padding": output_padding}
    geometry["dilation"] = dilation
    return op.call(_CONV_TRANSPOSE[axes], *_given(operands), **_unusual(geometry, groups))
