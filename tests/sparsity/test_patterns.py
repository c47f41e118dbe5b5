"""N:M and block patterns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import TargetError, UsageError
from onnxprune.sparsity import NM, Axes, Block, Magnitude, parse_pattern
from onnxprune.sparsity.patterns import check_pattern, pattern_losers


def test_texts_of_patterns() -> None:
    assert parse_pattern("unstructured") is None
    assert parse_pattern("2:4") == NM(2, 4)
    assert str(NM(1, 16)) == "1:16"
    assert parse_pattern("block:4x1") == Block(4, 1)
    assert parse_pattern("block:64x64") == Block(64, 64)
    assert str(Block(2, 16)) == "block:2x16"


@pytest.mark.parametrize("text", ["", "4:2", "4:4", "0:4", "2:4:8", "2", ":", "a:b", "-1:4", "2:"])
@pytest.mark.parametrize("prefix", ["", "block:"])
def test_other_texts_are_refused_with_what_is_allowed(text: str, prefix: str) -> None:
    with pytest.raises(UsageError, match=r"2:4 or block:4x1"):
        parse_pattern(prefix + text)


@pytest.mark.parametrize("text", ["block:1x1", "block:0x4", "block:4x65", "block:4", "block:4x1x1"])
def test_blocks_of_no_size_or_too_large_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"2:4 or block:4x1"):
        parse_pattern(text)


def test_losers_are_the_smallest_of_each_group_and_ties_keep_the_first() -> None:
    scores = torch.tensor([[1.0, 3, 2, 4, 5, 5, 5, 5]])
    expected = [[True, False, True, False, False, False, True, True]]
    assert NM(2, 4).losers(scores, Axes(1)).tolist() == expected


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(2, 8),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.data(),
)
def test_each_group_along_any_axis_loses_exactly_m_minus_n(
    n: int, m: int, outer: list[int], data: st.DataObject
) -> None:
    pattern = NM(min(n, m - 1), m)
    axis = data.draw(st.integers(0, len(outer)))
    shape = [*outer[:axis], m * data.draw(st.integers(1, 3)), *outer[axis:]]
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    losers = pattern.losers(scores, Axes(axis))
    assert losers.shape == scores.shape
    groups = losers.movedim(axis, -1).reshape(-1, m)
    assert (groups.sum(1) == m - pattern.n).all()
    kept = torch.where(losers, 2.0, scores).movedim(axis, -1).reshape(-1, m).amin(1)
    lost = torch.where(losers, scores, -1.0).movedim(axis, -1).reshape(-1, m).amax(1)
    assert (lost <= kept).all()
    assert pattern.holds(~losers, Axes(axis))
    one_more = ~losers
    one_more[tuple(losers.nonzero()[0])] = True
    assert not pattern.holds(one_more, Axes(axis))


def test_blocks_of_a_tensor_lie_along_its_output_and_reduction_axes() -> None:
    """Axes may come in any order, with others between them."""
    tensor = torch.arange(2 * 4 * 3 * 6).reshape(2, 4, 3, 6)
    blocks = Block(3, 2).blocks(tensor, Axes(1, 3))
    assert blocks.shape == (2, 2, 3, 2, 3, 2)
    assert torch.equal(blocks[1, 0, 2, 1], tensor[1, 0:2, 2, 3:6].t())
    assert Block(3, 2).means(tensor.float(), Axes(1, 3))[1, 0, 2, 1] == blocks[1, 0, 2, 1].sum() / 6


@pytest.mark.parametrize(
    ("shape", "axes", "fits"),
    [
        ((8, 6), Axes(1, 0), True),
        ((6, 8), Axes(0, 1), True),
        ((6, 8), Axes(1, 0), False),
        ((8, 5), Axes(1, 0), False),
        ((8, 6), Axes(1, None), False),
        ((0, 6), Axes(1, 0), False),
        ((8, 6), None, False),
    ],
)
def test_a_block_fits_where_both_axes_are_multiples(
    shape: tuple[int, ...], axes: Axes | None, fits: bool
) -> None:
    assert Block(4, 3).fits(shape, axes) == fits


def test_masks_keep_to_blocks_up_to_a_part_of_one() -> None:
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[:4, 1] = False
    mask[4:7, 2] = False
    assert Block(4, 1).holds(mask, Axes(1, 0))
    mask[0, 0] = False
    assert not Block(4, 1).holds(mask, Axes(1, 0))


def test_masked_weights_lose_first() -> None:
    weights = {"w": torch.tensor([[4.0, 3, 2, 1]])}
    masks = {"w": torch.tensor([[False, True, True, True]])}
    losers = pattern_losers(NM(2, 4), weights, {"w": Axes(1)}, Magnitude(), masks)
    assert losers["w"].tolist() == [[True, False, False, True]]


def test_tensors_are_sorted_by_whether_the_pattern_fits() -> None:
    shapes = {"a": (8, 6), "b": (8, 4), "c": (4, 4)}
    fitting, rest = check_pattern(NM(2, 4), shapes, {"a": Axes(1), "b": Axes(1)})
    assert (fitting, rest) == (["b"], ["a", "c"])
    assert check_pattern(None, shapes, {}) == (["a", "b", "c"], [])


def test_a_pattern_that_fits_nothing_is_an_error_that_names_tensors() -> None:
    with pytest.raises(TargetError, match=r"stem\.weight \(8, 3\)"):
        check_pattern(NM(2, 4), {"stem.weight": (8, 3)}, {"stem.weight": Axes(1)})
