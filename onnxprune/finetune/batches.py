"""Batches in a fixed, resumable order, from any sequence of samples."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from onnxprune.corrupt import CorruptSamples
from onnxprune.errors import OnnxpruneError, UsageError
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.reading import (
    Augment,
    Reader,
    Request,
    SamplesLike,
    as_it_is,
    shut_down,
    worker_deaths,
)
from onnxprune.finetune.state import rank_seed
from onnxprune.stacking import Padding


class BatchSource:
    """Samples as batches, in an order that depends on seed and epoch alone.

    Args:
        samples: The samples; read from worker processes where `workers` is not 0.
        batch_size: Samples a batch over all ranks. Shuffled epochs leave out a last, shorter batch,
            unless it is the only one.
        seed: Seed of the order, and of what samples draw at random while they are read: from the
            global generators of Python, NumPy or PyTorch, seeded anew for every batch and rank.
        workers: Processes that read; 0 reads in this one.
        cache_bytes: Samples are kept in memory until they take this many bytes (in-process only,
            and not where they are augmented or vary by themselves).
        order: Random generator -> an order of all samples, for data that are slow to jump in; a
            uniform permutation by default.
        rank: Which part of every shuffled batch this process reads, in [0, `world`).
        world: Number of processes that share a batch. Each reads a contiguous part; the parts
            differ by one sample at most, and put together they are the batch of one process.
        augment: Gives the samples of shuffled epochs, changed at random by epoch and index; None
            leaves them as they are.
        corrupt: Tally of unreadable samples, each of which the next readable one replaces; None
            makes the first of them an error.
        padding: How samples of different lengths are stacked; that of `samples` by default.
        pin_memory: Whether batches go to a GPU.

    Raises:
        UsageError: Fewer samples a batch than processes.
    """

    def __init__(
        self,
        samples: SamplesLike,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 0,
        cache_bytes: int = 0,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
        rank: int = 0,
        world: int = 1,
        augment: Augment | None = None,
        corrupt: CorruptSamples | None = None,
        padding: Padding | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.count = len(samples)
        self.batch_size = min(batch_size, self.count)
        self.seed = seed
        self.workers = workers
        self.rank = rank
        self.world = world
        if self.batch_size < world:
            raise UsageError(
                "a batch has fewer samples than there are processes to share it",
                got=f"{self.batch_size} samples a batch, {world} processes",
                expected=f"at least {world} samples",
                remedy="raise [finetune] batch_size, or start fewer processes",
            )
        self._order = order or (lambda generator: generator.permutation(self.count))
        self._corrupt = corrupt
        self._pin_memory = pin_memory
        self._augment = augment
        self._reader = Reader(
            samples,
            padding=padding or getattr(samples, "padding", None) or Padding(),
            augment=augment,
            patience=0 if corrupt is None else corrupt.limit,
            cache_bytes=0 if workers or getattr(samples, "varies", False) else cache_bytes,
        )

    @property
    def augmented(self) -> bool:
        """Whether a sample of a shuffled epoch is another one in the next."""
        return self._augment is not None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a shuffled epoch, at least 1."""
        return self.count // self.batch_size

    def shuffled(self, first_step: int) -> Iterator[Batch]:
        """Batches (of each, the part of this rank) from step `first_step` on, without end.

        Worker processes live as long as the iterator.

        Raises:
            DataError: A sample cannot be read, too many are corrupt, or a worker died.
        """
        return self._load(self._shuffled(first_step), self._seed_of(first_step))

    def _shuffled(self, first_step: int) -> Iterator[Request]:
        size = self.batch_size
        start, end = (size * part // self.world for part in (self.rank, self.rank + 1))
        epoch, skip = divmod(first_step, self.steps_per_epoch)
        while True:
            order = self._order(np.random.default_rng([self.seed, epoch]))
            for step in range(skip, self.steps_per_epoch):
                indices = order[step * size + start : step * size + end].tolist()
                seed = self._seed_of(epoch * self.steps_per_epoch + step)
                yield Request(indices, size, epoch if self.augmented else None, seed)
            epoch, skip = epoch + 1, 0

    def _seed_of(self, step: int) -> int:
        """A seed of its own for every step and rank; the same wherever reading began."""
        return rank_seed(self.seed, step, self.rank)

    def in_order(self, count: int | None = None) -> Iterator[Batch]:
        """The first `count` samples (all by default) in their own order, once, on every rank."""
        return self._all(np.arange(self.count if count is None else min(count, self.count)))

    def spread(self, count: int) -> Iterator[Batch]:
        """At most `count` samples, evenly spread over all, once, on every rank."""
        count = min(count, self.count)
        return self._all(np.arange(count) * self.count // count)

    def _all(self, indices: np.ndarray) -> Iterator[Batch]:
        size = self.batch_size
        parts = [indices[start : start + size].tolist() for start in range(0, len(indices), size)]
        requests = (
            Request(part, len(part), None, rank_seed(self.seed, number, 0))
            for number, part in enumerate(parts)
        )
        return self._load(requests, self.seed)

    def _load(self, requests: Iterator[Request], seed: int) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            self._reader,  # type: ignore[arg-type]
            batch_size=None,
            sampler=requests,
            num_workers=self.workers,
            collate_fn=as_it_is,
            pin_memory=self._pin_memory,
            generator=torch.Generator().manual_seed(seed),
        )
        batches = iter(loader)
        try:
            with worker_deaths():  # a signal may tell of a death while its first error is told
                yield from self._received(batches)
        finally:
            shut_down(batches)

    def _received(self, batches: Iterator[Any]) -> Iterator[Batch]:
        while True:
            with worker_deaths():
                batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, OnnxpruneError):
                raise batch
            if self._corrupt is not None:
                self._corrupt.add(batch.skipped)
            yield batch


def first_batch(samples: SamplesLike, size: int) -> Batch:
    """Some samples that can be read, to try things out on: the first of them.

    Args:
        samples: At least one.
        size: Samples of the batch, unless there are fewer.

    Raises:
        DataError: Too few can be read.
    """
    anything = CorruptSamples(len(samples), 1.0, "the data")
    return next(BatchSource(samples, size, corrupt=anything).in_order())
