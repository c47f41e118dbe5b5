"""N:M patterns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import TargetError, UsageError
from onnxprune.sparsity import NM, Axes, Magnitude, parse_pattern
from onnxprune.sparsity.patterns import check_pattern, pattern_losers


def test_texts_of_patterns() -> None:
    assert parse_pattern("unstructured") is None
    assert parse_pattern("2:4") == NM(2, 4)
    assert str(NM(1, 16)) == "1:16"


@pytest.mark.parametrize("text", ["", "4:2", "4:4", "0:4", "2:4:8", "2", ":", "a:b", "-1:4", "2:"])
def test_other_texts_are_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError, match=r"2:4"):
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
