"""Sparsity patterns: which sets of zeros are allowed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.errors import TargetError, UsageError
from onnxprune.sparsity.scores import Score
from onnxprune.sparsity.shards import Shards, Whole, sum_counts


@dataclass(frozen=True)
class NM:
    """At most `n` non-zeros in each group of `m` along the reduction axis.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv 2104.08378.
    """

    n: int
    m: int

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def fits(self, shape: tuple[int, ...], axis: int | None) -> bool:
        """Whether a tensor of this shape consists of whole groups along `axis`."""
        return axis is not None and shape[axis] % self.m == 0

    def groups(self, tensor: Tensor, axis: int) -> Tensor:
        """A view or copy of shape `(groups, m)`, with the groups along `axis`."""
        return tensor.movedim(axis, -1).reshape(-1, self.m)

    def losers(self, scores: Tensor, axis: int) -> Tensor:
        """The weights that the pattern removes: all but the `n` best of each group.

        Args:
            scores: Any shape, with a multiple of `m` along `axis`.
            axis: The reduction axis.

        Returns:
            A boolean tensor of the same shape. Among equal scores the first are kept.
        """
        grouped = self.groups(scores, axis)
        order = grouped.argsort(dim=-1, descending=True, stable=True)
        out = torch.zeros_like(grouped, dtype=torch.bool)
        out.scatter_(1, order[:, self.n :], True)
        moved = scores.movedim(axis, -1)
        return out.reshape(moved.shape).movedim(-1, axis)

    def holds(self, mask: Tensor, axis: int) -> bool:
        """Whether a mask (True keeps) keeps to the pattern."""
        return bool((self.groups(mask, axis).sum(dim=-1) <= self.n).all())


Pattern = NM | None
"""None stands for unstructured sparsity, where every set of zeros is allowed."""


def parse_pattern(text: str) -> Pattern:
    """`"unstructured"` or `"N:M"` as a pattern.

    Raises:
        UsageError: The text is neither, or not 1 <= N < M.
    """
    if text == "unstructured":
        return None
    n, _, m = text.partition(":")
    if n.isdigit() and m.isdigit() and 1 <= int(n) < int(m):
        return NM(int(n), int(m))
    raise UsageError(
        "no such sparsity pattern", got=repr(text), expected="`unstructured`, or N:M such as 2:4"
    )


def pattern_losers(
    pattern: NM,
    weights: Mapping[str, Tensor],
    axes: Mapping[str, int],
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
        axes: The reduction axis of every tensor.
        score: What ranks them.
        masks: Masks so far; None for none.
        starts: Position of each part in the whole tensor; None for whole tensors.
        shards: The ranks that hold the other parts; None for whole tensors.

    Raises:
        TargetError: A part does not consist of whole groups, on any rank.
    """
    _check_parts(pattern, weights, axes, shards or Whole())
    losers = {}
    for name, weight in weights.items():
        start = 0 if starts is None else starts[name]
        scores = score.of(name, weight.detach().reshape(-1), start).reshape(weight.shape)
        if masks is not None:
            scores = torch.where(masks[name], scores, -1.0)
        losers[name] = pattern.losers(scores, axes[name])
    return losers


def _check_parts(
    pattern: NM, weights: Mapping[str, Tensor], axes: Mapping[str, int], shards: Shards
) -> None:
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
            expected=f"a multiple of {pattern.m} along the reduction axis in the part of each rank",
            remedy="use a number of ranks that divides the groups, replicated weights, or "
            "exclude these tensors",
        )


def check_pattern(
    pattern: Pattern, shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, int | None]
) -> tuple[list[str], list[str]]:
    """Sort tensors into those that a pattern fits and those that must stay dense.

    Raises:
        TargetError: The pattern fits none of them.
    """
    if pattern is None:
        return list(shapes), []
    fitting = [name for name, shape in shapes.items() if pattern.fits(shape, axes[name])]
    if not fitting:
        raise TargetError(
            f"no prunable tensor can take the pattern {pattern}",
            got=_some(f"{name} {tuple(shape)}" for name, shape in shapes.items()),
            expected=f"a reduction axis whose length is a multiple of {pattern.m}",
            remedy="use another pattern, or `unstructured`",
        )
    return fitting, [name for name in shapes if name not in set(fitting)]


def _some(items: Iterable[str], limit: int = 5) -> str:
    listed = list(items)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
