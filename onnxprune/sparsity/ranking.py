"""The weights of all ranks in the order in which they go, and how many each tensor loses.

The lowest are found by `radix`.
"""

import math
from collections.abc import Iterable, Mapping
from copy import copy

from torch import Tensor

from onnxprune.sparsity.radix import Keys, keep_all_but_lowest
from onnxprune.sparsity.scores import Score
from onnxprune.sparsity.shards import Shards, counts_before, sum_counts, true_counts


class Ranking:
    """What goes first: masked weights, then those that lose first, then the others, by score.

    Args:
        weights: This rank's parts of all tensors.
        score: What ranks them.
        shards: The ranks that hold the other parts.
        masks: What is masked already; None for nothing.

    Attributes:
        sizes: Number of weights of each tensor, over all ranks.
        starts: Position of each part in the whole tensor.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        score: Score,
        shards: Shards,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.weights = weights
        self.score = score
        self.shards = shards
        self.masks = masks
        own = {name: weight.numel() for name, weight in weights.items()}
        self.sizes = sum_counts(shards, own)
        self.starts = counts_before(shards, own)
        self._losers: Mapping[str, Tensor] | None = None
        self._lost: dict[str, int] = {}

    def losing_first(self, losers: Mapping[str, Tensor]) -> "Ranking":
        """The same weights, of which some go before the rest."""
        other = copy(self)
        other._losers = losers
        other._lost = sum_counts(self.shards, true_counts(losers))
        return other

    def masked_by(self, masks: Mapping[str, Tensor]) -> "Ranking":
        """The same weights in the same order, with other masks."""
        other = copy(self)
        other.masks = masks
        return other

    def masked(self) -> dict[str, int]:
        """Number of masked weights of each tensor, over all ranks."""
        if self.masks is None:
            return dict.fromkeys(self.weights, 0)
        masks = {name: self.masks[name] for name in self.weights}
        own = {name: masks[name].numel() - count for name, count in true_counts(masks).items()}
        return sum_counts(self.shards, own)

    def lowest(self, zeros: int, names: Iterable[str]) -> dict[str, Tensor]:
        """Masks of some tensors that remove the `zeros` lowest of their weights."""
        weights = {name: self.weights[name] for name in names}
        beyond = self._losers is not None and zeros > sum(self._lost[name] for name in weights)
        keys = Keys(weights, self.score, self.starts, self.masks, self._losers, beyond)
        return keep_all_but_lowest(keys, zeros, self.shards)

    def remove(self, zeros: int, floors: Mapping[str, int], scope: str) -> dict[str, Tensor]:
        """Masks of all tensors that remove the `zeros` lowest of their weights.

        Args:
            zeros: At most what `floors` allow.
            floors: How many weights each tensor keeps at least.
            scope: `"global"` or `"layerwise"`, see `select_masks`.
        """
        if scope == "layerwise":
            shares = allocate_layerwise(self.sizes, zeros, floors, self.masked())
            return {name: self.lowest(shares[name], [name])[name] for name in self.weights}
        return self._lowest_with_floors(zeros, floors)

    def _lowest_with_floors(self, zeros: int, floors: Mapping[str, int]) -> dict[str, Tensor]:
        """The lowest `zeros` weights, where a tensor at its floor gives up no more.

        Tensors that would fall below their floor are settled at it, and the others are ranked again
        for what is left; every round settles at least one, so this ends.
        """
        settled: dict[str, Tensor] = {}
        names = list(self.sizes)
        left = zeros
        while True:
            chosen = self.lowest(left, names)
            bounded = {name: chosen[name] for name in names if floors.get(name, 0)}
            kept = sum_counts(self.shards, true_counts(bounded))
            starved = [name for name in bounded if kept[name] < floors[name]]
            if not starved:
                settled.update(chosen)
                return {name: settled[name] for name in self.sizes}
            for name in starved:
                cap = self.sizes[name] - floors[name]
                settled[name] = self.lowest(cap, [name])[name]
                left -= cap
            names = [name for name in names if name not in settled]


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
