"""Scores in chunks."""

import torch

from onnxprune.sparsity import Magnitude, RandomScore, Score
from onnxprune.sparsity.scores import CHUNK


def all_scores(score: Score, name: str, weight: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(score.chunks(name, weight)))


def test_magnitude_is_the_absolute_value_in_row_major_order() -> None:
    weight = torch.tensor([[-3.0, 0.0], [-0.0, 2.0]]).t()
    assert all_scores(Magnitude(), "w", weight).tolist() == [3.0, 0.0, 0.0, 2.0]


def test_magnitude_of_half_precision_is_exact() -> None:
    weight = torch.tensor([-1.5, 6e-8], dtype=torch.float16)
    scores = all_scores(Magnitude(), "w", weight)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, weight.abs().float())


def test_chunks_have_the_same_size_for_every_score() -> None:
    weight = torch.zeros(CHUNK * 2 + 5)
    for score in (Magnitude(), RandomScore(0)):
        assert [len(chunk) for chunk in score.chunks("w", weight)] == [CHUNK, CHUNK, 5]


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
