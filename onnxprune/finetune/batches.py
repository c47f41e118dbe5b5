"""Batches in a fixed, resumable order, from any sequence of samples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class SampleLike(Protocol):
    """One sample: inputs by name without a batch axis, and a label if there is one."""

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """Arrays by input name."""
        ...

    @property
    def label(self) -> int | None:
        """Class index."""
        ...


class SamplesLike(Protocol):
    """A random-access collection of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SampleLike: ...


@dataclass(frozen=True)
class Batch:
    """A batch on the CPU.

    Attributes:
        indices: Which samples it holds, `(batch,)`.
        inputs: Input name -> `(batch, ...)`.
        labels: Targets, `(batch, ...)`, such as class indices `(batch,)`; None without. Sequences
            of whole numbers are padded with -1.
        lengths: Of inputs that are padded to one length: input name -> `(batch,)` lengths.
        whole_size: Samples of the batch over all processes; None where it is this one's alone.
    """

    indices: Tensor
    inputs: dict[str, Tensor]
    labels: Tensor | None
    lengths: dict[str, Tensor] = field(default_factory=dict)
    whole_size: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def global_size(self) -> int:
        """Samples of the batch over all processes."""
        return len(self) if self.whole_size is None else self.whole_size

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(
            self.indices,
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            None if self.labels is None else self.labels.to(device, non_blocking=True),
            {name: tensor.to(device, non_blocking=True) for name, tensor in self.lengths.items()},
        )

    def padded(self, size: int) -> "Batch":
        """At least `size` samples, by repeating the last one."""
        missing = size - len(self)
        if missing <= 0:
            return self

        def pad(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor[-1:].repeat_interleave(missing, dim=0)])

        return Batch(
            pad(self.indices),
            {name: pad(tensor) for name, tensor in self.inputs.items()},
            None if self.labels is None else pad(self.labels),
            {name: pad(tensor) for name, tensor in self.lengths.items()},
        )

    def split(self, size: int) -> "list[Batch]":
        """Micro-batches of at most `size` samples."""
        return [
            Batch(
                self.indices[start : start + size],
                {name: tensor[start : start + size] for name, tensor in self.inputs.items()},
                None if self.labels is None else self.labels[start : start + size],
                {name: tensor[start : start + size] for name, tensor in self.lengths.items()},
            )
            for start in range(0, len(self), size)
        ]


class BatchSource:
    """Samples as batches, in an order that depends on seed and epoch alone.

    Args:
        samples: The samples; read from worker processes where `workers` is not 0.
        batch_size: Samples a batch. Shuffled epochs leave out a last, shorter batch, unless it is
            the only one.
        rank: This process's number in [0, world). Each takes its neighbouring part of every batch
            of a shuffled epoch; parts differ by at most one sample.
        world: Number of processes.
        seed: Seed of the order.
        workers: Processes that read; 0 reads in this one.
        cache_bytes: Samples are kept in memory until they take this many bytes (in-process only).
        order: Random generator -> an order of all samples, for data that are slow to jump in; a
            uniform permutation by default.
    """

    def __init__(
        self,
        samples: SamplesLike,
        batch_size: int,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        workers: int = 0,
        cache_bytes: int = 0,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        self.count = len(samples)
        self.batch_size = min(batch_size, self.count)
        self.rank = rank
        self.world = world
        self.seed = seed
        self.workers = workers
        self._order = order or (lambda generator: generator.permutation(self.count))
        self._dataset = _Samples(samples, 0 if workers else cache_bytes)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a shuffled epoch, at least 1."""
        return self.count // self.batch_size

    def shuffled(self, first_step: int) -> Iterator[Batch]:
        """Batches from step `first_step` on, epoch after epoch without end."""
        epoch, skip = divmod(first_step, self.steps_per_epoch)
        while True:
            order = self._order(np.random.default_rng([self.seed, epoch]))
            used = order[: self.steps_per_epoch * self.batch_size]
            batches = used.reshape(-1, self.batch_size)[skip:, self._part]
            for batch in self._load(batches.tolist()):
                yield replace(batch, whole_size=self.batch_size)
            epoch, skip = epoch + 1, 0

    @property
    def _part(self) -> slice:
        """The part of a batch that belongs to this process."""
        start, end = (self.batch_size * r // self.world for r in (self.rank, self.rank + 1))
        return slice(start, end)

    def in_order(self, count: int | None = None) -> Iterator[Batch]:
        """The first `count` samples (all by default) in their own order, once."""
        yield from self._whole(np.arange(self.count if count is None else min(count, self.count)))

    def spread(self, count: int) -> Iterator[Batch]:
        """At most `count` samples, evenly spread over all, once."""
        count = min(count, self.count)
        yield from self._whole(np.arange(count) * self.count // count)

    def _whole(self, indices: np.ndarray) -> Iterator[Batch]:
        size = self.batch_size
        starts = range(0, len(indices), size)
        yield from self._load([indices[start : start + size].tolist() for start in starts])

    def _load(self, batches: list[list[int]]) -> Iterator[Batch]:
        loader = DataLoader(
            self._dataset,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
        yield from loader


class _Samples(Dataset):
    def __init__(self, samples: SamplesLike, cache_bytes: int) -> None:
        self.samples = samples
        self.room = cache_bytes
        self.cache: dict[int, SampleLike] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, SampleLike]:
        if index in self.cache:
            return index, self.cache[index]
        sample = self.samples[index]
        size = sum(array.nbytes for array in sample.inputs.values())
        if size <= self.room:
            self.room -= size
            self.cache[index] = sample
        return index, sample


def _collate(items: Sequence[tuple[int, SampleLike]]) -> Batch:
    samples = [sample for _, sample in items]
    labels = [sample.label for sample in samples]
    return Batch(
        torch.tensor([index for index, _ in items]),
        {
            name: torch.from_numpy(np.stack([sample.inputs[name] for sample in samples]))
            for name in samples[0].inputs
        },
        None if labels[0] is None else torch.tensor(labels, dtype=torch.int64),
    )
