"""Scores of pieces of tensors."""

import pytest
import torch

from onnxprune.sparsity import Magnitude, RandomScore, Score
from onnxprune.sparsity.scores import split_mix


def all_scores(score: Score, name: str, weight: torch.Tensor) -> torch.Tensor:
    return score.of(name, weight.reshape(-1), 0)


def test_magnitude_is_the_absolute_value_in_row_major_order() -> None:
    weight = torch.tensor([[-3.0, 0.0], [-0.0, 2.0]]).t()
    assert all_scores(Magnitude(), "w", weight).tolist() == [3.0, 0.0, 0.0, 2.0]


def test_magnitude_of_half_precision_is_exact() -> None:
    weight = torch.tensor([-1.5, 6e-8], dtype=torch.float16)
    scores = all_scores(Magnitude(), "w", weight)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, weight.abs().float())


@pytest.mark.parametrize("score", [Magnitude(), RandomScore(0)])
@pytest.mark.parametrize("cut", [0, 1, 999, 1000])
def test_scores_do_not_depend_on_how_a_tensor_is_cut(score: Score, cut: int) -> None:
    weight = torch.randn(1000)
    parts = [score.of("w", weight[:cut], 0), score.of("w", weight[cut:], cut)]
    assert torch.equal(torch.cat(parts), all_scores(score, "w", weight))


def test_scores_are_fresh_so_that_the_caller_may_change_them() -> None:
    weight = torch.ones(4)
    for score in (Magnitude(), RandomScore(0)):
        all_scores(score, "w", weight).zero_()
    assert weight.tolist() == [1.0] * 4


def test_the_generator_is_split_mix() -> None:
    """The first numbers of the authors' own implementation for the seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = split_mix(1234567, 0, 5, torch.device("cpu"))
    assert [number % 2**64 for number in found.tolist()] == expected
    later = split_mix(1234567, 3, 2, torch.device("cpu"))
    assert torch.equal(later, found[3:])
    assert len(split_mix(2**64 - 1, 0, 0, torch.device("cpu"))) == 0


def test_random_scores_depend_on_seed_and_name_alone() -> None:
    zeros, ones = torch.zeros(1000), torch.ones(10, 100, dtype=torch.float64)
    scores = all_scores(RandomScore(3), "w", zeros)
    torch.manual_seed(99)
    assert torch.equal(scores, all_scores(RandomScore(3), "w", ones))
    assert not torch.equal(scores, all_scores(RandomScore(4), "w", zeros))
    assert not torch.equal(scores, all_scores(RandomScore(3), "v", zeros))


def test_random_scores_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    all_scores(RandomScore(1), "w", torch.zeros(10))
    assert torch.equal(torch.rand(1), expected)


def test_random_scores_are_uniform() -> None:
    scores = all_scores(RandomScore(0), "w", torch.zeros(100_000))
    assert float(scores.min()) >= 0
    assert float(scores.max()) < 1
    histogram = torch.histc(scores, 10, 0, 1) / 100_000
    assert float((histogram - 0.1).abs().max()) < 0.005
