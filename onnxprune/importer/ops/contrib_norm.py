"""Normalisation of com.microsoft: with residual inputs, embeddings, or the channels last."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from onnxprune.contrib_types import CONTRIB_DOMAIN
from onnxprune.importer.op import Op
from onnxprune.importer.ops.norm import layer_norm, rms_norm
from onnxprune.importer.ops.standard import positive
from onnxprune.importer.registry import Result, UnsupportedNode, register


def _residual(op: Op, bias: int) -> fx.Node:
    """The sum that is normalised."""
    if any(op.used_outputs[1:3]):
        raise UnsupportedNode("its mean or inverse deviation is used")
    total = op.call(torch.add, op.tensor(0), op.tensor(1))
    return op.call(torch.add, total, op.tensor(bias)) if op.has(bias) else total


def _layer_norm(op: Op, x: fx.Node, scale: int, shift: int, default_eps: float) -> fx.Node:
    """LayerNorm over the last axis."""
    eps, shape = op.attr("epsilon", default_eps), op.shape(scale)
    if shape is not None and len(shape) == 1 and shape[0]:
        return op.call(F.layer_norm, x, shape, op.tensor(scale), op.optional(shift), eps)
    return op.call(layer_norm, x, op.tensor(scale), op.optional(shift), -1, eps)


@register("SkipLayerNormalization", domain=CONTRIB_DOMAIN)
def _skip_layer_normalization(op: Op) -> Result:
    total = _residual(op, 4)
    return [_layer_norm(op, total, 2, 3, 1e-12), None, None, total]


@register("SkipSimplifiedLayerNormalization", domain=CONTRIB_DOMAIN)
def _skip_rms_normalization(op: Op) -> Result:
    total = _residual(op, 3)
    y = op.call(rms_norm, total, op.tensor(2), -1, op.attr("epsilon", 1e-12))
    return [y, None, None, total]


def sum_of_embeddings(
    ids: Tensor,
    segments: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Word, position and segment embeddings added.

    Args:
        ids: (batch, sequence) words.
        segments: (batch, sequence) segments; None for no segment embedding.
        word: (words, size).
        position: (positions, size).
        segment: (segments, size).
        positions: (batch or 1, sequence); None to count from 0.
    """
    placed = position[: ids.shape[1]] if positions is None else F.embedding(positions, position)
    total = F.embedding(ids, word) + placed
    if segments is not None and segment is not None:
        total = total + F.embedding(segments, segment)
    return total


def count_valid(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Number of words in each sequence that the mask lets through; 0 without a mask."""
    if mask is None:
        return torch.zeros(ids.shape[0], dtype=torch.int32, device=ids.device)
    return (mask == 1).sum(dim=1).to(torch.int32)


@register("EmbedLayerNormalization", domain=CONTRIB_DOMAIN)
def _embed_layer_normalization(op: Op) -> Result:
    operands = op.tensor(0), op.optional(1), op.tensor(2), op.tensor(3), op.optional(4)
    total = op.call(sum_of_embeddings, *operands, op.optional(8))
    count = None
    if len(op.used_outputs) > 1 and op.used_outputs[1]:
        count = op.call(count_valid, op.tensor(0), op.optional(7))
    return [_layer_norm(op, total, 5, 6, 1e-12), count, total]


def group_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    channels_last: bool,
) -> Tensor:
    """GroupNorm, with SiLU after it if asked for.

    Args:
        x: (batch, channels, spatial...), or (batch, spatial..., channels) with `channels_last`.
        scale: (channels,).
        shift: (channels,).
        groups: Number of groups.
        eps: Added to the variance.
        silu: Whether SiLU follows.
        channels_last: Whether the channels are the last axis.
    """
    moved = x.movedim(-1, 1) if channels_last else x
    y = F.group_norm(moved, groups, scale, shift, eps)
    y = F.silu(y) if silu else y
    return y.movedim(1, -1) if channels_last else y


def _group_norm(op: Op, x: fx.Node) -> fx.Node:
    settings = positive(op, "groups"), op.attr("epsilon", 1e-5), bool(op.attr("activation", 0))
    channels_last = bool(op.attr("channels_last", 1))
    return op.call(group_norm, x, op.tensor(1), op.tensor(2), *settings, channels_last)


@register("GroupNorm", domain=CONTRIB_DOMAIN)
def _group_normalization(op: Op) -> Result:
    return _group_norm(op, op.tensor(0))


def sum_with_skip(x: Tensor, skip: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """`x` plus a residual and a bias of each channel; the residual may lack the spatial axes.

    Args:
        x: (batch, spatial..., channels), or the channels second.
        skip: As `x`, or (batch, channels).
        bias: (channels,), or None for 0.
        channels_last: Whether the channels are the last axis.
    """
    shape = (1,) * (x.ndim - 2)
    if skip.ndim == 2:
        around = (skip.shape[0], *shape, skip.shape[1])
        skip = skip.reshape(around if channels_last else (*skip.shape, *shape))
    total = x + skip
    if bias is None:
        return total
    return total + (bias if channels_last else bias.reshape(-1, *shape))


@register("SkipGroupNorm", domain=CONTRIB_DOMAIN)
def _skip_group_normalization(op: Op) -> Result:
    channels_last = bool(op.attr("channels_last", 1))
    total = op.call(sum_with_skip, op.tensor(0), op.tensor(3), op.optional(4), channels_last)
    return [_group_norm(op, total), total]
