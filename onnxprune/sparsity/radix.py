"""Radix selection: the k lowest keys, exactly, without a sort and wherever the weights lie.

Keys are the bits of non-negative float32 scores, which order like the numbers. They are read digit
by digit from the highest: a histogram of the digit, over the weights that agree with the k-th
lowest so far, tells its next digit (radixSelect of Alabi et al., "Fast k-selection algorithms for
graphics processing units", ACM JEA 2012). Where weights are spread over ranks, the ranks add up
their histograms, so what they exchange does not grow with the number of weights.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.sparsity.scores import Score
from onnxprune.sparsity.shards import Shards

_KEY_BITS = 31
_LAST = (1 << _KEY_BITS) - 1
"""Key of weights that must stay; those that go before all others have the key 0."""


@dataclass(frozen=True)
class Reading:
    """How keys are read on a kind of device.

    Attributes:
        digits: Bits of each digit, highest first; they add up to 31.
        chunk: Weights that are read at a time.
    """

    digits: tuple[int, ...]
    chunk: int


CPU = Reading((16, 15), 1 << 18)
"""Two digits: a pass over the weights is what costs. A chunk fits a core's cache."""
GPU = Reading((11, 10, 10), 1 << 22)
"""Histograms fit a block's shared memory. A chunk fits the cache, and is large beside a launch."""


def reading_for(device: torch.device) -> Reading:
    """The way to read keys that suits a device."""
    return GPU if device.type == "cuda" else CPU


class Keys:
    """Integer keys of weights: order-preserving bits of their scores, with room at both ends.

    A weight that is masked already has the key 0. A product sets it: filling by mask is ten times
    slower on a CPU.

    Args:
        weights: This rank's parts of all tensors.
        score: What ranks them.
        starts: Position of each part in the whole tensor.
        masks: What is masked already; None for nothing.
        losers: What a pattern removes; None without a pattern.
        beyond_pattern: Whether all losers go, so that the rest is ranked, too.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        score: Score,
        starts: Mapping[str, int],
        masks: Mapping[str, Tensor] | None,
        losers: Mapping[str, Tensor] | None,
        beyond_pattern: bool,
    ) -> None:
        self.weights = weights
        self.score = score
        self.starts = starts
        self.masks = masks
        self.losers = losers
        self.beyond_pattern = beyond_pattern
        first = next(iter(weights.values()), None)
        self.device = torch.device("cpu") if first is None else first.device
        self.reading = reading_for(self.device)

    def chunks(self, name: str, skip: Iterable[bool] | None = None) -> Iterator[Tensor]:
        """Keys in [0, 2^31) as int32, in row-major order.

        Args:
            name: The tensor.
            skip: For each chunk, whether it is left out.
        """
        size = self.reading.chunk
        flat = self.weights[name].detach().reshape(-1)
        masks = _flat(self.masks, name)
        losers = _flat(self.losers, name)
        starts = range(0, flat.numel(), size)
        for start, skipped in zip(starts, skip or [False] * len(starts), strict=True):
            if skipped:
                continue
            here = slice(start, start + size)
            key = self.score.of(name, flat[here], self.starts[name] + start)
            key = key.view(torch.int32).add_(1)
            if losers is not None:
                if self.beyond_pattern:
                    key.mul_(~losers[here])
                else:
                    key.masked_fill_(~losers[here], _LAST)
            if masks is not None:
                key.mul_(masks[here])
            yield key

    def merged_chunks(self) -> Iterator[Tensor]:
        """Keys of all tensors, small chunks joined: a histogram of few costs as much as of many."""
        held: list[Tensor] = []
        for name in self.weights:
            for key in self.chunks(name):
                held.append(key.to(self.device))
                if sum(map(len, held)) > self.reading.chunk // 2:
                    yield torch.cat(held) if len(held) > 1 else held[0]
                    held = []
        if held:
            yield torch.cat(held)


def _flat(tensors: Mapping[str, Tensor] | None, name: str) -> Tensor | None:
    return None if tensors is None else tensors[name].reshape(-1)


def keep_all_but_lowest(keys: Keys, zeros: int, shards: Shards) -> dict[str, Tensor]:
    """Masks that remove exactly the `zeros` lowest keys over all ranks.

    Among equal keys the first go: tensor by tensor, then rank by rank, then row-major.

    Args:
        keys: Keys of this rank's parts.
        zeros: In [0, number of weights on all ranks].
        shards: The ranks.

    Returns:
        Masks of this rank's parts, True where a weight is kept.
    """
    masks = {
        name: torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        for name, weight in keys.weights.items()
    }
    if zeros:
        threshold, below = _kth_key(keys, zeros, shards)
        equal = _cut_below(keys, threshold, masks)
        _cut_ties(keys, threshold, masks, equal, zeros - below, shards)
    return {name: mask.reshape(keys.weights[name].shape) for name, mask in masks.items()}


def _kth_key(keys: Keys, k: int, shards: Shards) -> tuple[int, int]:
    """The k-th lowest key (k from 1), and how many keys are below it."""
    prefix, below, shift = 0, 0, _KEY_BITS
    for bits in keys.reading.digits:
        shift -= bits
        counts = torch.zeros(1 << bits, dtype=torch.int64, device=keys.device)
        with _atomic_counts(keys.device):
            for key in keys.merged_chunks():
                counts += _digit_counts(key, prefix, shift, bits)
        cumulative = shards.sum(counts).cpu().cumsum(0)
        digit = int(torch.searchsorted(cumulative, torch.tensor(k - below)))
        if digit:
            below += int(cumulative[digit - 1])
        prefix = prefix << bits | digit
    return prefix, below


def _digit_counts(key: Tensor, prefix: int, shift: int, bits: int) -> Tensor:
    """Histogram of a digit, over the keys whose higher digits are `prefix`."""
    values = key >> shift if shift else key
    if key.is_cuda:
        # Unlike bincount, histc does not wait for the GPU, and ignores what is out of range.
        if prefix:
            values = values - (prefix << bits)
        return torch.histc(values, 1 << bits, min=0, max=(1 << bits) - 1)
    if shift + bits < _KEY_BITS:
        values = values[values >> bits == prefix] & ((1 << bits) - 1)
    return torch.bincount(values, minlength=1 << bits)


@contextlib.contextmanager
def _atomic_counts(device: torch.device) -> Iterator[None]:
    """Let histc run on a GPU under deterministic algorithms: sums of integers have no order."""
    if device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


def _cut_below(keys: Keys, threshold: int, masks: dict[str, Tensor]) -> dict[str, list[int]]:
    """Mask the keys below a threshold; returns how many in each chunk are equal to it."""
    counts: list[Tensor] = []
    chunks = {}
    for name, mask in masks.items():
        before = len(counts)
        for key, kept in zip(keys.chunks(name), _pieces(mask, keys), strict=True):
            torch.ge(key, threshold, out=kept)
            counts.append((key == threshold).count_nonzero().to(keys.device))
        chunks[name] = len(counts) - before
    found = iter(torch.stack(counts).tolist() if counts else [])
    return {name: [next(found) for _ in range(count)] for name, count in chunks.items()}


def _cut_ties(
    keys: Keys,
    threshold: int,
    masks: dict[str, Tensor],
    equal: dict[str, list[int]],
    ties: int,
    shards: Shards,
) -> None:
    """Mask the first `ties` of the keys that are equal to the threshold, over all ranks."""
    own = torch.tensor([sum(counts) for counts in equal.values()], dtype=torch.int64)
    everywhere, earlier = shards.sum(own).tolist(), shards.before(own).tolist()
    for name, here, before in zip(masks, everywhere, earlier, strict=True):
        _cut_first(keys, name, threshold, masks[name], equal[name], ties - before)
        ties -= min(ties, here)


def _cut_first(
    keys: Keys, name: str, threshold: int, mask: Tensor, equal: list[int], count: int
) -> None:
    """Mask the first `count` keys of one part that are equal to the threshold."""
    quotas = []
    for here in equal:
        quotas.append(max(0, min(here, count)))
        count -= here
    chunks = keys.chunks(name, [quota == 0 for quota in quotas])
    for here, quota, kept in zip(equal, quotas, _pieces(mask, keys), strict=True):
        if quota == 0:
            continue
        equals = next(chunks) == threshold
        if quota == here:
            kept.masked_fill_(equals, False)
        else:
            kept[equals.nonzero().squeeze(1)[:quota]] = False


def _pieces(mask: Tensor, keys: Keys) -> tuple[Tensor, ...]:
    """The chunks of a flat mask, none for an empty one."""
    return mask.split(keys.reading.chunk) if mask.numel() else ()
