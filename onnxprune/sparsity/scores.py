"""Scores: how much a weight matters. The lowest scores are pruned first.

A score is handed out in flat chunks, so that ranking 10^8 weights needs no second copy of them.
"""

import hashlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Weights a chunk: small enough for a core's cache, large enough to amortise a call."""


class Score(Protocol):
    """A way to score weights."""

    def chunks(self, name: str, weight: Tensor) -> Iterator[Tensor]:
        """Scores of one tensor in row-major order.

        Args:
            name: The tensor's name.
            weight: Any shape.

        Yields:
            Fresh, contiguous float32 tensors of `CHUNK` scores (the last may be shorter), all at
            least 0, on the weight's device; the caller may change them. Every call yields the same.
        """
        ...


class Magnitude:
    """The absolute value of a weight, the score of magnitude pruning (Han et al., 2015)."""

    def chunks(self, name: str, weight: Tensor) -> Iterator[Tensor]:
        """See `Score.chunks`."""
        for chunk in weight.detach().reshape(-1).split(CHUNK):
            yield chunk.abs().to(torch.float32)


class RandomScore:
    """Uniform random scores, the baseline that any method has to beat.

    A tensor's scores depend on the seed and its name alone, so they stay the same throughout a
    run and the masks of successive events are nested.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def chunks(self, name: str, weight: Tensor) -> Iterator[Tensor]:
        """See `Score.chunks`."""
        digest = hashlib.sha256(f"{self.seed}\0{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        for start in range(0, max(1, weight.numel()), CHUNK):
            count = min(CHUNK, weight.numel() - start)
            yield torch.rand(count, generator=generator).to(weight.device)
