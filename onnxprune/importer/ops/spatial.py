"""Sampling from images at computed places, folding, and regions of interest."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.ops.pad import symmetric_padding, torch_pads
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


def roi_align_max(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Largest weighted corner of the bilinear samples in each bin, as ONNX defines it."""
    regions = [
        _max_of_samples(x[int(image)], corners * scale, size, sampling_ratio, aligned)
        for image, corners in zip(batch_indices, rois, strict=True)
    ]
    return torch.stack(regions) if regions else x.new_zeros(0, x.shape[1], *size)


def _max_of_samples(
    plane: Tensor, corners: Tensor, size: tuple[int, int], sampling_ratio: int, aligned: bool
) -> Tensor:
    left, top, right, bottom = (corners - (0.5 if aligned else 0.0)).unbind()
    places, grids = [], []
    for start, end, bins in ((top, bottom, size[0]), (left, right, size[1])):
        extent = end - start if aligned else (end - start).clamp(min=1)
        samples = sampling_ratio or max(int(torch.ceil(extent / bins)), 1)
        steps = torch.arange(bins * samples, device=plane.device) + 0.5
        places.append(start + steps * (extent / (bins * samples)))
        grids.append(samples)
    rows = _corner_weights(places[0], plane.shape[1])
    columns = _corner_weights(places[1], plane.shape[2])
    products = [
        plane[:, i][:, :, j] * (w_i.unsqueeze(1) * w_j) for i, w_i in rows for j, w_j in columns
    ]
    largest = torch.stack(products).amax(0)
    return largest.reshape(-1, size[0], grids[0], size[1], grids[1]).amax((2, 4))


def _corner_weights(places: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two neighbours of each place and their weights, which are 0 far outside."""
    inside = ((places >= -1) & (places <= size)).to(places.dtype)
    clamped = places.clamp(0, size - 1)
    low = clamped.long()
    fraction = clamped - low
    return [(low, (1 - fraction) * inside), ((low + 1).clamp(max=size - 1), fraction * inside)]


@register("RoiAlign", since=10)
def _roi_align(op: Op) -> Result:
    pool = roi_align if op.attr("mode", "avg") == "avg" else roi_align_max
    size = op.attr("output_height", 1), op.attr("output_width", 1)
    default = "output_half_pixel" if op.version < 16 else "half_pixel"
    aligned = op.attr("coordinate_transformation_mode", default) == "half_pixel"
    settings = size, op.attr("spatial_scale", 1.0), op.attr("sampling_ratio", 0), aligned
    return op.call(pool, op.tensor(0), op.tensor(1), op.tensor(2), *settings)


def max_roi_pool(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """Maximum in each bin of each region; rois: (regions, 5), the image and two corners."""
    from torchvision.ops import roi_pool

    return roi_pool(x, rois, size, scale)


@register("MaxRoiPool")
def _max_roi_pool(op: Op) -> Result:
    size, scale = tuple(op.attr("pooled_shape")), op.attr("spatial_scale", 1.0)
    return op.call(max_roi_pool, op.tensor(0), op.tensor(1), size, scale)


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

    padding = symmetric_padding(pads)
    if padding is None:
        x, padding = F.pad(x, torch_pads(pads)), [0, 0]
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    return deform_conv2d(x, offset, weight, bias, mask=mask, **geometry)


@register("DeformConv", since=19)
def _deform_conv(op: Op) -> Result:
    pads = op.attr("pads", [0] * 4)
    if len(pads) != 4:
        raise UnsupportedNode("other than two spatial axes")
    geometry = op.attr("strides", [1, 1]), pads, op.attr("dilations", [1, 1])
    operands = op.tensor(0), op.tensor(1), op.tensor(2), op.optional(3), op.optional(4)
    return op.call(deform_conv, *operands, *geometry)
