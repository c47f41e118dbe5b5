"""Sparsity patterns: which sets of zeros are allowed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from onnxprune.errors import TargetError, UsageError
from onnxprune.pattern_text import PATTERN_FORMS, block_of, nm_of
from onnxprune.sparsity.scores import Score
from onnxprune.sparsity.shards import Shards, Whole, sum_counts


class Axes(NamedTuple):
    """Where a pattern lies in a tensor.

    Attributes:
        reduction: The axis that products are summed over.
        output: The axis along which the outputs lie; None where it is not known.
    """

    reduction: int
    output: int | None = None


@dataclass(frozen=True)
class NM:
    """At most `n` non-zeros in each group of `m` along the reduction axis.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.
    """

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def requirement(self) -> str:
        """What a tensor has to have."""
        return f"a multiple of {self.m} along the reduction axis"

    def fits(self, shape: tuple[int, ...], axes: Axes | None) -> bool:
        """Whether a tensor of this shape consists of whole groups."""
        return axes is not None and _divides(self.m, shape, axes.reduction)

    def rows_together(self, axes: Axes) -> int:
        """How many neighbours along the first axis make up a group."""
        return self.m if axes.reduction == 0 else 1

    def groups(self, tensor: Tensor, axes: Axes) -> Tensor:
        """A view or copy of shape `(groups, m)`, with the groups along the reduction axis."""
        return tensor.movedim(axes.reduction, -1).reshape(-1, self.m)

    def losers(self, scores: Tensor, axes: Axes) -> Tensor:
        """The weights that the pattern removes: all but the `n` best of each group.

        Args:
            scores: Any shape, with a multiple of `m` along the reduction axis.
            axes: Its axes.

        Returns:
            A boolean tensor of the same shape. Among equal scores the first are kept.
        """
        grouped = self.groups(scores, axes)
        order = grouped.argsort(dim=-1, descending=True, stable=True)
        out = torch.zeros_like(grouped, dtype=torch.bool)
        out.scatter_(1, order[:, self.n :], True)
        moved = scores.movedim(axes.reduction, -1)
        return out.reshape(moved.shape).movedim(-1, axes.reduction)

    def holds(self, mask: Tensor, axes: Axes) -> bool:
        """Whether a mask (True keeps) keeps to the pattern."""
        return bool((self.groups(mask, axes).sum(dim=-1) <= self.n).all())


@dataclass(frozen=True)
class Block:
    """Zeros in whole blocks of `rows` neighbouring outputs by `columns` reduction entries.

    All other axes, such as those of a kernel, are elementwise: a block lies at one kernel position.
    Blocks do not overlap; the first begins at the first output and the first reduction entry.

    Source: Narang, Undersander and Diamos, "Block-Sparse Recurrent Neural Networks", arXiv
    1711.02782; there the largest weight of a block decides, here their mean score.
    """

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.columns}"

    @property
    def size(self) -> int:
        """Number of weights in a block."""
        return self.rows * self.columns

    @property
    def requirement(self) -> str:
        """What a tensor has to have."""
        return (
            f"multiples of {self.rows} along the output axis and of {self.columns} along the "
            "reduction axis, within one group of a convolution"
        )

    def fits(self, shape: tuple[int, ...], axes: Axes | None) -> bool:
        """Whether a tensor of this shape consists of whole blocks."""
        return (
            axes is not None
            and axes.output is not None
            and _divides(self.rows, shape, axes.output)
            and _divides(self.columns, shape, axes.reduction)
        )

    def rows_together(self, axes: Axes) -> int:
        """How many neighbours along the first axis a block takes up."""
        return {axes.output: self.rows, axes.reduction: self.columns}.get(0, 1)

    def blocks(self, tensor: Tensor, axes: Axes) -> Tensor:
        """A view of shape `(*grid, rows, columns)`.

        The grid has the tensor's axes in their order; each length is a number of blocks.
        """
        assert axes.output is not None
        lengths = {axes.output: self.rows, axes.reduction: self.columns}
        inner: dict[int, int] = {}
        for axis in sorted(lengths, reverse=True):
            count = tensor.shape[axis] // lengths[axis]
            tensor = tensor.unflatten(axis, (count, lengths[axis]))
            inner = {known: place + 1 for known, place in inner.items()} | {axis: axis + 1}
        return tensor.movedim((inner[axes.output], inner[axes.reduction]), (-2, -1))

    def means(self, scores: Tensor, axes: Axes) -> Tensor:
        """The mean score of each block, as a grid.

        Summed one by one, so that a block's mean does not depend on where a tensor is cut.
        """
        over_columns = reduce(torch.add, self.blocks(scores, axes).unbind(-1))
        return reduce(torch.add, over_columns.unbind(-1)) / self.size

    def touched(self, mask: Tensor, axes: Axes) -> Tensor:
        """The blocks with any masked weight, as a grid."""
        return ~self.blocks(mask, axes).all(-1).all(-1)

    def gone(self, mask: Tensor, axes: Axes) -> Tensor:
        """The blocks without a kept weight, as a grid."""
        return ~self.blocks(mask, axes).any(-1).any(-1)

    def spread(self, grid: Tensor, axes: Axes) -> Tensor:
        """The value of its block for each weight: the inverse of reading a grid."""
        assert axes.output is not None
        rows = grid.repeat_interleave(self.rows, axes.output)
        return rows.repeat_interleave(self.columns, axes.reduction)

    def holds(self, mask: Tensor, axes: Axes) -> bool:
        """Whether fewer weights than a block has are masked outside of whole masked blocks."""
        outside = ~mask & ~self.spread(self.gone(mask, axes), axes)
        return int(outside.sum()) < self.size


Pattern = NM | Block | None
"""None stands for unstructured sparsity, where every set of zeros is allowed."""


def parse_pattern(text: str) -> Pattern:
    """`"unstructured"`, `"N:M"` or `"block:RxC"` as a pattern.

    Raises:
        UsageError: The text is none of them, not 1 <= N < M, or not 1 <= R, C <= 64 with more than
            one weight in a block.
    """
    if text == "unstructured":
        return None
    nm, block = nm_of(text), block_of(text)
    if nm is not None:
        return NM(*nm)
    if block is not None:
        return Block(*block)
    raise UsageError(
        "no such sparsity pattern",
        got=repr(text),
        expected=f"{PATTERN_FORMS}, such as 2:4 or block:4x1",
    )


def _divides(length: int, shape: tuple[int, ...], axis: int) -> bool:
    return shape[axis] > 0 and shape[axis] % length == 0


def pattern_losers(
    pattern: NM,
    weights: Mapping[str, Tensor],
    axes: Mapping[str, Axes],
    score: Score,
    masks: Mapping[str, Tensor] | None = None,
    starts: Mapping[str, int] | None = None,
    shards: Shards | None = None,
) -> dict[str, Tensor]:
    """For every tensor, the weights that the pattern removes (boolean, the tensor's shape).

    Weights that are masked already are the first to lose, so a weight never comes back.

    Args:
        pattern: The pattern.
        weights: All tensors, or this rank's part of each.
        axes: The axes of every tensor.
        score: What ranks them.
        masks: Masks so far; None for none.
        starts: Position of each part in the whole tensor; None for whole tensors.
        shards: The ranks that hold the other parts; None for whole tensors.

    Raises:
        TargetError: A part does not consist of whole groups, on any rank.
    """
    check_parts(pattern, weights, axes, shards or Whole())
    losers = {}
    for name, weight in weights.items():
        start = 0 if starts is None else starts[name]
        scores = score.of(name, weight.detach().reshape(-1), start).reshape(weight.shape)
        if masks is not None:
            scores = torch.where(masks[name], scores, -1.0)
        losers[name] = pattern.losers(scores, axes[name])
    return losers


def check_parts(
    pattern: NM | Block, weights: Mapping[str, Tensor], axes: Mapping[str, Axes], shards: Shards
) -> None:
    """Check that the part of each rank consists of whole groups or blocks.

    Raises:
        TargetError: It does not, on any rank; every rank raises it.
    """
    cut = {
        name: int(weight.numel() > 0 and not pattern.fits(tuple(weight.shape), axes[name]))
        for name, weight in weights.items()
    }
    wrong = [name for name, count in sum_counts(shards, cut).items() if count]
    if wrong:
        raise TargetError(
            f"groups of the pattern {pattern} are incomplete, or cut between ranks",
            where=_some(wrong),
            got=_some(f"{name} {tuple(weights[name].shape)} on this rank" for name in wrong),
            expected=f"{pattern.requirement}, in the part of each rank",
            remedy="use a number of ranks that divides the groups, replicated weights, or "
            "exclude these tensors",
        )


def check_pattern(
    pattern: Pattern, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, Axes]
) -> tuple[list[str], list[str]]:
    """Sort tensors into those that a pattern fits and those that must stay dense.

    Args:
        pattern: The pattern.
        shapes: Of one group each, where the channels of a convolution are grouped: groups and
            blocks of a pattern do not reach from one into the next.
        axes: The axes of the tensors that have them.

    Raises:
        TargetError: The pattern fits none of them.
    """
    if pattern is None:
        return list(shapes), []
    fitting = [name for name, shape in shapes.items() if pattern.fits(shape, axes.get(name))]
    if not fitting:
        raise TargetError(
            f"no prunable tensor can take the pattern {pattern}",
            got=_some(f"{name} {tuple(shape)}" for name, shape in shapes.items()),
            expected=pattern.requirement,
            remedy="use another pattern, or `unstructured`",
        )
    return fitting, [name for name in shapes if name not in set(fitting)]


def _some(items: Iterable[str], limit: int = 5) -> str:
    listed = list(items)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
