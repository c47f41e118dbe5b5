"""Sorting, extreme positions, unique values and box suppression."""

import torch
from torch import Tensor

from onnxprune.importer.op import Op
from onnxprune.importer.registry import Result, register


def arg_extreme(x: Tensor, largest: bool, axis: int, keepdim: bool, last: bool) -> Tensor:
    """Position of the first, or last, extreme element along an axis."""
    if last:
        x = x.flip(axis)
    function = torch.argmax if largest else torch.argmin
    index = function(x, dim=axis, keepdim=keepdim)
    return x.shape[axis] - 1 - index if last else index


@register("ArgMax", "ArgMin")
def _arg_extreme(op: Op) -> Result:
    largest = op.node.op_type == "ArgMax"
    axis, keepdim = op.attr("axis", 0), bool(op.attr("keepdims", 1))
    if op.attr("select_last_index", 0):
        return op.call(arg_extreme, op.tensor(0), largest, axis, keepdim, True)
    function = torch.argmax if largest else torch.argmin
    return op.call(function, op.tensor(0), dim=axis, keepdim=keepdim)


def top_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The k extreme elements in order; among equal ones the first comes first."""
    values, index = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), index.narrow(axis, 0, k)


@register("TopK")
def _top_k(op: Op) -> Result:
    k = op.attr("k") or op.integer(1)
    axis, largest = op.attr("axis", -1), bool(op.attr("largest", 1))
    return op.unpack(op.call(top_k, op.tensor(0), k, axis, largest), 2)


def unique(x: Tensor, axis: int | None, is_sorted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unique values, where each occurs first, which one each element is, and counts."""
    values, inverse, counts = torch.unique(
        x, dim=axis, sorted=True, return_inverse=True, return_counts=True
    )
    dim = 0 if axis is None else axis
    flat = inverse.reshape(-1)
    positions = torch.arange(flat.numel(), device=x.device)
    first = torch.full_like(counts, flat.numel()).scatter_reduce(0, flat, positions, "amin")
    if not is_sorted:
        order = torch.argsort(first)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel(), device=x.device)
        values, first, counts = values.index_select(dim, order), first[order], counts[order]
        flat = rank[flat]
    return values, first, flat, counts


@register("Unique", since=11)
def _unique(op: Op) -> Result:
    result = op.call(unique, op.tensor(0), op.attr("axis"), bool(op.attr("sorted", 1)))
    return op.unpack(result, len(op.node.output))


def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_boxes: int,
    iou_threshold: Tensor | float,
    score_threshold: Tensor | float | None,
    center_point: bool,
) -> Tensor:
    """Boxes to keep, for each image and class in the order of their scores.

    Args:
        boxes: (batch, boxes, 4) as two corners, y first, or as centre and size, x first.
        scores: (batch, classes, boxes).
        max_boxes: Largest number for an image and class.
        iou_threshold: A box that overlaps a better one by more is dropped.
        score_threshold: Boxes that do not exceed it are dropped.
        center_point: Whether boxes are given as centre and size.

    Returns:
        Rows of (image, class, box).
    """
    if center_point:
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.cat([center - half, center + half], dim=-1)
    else:
        a, b = boxes[..., :2], boxes[..., 2:]
        corners = torch.cat([torch.minimum(a, b), torch.maximum(a, b)], dim=-1)
    rows: list[list[int]] = []
    for image in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            kept = _suppress(
                corners[image],
                scores[image, label],
                max_boxes,
                float(iou_threshold),
                None if score_threshold is None else float(score_threshold),
            )
            rows += [[image, label, box] for box in kept]
    return torch.tensor(rows, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _suppress(
    boxes: Tensor, scores: Tensor, limit: int, overlap: float, threshold: float | None
) -> list[int]:
    order = torch.argsort(scores, descending=True, stable=True)
    if threshold is not None:
        order = order[scores[order] > threshold]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    kept: list[int] = []
    while order.numel() and len(kept) < limit:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        common = (high - low).clamp(min=0).prod(dim=1)
        union = areas[best] + areas[order] - common
        order = order[common <= overlap * union]
    return kept


@register("NonMaxSuppression", since=10)
def _non_max_suppression(op: Op) -> Result:
    overlap = op.scalar(3) if op.has(3) else 0.0
    limits = op.integer(2, 0), overlap, op.scalar(4)
    center = bool(op.attr("center_point_box", 0))
    return op.call(non_max_suppression, op.tensor(0), op.tensor(1), *limits, center)
