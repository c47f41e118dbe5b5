import os
import random
import signal
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import get_worker_info

from onnxprune.corrupt import CorruptSamples
from onnxprune.errors import DataError, UsageError
from onnxprune.finetune import Batch, BatchSource, CachedTeacher


@dataclass(frozen=True)
class Item:
    inputs: dict[str, np.ndarray]
    label: int | None


class Numbers:
    """Samples whose input is their index; counts how often each is read."""

    def __init__(self, count: int, *, labelled: bool = True) -> None:
        self.reads = [0] * count
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, index: int) -> Item:
        self.reads[index] += 1
        array = np.full((2, 3), index, dtype=np.float32)
        return Item({"x": array}, index % 3 if self.labelled else None)


def take(source: BatchSource, count: int, first_step: int = 0) -> list[list[int]]:
    batches = source.shuffled(first_step)
    return [next(batches).indices.tolist() for _ in range(count)]


def test_a_batch() -> None:
    batch = next(BatchSource(Numbers(5), 3).in_order())
    assert batch.indices.tolist() == [0, 1, 2]
    assert batch.inputs["x"].shape == (3, 2, 3)
    assert batch.inputs["x"].dtype == torch.float32
    assert batch.inputs["x"][:, 0, 0].tolist() == [0, 1, 2]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]
    assert batch.labels.dtype == torch.int64


def test_without_labels() -> None:
    assert next(BatchSource(Numbers(2, labelled=False), 2).in_order()).labels is None


def test_in_order_gives_everything_once() -> None:
    source = BatchSource(Numbers(7), 3)
    assert [batch.indices.tolist() for batch in source.in_order()] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch.indices.tolist() for batch in source.in_order(4)] == [[0, 1, 2], [3]]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_an_epoch_holds_no_sample_twice(count: int, batch_size: int, seed: int) -> None:
    source = BatchSource(Numbers(count), batch_size, seed=seed)
    epoch = take(source, source.steps_per_epoch)
    flat = [index for batch in epoch for index in batch]
    assert len(set(flat)) == len(flat)
    assert all(len(batch) == min(batch_size, count) for batch in epoch)
    assert len(flat) > count - min(batch_size, count)


def test_epochs_and_seeds_differ() -> None:
    source = BatchSource(Numbers(32), 32, seed=0)
    first, second = take(source, 2)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(32))
    assert take(BatchSource(Numbers(32), 32, seed=1), 1)[0] != first


@given(st.integers(0, 20))
def test_starting_late_gives_the_same_batches(first_step: int) -> None:
    source = BatchSource(Numbers(11), 3, seed=4)
    assert take(source, 4, first_step) == take(source, first_step + 4)[first_step:]


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (3, 9, [0, 1, 2]), (7, 3, [0, 2, 4])],
)
def test_spread(count: int, wanted: int, expected: list[int]) -> None:
    batches = BatchSource(Numbers(count), 4).spread(wanted)
    assert [index for batch in batches for index in batch.indices.tolist()] == expected


def test_an_order_of_ones_own() -> None:
    source = BatchSource(Numbers(4), 2, order=lambda generator: np.array([3, 1, 2, 0]))
    assert take(source, 4) == [[3, 1], [2, 0], [3, 1], [2, 0]]


@pytest.mark.parametrize(
    ("cache_bytes", "reads"), [(0, [2, 2, 2]), (48, [1, 1, 2]), (999, [1] * 3)]
)
def test_the_cache_keeps_what_fits(cache_bytes: int, reads: list[int]) -> None:
    samples = Numbers(3)
    source = BatchSource(samples, 3, cache_bytes=cache_bytes)
    for _ in range(2):
        list(source.in_order())
    assert samples.reads == reads


def test_split_and_padded() -> None:
    batch = next(BatchSource(Numbers(5), 5).in_order())
    parts = batch.split(2)
    assert [part.indices.tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    whole = parts[-1].padded(3)
    assert whole.indices.tolist() == [4, 4, 4]
    assert whole.inputs["x"][:, 0, 0].tolist() == [4, 4, 4]
    assert whole.labels is not None
    assert whole.labels.tolist() == [1, 1, 1]
    assert parts[0].padded(2) is parts[0]


def test_reading_in_processes_gives_the_same_batches() -> None:
    """The samples go to workers by fork or by pickle; the order is the parent's."""
    here, there = (BatchSource(Numbers(9), 2, seed=3, workers=workers) for workers in (0, 1))
    assert take(here, 4) == take(there, 4)


def test_cached_teacher_looks_rows_up() -> None:
    teacher = CachedTeacher({"y": np.arange(6, dtype=np.float32).reshape(3, 2)})
    batch = Batch(torch.tensor([2, 0]), {}, None)
    assert teacher(batch)["y"].tolist() == [[4, 5], [0, 1]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_batches_of_one(world: int) -> None:
    """The parts of all processes, one after the other, are the batches of a single process."""
    whole = list(islice(BatchSource(Numbers(17), 5, seed=3).shuffled(1), 6))
    parts = [
        list(islice(BatchSource(Numbers(17), 5, seed=3, rank=r, world=world).shuffled(1), 6))
        for r in range(world)
    ]
    for number, batch in enumerate(whole):
        together = torch.cat([part[number].indices for part in parts])
        assert torch.equal(together, batch.indices)
        sizes = [len(part[number]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert all(part[number].global_size == 5 for part in parts)


class Drawing(Numbers):
    """Samples that draw from all global generators when they are read."""

    varies = True

    def __getitem__(self, index: int) -> Item:
        drawn = [random.random(), np.random.random(), torch.rand(()).item()]
        return Item({"x": np.array([index, *drawn], dtype=np.float64)}, 0)


def draws(first_step: int, count: int, **settings: Any) -> Tensor:
    """What `Drawing` gives from a step on, `(batches, samples, 4)`."""
    source = BatchSource(Drawing(12), 4, cache_bytes=2**20, **settings)
    return torch.stack([batch.inputs["x"] for batch in islice(source.shuffled(first_step), count)])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_samples_draw_does_not_depend_on_workers_or_where_reading_began(workers: int) -> None:
    """Over two epochs; the state of this process's generators stays its own."""
    whole = draws(0, 6, seed=1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert torch.equal(draws(0, 6, seed=1, workers=workers), whole)
    assert torch.equal(draws(4, 2, seed=1, workers=workers), whole[4:])
    found = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert found == states


def test_draws_differ_by_sample_step_seed_and_rank() -> None:
    whole = draws(0, 6, seed=1)[..., 1:]
    assert len(torch.unique(whole)) == whole.numel()
    assert not torch.isin(draws(0, 6, seed=2)[..., 1:], whole).any()
    parts = [draws(0, 6, seed=1, rank=rank, world=2)[..., 1:] for rank in range(2)]
    assert len(torch.unique(torch.stack(parts))) == whole.numel()


class Seeded(Numbers):
    """Samples that tell the seed which PyTorch gave the process that reads them."""

    def __getitem__(self, index: int) -> Item:
        info = get_worker_info()
        assert info is not None
        return Item({"x": np.array([info.seed - info.id])}, 0)


def test_seeds_of_reading_processes_follow_seed_step_and_rank() -> None:
    """For user code that makes generators of its own from them."""

    def seed(first_step: int, **settings: int) -> int:
        source = BatchSource(Seeded(4), 2, workers=1, **settings)
        return int(next(source.shuffled(first_step)).inputs["x"][0])

    seeds = [seed(0), seed(1), seed(0, seed=1), seed(0, rank=1, world=2)]
    assert len(set(seeds)) == len(seeds)
    assert seed(1) == seeds[1]


class Damaged(Numbers):
    """Some samples cannot be read; one of them kills the process that tries."""

    def __init__(self, count: int, damaged: set[int], deadly: int = -1) -> None:
        super().__init__(count)
        self.damaged = damaged
        self.deadly = deadly

    def __getitem__(self, index: int) -> Item:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.damaged:
            raise DataError("the image cannot be read", where=f"{index}.png", got="damage")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_readable_sample_takes_the_place_of_a_damaged_one(workers: int) -> None:
    told: list[str] = []
    tally = CorruptSamples(8, 0.5, "the data", told.append)
    source = BatchSource(Damaged(8, {2, 3, 7}), 4, workers=workers, corrupt=tally)
    for _ in range(2):
        batches = list(source.in_order())
        assert [batch.indices.tolist() for batch in batches] == [[0, 1, 4, 4], [4, 5, 6, 0]]
        assert batches[0].inputs["x"][:, 0, 0].tolist() == [0, 1, 4, 4]
    assert told == [
        f"sample left out ({number} of at most 4): {name}.png: the image cannot be read (damage)"
        for number, name in enumerate((2, 3, 7), start=1)
    ]
    assert tally.count == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_reading_process_arrives_whole(workers: int) -> None:
    source = BatchSource(Damaged(4, {1}), 2, workers=workers)
    with pytest.raises(DataError, match="the image cannot be read") as caught:
        list(source.in_order())
    assert (caught.value.where, caught.value.got, caught.value.exit_code) == ("1.png", "damage", 4)


def test_a_reading_process_that_dies_is_an_error_of_ours() -> None:
    source = BatchSource(Damaged(40, set(), deadly=9), 2, workers=2)
    with pytest.raises(DataError, match="process that reads the data died") as caught:
        list(source.in_order())
    assert "--resume" in str(caught.value)


def test_fewer_samples_than_processes() -> None:
    with pytest.raises(UsageError, match="batch_size"):
        BatchSource(Numbers(4), 2, world=3)


def test_neighbours_that_are_damaged_count_once_each() -> None:
    """A copy that broke off leaves a run of damaged files, each of which the next would replace."""
    tally = CorruptSamples(100, 0.06, "the data")
    batches = list(BatchSource(Damaged(100, set(range(10, 16))), 20, corrupt=tally).in_order())
    assert batches[0].indices.tolist() == [*range(10), *[16] * 6, 16, 17, 18, 19]
    assert [index for index, _ in batches[0].skipped] == list(range(10, 16))
    assert tally.count == tally.limit == 6


@pytest.mark.parametrize("count", [1, 5])
def test_data_without_a_single_readable_sample_are_an_error(count: int) -> None:
    tally = CorruptSamples(count, 1.0, "the data")
    source = BatchSource(Damaged(count, set(range(count))), 2, corrupt=tally)
    with pytest.raises(DataError, match="cannot be read"):
        list(source.in_order())


@pytest.mark.parametrize(
    ("share", "limit"), [(0.0, 0), (0.29, 29), (0.57, 57), (0.999, 99), (1.0, 100)]
)
def test_a_share_of_samples_is_that_many(share: float, limit: int) -> None:
    assert CorruptSamples(100, share, "the data").limit == limit
