"""Overlap of sets of kept weights."""

import pytest
import torch

from onnxprune.cascade import kept_overlap


def test_overlap_is_kept_by_both_over_kept_by_either() -> None:
    first = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True])}
    second = {"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True])}
    overlap = kept_overlap(first, second)
    assert overlap.by_tensor == {"a": pytest.approx(1 / 3), "b": 1.0}
    assert overlap.jaccard == pytest.approx(2 / 4)


def test_chance_is_what_independent_sets_have() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [{"a": torch.rand(200_000, generator=generator) < 0.3} for _ in range(2)]
    overlap = kept_overlap(*masks)
    assert overlap.jaccard == pytest.approx(overlap.expected, abs=0.005)
    assert overlap.expected == pytest.approx(0.09 / 0.51, abs=0.005)
