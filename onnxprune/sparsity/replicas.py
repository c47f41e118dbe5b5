"""Selection where every rank holds all weights: each ranks its share, and masks are exchanged."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from onnxprune.sparsity.patterns import Axes, Pattern
from onnxprune.sparsity.scores import Score
from onnxprune.sparsity.select import select_masks
from onnxprune.sparsity.shards import Shards


class Replicas(Shards, Protocol):
    """The ranks that hold equal copies of the weights.

    Attributes:
        rank: This one's number, in [0, world).
        world: How many there are.
    """

    @property
    def rank(self) -> int: ...  # noqa: D102

    @property
    def world(self) -> int: ...  # noqa: D102

    def gather(self, tensor: Tensor) -> Tensor:
        """The boolean tensors of all ranks, of one shape, as `(world, *shape)`."""
        ...


def partition(
    tensors: Mapping[str, Tensor],
    rank: int,
    world: int,
    *,
    pattern: Pattern = None,
    axes: Mapping[str, Axes] | None = None,
) -> dict[str, Tensor]:
    """One rank's share of replicated tensors, as views.

    Each tensor is cut along its first axis into `world` neighbouring parts, which differ by at
    most one row, or by one group or block of the pattern where that runs along the first axis. A
    tensor without axes belongs to the last rank. Parts may be empty.

    Args:
        tensors: Tensors by name, of any shape.
        rank: Whose share, in [0, world).
        world: Number of ranks, at least 1.
        pattern: Whose groups and blocks stay whole.
        axes: The axes of every tensor; needed with a pattern.
    """
    shares = {}
    for name, tensor in tensors.items():
        shares[name] = _by_rows(tensor)[_rows(tensor, rank, world, _unit(name, pattern, axes))]
    return shares


def select_replicated_masks(
    weights: Mapping[str, Tensor],
    zeros: int,
    score: Score,
    ranks: Replicas,
    *,
    masks: Mapping[str, Tensor] | None = None,
    floors: Mapping[str, int] | None = None,
    scope: str = "global",
    pattern: Pattern = None,
    axes: Mapping[str, Axes] | None = None,
    within: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """`select_masks` for weights that every rank holds, with the same result.

    Every rank ranks its share of the weights alone and then tells the others its masks, a byte a
    weight. So masks are the same on all ranks, even if their weights have come apart. The time of
    ranking is divided by the number of ranks; on CPUs, telling the masks takes up most of what
    that saves (`benchmarks/pruning_event.py`). The arguments are those of `select_masks`.

    Args:
        weights: Equal on all ranks; they are not changed.
        zeros: See `select_masks`.
        score: See `select_masks`.
        ranks: All of them; every rank makes the same call.
        masks: Equal on all ranks.
        floors: See `select_masks`.
        scope: See `select_masks`.
        pattern: See `select_masks`.
        axes: See `select_masks`.
        within: Equal on all ranks; see `select_masks`.

    Returns:
        The masks of the whole tensors, on every rank.

    Raises:
        TargetError: See `select_masks`.
    """
    if ranks.world == 1:
        return select_masks(
            weights,
            zeros,
            score,
            masks=masks,
            floors=floors,
            scope=scope,
            pattern=pattern,
            axes=axes,
            within=within,
        )

    def share(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return partition(tensors, ranks.rank, ranks.world, pattern=pattern, axes=axes)

    chosen = select_masks(
        share(weights),
        zeros,
        score,
        masks=None if masks is None else share({name: masks[name] for name in weights}),
        floors=floors,
        scope=scope,
        pattern=pattern,
        axes=axes,
        within=None if within is None else share({name: within[name] for name in weights}),
        shards=ranks,
    )
    return {
        name: _joined(chosen[name], weight, ranks, _unit(name, pattern, axes))
        for name, weight in weights.items()
    }


def _joined(own: Tensor, weight: Tensor, ranks: Replicas, unit: int) -> Tensor:
    """The mask of a whole tensor, from the rows of every rank."""
    places = [_rows(weight, rank, ranks.world, unit) for rank in range(ranks.world)]
    most = max(place.stop - place.start for place in places)
    padded = own.new_zeros((most, *own.shape[1:]))
    padded[: len(own)] = own
    pieces = zip(ranks.gather(padded), places, strict=True)
    return torch.cat([piece[: p.stop - p.start] for piece, p in pieces]).reshape(weight.shape)


def _unit(name: str, pattern: Pattern, axes: Mapping[str, Axes] | None) -> int:
    """How many rows have to stay together."""
    return 1 if pattern is None or axes is None else pattern.rows_together(axes[name])


def _by_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.ndim else tensor.reshape(1)


def _rows(tensor: Tensor, rank: int, world: int, unit: int) -> slice:
    rows = _by_rows(tensor).shape[0]
    units = -(-rows // unit)
    start, end = (min(units * number // world * unit, rows) for number in (rank, rank + 1))
    return slice(start, end)
