"""Exact selection: of all weights in a scope, exactly the k with the lowest scores.

The lowest are found by `radix`; here the number of weights that each tensor has to lose or to keep
is settled.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor

from onnxprune.errors import TargetError
from onnxprune.sparsity.patterns import NM, Pattern, pattern_losers
from onnxprune.sparsity.radix import Keys, keep_all_but_lowest
from onnxprune.sparsity.scores import Score
from onnxprune.sparsity.shards import Shards, Whole, counts_before, sum_counts, true_counts


def target_zeros(sparsity: float, total: int) -> int:
    """Number of zeros that a sparsity means: exactly `ceil(sparsity * total)`.

    The product is taken in rational arithmetic on the decimal that the user wrote, so that 0.8 of
    10 is 8 and not 9.
    """
    return math.ceil(Fraction(repr(float(sparsity))) * total)


def min_kept(density: float, size: int) -> int:
    """Number of weights that a minimum density in [0, 1] keeps of `size`, rounded up."""
    return target_zeros(density, size)


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
    axes: Mapping[str, int] | None = None,
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
        floors: How many weights each tensor keeps at least, by name, over all ranks.
        scope: `"global"` ranks all weights together; `"layerwise"` gives every tensor its share of
            the zeros in proportion to its size.
        pattern: With N:M, the weights that the pattern removes go first; once they are all gone
            the pattern holds, and further zeros come from the rest.
        axes: The reduction axis of every tensor; needed with a pattern.
        shards: The ranks that hold the other parts; None where this one holds everything.

    Returns:
        Boolean tensors like `weights`, True where a weight is kept.

    Raises:
        TargetError: `zeros` cannot be reached with `floors`, is below what `masks` removed, or a
            group of the pattern is cut by the parts. Every rank raises it.
    """
    floors = dict(floors or {})
    shards = shards or Whole()
    own_sizes = {name: weight.numel() for name, weight in weights.items()}
    sizes = sum_counts(shards, own_sizes)
    prunable_limit(sizes, floors, zeros, what=f"{zeros} zeros")
    already = dict.fromkeys(weights, 0)
    if masks is not None:
        already = sum_counts(shards, _falses({name: masks[name] for name in weights}))
    if zeros < sum(already.values()):
        raise TargetError(
            "weights that are masked do not come back",
            got=f"{zeros} zeros asked for, {sum(already.values())} masked already",
        )
    starts = counts_before(shards, own_sizes)
    losers = None
    if isinstance(pattern, NM):
        assert axes is not None
        losers = pattern_losers(pattern, weights, axes, score, masks, starts, shards)
    ranking = _Ranking(weights, score, starts, masks, losers, shards)
    if scope == "layerwise":
        shares = allocate_layerwise(sizes, zeros, floors, already)
        return {name: ranking.lowest(shares[name], [name])[name] for name in weights}
    return _lowest_with_floors(ranking, zeros, sizes, floors)


def allocate_layerwise(
    sizes: Mapping[str, int],
    zeros: int,
    floors: Mapping[str, int],
    already: Mapping[str, int],
) -> dict[str, int]:
    """Share `zeros` among tensors in proportion to their sizes, to the exact sum.

    Remainders go to the largest fractions first (ties: the earlier tensor). No tensor gets more
    than its size less its floor, nor fewer than it lost already.
    """
    caps = {name: size - floors.get(name, 0) for name, size in sizes.items()}
    shares = dict(already)
    open_names = [name for name in sizes if shares[name] < caps[name]]
    while (left := zeros - sum(shares.values())) > 0:
        total = sum(sizes[name] for name in open_names)
        goal = sum(shares[name] for name in open_names) + left
        exact = {name: goal * sizes[name] / total for name in open_names}
        gains = {
            name: max(0, min(caps[name], math.floor(exact[name])) - shares[name])
            for name in open_names
        }
        scale = min(1.0, left / max(1, sum(gains.values())))
        gains = {name: math.floor(gain * scale) for name, gain in gains.items()}
        if not any(gains.values()):
            order = sorted(open_names, key=lambda name: math.floor(exact[name]) - exact[name])
            gains = dict.fromkeys(order[:left], 1)
        for name, gain in gains.items():
            shares[name] += gain
        open_names = [name for name in open_names if shares[name] < caps[name]]
    return shares


class _Ranking:
    """The weights of all ranks in the order in which they go."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        score: Score,
        starts: Mapping[str, int],
        masks: Mapping[str, Tensor] | None,
        losers: Mapping[str, Tensor] | None,
        shards: Shards,
    ) -> None:
        self.weights = weights
        self.score = score
        self.starts = starts
        self.masks = masks
        self.losers = losers
        self.shards = shards
        self._lost = {} if losers is None else sum_counts(shards, true_counts(losers))

    def lowest(self, zeros: int, names: list[str]) -> dict[str, Tensor]:
        """Masks of some tensors that remove the `zeros` lowest of their weights."""
        weights = {name: self.weights[name] for name in names}
        beyond = self.losers is not None and zeros > sum(self._lost[name] for name in names)
        keys = Keys(weights, self.score, self.starts, self.masks, self.losers, beyond)
        return keep_all_but_lowest(keys, zeros, self.shards)


def _falses(masks: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: masks[name].numel() - count for name, count in true_counts(masks).items()}


def _lowest_with_floors(
    ranking: _Ranking, zeros: int, sizes: Mapping[str, int], floors: Mapping[str, int]
) -> dict[str, Tensor]:
    """The lowest `zeros` weights, where a tensor at its floor gives up no more.

    Tensors that would fall below their floor are settled at it, and the others are ranked again
    for what is left; every round settles at least one, so this ends.
    """
    settled: dict[str, Tensor] = {}
    names = list(sizes)
    left = zeros
    while True:
        chosen = ranking.lowest(left, names)
        bounded = {name: chosen[name] for name in names if floors.get(name, 0)}
        kept = sum_counts(ranking.shards, true_counts(bounded))
        starved = [name for name in bounded if kept[name] < floors[name]]
        if not starved:
            settled.update(chosen)
            return {name: settled[name] for name in sizes}
        for name in starved:
            cap = sizes[name] - floors[name]
            settled[name] = ranking.lowest(cap, [name])[name]
            left -= cap
        names = [name for name in names if name not in settled]
