"""Weights that lie on several ranks: what the ranks tell each other, and how to cut tensors."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Shards(Protocol):
    """What the ranks that hold the parts of the same tensors tell each other: sums of counts.

    Every rank calls the same methods in the same order, with integer tensors of equal shapes.
    """

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same on each, on the device of `tensor`."""
        ...

    def before(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks before this one; zeros on the first."""
        ...


class Whole:
    """The one rank that holds everything."""

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Shards.sum`."""
        return tensor

    def before(self, tensor: Tensor) -> Tensor:
        """See `Shards.before`."""
        return torch.zeros_like(tensor)


def sum_counts(shards: Shards, counts: Mapping[str, int]) -> dict[str, int]:
    """Sum one count a tensor over all ranks, in one exchange."""
    sums = shards.sum(torch.tensor(list(counts.values()), dtype=torch.int64))
    return dict(zip(counts, sums.tolist(), strict=True))


def counts_before(shards: Shards, counts: Mapping[str, int]) -> dict[str, int]:
    """Sum one count a tensor over the ranks before this one, in one exchange."""
    sums = shards.before(torch.tensor(list(counts.values()), dtype=torch.int64))
    return dict(zip(counts, sums.tolist(), strict=True))


def true_counts(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """How many entries of each tensor are true; a GPU is waited for once."""
    if not masks:
        return {}
    device = next(iter(masks.values())).device
    counts = torch.stack([mask.sum().to(device) for mask in masks.values()])
    return dict(zip(masks, counts.tolist(), strict=True))


def local_part(tensor: Tensor) -> Tensor:
    """What lies on this rank of a sharded tensor (`DTensor`), as a view; any other as it is."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor
    part: Tensor = to_local().detach()
    return part
