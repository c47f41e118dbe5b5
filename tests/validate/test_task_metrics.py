"""Metrics of tasks other than telling classes apart."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError, UsageError
from onnxprune.validate import evaluate
from onnxprune.validate.named_metrics import make_metrics
from onnxprune.validate.task_metrics import (
    CharacterErrorRate,
    MeanIou,
    UserMetric,
    _edits,
)

from .test_accuracy import Row, model


def one_hot(paths: list[list[int]], classes: int = 4) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.array(paths)]


def test_paths_are_joined_and_blanks_dropped() -> None:
    scores = one_hot([[1, 1, 0, 1, 2, 2], [0, 0, 3, 3, 0, 0], [0, 0, 0, 0, 0, 0]])
    targets = np.array([[1, 1, 2], [3, 2, -1], [1, -1, -1]])
    rows = CharacterErrorRate().rows({"y": scores}, targets)
    assert rows.tolist() == [[0, 3], [1, 2], [1, 1]]
    assert CharacterErrorRate().value(rows.sum(axis=0)) == pytest.approx(2 / 6)
    other_blank = CharacterErrorRate(blank=2).rows({"y": scores[:1]}, np.array([[1, 0, 1]]))
    assert other_blank.tolist() == [[0, 3]]


@given(*[st.lists(st.integers(0, 3), max_size=7)] * 3)
def test_edits_are_a_distance(a: list[int], b: list[int], c: list[int]) -> None:
    assert _edits(a, a) == 0
    assert _edits(a, b) == _edits(b, a)
    assert abs(len(a) - len(b)) <= _edits(a, b) <= max(len(a), len(b))
    assert _edits(a, c) <= _edits(a, b) + _edits(b, c)


def test_edits_of_known_words() -> None:
    assert _edits([*b"kitten"], [*b"sitting"]) == 3
    assert _edits([], [*b"abc"]) == 3


def test_mean_iou_over_all_pixels_of_the_classes_that_occur() -> None:
    """Class 3 occurs nowhere, and void pixels count for nothing."""
    predicted = np.array([[[0, 0], [1, 2]], [[1, 1], [1, 0]]])
    scores = np.moveaxis(np.eye(4, dtype=np.float32)[predicted], 3, 1)
    targets = np.array([[[0, 1], [1, 255]], [[1, 1], [0, -1]]])
    metric = MeanIou()
    rows = metric.rows({"y": scores}, targets)
    # Class 0: 1 of 3; class 1: 3 of 5. Class 2 is only guessed where nothing counts.
    assert metric.weighing(rows).once(len(rows)) == pytest.approx((1 / 3 + 3 / 5) / 2)


@pytest.mark.parametrize(
    ("metric", "output", "targets", "message"),
    [
        (CharacterErrorRate(), np.zeros((2, 3)), np.zeros((2, 2), int), "samples, time, classes"),
        (CharacterErrorRate(), np.zeros((2, 3, 4)), None, "no targets"),
        (CharacterErrorRate(9), np.zeros((2, 3, 4)), np.zeros((2, 2), int), "samples, time"),
        (MeanIou(), np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 5), int), "pixels, as targets have"),
        (MeanIou(), np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4)), "class index of each pixel"),
        (MeanIou(), np.zeros((2, 3, 4, 4)), np.full((2, 4, 4), 3), "out of range"),
    ],
)
def test_data_that_do_not_fit(metric: Any, output: Any, targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metric.rows({"y": output}, targets)


def test_user_functions_get_all_outputs_and_give_a_number_for_each_sample() -> None:
    proto = model("y = Identity(x) z = Mul(x, x)", y="float[N, 6] y, float[N, 6] z")
    rows = [Row({"x": np.full(6, i, np.float32)}, np.array([i, i])) for i in range(5)]

    def squares(outputs: dict[str, np.ndarray], targets: np.ndarray | None) -> np.ndarray:
        assert targets is not None
        assert targets.shape[1] == 2
        return outputs["z"][:, 0] - targets[:, 0]

    twice = model("t = Add(x, x) y = Identity(x) z = Mul(t, x)", y="float[N, 6] y, float[N, 6] z")
    result = evaluate([proto, twice], rows, batch_size=2, metrics=[UserMetric("sq", squares)])
    assert [m.metrics["sq"] for m in result.models] == [pytest.approx(4), pytest.approx(10)]
    found = result.differences(1)["sq"]
    assert found.difference == pytest.approx(6)
    assert 0 < found.low < 6 < found.high < 16


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs, targets: 1.0, "number for each sample"),
        (lambda outputs, targets: outputs["nope"], "KeyError"),
        (lambda outputs, targets: ["a"], "ValueError"),
    ],
)
def test_user_functions_that_fail(function: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UserMetric("mine", function).rows({"y": np.zeros((2, 3))}, None)


def test_names() -> None:
    with pytest.raises(UsageError, match=r"no such metric(?s:.*)cer, miou"):
        make_metrics(["bleu"])
    with pytest.raises(UsageError, match="--allow-python"):
        make_metrics(["python:os:getcwd"])
    named = make_metrics(["cer", "miou", "cer", "python:os:getcwd"], blank=3, allow_python=True)
    assert [metric.name for metric in named] == ["cer", "miou", "getcwd"]
    assert named[0] == CharacterErrorRate(3)
