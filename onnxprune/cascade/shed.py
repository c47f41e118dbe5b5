"""Shed weights: kept by the mask, yet fallen to nothing since the last pruning event.

Definitions follow the idea of Azarian and Porikli, "Cascade Weight Shedding in Deep Neural
Networks", arXiv 2103.10629; the thresholds are this project's, see `docs/concepts/cascade.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.sparsity import Shards, local_part
from onnxprune.sparsity.shards import Whole, sum_counts, true_counts


@dataclass(frozen=True)
class ShedCount:
    """How many weights are shed at a step.

    Attributes:
        step: Optimizer steps done.
        since: Step of the pruning event that they are compared with.
        kept: Weights that count: kept by the mask and above the threshold at the event.
        shed: Tensor name -> those that are at most tau times the tensor's RMS at the event.
        shed_relative: Tensor name -> those that are at most tau times its RMS now. Weights before
            a normalisation are free in scale, so that whole tensors shrink under weight decay;
            these have fallen behind their own tensor.
    """

    step: int
    since: int
    kept: int
    shed: dict[str, int]
    shed_relative: dict[str, int]

    @property
    def total(self) -> int:
        """Shed weights of all tensors, against the RMS at the event."""
        return sum(self.shed.values())

    @property
    def total_relative(self) -> int:
        """Shed weights of all tensors, against the RMS now."""
        return sum(self.shed_relative.values())


class ShedMonitor:
    """Watches the kept weights from one pruning event to the next.

    With r_t(e) the root mean square of tensor t's kept weights at event e, a kept weight is shed at
    a step if it was above tau * r_t(e) at e and is at most tau * r_t(e) now.

    Args:
        tau: Threshold as a share of the RMS, in (0, 1).
        shards: The ranks that hold the other parts of the tensors; None where this one holds all.

    Attributes:
        tau: As given.
        since: Step of the event; None before the first.
        rms: Tensor name -> r_t(e), over all ranks.
        above: Tensor name -> boolean tensor: kept at the event, and above the threshold then.
    """

    def __init__(self, tau: float, shards: Shards | None = None) -> None:
        self.tau = tau
        self.since: int | None = None
        self.rms: dict[str, float] = {}
        self.above: dict[str, Tensor] = {}
        self._shards = shards or Whole()

    def begin(self, step: int, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Take the weights as they are right after a pruning event.

        Args:
            step: Of the event.
            weights: By name; not changed. Of sharded tensors (`DTensor`), this rank's parts count.
            masks: True keeps; of the shape of each (part of a) tensor.
        """
        self.since = step
        self.rms = kept_rms(weights, masks, self._shards)
        self.above = {
            name: masks[name] & (local_part(weight.detach()).abs() > self.tau * self.rms[name])
            for name, weight in weights.items()
        }

    def shed(
        self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, relative: bool = False
    ) -> dict[str, Tensor]:
        """Which weights are shed now, as boolean tensors like `masks`.

        Args:
            weights: As in `begin`.
            masks: Of now.
            relative: Compare with the RMS of now instead of that at the event.
        """
        rms = kept_rms(weights, masks, self._shards) if relative else self.rms
        return {
            name: masks[name]
            & self.above[name]
            & (local_part(weight.detach()).abs() <= self.tau * rms[name])
            for name, weight in weights.items()
        }

    def count(
        self, step: int, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> ShedCount:
        """Count the weights that are shed at a step, over all ranks.

        Args:
            step: Optimizer steps done.
            weights: As in `begin`. Those of a control arm may be counted on the positions that a
                treated arm kept: pass that arm's masks here and in `begin`.
            masks: Of now.
        """
        assert self.since is not None
        now = kept_rms(weights, masks, self._shards)
        rows = []  # each tensor is reduced at once, so that its buffers serve the next one
        for name, weight in weights.items():
            magnitude = local_part(weight.detach()).abs()
            eligible = self.above[name] & masks[name]
            small = ((magnitude <= self.tau * rms[name]) & eligible for rms in (self.rms, now))
            rows.append(torch.stack([part.count_nonzero() for part in (eligible, *small)]))
        device = rows[0].device if rows else None
        counts = torch.stack([row.to(device) for row in rows]).T.tolist() if rows else [[]] * 3
        kept, shed, relative = (
            sum_counts(self._shards, dict(zip(weights, column, strict=True))) for column in counts
        )
        return ShedCount(step, self.since, sum(kept.values()), shed, relative)


def kept_rms(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], shards: Shards | None = None
) -> dict[str, float]:
    """Root mean square of each tensor's kept weights, over all ranks; 0 where none is kept."""
    shards = shards or Whole()
    if not weights:
        return {}
    squares = torch.stack(
        [
            _square_sum(torch.where(masks[name], local_part(weight.detach()), 0.0)).cpu()
            for name, weight in weights.items()
        ]
    )
    sums = dict(zip(weights, shards.sum(squares).tolist(), strict=True))
    counts = sum_counts(shards, true_counts({name: masks[name] for name in weights}))
    return {name: (sums[name] / counts[name]) ** 0.5 if counts[name] else 0.0 for name in weights}


_ROW = 2**16
"""So many squares are added in the weights' own precision, which costs a third of float64."""


def _square_sum(values: Tensor) -> Tensor:
    """Sum of squares, in float64."""
    flat = values.flatten()
    whole = flat.numel() // _ROW * _ROW
    rows, rest = flat[:whole].view(-1, _ROW), flat[whole:].unsqueeze(0)
    norms = torch.cat([torch.linalg.vector_norm(part, dim=1) for part in (rows, rest)])
    return norms.to(torch.float64).square().sum()
