"""Exact selection: of all weights in a scope, exactly the k with the lowest scores.

Scores are non-negative float32 numbers, whose bit patterns order like the numbers themselves. Two
histograms over those bits (16 high bits, then the 15 low ones within the bin that holds the k-th)
find the k-th lowest score exactly, in a fixed amount of memory and without a sort.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from onnxprune.errors import TargetError
from onnxprune.sparsity.patterns import NM, Pattern, pattern_losers
from onnxprune.sparsity.scores import CHUNK, Score

_LOW_BITS = 15
_LOW_COUNT = 1 << _LOW_BITS
_HIGH_COUNT = 1 << 16
_FIRST = 0
"""Key of weights that go before all others: those that are masked already."""
_LAST = 0x7FFFFFFF
"""Key of weights that must stay."""


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
) -> dict[str, Tensor]:
    """Choose exactly `zeros` weights to remove and return the masks of all tensors.

    Args:
        weights: Tensors by name, of any shape, all finite; they are not changed.
        zeros: How many weights are zero afterwards, over all tensors, in [0, total].
        score: What ranks them; the lowest go first. Among equal scores the first go, in the order
            of `weights` and then row-major.
        masks: Masks so far; what they removed stays removed and counts towards `zeros`.
        floors: How many weights each tensor keeps at least, by name.
        scope: `"global"` ranks all weights together; `"layerwise"` gives every tensor its share of
            the zeros in proportion to its size.
        pattern: With N:M, the weights that the pattern removes go first; once they are all gone
            the pattern holds, and further zeros come from the rest.
        axes: The reduction axis of every tensor; needed with a pattern.

    Returns:
        Boolean tensors like `weights`, True where a weight is kept.

    Raises:
        TargetError: `zeros` cannot be reached with `floors`, or is below what `masks` removed.
    """
    floors = dict(floors or {})
    sizes = {name: weight.numel() for name, weight in weights.items()}
    prunable_limit(sizes, floors, zeros, what=f"{zeros} zeros")
    already = {
        name: 0 if masks is None else int(masks[name].numel() - masks[name].sum())
        for name in weights
    }
    if zeros < sum(already.values()):
        raise TargetError(
            "weights that are masked do not come back",
            got=f"{zeros} zeros asked for, {sum(already.values())} masked already",
        )
    losers = None
    if isinstance(pattern, NM):
        assert axes is not None
        losers = pattern_losers(pattern, weights, axes, score, masks)
    keys = _Keys(weights, score, masks, losers)
    if scope == "layerwise":
        shares = allocate_layerwise(sizes, zeros, floors, already)
        return {
            name: _lowest(keys.of(shares[name], [name]), shares[name])[name] for name in weights
        }
    return _lowest_with_floors(keys, zeros, sizes, floors)


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


class _Keys:
    """Integer keys of weights in chunks: order-preserving score bits, with room at both ends."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        score: Score,
        masks: Mapping[str, Tensor] | None,
        losers: Mapping[str, Tensor] | None,
    ) -> None:
        self.weights = weights
        self.score = score
        self.masks = masks
        self.losers = losers

    def of(self, zeros: int, names: list[str] | None = None) -> "_KeyView":
        """Keys of some tensors, given how many of their weights will go."""
        names = list(self.weights) if names is None else names
        beyond = False
        if self.losers is not None:
            beyond = zeros > sum(int(self.losers[name].sum()) for name in names)
        return _KeyView(self, names, beyond)


@dataclass(frozen=True)
class _KeyView:
    keys: _Keys
    names: list[str]
    beyond_pattern: bool

    def chunks(self, name: str) -> Iterator[Tensor]:
        """Keys in [0, 2^31) as int32, in row-major order."""
        keys = self.keys
        masks = _split(keys.masks, name)
        losers = _split(keys.losers, name)
        for scores in keys.score.chunks(name, keys.weights[name]):
            key = scores.view(torch.int32).add_(1)
            if losers is not None:
                lost = next(losers)
                if self.beyond_pattern:
                    key.masked_fill_(lost, _FIRST)
                else:
                    key.masked_fill_(~lost, _LAST)
            if masks is not None:
                key.masked_fill_(~next(masks), _FIRST)
            yield key

    def all_chunks(self) -> Iterator[Tensor]:
        for name in self.names:
            yield from self.chunks(name)


def _split(tensors: Mapping[str, Tensor] | None, name: str) -> Iterator[Tensor] | None:
    return None if tensors is None else iter(tensors[name].reshape(-1).split(CHUNK))


def _lowest_with_floors(
    keys: _Keys, zeros: int, sizes: Mapping[str, int], floors: Mapping[str, int]
) -> dict[str, Tensor]:
    """The lowest `zeros` weights, where a tensor at its floor gives up no more.

    Tensors that would fall below their floor are settled at it, and the others are ranked again
    for what is left; every round settles at least one, so this ends.
    """
    settled: dict[str, Tensor] = {}
    names = list(sizes)
    left = zeros
    while True:
        chosen = _lowest(keys.of(left, names), left)
        starved = [n for n in names if int(chosen[n].sum()) < floors.get(n, 0)]
        if not starved:
            settled.update(chosen)
            return {name: settled[name] for name in sizes}
        for name in starved:
            cap = sizes[name] - floors[name]
            settled[name] = _lowest(keys.of(cap, [name]), cap)[name]
            left -= cap
        names = [name for name in names if name not in settled]


def _lowest(view: _KeyView, zeros: int) -> dict[str, Tensor]:
    """Masks that remove exactly the `zeros` lowest keys of a view."""
    weights = view.keys.weights
    if zeros == 0:
        return {name: torch.ones_like(weights[name], dtype=torch.bool) for name in view.names}
    threshold, below = _kth_key(view, zeros)
    ties = zeros - below
    masks = {}
    for name in view.names:
        mask = torch.empty(weights[name].numel(), dtype=torch.bool, device=weights[name].device)
        for key, kept in zip(view.chunks(name), mask.split(CHUNK), strict=True):
            torch.gt(key, threshold, out=kept)
            if ties == 0:
                kept |= key == threshold
                continue
            equal = (key == threshold).nonzero().squeeze(1)
            kept[equal[ties:]] = True
            ties -= min(ties, equal.numel())
        masks[name] = mask.reshape(weights[name].shape)
    return masks


def _kth_key(view: _KeyView, k: int) -> tuple[int, int]:
    """The k-th lowest key (k from 1), and how many keys are below it."""
    high = sum(_histogram(key >> _LOW_BITS, _HIGH_COUNT) for key in view.all_chunks())
    assert isinstance(high, Tensor)
    bin_index, below = _bin_of(high, k)
    low: Tensor | int = 0
    for key in view.all_chunks():
        inside = key[(key >> _LOW_BITS) == bin_index]
        if inside.numel():
            low = low + _histogram(inside & (_LOW_COUNT - 1), _LOW_COUNT)
    assert isinstance(low, Tensor)
    low_index, below_low = _bin_of(low, k - below)
    return (bin_index << _LOW_BITS) | low_index, below + below_low


def _histogram(values: Tensor, bins: int) -> Tensor:
    return torch.bincount(values, minlength=bins).cpu()


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th entry, and the number of entries in the bins before it."""
    cumulative = histogram.cumsum(0)
    index = int(torch.searchsorted(cumulative, torch.tensor(k)))
    return index, int(cumulative[index] - histogram[index])
