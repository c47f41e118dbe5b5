"""Exact selection: of all weights in a scope, exactly the k with the lowest scores."""

import math
from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor

from onnxprune.errors import TargetError
from onnxprune.sparsity.blocks import remove_blocks
from onnxprune.sparsity.patterns import NM, Axes, Block, Pattern, pattern_losers
from onnxprune.sparsity.ranking import Ranking
from onnxprune.sparsity.scores import Score
from onnxprune.sparsity.shards import Shards, Whole, sum_counts, true_counts


def target_zeros(sparsity: float, total: int) -> int:
    """Number of zeros that a sparsity means: exactly `ceil(sparsity * total)`.

    The product is taken in rational arithmetic on the decimal that the user wrote, so that 0.8 of
    10 is 8 and not 9.
    """
    return math.ceil(Fraction(repr(float(sparsity))) * total)


def min_kept(density: float, size: int) -> int:
    """Number of weights that a minimum density in [0, 1] keeps of `size`, rounded up."""
    return target_zeros(density, size)


def whole_blocks(pattern: Pattern, floors: Mapping[str, int]) -> dict[str, int]:
    """Numbers of weights to keep, rounded up to whole blocks where the pattern has them."""
    size = pattern.size if isinstance(pattern, Block) else 1
    return {name: -(-floor // size) * size for name, floor in floors.items()}


def prunable_limit(
    sizes: Mapping[str, int], floors: Mapping[str, int], zeros: int, *, what: str
) -> None:
    """Check that `zeros` weights can go while every tensor keeps `floors[name]` of its own.

    Raises:
        TargetError: They cannot; the message says how far one can go.
    """
    available = sum(size - floors.get(name, 0) for name, size in sizes.items())
    total = sum(sizes.values())
    if zeros > available:
        raise TargetError(
            f"{what} cannot be reached with these tensors and limits",
            got=f"{zeros} zeros asked for among {total} prunable weights in {len(sizes)} tensors",
            expected=f"at most {available} zeros (sparsity {available / max(total, 1):.4f}), "
            "given the minimum density of each tensor",
            remedy="lower the target, prune more tensors, or lower `min_density`",
        )


def select_masks(
    weights: Mapping[str, Tensor],
    zeros: int,
    score: Score,
    *,
    masks: Mapping[str, Tensor] | None = None,
    floors: Mapping[str, int] | None = None,
    scope: str = "global",
    pattern: Pattern = None,
    axes: Mapping[str, Axes] | None = None,
    within: Mapping[str, Tensor] | None = None,
    shards: Shards | None = None,
) -> dict[str, Tensor]:
    """Choose exactly `zeros` weights to remove and return the masks of all tensors.

    With `shards` every rank passes its own part of each tensor, which may be empty, and gets the
    masks of these parts; what the ranks exchange are histograms and counts, never weights. All
    ranks pass the same names in the same order, and everything but weights and masks is the same
    on all. Where the parts of a tensor, joined rank by rank, are the tensor in row-major order
    (as if cut along its first axis), the masks are those of the whole tensors, bit by bit.

    Args:
        weights: Tensors by name, of any shape, all finite; they are not changed.
        zeros: How many weights are zero afterwards, over all tensors, in [0, total].
        score: What ranks them; the lowest go first. Among equal scores the first go: in the order
            of `weights`, then rank by rank, then row-major.
        masks: Masks so far; what they removed stays removed and counts towards `zeros`.
        floors: How many weights each tensor keeps at least, by name, over all ranks. With blocks
            they are rounded up to whole blocks.
        scope: `"global"` ranks all weights together; `"layerwise"` gives every tensor its share of
            the zeros in proportion to its size.
        pattern: With N:M, the weights that the pattern removes go first; once they are all gone
            the pattern holds, and further zeros come from the rest. With blocks, whole blocks go,
            those with the lowest mean score first; where `zeros` is no multiple of their size, the
            rest are the lowest weights of the next block, which is then the first to be finished.
        axes: The axes of every tensor; needed with a pattern.
        within: Masks that are reached in the end: only weights that these remove can go. N:M holds
            in the end if it holds in them. None for no such limit.
        shards: The ranks that hold the other parts; None where this one holds everything.

    Returns:
        Boolean tensors like `weights`, True where a weight is kept.

    Raises:
        TargetError: `zeros` cannot be reached with `floors` and `within`, is below what `masks`
            removed, or a group or block of the pattern is cut by the parts. Every rank raises it.
    """
    shards = shards or Whole()
    ranking = Ranking(weights, score, shards, masks)
    if within is not None:
        floors = sum_counts(shards, true_counts({name: within[name] for name in weights}))
    elif isinstance(pattern, Block):
        floors = whole_blocks(pattern, floors or {})
    floors = dict(floors or {})
    prunable_limit(ranking.sizes, floors, zeros, what=f"{zeros} zeros")
    masked = sum(ranking.masked().values())
    if zeros < masked:
        raise TargetError(
            "weights that are masked do not come back",
            got=f"{zeros} zeros asked for, {masked} masked already",
        )
    if isinstance(pattern, Block):
        assert axes is not None
        return remove_blocks(pattern, ranking, axes, zeros, floors, scope, within)
    if within is not None:
        ranking = ranking.losing_first({name: ~within[name] for name in weights})
    elif isinstance(pattern, NM):
        assert axes is not None
        losers = pattern_losers(pattern, weights, axes, score, masks, ranking.starts, shards)
        ranking = ranking.losing_first(losers)
    return ranking.remove(zeros, floors, scope)
