"""Whole blocks go: against a reference that lists all blocks and sorts them."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import TargetError
from onnxprune.sparsity import Axes, Block, Magnitude, RandomScore, select_masks

Tensors = dict[str, torch.Tensor]
COMMON = settings(max_examples=40, deadline=None)
SIDES = st.sampled_from([(4, 1), (1, 4), (2, 2), (3, 2), (2, 1)])


@st.composite
def blocked(draw: st.DrawFn) -> tuple[Block, Tensors, dict[str, Axes]]:
    """One to three tensors of whole blocks, with up to two other axes, rich in ties.

    Values are multiples of 1/4, so that means are exact in any order of summation.
    """
    pattern = Block(*draw(SIDES))
    weights, axes = {}, {}
    for index in range(draw(st.integers(1, 3))):
        others = draw(st.lists(st.integers(1, 2), max_size=2))
        output, reduction = draw(st.permutations(range(len(others) + 2)))[:2]
        shape = []
        rest = iter(others)
        for axis in range(len(others) + 2):
            sides = {output: pattern.rows, reduction: pattern.columns}
            side = sides.get(axis)
            shape.append(next(rest) if side is None else side * draw(st.integers(1, 3)))
        seed = draw(st.integers(0, 99))
        values = torch.randint(-6, 7, shape, generator=torch.Generator().manual_seed(seed))
        weights[f"t{index}"] = values / 4
        axes[f"t{index}"] = Axes(reduction, output)
    return pattern, weights, axes


def all_blocks(pattern: Block, weight: torch.Tensor, axes: Axes) -> list[tuple[slice, ...]]:
    """Where the blocks of a tensor lie, row-major."""
    sides = [1] * weight.ndim
    assert axes.output is not None
    sides[axes.output], sides[axes.reduction] = pattern.rows, pattern.columns
    counts = [range(length // side) for length, side in zip(weight.shape, sides, strict=True)]
    return [
        tuple(slice(i * side, (i + 1) * side) for i, side in zip(place, sides, strict=True))
        for place in itertools.product(*counts)
    ]


def reference(pattern: Block, weights: Tensors, axes: dict[str, Axes], zeros: int) -> Tensors:
    places = [(n, place) for n, w in weights.items() for place in all_blocks(pattern, w, axes[n])]
    places.sort(key=lambda item: float(weights[item[0]][item[1]].abs().double().mean()))
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    whole, rest = divmod(zeros, pattern.size)
    for name, place in places[:whole]:
        masks[name][place] = False
    if rest:
        name, place = places[whole]
        inside = weights[name][place].abs()
        order = inside.flatten().argsort(stable=True)[:rest]
        flat = torch.ones(inside.numel(), dtype=torch.bool)
        flat[order] = False
        masks[name][place] = flat.reshape(inside.shape)
    return masks


def count_zeros(masks: Tensors) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def partial_blocks(pattern: Block, masks: Tensors, axes: dict[str, Axes]) -> int:
    """Blocks of which some weights are masked, but not all."""
    return sum(
        bool(mask[place].any()) and not bool(mask[place].all())
        for name, mask in masks.items()
        for place in all_blocks(pattern, mask, axes[name])
    )


@COMMON
@given(blocked(), st.data())
def test_the_lowest_means_go_and_the_rest_are_the_lowest_of_the_next_block(
    drawn: tuple[Block, Tensors, dict[str, Axes]], data: st.DataObject
) -> None:
    pattern, weights, axes = drawn
    zeros = data.draw(st.integers(0, sum(weight.numel() for weight in weights.values())))
    masks = select_masks(weights, zeros, Magnitude(), pattern=pattern, axes=axes)
    expected = reference(pattern, weights, axes, zeros)
    for name in weights:
        assert torch.equal(masks[name], expected[name]), name


def test_a_block_is_judged_by_its_mean_and_lies_at_one_kernel_position() -> None:
    """Four outputs of one input at one position: not 4 inputs, and not 4 positions."""
    weight = torch.ones(4, 2, 1, 2)
    weight[:, 0, 0, 1] = 0.9
    weight[:, 1, 0, 0] = torch.tensor([0.1, 0.1, 0.1, 3.0])
    masks = select_masks({"w": weight}, 4, Magnitude(), pattern=Block(4, 1), axes={"w": Axes(1, 0)})
    assert (~masks["w"]).nonzero().tolist() == [[output, 1, 0, 0] for output in range(4)]


@COMMON
@given(blocked(), st.data())
def test_events_are_exact_nested_and_finish_the_block_that_they_began(
    drawn: tuple[Block, Tensors, dict[str, Axes]], data: st.DataObject
) -> None:
    pattern, weights, axes = drawn
    sizes = {name: weight.numel() for name, weight in weights.items()}
    floors = {name: data.draw(st.integers(0, size)) for name, size in sizes.items()}
    size = pattern.size
    free = sum(sizes[name] - -(-floor // size) * size for name, floor in floors.items())
    scope = data.draw(st.sampled_from(["global", "layerwise"]))
    score = data.draw(st.sampled_from([Magnitude(), RandomScore(3)]))
    arguments: dict[str, Any] = {"pattern": pattern, "axes": axes, "scope": scope}
    masks: Tensors | None = None
    for zeros in sorted(data.draw(st.integers(0, free)) for _ in range(4)):
        new = select_masks(weights, zeros, score, masks=masks, floors=floors, **arguments)
        assert count_zeros(new) == zeros
        assert partial_blocks(pattern, new, axes) == (zeros % size > 0)
        for name, mask in new.items():
            assert pattern.holds(mask, axes[name])
            assert int(mask.sum()) >= floors[name]
            if masks is not None:
                assert not bool((mask & ~masks[name]).any())
        masks = new
        weights = {name: weight.flip(0) for name, weight in weights.items()}


@COMMON
@given(blocked(), st.data())
def test_masks_of_another_shape_are_finished_first_and_the_count_is_exact(
    drawn: tuple[Block, Tensors, dict[str, Axes]], data: st.DataObject
) -> None:
    """Blocks that unstructured pruning has begun come first; so it goes over into blocks."""
    pattern, weights, axes = drawn
    total = sum(weight.numel() for weight in weights.values())
    first, second = sorted(data.draw(st.integers(0, total)) for _ in range(2))
    before = select_masks(weights, first, Magnitude())
    begun = {name: pattern.touched(mask, axes[name]) for name, mask in before.items()}
    arguments: dict[str, Any] = {"masks": before, "pattern": pattern, "axes": axes}
    after = select_masks(weights, second, Magnitude(), **arguments)
    assert count_zeros(after) == second
    assert not any(bool((after[name] & ~before[name]).any()) for name in weights)
    weights_begun = pattern.size * sum(int(grid.sum()) for grid in begun.values())
    for name, mask in after.items():
        touched = pattern.spread(begun[name], axes[name])
        if second <= weights_begun:
            assert bool((touched | mask).all())
        else:
            assert not bool((touched & mask).any())


def test_layerwise_shares_are_whole_blocks_and_the_rest_goes_to_one_tensor() -> None:
    weights = {"small": torch.rand(8, 4), "large": 100 + torch.rand(16, 4)}
    axes = {name: Axes(1, 0) for name in weights}
    arguments: dict[str, Any] = {"pattern": Block(4, 1), "axes": axes, "scope": "layerwise"}
    masks = select_masks(weights, 48, Magnitude(), **arguments)
    assert {n: int((~m).sum()) for n, m in masks.items()} == {"small": 16, "large": 32}
    masks = select_masks(weights, 50, Magnitude(), **arguments)
    lost = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert sorted(count % 4 for count in lost.values()) == [0, 2]
    assert count_zeros(masks) == 50


def test_floors_are_rounded_up_to_whole_blocks() -> None:
    weights = {"w": torch.rand(8, 2)}
    arguments: dict[str, Any] = {"pattern": Block(4, 1), "axes": {"w": Axes(1, 0)}}
    masks = select_masks(weights, 8, Magnitude(), floors={"w": 5}, **arguments)
    assert count_zeros(masks) == 8
    with pytest.raises(TargetError, match="at most 8 zeros"):
        select_masks(weights, 9, Magnitude(), floors={"w": 5}, **arguments)


@COMMON
@given(blocked(), st.data())
def test_on_the_way_to_given_masks_whole_blocks_of_them_go(
    drawn: tuple[Block, Tensors, dict[str, Axes]], data: st.DataObject
) -> None:
    pattern, weights, axes = drawn
    total = sum(weight.numel() for weight in weights.values())
    events = sorted(data.draw(st.integers(0, total)) for _ in range(4))
    scope = data.draw(st.sampled_from(["global", "layerwise"]))
    arguments: dict[str, Any] = {"pattern": pattern, "axes": axes, "scope": scope}
    final = select_masks(weights, events[-1], Magnitude(), **arguments)
    masks: Tensors | None = None
    for zeros in events:
        weights = {name: weight.flip(0) for name, weight in weights.items()}
        masks = select_masks(weights, zeros, Magnitude(), masks=masks, within=final, **arguments)
        assert count_zeros(masks) == zeros
        assert partial_blocks(pattern, masks, axes) == (zeros % pattern.size > 0)
        assert all(bool((mask | ~final[name]).all()) for name, mask in masks.items())
    assert masks is not None
    assert all(torch.equal(masks[name], final[name]) for name in final)


def test_beyond_the_given_masks_nothing_goes() -> None:
    final = {"w": torch.tensor([[True, False], [True, False]])}
    with pytest.raises(TargetError, match="at most 2 zeros"):
        select_masks({"w": torch.ones(2, 2)}, 3, Magnitude(), within=final)
