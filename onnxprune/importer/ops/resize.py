"""Resize and Upsample.

Where `torch.nn.functional.interpolate` computes the same, it is called. Every other combination is
separable, so that each axis is resized by a matrix of interpolation weights.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register


@dataclass(frozen=True)
class _Axis:
    """Geometry of one resized axis."""

    size: int
    new_size: int
    scale: float
    start: float
    end: float


def source_coordinates(axis: _Axis, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Place in the input of each output position, by coordinate transformation mode."""
    position = torch.arange(axis.new_size, dtype=dtype, device=device)
    if mode == "asymmetric":
        return position / axis.scale
    if mode == "align_corners":
        return position * ((axis.size - 1) / (axis.new_size - 1) if axis.new_size > 1 else 0.0)
    if mode == "pytorch_half_pixel" and axis.new_size == 1:
        return torch.full_like(position, -0.5)
    if mode == "tf_half_pixel_for_nn":
        return (position + 0.5) / axis.scale
    if mode == "tf_crop_and_resize":
        span = axis.end - axis.start
        if axis.new_size > 1:
            step = span * (axis.size - 1) / (axis.new_size - 1)
            return axis.start * (axis.size - 1) + position * step
        return torch.full_like(position, 0.5 * (axis.start + axis.end) * (axis.size - 1))
    places = (position + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        adjustment = axis.new_size / (axis.scale * axis.size)
        places = places + axis.size / 2 * (1 - adjustment)
    return places


def nearest_index(places: Tensor, mode: str, size: int) -> Tensor:
    """Input position that each place is rounded to."""
    if mode == "round_prefer_floor":
        rounded = torch.ceil(places - 0.5)
    elif mode == "round_prefer_ceil":
        rounded = torch.floor(places + 0.5)
    else:
        rounded = torch.floor(places) if mode == "floor" else torch.ceil(places)
    return rounded.long().clamp(0, size - 1)


def _rounding(mode: str, axis: _Axis) -> str:
    """The nearest mode; in version 10 it depends on whether an axis shrinks."""
    if mode != _VERSION_10:
        return mode
    return "ceil" if axis.scale < 1 else "floor"


_VERSION_10 = "ceil_or_floor"


def _kernel(distance: Tensor, mode: str, cubic_a: float) -> Tensor:
    distance = distance.abs()
    if mode == "linear":
        return (1 - distance).clamp(min=0)
    near = ((cubic_a + 2) * distance - (cubic_a + 3)) * distance**2 + 1
    far = ((cubic_a * distance - 5 * cubic_a) * distance + 8 * cubic_a) * distance - 4 * cubic_a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def weight_matrix(
    places: Tensor,
    axis: _Axis,
    mode: str,
    cubic_a: float,
    antialias: bool,
    exclude_outside: bool,
) -> Tensor:
    """Interpolation weights, (new_size, size)."""
    stretch = min(axis.scale, 1.0) if antialias else 1.0
    radius = math.ceil((1 if mode == "linear" else 2) / stretch)
    offsets = torch.arange(-radius, radius + 2, device=places.device)
    taps = torch.floor(places).long().unsqueeze(1) + offsets
    weights = _kernel((taps - places.unsqueeze(1)) * stretch, mode, cubic_a)
    if exclude_outside:
        weights = torch.where((taps >= 0) & (taps < axis.size), weights, 0.0)
    if exclude_outside or antialias:
        weights = weights / weights.sum(dim=1, keepdim=True)
    matrix = torch.zeros(places.numel(), axis.size, dtype=places.dtype, device=places.device)
    return matrix.scatter_add(1, taps.clamp(0, axis.size - 1), weights)


@dataclass(frozen=True)
class ResizeSettings:
    """Attributes of a Resize node, by their ONNX names."""

    mode: str = "nearest"
    coordinate_transformation_mode: str = "half_pixel"
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    extrapolation_value: float = 0.0
    antialias: bool = False
    keep_aspect_ratio_policy: str = "stretch"


def _numbers(values: Any) -> list[float] | None:
    if isinstance(values, Tensor):
        values = values.tolist()
    return list(values) if values is not None and len(values) else None


def _geometry(
    shape: torch.Size,
    roi: list[float] | None,
    scales: list[float] | None,
    sizes: list[float] | None,
    axes: list[int],
    policy: str,
) -> list[_Axis]:
    if sizes is None:
        factors = scales or [1.0] * len(axes)
        new_sizes = [math.floor(shape[a] * f) for a, f in zip(axes, factors, strict=True)]
    elif policy == "stretch":
        new_sizes = [int(size) for size in sizes]
        factors = [n / shape[a] for a, n in zip(axes, new_sizes, strict=True)]
    else:
        choose = min if policy == "not_larger" else max
        factor = choose(n / shape[a] for a, n in zip(axes, sizes, strict=True))
        factors = [factor] * len(axes)
        new_sizes = [math.floor(shape[a] * factor + 0.5) for a in axes]
    count = len(axes)
    bounds = roi or [0.0] * count + [1.0] * count
    return [
        _Axis(shape[axis], new_sizes[i], factors[i], bounds[i], bounds[i + count])
        for i, axis in enumerate(axes)
    ]


def resize(
    x: Tensor, roi: Any, scales: Any, sizes: Any, axes: list[int] | None, *settings: Any
) -> Tensor:
    """Resize axes of a tensor as ONNX defines it.

    Args:
        x: Tensor of any shape.
        roi: For `tf_crop_and_resize`, starts and then ends of each axis, as fractions.
        scales: Factor of each axis, or None.
        sizes: New size of each axis, or None.
        axes: The axes that the above are for; None for all.
        settings: The fields of `ResizeSettings`, in order.
    """
    given = ResizeSettings(*settings)
    axes = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes]
    policy = given.keep_aspect_ratio_policy
    geometry = _geometry(x.shape, _numbers(roi), _numbers(scales), _numbers(sizes), axes, policy)
    dtype = x.dtype if x.is_floating_point() else torch.float32
    result, outside = x, None
    for number, axis in zip(axes, geometry, strict=True):
        crop = given.coordinate_transformation_mode == "tf_crop_and_resize"
        if axis.new_size == axis.size and axis.scale == 1.0 and not crop:
            continue
        places = source_coordinates(
            axis, given.coordinate_transformation_mode, torch.float64, x.device
        )
        if crop:
            mask = (places < 0) | (places > axis.size - 1)
            mask = mask.reshape([-1 if i == number else 1 for i in range(x.ndim)])
            outside = mask if outside is None else outside | mask
        if given.mode == "nearest":
            index = nearest_index(places, _rounding(given.nearest_mode, axis), axis.size)
            result = result.index_select(number, index)
            continue
        matrix = weight_matrix(
            places, axis, given.mode, given.cubic_coeff_a, given.antialias, given.exclude_outside
        )
        moved = result.to(dtype).movedim(number, -1)
        result = torch.matmul(moved, matrix.to(dtype).t()).movedim(-1, number)
    if outside is not None:
        result = torch.where(outside, given.extrapolation_value, result)
    return result.to(x.dtype)


_INTERPOLATE_MODES = {
    ("linear", 3): "linear",
    ("linear", 4): "bilinear",
    ("linear", 5): "trilinear",
    ("cubic", 4): "bicubic",
}


def _interpolate(op: Op, given: ResizeSettings, scales: Any, sizes: Any) -> fx.Node | None:
    """A call of `interpolate` where it computes the same, otherwise None."""
    rank = op.rank()
    plain = given == ResizeSettings(
        given.mode, given.coordinate_transformation_mode, given.nearest_mode
    )
    factors = scales if sizes is None else sizes
    if not plain or rank is None or rank not in (3, 4, 5) or not isinstance(factors, list):
        return None
    if len(factors) != rank or not op.is_float():
        return None
    coordinates = given.coordinate_transformation_mode
    known = all(isinstance(factor, int | float) for factor in scales or [None])
    if given.mode == "nearest":
        whole = known and all(float(factor).is_integer() for factor in scales)
        floor = coordinates == "asymmetric" and given.nearest_mode in ("floor", _VERSION_10)
        if whole and scales[:2] == [1, 1] and (floor or _repeats(given)):
            return op.call(F.interpolate, op.tensor(0), scale_factor=tuple(scales[2:]))
        return None
    mode = _INTERPOLATE_MODES.get((given.mode, rank))
    if mode is None or coordinates not in ("half_pixel", "align_corners", "pytorch_half_pixel"):
        return None
    align = coordinates == "align_corners"
    if sizes is None:
        if not known or scales[:2] != [1, 1] or align:
            return None
        if not all(float(factor).is_integer() for factor in scales):
            return None
        return op.call(
            F.interpolate,
            op.tensor(0),
            scale_factor=tuple(float(factor) for factor in scales[2:]),
            mode=mode,
            align_corners=False,
        )
    if coordinates == "half_pixel" and not align and _may_be_one(sizes[2:]):
        return None
    if not _keeps_channels(op, sizes):
        return None
    return op.call(
        F.interpolate, op.tensor(0), size=tuple(sizes[2:]), mode=mode, align_corners=align
    )


def _repeats(given: ResizeSettings) -> bool:
    """Whether whole factors repeat each element, whichever way places are rounded."""
    return given.coordinate_transformation_mode == "half_pixel" and given.nearest_mode in (
        "round_prefer_floor",
        "round_prefer_ceil",
    )


def _may_be_one(sizes: list[Any]) -> bool:
    return any(isinstance(size, int) and size == 1 for size in sizes)


def _keeps_channels(op: Op, sizes: list[Any]) -> bool:
    """Whether batch and channels are not resized, as far as the file tells."""
    shape, x = op.shape() or (), op.tensor(0)
    return all(
        size == shape[axis] or size is op.builder.size(x, axis)
        for axis, size in enumerate(sizes[:2])
    )


def _listed(op: Op, index: int) -> Any:
    """Numbers of an optional input, None if it is left out or empty."""
    if not op.has(index) or (op.shape(index) or (None,))[0] == 0:
        return None
    if op.is_constant(index):
        return [float(f"{item:.9g}") for item in op.constant(index).ravel().tolist()]
    return op.tensor(index)


@register("Resize", since=11)
def _resize(op: Op) -> Result:
    given = ResizeSettings(
        op.attr("mode", "nearest"),
        op.attr("coordinate_transformation_mode", "half_pixel"),
        op.attr("nearest_mode", "round_prefer_floor"),
        op.attr("cubic_coeff_a", -0.75),
        bool(op.attr("exclude_outside", 0)),
        op.attr("extrapolation_value", 0.0),
        bool(op.attr("antialias", 0)),
        op.attr("keep_aspect_ratio_policy", "stretch"),
    )
    scales = _listed(op, 2)
    sizes = op.ints(3) if op.has(3) and (op.shape(3) or (None,))[0] != 0 else None
    axes = op.attr("axes")
    direct = _interpolate(op, given, scales, sizes) if axes is None else None
    if direct is not None:
        return direct
    return op.call(resize, op.tensor(0), _listed(op, 1), scales, sizes, axes, *_fields(given))


def _fields(given: ResizeSettings) -> list[Any]:
    fields = [getattr(given, name) for name in ResizeSettings.__dataclass_fields__]
    defaults = [getattr(ResizeSettings(), name) for name in ResizeSettings.__dataclass_fields__]
    while fields and fields[-1] == defaults[len(fields) - 1]:
        fields.pop()
    return fields


@register("Upsample", until=10)
@register("Resize", since=10, until=11)
def _upsample(op: Op) -> Result:
    scales = op.attr("scales") or _listed(op, 1)
    if op.version < 7:
        scales = [1.0, 1.0, op.attr("height_scale"), op.attr("width_scale")]
    given = ResizeSettings(op.attr("mode", "nearest"), "asymmetric", _VERSION_10)
    direct = _interpolate(op, given, scales, None)
    if direct is not None:
        return direct
    return op.call(resize, op.tensor(0), None, scales, None, None, *_fields(given))
