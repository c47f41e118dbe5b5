"""Selection over parts of tensors gives the masks of the whole, bit by bit."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import TargetError
from onnxprune.sparsity import (
    NM,
    Axes,
    Block,
    Magnitude,
    Pattern,
    RandomScore,
    Score,
    partition,
    radix,
    select_masks,
    select_replicated_masks,
)

Tensors = dict[str, torch.Tensor]
Cuts = dict[str, list[int]]
RunRanks = Callable[[int, Callable[[Any], Any]], list[Any]]
COMMON = settings(max_examples=60, deadline=None)
PATTERN = NM(2, 4)
PATTERNS = [None, PATTERN, Block(4, 1), Block(2, 2), Block(1, 4)]
SCORES: list[Score] = [Magnitude(), RandomScore(5)]


@st.composite
def cut_weights(draw: st.DrawFn, world: int, unit: int = 1) -> tuple[Tensors, Cuts]:
    """One to four tensors, rich in ties, with the first row of each rank's part."""
    weights, cuts = {}, {}
    for index in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(0, 4)) * unit
        shape = (rows, *draw(st.lists(st.integers(1, 3), max_size=2)), unit)
        values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 1e-45, 3.0])
        size = math.prod(shape)
        numbers = draw(st.lists(values, min_size=size, max_size=size))
        weights[f"t{index}"] = torch.tensor(numbers).reshape(shape)
        inner = draw(st.lists(st.integers(0, rows // unit), min_size=world - 1, max_size=world - 1))
        cuts[f"t{index}"] = [0, *(unit * cut for cut in sorted(inner)), rows]
    return weights, cuts


@st.composite
def drawn_axes(draw: st.DrawFn, weights: Tensors) -> dict[str, Axes]:
    """The first and the last axis of each tensor, in either role."""
    axes = {}
    for name, weight in weights.items():
        ends = draw(st.permutations([0, weight.ndim - 1]))
        axes[name] = Axes(*ends)
    return axes


def part(tensors: Tensors, cuts: Cuts, rank: int) -> Tensors:
    return {n: tensor[cuts[n][rank] : cuts[n][rank + 1]] for n, tensor in tensors.items()}


def joined(parts: list[Tensors]) -> Tensors:
    return {name: torch.cat([piece[name] for piece in parts]) for name in parts[0]}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert found[name].dtype == torch.bool
        assert torch.equal(found[name], mask), name


@COMMON
@given(st.data(), st.integers(1, 4), st.sampled_from(SCORES))
@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_parts_get_the_masks_of_the_whole(
    run_ranks: RunRanks,
    scope: str,
    pattern: Pattern,
    data: st.DataObject,
    world: int,
    score: Score,
) -> None:
    weights, cuts = data.draw(cut_weights(world, unit=4 if pattern else 1))
    axes = data.draw(drawn_axes(weights))
    floors = {}
    if not isinstance(pattern, NM):
        floors = {name: data.draw(st.integers(0, w.numel())) for name, w in weights.items()}
    size = pattern.size if isinstance(pattern, Block) else 1
    free = sum(w.numel() - -(-floors.get(n, 0) // size) * size for n, w in weights.items())
    first, second, last = sorted(data.draw(st.integers(0, free)) for _ in range(3))
    moved = {name: 2 - weight for name, weight in weights.items()}
    limited = data.draw(st.booleans())

    def choose(select: Callable[[Tensors], Tensors], shards: Any) -> list[Tensors]:
        """Masks of two successive events, on the way to others if `limited`."""
        masks: Tensors | None = None
        fixed: dict[str, Any] = {"pattern": pattern, "axes": axes, "scope": scope}
        fixed |= {"floors": floors, "shards": shards}
        if limited:
            fixed["within"] = select_masks(select(weights), last, score, **fixed)
        events = []
        for zeros, values in ((first, weights), (second, moved)):
            masks = select_masks(
                select(values),
                zeros,
                score,
                masks=masks,
                **fixed,
            )
            events.append(masks)
        return events

    expected = choose(lambda tensors: tensors, None)
    found = run_ranks(world, lambda r: choose(lambda t: part(t, cuts, r.rank), r))
    for event, masks in enumerate(expected):
        assert_equal(joined([events[event] for events in found]), masks)


@COMMON
@given(st.data(), st.integers(1, 4), st.sampled_from(SCORES))
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_replicas_get_the_same_masks_although_each_ranks_its_share_alone(
    run_ranks: RunRanks, pattern: Pattern, data: st.DataObject, world: int, score: Score
) -> None:
    weights, _ = data.draw(cut_weights(1, unit=4 if pattern else 1))
    if pattern is None:
        weights["scalar"] = torch.tensor(0.5)
    axes = data.draw(drawn_axes(weights))
    total = sum(weight.numel() for weight in weights.values())
    first, second, last = sorted(data.draw(st.integers(0, total)) for _ in range(3))
    before = select_masks(weights, first, score, pattern=pattern, axes=axes)
    arguments: dict[str, Any] = {"masks": before, "pattern": pattern, "axes": axes}
    if data.draw(st.booleans()):
        arguments["within"] = select_masks(weights, last, score, **arguments)
    expected = select_masks(weights, second, score, **arguments)
    for masks in run_ranks(
        world, lambda rank: select_replicated_masks(weights, second, score, rank, **arguments)
    ):
        assert_equal(masks, expected)


def test_replicas_that_drifted_apart_still_agree_on_their_masks(run_ranks: RunRanks) -> None:
    def choose(rank: Any) -> Tensors:
        torch.manual_seed(0)
        weights = {"a": torch.randn(10, 10) + rank.rank, "b": torch.randn(7)}
        return select_replicated_masks(weights, 60, Magnitude(), rank)

    masks = run_ranks(3, choose)
    assert_equal(masks[1], masks[0])
    assert_equal(masks[2], masks[0])
    assert sum(int((~mask).sum()) for mask in masks[0].values()) == 60


@given(st.integers(1, 5), st.integers(0, 6), st.sampled_from([0, 1]))
def test_partition_covers_every_row_once_in_whole_groups(
    world: int, groups: int, axis: int
) -> None:
    tensor = torch.arange(groups * 4 * 4).reshape(groups * 4, 4)
    arguments: dict[str, Any] = {"pattern": PATTERN, "axes": {"w": Axes(axis)}}
    parts = [partition({"w": tensor}, rank, world, **arguments)["w"] for rank in range(world)]
    assert torch.equal(torch.cat(parts), tensor)
    rows = [len(piece) for piece in parts]
    unit = 4 if axis == 0 else 1
    assert all(count % unit == 0 for count in rows)
    assert max(rows) - min(rows) <= unit


def test_parts_are_views() -> None:
    tensor = torch.zeros(4, 2)
    partition({"w": tensor}, 1, 2)["w"].fill_(1)
    assert tensor[:, 0].tolist() == [0, 0, 1, 1]


def test_ranks_exchange_counts_whose_size_does_not_grow_with_the_weights(
    run_ranks: RunRanks,
) -> None:
    def sent(size: int) -> int:
        def choose(rank: Any) -> int:
            weights = {"w": torch.randn(size, generator=torch.Generator().manual_seed(rank.rank))}
            select_masks(weights, size, Magnitude(), floors={"w": 1}, shards=rank)
            return int(rank.sent_bytes)

        (bytes_sent,) = set(run_ranks(2, choose))
        return bytes_sent

    histograms = 8 * (2**16 + 2**15)
    assert histograms < sent(100) < histograms + 100
    assert sent(100_000) == sent(100)


def test_limits_are_those_of_all_ranks_and_every_rank_refuses(run_ranks: RunRanks) -> None:
    def choose(rank: Any, zeros: int) -> Tensors:
        weights = {"w": torch.ones(10 if rank.rank else 0)}
        return select_masks(weights, zeros, Magnitude(), floors={"w": 3}, shards=rank)

    for error in run_ranks(2, lambda rank: choose(rank, 8)):
        assert isinstance(error, TargetError)
        assert "8 zeros asked for among 10 prunable weights" in str(error)
    empty, whole = run_ranks(2, lambda rank: choose(rank, 7))
    assert empty["w"].shape == (0,)
    assert whole["w"].tolist() == [False] * 7 + [True] * 3


def test_masked_weights_of_other_ranks_count(run_ranks: RunRanks) -> None:
    def choose(rank: Any) -> Tensors:
        masks = {"w": torch.tensor([rank.rank == 0] * 4)}
        return select_masks({"w": torch.ones(4)}, 3, Magnitude(), masks=masks, shards=rank)

    for error in run_ranks(2, choose):
        assert isinstance(error, TargetError)
        assert "4 masked already" in str(error)


def test_groups_that_are_cut_are_refused_on_every_rank(run_ranks: RunRanks) -> None:
    def choose(rank: Any) -> Tensors:
        rows = 4 if rank.rank == 0 else 6
        weights = {"fine": torch.ones(2, 4), "cut": torch.ones(rows, 3)}
        arguments: dict[str, Any] = {"pattern": PATTERN, "axes": {"fine": Axes(1), "cut": Axes(0)}}
        return select_masks(weights, 4, Magnitude(), shards=rank, **arguments)

    for error in run_ranks(2, choose):
        assert isinstance(error, TargetError)
        assert "groups of the pattern 2:4 are incomplete, or cut between ranks" in str(error)
        assert "where: cut" in str(error)


@COMMON
@given(st.data())
def test_the_digits_that_suit_a_gpu_find_the_same_weights(data: st.DataObject) -> None:
    weights, _ = data.draw(cut_weights(1))
    zeros = data.draw(st.integers(0, sum(weight.numel() for weight in weights.values())))
    expected = select_masks(weights, zeros, Magnitude())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radix, "CPU", radix.GPU)
        assert_equal(select_masks(weights, zeros, Magnitude()), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("zeros", [1, 700_000, 4_999_999])
def test_a_gpu_finds_the_same_weights(zeros: int, deterministic: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    generator = torch.Generator().manual_seed(0)
    weights = {
        "ties": torch.randint(0, 5, (1000, 500), generator=generator).float(),
        "large": torch.randn(4_500_000, generator=generator),
    }
    before = select_masks(weights, zeros // 2, Magnitude())
    on_gpu = [{name: t.cuda() for name, t in tensors.items()} for tensors in (weights, before)]
    for score in SCORES:
        expected = select_masks(weights, zeros, score, masks=before, floors={"ties": 1})
        torch.use_deterministic_algorithms(deterministic)
        try:
            found = select_masks(on_gpu[0], zeros, score, masks=on_gpu[1], floors={"ties": 1})
        finally:
            torch.use_deterministic_algorithms(False)
        assert_equal({name: mask.cpu() for name, mask in found.items()}, expected)
