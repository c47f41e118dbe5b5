"""Exact selection against a reference that sorts."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import TargetError
from onnxprune.sparsity import (
    NM,
    Axes,
    Magnitude,
    RandomScore,
    allocate_layerwise,
    min_kept,
    prunable_limit,
    select_masks,
    target_zeros,
)
from onnxprune.sparsity.radix import CPU

Tensors = dict[str, torch.Tensor]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
AWKWARD = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 1e-39, 1e-7, 3e38, -65504.0, 1.0000001]
COMMON = settings(max_examples=40, deadline=None)
CHUNK = CPU.chunk


@st.composite
def weight_sets(draw: st.DrawFn) -> Tensors:
    """One to four tensors of any shape and type, rich in ties, zeros and denormals."""
    tensors = {}
    for index in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(1, 5), max_size=3))
        size = math.prod(shape)
        value = st.sampled_from(AWKWARD) | st.floats(-10, 10, width=32)
        if draw(st.booleans()):
            value = st.sampled_from(draw(st.lists(value, min_size=1, max_size=2)))
        numbers = draw(st.lists(value, min_size=size, max_size=size))
        tensor = torch.tensor(numbers, dtype=torch.float64).reshape(shape)
        tensors[f"t{index}"] = tensor.to(draw(st.sampled_from(DTYPES)))
    return tensors


def flat_scores(weights: Tensors) -> np.ndarray:
    return np.concatenate([w.abs().float().reshape(-1).numpy() for w in weights.values()])


def reference(weights: Tensors, zeros: int, masks: Tensors | None = None) -> Tensors:
    """Remove the first `zeros` of a stable sort, masked weights before all others."""
    scores = flat_scores(weights)
    if masks is not None:
        kept = np.concatenate([mask.reshape(-1).numpy() for mask in masks.values()])
        scores = np.where(kept, scores, -1)
    keep = np.ones(scores.size, dtype=bool)
    keep[np.argsort(scores, kind="stable")[:zeros]] = False
    sizes = [weight.numel() for weight in weights.values()]
    parts = np.split(keep, np.cumsum(sizes)[:-1])
    return {
        name: torch.from_numpy(part.copy()).reshape(weights[name].shape)
        for name, part in zip(weights, parts, strict=True)
    }


def count_zeros(masks: Tensors) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert found[name].dtype == torch.bool
        assert found[name].shape == mask.shape
        assert torch.equal(found[name], mask), name


@COMMON
@given(weight_sets(), st.data())
def test_equals_a_stable_sort_for_every_k(weights: Tensors, data: st.DataObject) -> None:
    total = sum(weight.numel() for weight in weights.values())
    copies = {name: weight.clone() for name, weight in weights.items()}
    zeros = data.draw(st.integers(0, total))
    assert_equal(select_masks(weights, zeros, Magnitude()), reference(weights, zeros))
    assert all(torch.equal(weights[name], copies[name]) for name in weights)


def test_every_k_of_a_small_set_in_turn() -> None:
    weights = {"a": torch.tensor([[0.5, 0.0], [0.5, -0.5]]), "b": torch.tensor([0.5, 1e-42, 2.0])}
    for zeros in range(8):
        assert_equal(select_masks(weights, zeros, Magnitude()), reference(weights, zeros))


def test_ties_go_in_the_order_of_the_tensors_and_then_row_major() -> None:
    weights = {"b": torch.ones(2, 2), "a": torch.ones(3)}
    masks = select_masks(weights, 5, Magnitude())
    assert masks["b"].tolist() == [[False, False], [False, False]]
    assert masks["a"].tolist() == [False, True, True]


@pytest.mark.parametrize("zeros", [1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 70, 2 * CHUNK + 99])
def test_ties_and_order_hold_across_chunks(zeros: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (CHUNK + 77,), generator=generator).float()
    weights = {"a": coarse, "b": torch.randn(CHUNK + 33, generator=generator).round(decimals=2)}
    assert_equal(select_masks(weights, zeros, Magnitude()), reference(weights, zeros))


def test_scores_that_differ_in_the_last_bit_are_told_apart() -> None:
    bits = torch.arange(0x3F7FFF00, 0x3F800100, dtype=torch.int32)
    weight = bits.view(torch.float32)[torch.randperm(512, generator=torch.Generator())]
    masks = select_masks({"w": weight}, 200, Magnitude())
    assert torch.equal(masks["w"], weight > weight.sort().values[199])


def test_non_contiguous_weights() -> None:
    weights = {"w": torch.arange(12.0).reshape(3, 4).t()}
    assert_equal(select_masks(weights, 5, Magnitude()), reference(weights, 5))


@pytest.mark.parametrize("score", [Magnitude(), RandomScore(0)])
def test_empty_tensors_are_carried_along(score: Magnitude | RandomScore) -> None:
    masks = select_masks({"none": torch.ones(0, 3), "w": torch.ones(4)}, 2, score)
    assert masks["none"].shape == (0, 3)
    assert count_zeros(masks) == 2


@COMMON
@given(weight_sets(), st.data())
def test_masks_of_successive_events_are_nested_although_weights_change(
    weights: Tensors, data: st.DataObject
) -> None:
    total = sum(weight.numel() for weight in weights.values())
    first, second = sorted(data.draw(st.integers(0, total)) for _ in range(2))
    scope = data.draw(st.sampled_from(["global", "layerwise"]))
    before = select_masks(weights, first, Magnitude(), scope=scope)
    moved = {name: (1 - weight.abs()).to(weight.dtype) for name, weight in weights.items()}
    after = select_masks(moved, second, Magnitude(), masks=before, scope=scope)
    assert count_zeros(after) == second
    for name in weights:
        assert not (after[name] & ~before[name]).any()
    if scope == "global":
        assert_equal(after, reference(moved, second, before))


@COMMON
@given(weight_sets(), st.data())
def test_floors_are_respected_and_k_is_still_exact(weights: Tensors, data: st.DataObject) -> None:
    floors = {
        name: data.draw(st.integers(0, weight.numel()), label=f"floor of {name}")
        for name, weight in weights.items()
    }
    free = sum(weight.numel() - floors[name] for name, weight in weights.items())
    zeros = data.draw(st.integers(0, free))
    scope = data.draw(st.sampled_from(["global", "layerwise"]))
    masks = select_masks(weights, zeros, Magnitude(), floors=floors, scope=scope)
    assert count_zeros(masks) == zeros
    for name, mask in masks.items():
        assert int(mask.sum()) >= floors[name]
        zeros_here = int((~mask).sum())
        only = {name: weights[name]}
        assert torch.equal(mask, reference(only, zeros_here)[name])


def test_a_floor_moves_the_loss_to_the_next_lowest_of_the_others() -> None:
    weights = {"small": torch.tensor([0.1, 0.2, 0.3]), "large": torch.tensor([1.0, 2.0, 3.0])}
    masks = select_masks(weights, 3, Magnitude(), floors={"small": 2})
    assert masks["small"].tolist() == [False, True, True]
    assert masks["large"].tolist() == [False, False, True]


def test_more_zeros_than_floors_allow_are_refused_with_the_limit() -> None:
    weights = {"a": torch.ones(10), "b": torch.ones(10)}
    with pytest.raises(TargetError, match=r"at most 14 zeros \(sparsity 0\.7000\)"):
        select_masks(weights, 15, Magnitude(), floors={"a": 6})
    assert count_zeros(select_masks(weights, 14, Magnitude(), floors={"a": 6})) == 14


def test_fewer_zeros_than_are_masked_already_are_refused() -> None:
    weights = {"a": torch.ones(10)}
    masks = select_masks(weights, 6, Magnitude())
    with pytest.raises(TargetError, match="6 masked already"):
        select_masks(weights, 5, Magnitude(), masks=masks)


@COMMON
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.lists(st.floats(0, 0.3), min_size=6, max_size=6),
)
def test_layerwise_shares_are_exact_and_within_their_limits(
    sizes: list[int], target: float, densities: list[float], lost: list[float]
) -> None:
    by_name = {f"t{i}": size for i, size in enumerate(sizes)}
    floors = {n: int(d * s) for (n, s), d in zip(by_name.items(), densities, strict=False)}
    free = {name: size - floors[name] for name, size in by_name.items()}
    already = {n: int(share * c) for (n, c), share in zip(free.items(), lost, strict=False)}
    least, most = sum(already.values()), sum(free.values())
    zeros = least + int(target * (most - least))
    shares = allocate_layerwise(by_name, zeros, floors, already)
    assert sum(shares.values()) == zeros
    assert all(already[name] <= shares[name] <= free[name] for name in by_name)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.floats(0, 1))
def test_layerwise_shares_are_proportional_where_no_limit_binds(
    sizes: list[int], target: float
) -> None:
    by_name = {f"t{i}": size for i, size in enumerate(sizes)}
    zeros = int(target * sum(sizes))
    shares = allocate_layerwise(by_name, zeros, {}, dict.fromkeys(by_name, 0))
    for name, size in by_name.items():
        assert abs(shares[name] - Fraction(zeros * size, sum(sizes))) < 1
    assert sum(shares.values()) == zeros


def test_remainders_go_to_the_largest_fractions_and_then_the_first() -> None:
    sizes = {"a": 10, "b": 10, "c": 10}
    assert allocate_layerwise(sizes, 10, {}, dict.fromkeys(sizes, 0)) == {"a": 4, "b": 3, "c": 3}
    sizes = {"a": 3, "b": 7}
    assert allocate_layerwise(sizes, 5, {}, dict.fromkeys(sizes, 0)) == {"a": 2, "b": 3}


@COMMON
@given(st.integers(1, 3), st.integers(0, 4), st.data())
def test_the_pattern_holds_from_what_it_removes_and_is_nested_before(
    n: int, extra: int, data: st.DataObject
) -> None:
    pattern = NM(n, 4)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    shapes = {"a": (3, 8), "b": (4, 2, 3)}
    axes = {"a": Axes(1), "b": Axes(0)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    total = 24 + 24
    needed = total * (4 - n) // 4
    steps = [needed // 3, needed - 1, needed, min(needed + extra, total)]
    scope = data.draw(st.sampled_from(["global", "layerwise"]))
    masks: Tensors | None = None
    for zeros in steps:
        new = select_masks(
            weights, zeros, Magnitude(), masks=masks, pattern=pattern, axes=axes, scope=scope
        )
        assert count_zeros(new) == zeros
        if masks is not None:
            assert not any(bool((new[name] & ~masks[name]).any()) for name in new)
        holds = all(pattern.holds(new[name], axes[name]) for name in new)
        if scope == "global":
            assert holds == (zeros >= needed)
        elif zeros >= needed:
            assert holds
        if zeros < needed:
            groups = {m: pattern.groups(~new[m], axes[m]).sum(1) for m in new}
            assert all(int(g.max()) <= 4 - n for g in groups.values())
        masks = new
        weights = {m: torch.randn(w.shape, generator=generator) * w for m, w in weights.items()}


def test_beyond_the_pattern_the_lowest_of_the_rest_go() -> None:
    weights = {"w": torch.tensor([[1.0, 2, 9, 8], [7, 3, 6, 5]])}
    masks = select_masks(weights, 5, Magnitude(), pattern=NM(2, 4), axes={"w": Axes(1)})
    assert masks["w"].tolist() == [[False, False, True, True], [True, False, False, False]]


def test_random_masks_are_nested_and_depend_on_the_seed() -> None:
    weights = {"a": torch.randn(300), "b": torch.randn(20, 10)}
    few = select_masks(weights, 100, RandomScore(1))
    many = select_masks({n: -w for n, w in weights.items()}, 400, RandomScore(1))
    other = select_masks(weights, 100, RandomScore(2))
    assert all(not (many[name] & ~few[name]).any() for name in weights)
    assert not torch.equal(few["a"], other["a"])


def test_layerwise_prunes_each_tensor_although_magnitudes_differ() -> None:
    weights = {"small": torch.rand(40), "large": 100 + torch.rand(60)}
    masks = select_masks(weights, 50, Magnitude(), scope="layerwise")
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {"small": 20, "large": 30}


@given(st.decimals(0, 1, places=4), st.integers(0, 10**9))
def test_target_is_the_ceiling_of_the_decimal_that_was_written(
    sparsity: object, total: int
) -> None:
    exact = math.ceil(Fraction(str(sparsity)) * total)
    assert target_zeros(float(str(sparsity)), total) == exact
    assert min_kept(float(str(sparsity)), total) == exact


def test_target_of_80_percent_of_10_is_8() -> None:
    assert target_zeros(0.8, 10) == 8
    assert target_zeros(0.7, 10) == 7
    assert target_zeros(0.75, 10) == 8


def test_limit_names_what_cannot_be_reached() -> None:
    prunable_limit({"a": 10}, {"a": 2}, 8, what="x")
    with pytest.raises(TargetError, match=r"sparsity 0\.9 cannot be reached"):
        prunable_limit({"a": 10}, {"a": 2}, 9, what="sparsity 0.9")
