"""Selection of whole blocks: the selection of single weights, with blocks in their place."""

from collections.abc import Mapping

from torch import Tensor

from onnxprune.sparsity.patterns import Axes, Block, check_parts
from onnxprune.sparsity.ranking import Ranking
from onnxprune.sparsity.scores import Magnitude
from onnxprune.sparsity.shards import sum_counts, true_counts


def remove_blocks(
    pattern: Block,
    ranking: Ranking,
    axes: Mapping[str, Axes],
    zeros: int,
    floors: Mapping[str, int],
    scope: str,
    within: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Masks that remove exactly `zeros` weights in whole blocks, and the rest from the next one.

    A block of which something is masked already is finished before others begin.

    Args:
        pattern: The pattern.
        ranking: The weights, with what is masked already.
        axes: The axes of every tensor.
        zeros: At least what is masked, at most what `floors` allow.
        floors: How many weights each tensor keeps at least.
        scope: `"global"` or `"layerwise"`, see `select_masks`.
        within: Masks that are reached in the end, see `select_masks`; None for no such limit.

    Raises:
        TargetError: A block is cut by the parts of the ranks.
    """
    check_parts(pattern, ranking.weights, axes, ranking.shards)
    grids = _Grids(pattern, axes)
    blocks = grids.ranking(ranking)
    block_floors = {name: -(-floor // pattern.size) for name, floor in floors.items()}
    if within is not None:
        gone = {name: pattern.gone(within[name], axes[name]) for name in ranking.weights}
        counts = sum_counts(ranking.shards, true_counts(gone))
        if zeros > pattern.size * sum(counts.values()):
            return _beyond_whole_blocks(ranking, grids.spread(gone), within, zeros, floors)
        blocks = blocks.losing_first(gone)
        block_floors = {name: blocks.sizes[name] - count for name, count in counts.items()}
    touched = grids.touched(ranking)
    if touched and zeros <= pattern.size * sum(blocks.masked().values()):
        return ranking.losing_first(grids.spread(touched)).remove(zeros, floors, "global")
    count, rest = divmod(zeros, pattern.size)
    kept = blocks.remove(count, block_floors, scope)
    masks = grids.spread(kept)
    if rest == 0:
        return masks
    following = blocks.masked_by(kept).remove(count + 1, block_floors, scope)
    return _with_rest(ranking.masked_by(masks), masks, grids.spread(following), rest)


class _Grids:
    """Grids of blocks, one for each tensor."""

    def __init__(self, pattern: Block, axes: Mapping[str, Axes]) -> None:
        self.pattern = pattern
        self.axes = axes

    def ranking(self, ranking: Ranking) -> Ranking:
        """Blocks as weights whose values are their scores, masked where they are touched."""
        means = {}
        for name, weight in ranking.weights.items():
            flat, start = weight.detach().reshape(-1), ranking.starts[name]
            scores = ranking.score.of(name, flat, start).reshape(weight.shape)
            means[name] = self.pattern.means(scores, self.axes[name])
        whole = {name: ~touched for name, touched in self.touched(ranking).items()}
        return Ranking(means, Magnitude(), ranking.shards, whole or None)

    def touched(self, ranking: Ranking) -> dict[str, Tensor]:
        """The blocks of which something is masked already; empty if nothing is."""
        if ranking.masks is None:
            return {}
        return {
            name: self.pattern.touched(ranking.masks[name], self.axes[name])
            for name in ranking.weights
        }

    def spread(self, grids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For each weight the value of its block."""
        return {name: self.pattern.spread(grid, self.axes[name]) for name, grid in grids.items()}


def _beyond_whole_blocks(
    ranking: Ranking,
    gone: Mapping[str, Tensor],
    within: Mapping[str, Tensor],
    zeros: int,
    floors: Mapping[str, int],
) -> dict[str, Tensor]:
    """All whole blocks that `within` removes, and the lowest of what else it does."""
    masks = {
        name: ~gone[name] if ranking.masks is None else ranking.masks[name] & ~gone[name]
        for name in gone
    }
    losers = {name: ~within[name] for name in gone}
    return ranking.masked_by(masks).losing_first(losers).remove(zeros, floors, "global")


def _with_rest(
    ranking: Ranking, masks: dict[str, Tensor], following: dict[str, Tensor], rest: int
) -> dict[str, Tensor]:
    """Masks that also remove the `rest` lowest weights of the one block that follows."""
    more = {name: masks[name] & ~following[name] for name in masks}
    counts = sum_counts(ranking.shards, true_counts(more))
    (name,) = (name for name, count in counts.items() if count)
    losers = {other: ~mask for other, mask in following.items()}
    zeros = ranking.masked()[name] + rest
    return masks | ranking.losing_first(losers).lowest(zeros, [name])
