"""A batch of samples as tensors."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A batch, on the CPU as it is read.

    Attributes:
        indices: Which samples it holds, `(batch,)`. Where a sample could not be read, that of the
            next readable one, which took its place.
        inputs: Input name -> `(batch, ...)`.
        labels: `(batch,)` class indices, or `(batch, ...)` targets, or None.
        global_size: Samples of the whole batch over all ranks and micro-batches; that of this one
            by default.
        lengths: Padded input -> `(batch,)` lengths of the samples before padding.
        skipped: Samples that could not be read, as (index, place and reason).
    """

    indices: Tensor
    inputs: dict[str, Tensor]
    labels: Tensor | None
    global_size: int = 0
    lengths: dict[str, Tensor] = field(default_factory=dict)
    skipped: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.global_size:
            object.__setattr__(self, "global_size", len(self.indices))

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the indices stay on the CPU."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return dataclasses.replace(moved, indices=self.indices)

    def pin_memory(self) -> "Batch":
        """The same batch in memory from which copies to a GPU need not wait."""
        return self._each(Tensor.pin_memory)

    def padded(self, size: int) -> "Batch":
        """At least `size` samples, by repeating the last one."""
        missing = size - len(self)
        if missing <= 0:
            return self
        return self._each(
            lambda tensor: torch.cat([tensor, tensor[-1:].repeat_interleave(missing, dim=0)])
        )

    def reversed(self) -> "Batch":
        """The same samples in reverse order."""
        return self._each(lambda tensor: tensor.flip(0))

    def split(self, size: int) -> "list[Batch]":
        """Micro-batches of at most `size` samples."""
        return [self._part(start, start + size) for start in range(0, len(self), size)]

    def _part(self, start: int, end: int) -> "Batch":
        part = self._each(lambda tensor: tensor[start:end])
        return part if start == 0 else dataclasses.replace(part, skipped=())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        return dataclasses.replace(
            self,
            indices=change(self.indices),
            inputs={name: change(tensor) for name, tensor in self.inputs.items()},
            labels=None if self.labels is None else change(self.labels),
            lengths={name: change(tensor) for name, tensor in self.lengths.items()},
        )
