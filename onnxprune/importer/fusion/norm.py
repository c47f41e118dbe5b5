"""Normalisation that exporters write out."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from onnxprune.importer.fusion.pattern import (
    Argument,
    Call,
    Either,
    Number,
    Pattern,
    Rest,
    Var,
    Whole,
)
from onnxprune.importer.fusion.rule import Match, Rules
from onnxprune.importer.ops.norm import layer_norm, rms_norm
from onnxprune.importer.ops.shape import expand

RULES = Rules()
"""LayerNorm, also as Keras and TensorFlow write it, RMSNorm, and division by the Euclidean norm."""

_x = Var()
_axes = Argument()
_eps = Number()
_scale = Var()
_shift = Var()


def _mean(x: Pattern) -> Pattern:
    return Call(torch.mean, x, dim=_axes, keepdim=True)


def _square(x: Pattern) -> Pattern:
    return Either((Call(torch.pow, x, 2), x * x, Call(torch.square, x)))


def _deviation(variance: Pattern) -> Pattern:
    return Call(torch.sqrt, variance + _eps)


_average = _mean(_x)
_centred = Whole(_x - _average)
_centred_again = Either((_centred, Whole(_x - _average), Whole(_x - _mean(_x))))
_variance = _mean(_square(_centred_again))
_normalised = _centred / _deviation(_variance)
_factor = Whole(_scale / _deviation(_variance))


@RULES.replace(
    _normalised * _scale + _shift,
    _x * _factor + _shift - _average * _factor,
    _normalised * _scale,
)
def _affine_layer_norm(match: Match) -> fx.Node | None:
    shape = _stored_shape(match, match[_scale])
    if shape is None or not _last_axes(match, len(shape)):
        return None
    shift = match.get(_shift)
    if shift is not None and _stored_shape(match, shift) != shape:
        return None
    x, scale, eps = match[_x], match[_scale], match[_eps]
    if _ends_in(match, shape):
        return match.call(F.layer_norm, x, shape, scale, shift, eps)
    return match.call(layer_norm, x, scale, shift, -len(shape), eps)


@RULES.replace(_normalised)
def _plain_layer_norm(match: Match) -> fx.Node | None:
    shape = _known_ending(match)
    return match.call(F.layer_norm, match[_x], shape, eps=match[_eps]) if shape else None


_root_mean_square = _deviation(_mean(_square(_x)))


@RULES.replace(_x / _root_mean_square * _scale)
def _scaled_rms_norm(match: Match) -> fx.Node | None:
    shape = _stored_shape(match, match[_scale])
    if shape is None or not _last_axes(match, len(shape)):
        return None
    x, scale, eps = match[_x], match[_scale], match[_eps]
    if _ends_in(match, shape):
        return match.call(F.rms_norm, x, shape, scale, eps)
    return match.call(rms_norm, x, scale, -len(shape), eps)


@RULES.replace(_x / _root_mean_square)
def _plain_rms_norm(match: Match) -> fx.Node | None:
    shape = _known_ending(match)
    return match.call(F.rms_norm, match[_x], shape, eps=match[_eps]) if shape else None


_norm = Call(torch.linalg.vector_norm, _x, dim=_axes, keepdim=True)
_bounded = Call(torch.clamp, _norm, min=_eps, max=None)
_shape = Argument()
_sizes = Rest()


@RULES.replace(
    _x / _bounded,
    _x / Call(expand, _bounded, _shape),
    _x / Call("expand", _bounded, _sizes),
)
def _l2_normalize(match: Match) -> fx.Node | None:
    axes = match[_axes]
    target = match.get(_shape) or match.get(_sizes)
    if not isinstance(axes, tuple) or len(axes) != 1:
        return None
    if target is not None and not _is_shape_of_input(match, target):
        return None
    return match.call(F.normalize, match[_x], dim=axes[0], eps=match[_eps])


def _is_shape_of_input(match: Match, target: Any) -> bool:
    """Whether what something is expanded to has the sizes of the input; -1 leaves a size as is."""
    x = match[_x]
    if not isinstance(target, list | tuple) or match.rank(x) != len(target):
        return False
    axis = match[_axes][0] % len(target)
    return all(
        (dim == -1 and index != axis) or match.is_size(dim, x, index)
        for index, dim in enumerate(target)
    )


def _stored_shape(match: Match, node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a parameter or buffer, None for a value that is computed or has no axes."""
    stored = match.stored(node)
    return tuple(stored.shape) if stored is not None and stored.ndim else None


def _last_axes(match: Match, count: int) -> bool:
    """Whether the statistics are over exactly the last axes of the input."""
    axes, rank = match[_axes], match.rank(match[_x])
    if not isinstance(axes, tuple) or len(axes) != count:
        return False
    wanted = set(range(-count, 0))
    if rank is None:
        return set(axes) == wanted
    return {axis - rank if axis >= 0 else axis for axis in axes} == wanted


def _ends_in(match: Match, shape: tuple[int, ...]) -> bool:
    """Whether the last sizes of the input are certain to be these."""
    sizes = match.sizes(match[_x])
    return sizes is not None and sizes[-len(shape) :] == shape


def _known_ending(match: Match) -> tuple[int, ...] | None:
    """Sizes along the axes of the statistics, None if they are not certain or not the last."""
    axes, sizes = match[_axes], match.sizes(match[_x])
    if sizes is None or not isinstance(axes, tuple) or not _last_axes(match, len(axes)):
        return None
    shape = [size for size in sizes[-len(axes) :] if size is not None]
    return tuple(shape) if len(shape) == len(axes) else None
