"""Scores: how much a weight matters. The lowest scores are pruned first.

A score is asked for a piece of a tensor at a time, so that ranking 10^8 weights needs no second
copy of them, and so that a rank that holds a part of a tensor can score its part alone.
"""

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class Score(Protocol):
    """A way to score weights, one by one."""

    def of(self, name: str, weights: Tensor, start: int) -> Tensor:
        """Scores of a piece of one tensor.

        Args:
            name: The tensor's name.
            weights: `(count,)`, neighbours in row-major order; they are not changed.
            start: Position of the first of them in the whole tensor.

        Returns:
            A fresh, contiguous float32 tensor `(count,)` on the same device, all at least 0, which
            the caller may change. A weight's score does not depend on how a tensor is cut.
        """
        ...


class Magnitude:
    """The absolute value of a weight, the score of magnitude pruning (Han et al., 2015)."""

    def of(self, name: str, weights: Tensor, start: int) -> Tensor:
        """See `Score.of`."""
        return weights.abs().to(torch.float32)


class RandomScore:
    """Uniform random scores in [0, 1), the baseline that any method has to beat.

    A weight's score depends on the seed, its tensor's name and its position alone, so it stays the
    same throughout a run, the masks of successive events are nested, and every rank, device and
    cut of a tensor sees the same. Source of the generator: Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators" (OOPSLA 2014), whose n-th number can be computed directly.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def of(self, name: str, weights: Tensor, start: int) -> Tensor:
        """See `Score.of`."""
        digest = hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()
        state = int.from_bytes(digest[:8], "big")
        bits = split_mix(state, start, len(weights), weights.device)
        return _shift_right(bits, 40).to(torch.float32).mul_(2.0**-24)


def split_mix(seed: int, start: int, count: int, device: torch.device) -> Tensor:
    """Numbers `start` to `start + count` of the SplitMix64 generator.

    Args:
        seed: Its state at first, in [0, 2^64).
        start: At least 0.
        count: At least 0.
        device: Where they are computed; the numbers are the same everywhere.

    Returns:
        `(count,)`, int64, whose bits are those of the unsigned numbers.
    """
    bits = torch.arange(start + 1, start + 1 + count, device=device)
    bits.mul_(_signed(0x9E3779B97F4A7C15)).add_(_signed(seed))
    bits.bitwise_xor_(_shift_right(bits, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    bits.bitwise_xor_(_shift_right(bits, 27)).mul_(_signed(0x94D049BB133111EB))
    return bits.bitwise_xor_(_shift_right(bits, 31))


def _signed(number: int) -> int:
    """The int64 with the bits of an unsigned number."""
    return number - (1 << 64) if number >> 63 else number


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Shift in zeros; torch's own shift repeats the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)
