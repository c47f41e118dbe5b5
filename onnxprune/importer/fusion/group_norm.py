"""GroupNorm that exporters write as InstanceNorm."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from onnxprune.importer.fusion.pattern import Argument, Call, Either, Number, Var
from onnxprune.importer.fusion.rule import Match, Rules
from onnxprune.importer.ops.shape import unsqueeze

RULES = Rules()
"""InstanceNorm of channels reshaped into groups, reshaped back, with scale and shift."""

_x = Var()
_grouped, _shape = Argument(), Argument()
_ones, _zeros = Var(), Var()
_eps = Number()
_scale, _shift = Var(), Var()
_normalised = Call(
    F.instance_norm, Call(torch.reshape, _x, _grouped), weight=_ones, bias=_zeros, eps=_eps
)
_axes = Argument()


@RULES.replace(
    Call(torch.reshape, _normalised, _shape) * Either((Call(unsqueeze, _scale, _axes), _scale))
    + Either((Call(unsqueeze, _shift, _axes), _shift))
)
def _group_norm(match: Match) -> fx.Node | None:
    x, grouped, shape = match[_x], match[_grouped], match[_shape]
    sizes = match.sizes(x)
    if sizes is None or len(sizes) < 2 or len(shape) != len(sizes) or len(grouped) != 3:
        return None
    groups = grouped[1]
    if not isinstance(groups, int) or grouped[2] != -1 or not match.is_size(grouped[0], x, 0):
        return None
    if not all(match.is_size(size, x, axis) for axis, size in enumerate(shape)):
        return None
    if not _holds(match, _ones, 1.0) or not _holds(match, _zeros, 0.0):
        return None
    scale, shift = (_by_channel(match, match[p], sizes) for p in (_scale, _shift))
    if scale is None or shift is None:
        return None
    return match.call(F.group_norm, x, groups, scale, shift, match[_eps])


def _holds(match: Match, pattern: Var, value: float) -> bool:
    """Whether a buffer holds one number alone."""
    stored = match.stored(match[pattern])
    if stored is None or isinstance(stored, nn.Parameter):
        return False
    return bool((stored == value).all())


def _by_channel(match: Match, node: fx.Node, sizes: tuple[int | None, ...]) -> fx.Node | None:
    """A scale or shift as (channels,), None if it is none of each channel."""
    stored, channels, others = match.stored(node), sizes[1], [1] * (len(sizes) - 2)
    axes = match.get(_axes)
    if stored is None or channels is None:
        return None
    if list(stored.shape) == [channels] and axes == [axis + 1 for axis in range(len(others))]:
        return node
    if list(stored.shape) == [channels, *others] and axes is None:
        return match.method("flatten", node)
    return None
