"""Pooling."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.ops.pad import certain_same_pads, same_pads, symmetric_padding, torch_pads
from onnxprune.importer.registry import Result, UnsupportedNode, register

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _geometry(op: Op) -> dict[str, Any]:
    kernel = list(op.attr("kernel_shape"))
    axes = len(kernel)
    if axes > 3:
        raise UnsupportedNode(f"{axes} spatial axes")
    auto_pad = op.attr("auto_pad", "NOTSET")
    pads = op.attr("pads", [0] * (2 * axes))
    geometry: dict[str, Any] = {
        "kernel": kernel,
        "stride": list(op.attr("strides", [1] * axes)),
        "dilation": list(op.attr("dilations", [1] * axes)),
        "pads": [0] * (2 * axes) if auto_pad == "VALID" else list(pads),
        "ceil": bool(op.attr("ceil_mode", 0)),
        "same": auto_pad if auto_pad.startswith("SAME") else "",
    }
    if geometry["same"]:
        stride, dilation = geometry["stride"], geometry["dilation"]
        certain = certain_same_pads(kernel, stride, dilation, auto_pad == "SAME_UPPER")
        if certain is not None:
            geometry.update(pads=certain, ceil=False, same="")
    return geometry


def _simple_padding(geometry: dict[str, Any]) -> list[int] | None:
    """Padding if PyTorch's pooling takes it as it is, otherwise None."""
    padding = symmetric_padding(geometry["pads"])
    if padding is None or geometry["same"]:
        return None
    fits = all(2 * p <= k for p, k in zip(padding, geometry["kernel"], strict=True))
    return padding if fits else None


def _spacing(geometry: dict[str, Any]) -> dict[str, Any]:
    """The stride as an argument, which PyTorch takes from the kernel if it is left out."""
    stride = geometry["stride"]
    return {} if stride == geometry["kernel"] else {"stride": tuple(stride)}


def full_pads(
    sizes: torch.Size,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    pads: list[int],
    ceil: bool,
    same: str,
) -> tuple[list[int], list[int]]:
    """Pads as the file means them, and those with what `ceil` adds at the ends."""
    if same:
        exact = same_pads(sizes, kernel, stride, dilation, same == "SAME_UPPER")
        return exact, exact
    axes = len(kernel)
    extended = list(pads)
    for axis in range(axes if ceil else 0):
        size, begin, end = sizes[axis], pads[axis], pads[axis + axes]
        span = size + begin + end - (kernel[axis] - 1) * dilation[axis] - 1
        count = -(-span // stride[axis])
        if count * stride[axis] >= size + begin:
            count -= 1
        extended[axis + axes] = end + max(count * stride[axis] - span, 0)
    return list(pads), extended


def max_pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    pads: list[int],
    ceil: bool,
    same: str,
) -> Tensor:
    """Max pooling with any padding; x: (batch, channels, spatial...)."""
    _, extended = full_pads(x.shape[2:], kernel, stride, dilation, pads, ceil, same)
    low = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = F.pad(x, torch_pads(extended), value=low)
    return _MAX_POOL[len(kernel)](padded, kernel, stride, 0, dilation)


def max_pool_with_indices(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    pads: list[int],
    ceil: bool,
    same: str,
    column_major: bool,
) -> tuple[Tensor, Tensor]:
    """Max pooling, and the position of each maximum in the flattened input."""
    sizes = x.shape[2:]
    _, extended = full_pads(sizes, kernel, stride, dilation, pads, ceil, same)
    padded = F.pad(x, torch_pads(extended), value=float("-inf"))
    values, flat = _MAX_POOL[len(kernel)](padded, kernel, stride, 0, dilation, return_indices=True)
    index, weight, rest = torch.zeros_like(flat), 1, flat
    coordinates = []
    for axis in reversed(range(len(sizes))):
        coordinates.append((axis, rest % padded.shape[2 + axis] - extended[axis]))
        rest = rest // padded.shape[2 + axis]
    for axis, coordinate in coordinates[::-1] if column_major else coordinates:
        index = index + coordinate * weight
        weight *= sizes[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * weight
    return values, index + planes.reshape(x.shape[0], x.shape[1], *[1] * len(sizes))


@register("MaxPool")
def _max_pool(op: Op) -> Result:
    geometry = _geometry(op)
    if len(op.used_outputs) > 1 and op.used_outputs[1]:
        column_major = bool(op.attr("storage_order", 0))
        both = op.call(
            max_pool_with_indices, op.tensor(0), *geometry.values(), column_major=column_major
        )
        return op.unpack(both, 2)
    axes = len(geometry["kernel"])
    arguments = [geometry[key] for key in ("kernel", "stride", "dilation", "pads", "ceil", "same")]
    padding = _simple_padding(geometry)
    if padding is None or not op.is_float():
        return op.call(max_pool, op.tensor(0), *arguments)
    settings = _spacing(geometry)
    if any(padding):
        settings["padding"] = tuple(padding)
    if set(geometry["dilation"]) != {1}:
        settings["dilation"] = tuple(geometry["dilation"])
    if geometry["ceil"]:
        settings["ceil_mode"] = True
    return op.call(_MAX_POOL[axes], op.tensor(0), tuple(geometry["kernel"]), **settings)


def sum_pool(x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> Tensor:
    """Sum over windows, without padding; x: (batch, channels, spatial...)."""
    planes = x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:])
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    sums = _CONV[len(kernel)](planes, ones, None, stride, 0, dilation)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def average_pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    pads: list[int],
    ceil: bool,
    same: str,
    count_padding: bool,
) -> Tensor:
    """Average pooling with any padding; `count_padding` divides by padded elements, too."""
    exact, extended = full_pads(x.shape[2:], kernel, stride, dilation, pads, ceil, same)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    counted = F.pad(counted, torch_pads(exact), value=float(count_padding))
    surplus = [e - p for e, p in zip(extended, exact, strict=True)]
    counts = sum_pool(F.pad(counted, torch_pads(surplus)), kernel, stride, dilation)
    return sum_pool(F.pad(x, torch_pads(extended)), kernel, stride, dilation) / counts


@register("AveragePool")
def _average_pool(op: Op) -> Result:
    geometry = _geometry(op)
    count_padding = bool(op.attr("count_include_pad", 0))
    padding = _simple_padding(geometry)
    if padding is None or set(geometry["dilation"]) != {1}:
        return op.call(average_pool, op.tensor(0), *geometry.values(), count_padding)
    settings = _spacing(geometry)
    if any(padding):
        settings.update(padding=tuple(padding), count_include_pad=count_padding)
    if geometry["ceil"]:
        settings["ceil_mode"] = True
    pool = _AVG_POOL[len(geometry["kernel"])]
    return op.call(pool, op.tensor(0), tuple(geometry["kernel"]), **settings)


def lp_pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    dilation: list[int],
    pads: list[int],
    ceil: bool,
    same: str,
    p: int,
) -> Tensor:
    """Lp norm over windows."""
    _, extended = full_pads(x.shape[2:], kernel, stride, dilation, pads, ceil, same)
    powers = F.pad(x.abs().pow(p), torch_pads(extended))
    return sum_pool(powers, kernel, stride, dilation).pow(1.0 / p)


@register("LpPool")
def _lp_pool(op: Op) -> Result:
    return op.call(lp_pool, op.tensor(0), *_geometry(op).values(), op.attr("p", 2))


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over the spatial axes of a tensor of any rank."""
    return x.flatten(2).mean(-1).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over the spatial axes of a tensor of any rank."""
    return x.flatten(2).amax(-1).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


@register("GlobalAveragePool")
def _global_average_pool(op: Op) -> Result:
    rank = op.rank()
    if rank is None:
        return op.call(global_average_pool, op.tensor(0))
    return op.call(torch.mean, op.tensor(0), dim=tuple(range(2, rank)), keepdim=True)


@register("GlobalMaxPool")
def _global_max_pool(op: Op) -> Result:
    rank = op.rank()
    if rank is None:
        return op.call(global_max_pool, op.tensor(0))
    return op.call(torch.amax, op.tensor(0), dim=tuple(range(2, rank)), keepdim=True)


def global_lp_pool(x: Tensor, p: float) -> Tensor:
    """Lp norm over the spatial axes."""
    norm = torch.linalg.vector_norm(x.flatten(2), ord=p, dim=-1)
    return norm.reshape(*x.shape[:2], *[1] * (x.ndim - 2))


@register("GlobalLpPool")
def _global_lp_pool(op: Op) -> Result:
    return op.call(global_lp_pool, op.tensor(0), op.attr("p", 2))


def max_unpool(x: Tensor, indices: Tensor, shape: list[int]) -> Tensor:
    """Put values back where a max pooling took them from; positions count in `shape`."""
    flat = torch.zeros(int(torch.Size(shape).numel()), dtype=x.dtype, device=x.device)
    return flat.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(shape)


def max_unpool_to(
    x: Tensor, indices: Tensor, default: list[int], shape: list[int] | None
) -> Tensor:
    """`max_unpool` into the default spatial sizes, placed at the origin of a larger `shape`."""
    unpooled = max_unpool(x, indices, [*x.shape[:2], *default])
    if shape is None or list(shape) == list(unpooled.shape):
        return unpooled
    missing = [want - have for want, have in zip(shape, unpooled.shape, strict=True)]
    return F.pad(unpooled, torch_pads([0] * len(missing) + missing))


def unpooled_sizes(
    sizes: torch.Size, kernel: list[int], stride: list[int], pads: list[int]
) -> list[int]:
    """Spatial sizes that a pooling of this geometry came from."""
    axes = len(kernel)
    return [
        (sizes[axis] - 1) * stride[axis] - pads[axis] - pads[axis + axes] + kernel[axis]
        for axis in range(axes)
    ]


def max_unpool_by_geometry(
    x: Tensor,
    indices: Tensor,
    kernel: list[int],
    stride: list[int],
    pads: list[int],
    shape: list[int] | None,
) -> Tensor:
    """Undo a max pooling of the given geometry."""
    return max_unpool_to(x, indices, unpooled_sizes(x.shape[2:], kernel, stride, pads), shape)


@register("MaxUnpool", since=9)
def _max_unpool(op: Op) -> Result:
    geometry = _geometry(op)
    shape = op.ints(2) if op.has(2) else None
    arguments = geometry["kernel"], geometry["stride"], geometry["pads"], shape
    return op.call(max_unpool_by_geometry, op.tensor(0), op.tensor(1), *arguments)
