"""Sampling from images at computed places, folding, and regions of interest."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, UnsupportedNode, register

_MODES = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


@register("GridSample", since=16)
def _grid_sample(op: Op) -> Result:
    mode = _MODES[op.attr("mode", "bilinear")]
    if mode == "bicubic" and op.rank() == 5:
        raise UnsupportedNode("cubic interpolation of volumes")
    settings = {
        "mode": mode,
        "padding_mode": op.attr("padding_mode", "zeros"),
        "align_corners": bool(op.attr("align_corners", 0)),
    }
    return op.call(F.grid_sample, op.tensor(0), op.tensor(1), **settings)


@register("AffineGrid", since=20)
def _affine_grid(op: Op) -> Result:
    align = bool(op.attr("align_corners", 0))
    return op.call(F.affine_grid, op.tensor(0), op.ints(1), align_corners=align)


def col2im(
    x: Tensor,
    size: list[int],
    block: list[int],
    dilation: list[int],
    pads: list[int],
    stride: list[int],
) -> Tensor:
    """Sum columns back into an image; x: (batch, channels * block, columns).

    Works for any number of spatial axes.
    """
    axes = len(size)
    padded = [n + pads[i] + pads[i + axes] for i, n in enumerate(size)]
    flat = torch.zeros(1, dtype=torch.long, device=x.device)
    for axis in range(axes):
        reach = dilation[axis] * (block[axis] - 1)
        inner = torch.arange(block[axis], device=x.device) * dilation[axis]
        outer = torch.arange(0, padded[axis] - reach, stride[axis], device=x.device)
        place = inner.reshape([-1 if i == axis else 1 for i in range(2 * axes)])
        place = place + outer.reshape([-1 if i == axes + axis else 1 for i in range(2 * axes)])
        flat = flat * padded[axis] + place
    channels = x.shape[1] // torch.Size(block).numel()
    values = x.reshape(x.shape[0], channels, -1)
    image = torch.zeros(
        *values.shape[:2], torch.Size(padded).numel(), dtype=x.dtype, device=x.device
    )
    image = image.index_add(2, flat.reshape(-1), values).reshape(*values.shape[:2], *padded)
    for axis in range(axes):
        image = image.narrow(2 + axis, pads[axis], size[axis])
    return image


@register("Col2Im", since=18)
def _col2im(op: Op) -> Result:
    axes = (op.shape(1) or (None,))[0]
    if axes is None:
        raise UnsupportedNode("the number of its spatial axes is not known")
    dilation, stride = op.attr("dilations", [1] * axes), op.attr("strides", [1] * axes)
    pads = op.attr("pads", [0] * (2 * axes))
    return op.call(col2im, op.tensor(0), op.ints(1), op.ints(2), dilation, pads, stride)


def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average of bilinear samples in each bin of each region; rois: (regions, 4), x first."""
    from torchvision.ops import roi_align as implementation

    boxes = torch.cat([batch_indices.to(rois.dtype).unsqueeze(1), rois], dim=1)
    return implementation(x, boxes, size, scale, sampling_ratio, aligned)


@register("RoiAlign", since=10)
def _roi_align(op: Op) -> Result:
    if op.attr("mode", "avg") != "avg":
        raise UnsupportedNode("mode 'max'")
    size = op.attr("output_height", 1), op.attr("output_width", 1)
    default = "output_half_pixel" if op.version < 16 else "half_pixel"
    aligned = op.attr("coordinate_transformation_mode", default) == "half_pixel"
    settings = size, op.attr("spatial_scale", 1.0), op.attr("sampling_ratio", 0), aligned
    return op.call(roi_align, op.tensor(0), op.tensor(1), op.tensor(2), *settings)


def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    pads: list[int],
    dilation: list[int],
) -> Tensor:
    """Two-dimensional deformable convolution."""
    from torchvision.ops import deform_conv2d

    height, width = pads[0], pads[1]
    geometry: dict[str, Any] = {"stride": stride, "padding": (height, width), "dilation": dilation}
    return deform_conv2d(x, offset, weight, bias, mask=mask, **geometry)


@register("DeformConv", since=19)
def _deform_conv(op: Op) -> Result:
    pads = op.attr("pads", [0] * 4)
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise UnsupportedNode("asymmetric pads, or other than two spatial axes")
    geometry = op.attr("strides", [1, 1]), pads, op.attr("dilations", [1, 1])
    operands = op.tensor(0), op.tensor(1), op.tensor(2), op.optional(3), op.optional(4)
    return op.call(deform_conv, *operands, *geometry)
