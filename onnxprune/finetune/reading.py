"""Reading batches, here or in worker processes, and what can go wrong there."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from onnxprune.corrupt import corrupt_name
from onnxprune.draws import seeded
from onnxprune.errors import DataError, OnnxpruneError
from onnxprune.finetune.batch import Batch
from onnxprune.stacking import Padding, SampleLike, stack

Anything = TypeVar("Anything")
_DEATH = re.compile(r"DataLoader worker \(pid.*")


class SamplesLike(Protocol):
    """A random-access collection of samples; a `check_present` method is asked when one fails."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SampleLike: ...


class Augment(Protocol):
    """Gives a sample as a training epoch sees it; the same index and epoch give the same one."""

    def __call__(self, index: int, epoch: int) -> SampleLike:
        """The augmented sample."""
        ...


@dataclass(frozen=True)
class Request:
    """One batch to read.

    Attributes:
        indices: Its samples.
        global_size: Samples of the whole batch over all ranks.
        epoch: The epoch that samples are augmented for; None leaves them as they are.
        seed: Of what samples draw at random while they are read.
    """

    indices: list[int]
    global_size: int
    epoch: int | None
    seed: int


class Reader:
    """Reads whole batches; a worker process holds a copy.

    Args:
        samples: The samples.
        padding: How samples of different lengths are stacked.
        augment: Gives augmented samples, for requests with an epoch.
        patience: Different samples of a batch that may be unreadable and are replaced; one more is
            an error, and so are data without any readable sample.
        cache_bytes: Samples are kept until they take this many bytes.
    """

    def __init__(
        self,
        samples: SamplesLike,
        *,
        padding: Padding,
        augment: Augment | None,
        patience: int,
        cache_bytes: int,
    ) -> None:
        self.samples = samples
        self.padding = padding
        self.augment = augment
        self.patience = min(patience, len(samples) - 1)
        self.room = cache_bytes
        self.cache: dict[int, SampleLike] = {}

    def __getitem__(self, request: Request) -> Batch | OnnxpruneError:
        """The batch; an error is returned, since one that is raised leaves a worker as text."""
        try:
            with seeded(request.seed):
                return self._read(request)
        except OnnxpruneError as error:
            return error
        except Exception as error:
            failure = DataError("reading the data failed", got=f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            failure.add_note("".join(traceback.format_exception(error)))
            return failure

    def _read(self, request: Request) -> Batch:
        skipped: dict[int, str] = {}
        found = [self._readable(index, request.epoch, skipped) for index in request.indices]
        stacked = stack([sample for _, sample in found], self.padding)
        return Batch(
            torch.tensor([index for index, _ in found]),
            {name: torch.from_numpy(array) for name, array in stacked.inputs.items()},
            None if stacked.labels is None else torch.from_numpy(stacked.labels),
            request.global_size,
            {name: torch.from_numpy(array) for name, array in stacked.lengths.items()},
            tuple(skipped.items()),
        )

    def _readable(
        self, index: int, epoch: int | None, skipped: dict[int, str]
    ) -> tuple[int, SampleLike]:
        """The sample, or the next one in index order that can be read, and its index.

        Args:
            index: The sample that is asked for.
            epoch: As in `Request`.
            skipped: Samples of this batch that were found unreadable, by index; grows. Neighbours
                that are damaged would be met once for each of them, and count once.
        """
        while True:
            if index not in skipped:
                try:
                    return index, self._sample(index, epoch)
                except DataError as error:
                    self._check_present()
                    if len(skipped) >= self.patience:
                        raise self._last(error, list(skipped.values())) from error
                    skipped[index] = corrupt_name(error)
            index = (index + 1) % len(self.samples)

    def _last(self, error: DataError, skipped: list[str]) -> DataError:
        """The error of the sample that is one too many, which names those before it."""
        if not skipped:
            return error
        return DataError(
            "too many samples of one batch cannot be read",
            got="; ".join([*skipped[:5], corrupt_name(error)]),
            expected=f"at most {self.patience} in all data",
            remedy="repair or remove them, or raise [data] max_corrupt; then continue with "
            "--resume",
        )

    def _check_present(self) -> None:
        """Tell a data set that has vanished from single samples that cannot be read."""
        check = getattr(self.samples, "check_present", None)
        if check is not None:
            check()

    def _sample(self, index: int, epoch: int | None) -> SampleLike:
        if epoch is not None and self.augment is not None:
            return self.augment(index, epoch)
        if index in self.cache:
            return self.cache[index]
        sample = self.samples[index]
        size = sum(array.nbytes for array in sample.inputs.values())
        if size <= self.room:
            self.room -= size
            self.cache[index] = sample
        return sample


def as_it_is(batch: Anything) -> Anything:
    """A batch that needs no more collating."""
    return batch


@contextmanager
def worker_deaths() -> Iterator[None]:
    """Turn PyTorch's error about a reading process that died into one of ours.

    PyTorch raises it from a signal handler, so it can appear anywhere in the main thread while
    workers are alive. A worker that dies while it hands over a tensor breaks the connection.

    Raises:
        DataError: A worker died within the block.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        death = _DEATH.search(str(error))
        if death is None and isinstance(error, RuntimeError):
            raise
        raise DataError(
            "a process that reads the data died",
            got=death[0].strip() if death else f"{type(error).__name__}: {error}",
            expected="[finetune] workers that live as long as the run",
            remedy="it may have run out of memory: lower [finetune] workers or batch_size; "
            "continue with --resume",
        ) from error


def shut_down(batches: object) -> None:
    """End the workers of a loader's iterator, now.

    PyTorch tells of a dead worker from a signal handler, anywhere and more than once, until the
    iterator is gone, which the traceback of an error would keep; also in here.
    """
    try:
        getattr(batches, "_shutdown_workers", lambda: None)()
    except RuntimeError as error:
        if _DEATH.search(str(error)) is None:
            raise
