import math
from dataclasses import dataclass

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError, UnsupportedModelError, UsageError
from onnxprune.validate import evaluate
from onnxprune.validate.metrics import SQNR_CAP_DB, class_scores, label_ranks

pytest.importorskip("onnxruntime")


@dataclass
class Row:
    inputs: dict
    label: int | None


class Rows(list):
    """Samples of one input `x`."""

    def __init__(self, arrays, labels=None):
        labels = [None] * len(arrays) if labels is None else [int(label) for label in labels]
        super().__init__(Row({"x": np.asarray(a)}, y) for a, y in zip(arrays, labels, strict=True))
        self.labelled = bool(labels) and labels[0] is not None


def model(body, x="float[N, 6] x", y="float[N, 6] y", weights=""):
    text = f'<ir_version: 8, opset_import: ["" : 17]> net ({x}) => ({y}) {weights} {{ {body} }}'
    return onnx.parser.parse_model(text)


LOGITS = model("y = Identity(x)")
PROBABILITIES = model("y = Softmax<axis=-1>(x)")


def random_rows(count=23, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, classes)).astype("f"), rng.integers(0, classes, count)


def log_softmax(scores):
    scores = scores.astype(np.float64)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@pytest.mark.parametrize("graph", [LOGITS, PROBABILITIES])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_class_metrics(graph, batch_size):
    scores, labels = random_rows()
    result = evaluate([graph], Rows(scores, labels), batch_size=batch_size)
    metrics = result.models[0].metrics
    order = np.argsort(-scores, axis=1)
    assert result.samples == 23
    assert set(metrics) == {"top1", "top5", "loss"}
    assert metrics["top1"] == np.mean(order[:, 0] == labels)
    assert metrics["top5"] == np.mean([y in row[:5] for y, row in zip(labels, order, strict=True)])
    expected = -log_softmax(scores)[np.arange(23), labels].mean()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(result.models[0].correct, order[:, 0] == labels)
    np.testing.assert_array_equal(result.models[0].predictions, order[:, 0])


def test_fidelity_to_the_first_model():
    scores, _ = random_rows()
    shift = model("y = Add(x, c)", weights="<float[6] c = {0, 0, 0.5, 0, 0, 0}>")
    result = evaluate([LOGITS, shift, LOGITS], Rows(scores), batch_size=4)
    first, second, third = (entry.metrics for entry in result.models)
    moved = np.add(scores, [0, 0, 0.5, 0, 0, 0], dtype=np.float64)
    cosines = (scores * moved).sum(1) / np.linalg.norm(scores, axis=1)
    cosines /= np.linalg.norm(moved, axis=1)
    assert first == {}
    assert second["agreement"] == np.mean(moved.argmax(1) == scores.argmax(1))
    assert 0 < second["agreement"] < 1
    assert second["cosine"] == pytest.approx(cosines.mean(), rel=1e-6)
    assert second["max_abs_error"] == pytest.approx(0.5, rel=1e-5)
    noise = 23 * 0.25
    assert second["sqnr_db"] == pytest.approx(
        10 * math.log10(float((scores.astype(float) ** 2).sum()) / noise), rel=1e-5
    )
    assert third["agreement"] == third["cosine"] == 1
    assert third["sqnr_db"] == SQNR_CAP_DB
    assert second["mean_abs_error"] == pytest.approx(0.5 / 6, rel=1e-5)
    assert third["max_abs_error"] == third["mean_abs_error"] == 0


def test_the_mean_error_is_that_of_all_values_whatever_the_batches():
    scores, _ = random_rows()
    square = model("y = Mul(x, x)")
    wanted = np.abs(np.square(scores, dtype=np.float64) - scores).mean()
    for batch_size in (1, 5, 64):
        result = evaluate([LOGITS, square], Rows(scores), batch_size=batch_size)
        assert result.models[1].metrics["mean_abs_error"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("fixed", [1, 4, 32])
def test_a_fixed_batch_size_is_padded(fixed):
    scores, labels = random_rows()
    graph = model("y = Identity(x)", x=f"float[{fixed}, 6] x", y=f"float[{fixed}, 6] y")
    result = evaluate([LOGITS, graph], Rows(scores, labels), batch_size=10, keep_outputs=True)
    np.testing.assert_array_equal(result.models[1].outputs, scores)
    assert result.models[1].metrics["agreement"] == 1
    assert result.models[1].metrics["top1"] == result.models[0].metrics["top1"]


@pytest.mark.parametrize("kind", ["probability", "logit"])
@pytest.mark.parametrize("shape", [(1,), ()])
def test_a_single_score_is_the_second_class(kind, shape):
    logits = np.array([-2.0, -0.5, 0.2, 0.9, 3.0], np.float32)
    labels = np.array([0, 1, 0, 1, 1])
    values = logits if kind == "logit" else 1 / (1 + np.exp(-logits))
    dims = ", 1" if shape else ""
    graph = model("y = Identity(x)", x=f"float[N{dims}] x", y=f"float[N{dims}] y")
    # in batches of one, scores in [0, 1] alone cannot tell that these are logits
    rows = Rows(values.reshape(5, *shape).astype("f"), labels)
    result = evaluate([graph], rows, batch_size=1).models[0]
    assert result.predictions.tolist() == [0, 0, 1, 1, 1]
    assert result.metrics["top1"] == 0.6
    signs = np.where(labels == 1, 1, -1)
    expected = np.log1p(np.exp(-signs * logits)).mean()
    assert result.metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_trailing_axes_of_one_are_no_obstacle():
    scores, labels = random_rows()
    graph = model("y = Identity(x)", x="float[N, 6, 1, 1] x", y="float[N, 6, 1, 1] y")
    metrics = evaluate([graph], Rows(scores[:, :, None, None], labels)).models[0].metrics
    assert metrics["top1"] == np.mean(scores.argmax(1) == labels)


def test_outputs_that_are_no_class_scores():
    graph = model("y = Identity(x)", x="float[N, 2, 3] x", y="float[N, 2, 3] y")
    arrays = random_rows()[0].reshape(-1, 2, 3)
    metrics = evaluate([graph, graph], Rows(arrays)).models[1].metrics
    assert set(metrics) == {"cosine", "sqnr_db", "mean_abs_error", "max_abs_error"}
    with pytest.raises(DataError, match=r"no class scores(.|\n)*float32\[23, 2, 3\]"):
        evaluate([graph], Rows(arrays, [0] * 23))


def test_samples_of_different_shapes_get_their_own_batches():
    graph = model(
        "y = ReduceSum<keepdims=0>(x, a)",
        x="float[N, L] x",
        y="float[N] y",
        weights="<int64[1] a = {1}>",
    )
    arrays = [np.ones(length, "f") for length in (3, 3, 5, 3)]
    seen = []
    result = evaluate(
        [graph],
        Rows(arrays),
        keep_outputs=True,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert result.models[0].outputs.tolist() == [3, 3, 5, 3]
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_not_finite_outputs_count_as_wrong_and_are_reported():
    scores, labels = random_rows()
    scores[3] = np.nan
    labels[3] = 0
    result = evaluate([LOGITS, LOGITS], Rows(scores, labels))
    metrics = result.models[1].metrics
    assert metrics["non_finite"] == pytest.approx(1 / 23)
    assert metrics["agreement"] == pytest.approx(22 / 23)
    assert not result.models[0].correct[3]
    assert result.models[0].predictions[3] == -1
    printed = result.to_json()["models"][1]["metrics"]
    assert printed["cosine"] is None
    assert printed["loss"] is None
    assert printed["top1"] == metrics["top1"]


def test_models_that_cannot_be_compared():
    renamed = model("y = Identity(z)", x="float[N, 6] z")
    with pytest.raises(UsageError, match=r"inputs(.|\n)*got: z(.|\n)*expected: x"):
        evaluate([LOGITS, renamed], Rows(random_rows()[0]))
    narrow = model(
        "y = Slice(x, s, e, a)",
        y="float[N, 5] y",
        weights="<int64[1] s = {0}, int64[1] e = {5}, int64[1] a = {1}>",
    )
    with pytest.raises(UsageError, match=r"\(23, 5\)(.|\n)*\(23, 6\)"):
        evaluate([LOGITS, narrow], Rows(random_rows()[0]))


def test_labels_must_fit_the_scores():
    scores, labels = random_rows()
    labels[7] = 6
    with pytest.raises(DataError, match=r"out of range(.|\n)*0 to 5"):
        evaluate([LOGITS], Rows(scores, labels))


def test_an_output_without_a_batch_axis():
    graph = model("y = ReduceSum<keepdims=0>(x, a)", y="float[6] y", weights="<int64[1] a = {0}>")
    rows = Rows(random_rows(7)[0])
    with pytest.raises(UnsupportedModelError, match="no batch axis"):
        evaluate([graph], rows, batch_size=4)
    assert evaluate([graph, graph], rows, batch_size=1).models[1].metrics["cosine"] == 1


def test_bad_arguments():
    with pytest.raises(UsageError, match="no model"):
        evaluate([], Rows([]))
    with pytest.raises(DataError, match="no samples"):
        evaluate([LOGITS], Rows([]))
    with pytest.raises(UsageError, match="batch size"):
        evaluate([LOGITS], Rows(random_rows()[0]), batch_size=0)


def test_json_has_the_documented_shape():
    scores, labels = random_rows()
    printed = evaluate([("a", LOGITS.SerializeToString())], Rows(scores, labels)).to_json()
    assert printed["samples"] == 23
    assert printed["models"][0]["path"] == "a"
    assert set(printed["models"][0]["metrics"]) == {"top1", "top5", "loss"}


@given(
    scores=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=8),
    label=st.integers(0, 3),
)
def test_rank_zero_is_exactly_argmax(scores, label):
    array = np.array(scores, float)
    labels = np.full(len(array), label)
    ranks = label_ranks(array, labels)
    np.testing.assert_array_equal(ranks == 0, array.argmax(1) == label)
    order = np.argsort(-array, axis=1, kind="stable")
    np.testing.assert_array_equal(ranks, (order == label).argmax(axis=1))


def test_integers_are_no_scores():
    assert class_scores(np.zeros((3, 2), np.int64)) is None
    assert class_scores(np.zeros((3, 2, 1, 1), np.float16)).shape == (3, 2)


def test_differences_are_counted_sample_by_sample() -> None:
    """The second model errs on 12 samples that the first gets right, and the reverse on 2."""
    labels = np.arange(300) % 6
    dense = np.eye(6, dtype=np.float32)[labels]
    pruned = dense.copy()
    dense[:2], pruned[2:14] = np.roll(dense[:2], 1, axis=1), np.roll(pruned[2:14], 1, axis=1)

    class Both(list):
        def __init__(self) -> None:
            pairs = zip(dense, pruned, labels, strict=True)
            super().__init__(Row({"x": a, "z": b}, int(y)) for a, b, y in pairs)

    inputs = "float[N, 6] x, float[N, 6] z"
    result = evaluate(
        [
            model("y = Add(x, x) u = Identity(z)", x=inputs),
            model("y = Add(z, z) u = Identity(x)", x=inputs),
        ],
        Both(),
    )
    entry = result.to_json()["models"][1]["against_first"]
    assert result.to_json()["models"][0]["against_first"] == {}
    top1 = entry["top1"]
    assert (top1["lost"], top1["gained"]) == (12, 2)
    assert top1["difference"] == pytest.approx(-10 / 300)
    assert top1["p_value"] == pytest.approx(2 * (1 + 14 + 91) / 2**14)
    assert -0.07 < top1["low"] < -10 / 300 < top1["high"] < 0
    metrics = [m.metrics for m in result.models]
    assert entry["loss"]["difference"] == pytest.approx(metrics[1]["loss"] - metrics[0]["loss"])
    assert 0 < entry["loss"]["low"] < entry["loss"]["difference"] < entry["loss"]["high"]


def test_a_model_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(0)
    data = Rows(rng.normal(size=(50, 6)).astype(np.float32), rng.integers(6, size=50))
    found = evaluate([LOGITS, LOGITS], data).differences(1)
    for name in ("top1", "top5"):
        one = found[name]
        assert (one.difference, one.p_value, one.lost, one.gained) == (0.0, 1.0, 0, 0)
        assert one.low < 0 < one.high
    assert (found["loss"].low, found["loss"].high) == (0.0, 0.0)


def test_intervals_hold_what_they_say() -> None:
    """Over 300 draws of two models whose true difference is -2 points."""
    from onnxprune.validate.accuracy import ModelAccuracy
    from onnxprune.validate.difference import paired_differences

    rng, held = np.random.default_rng(1), {"top1": 0, "loss": 0}
    for _ in range(300):
        kind = rng.choice(4, size=200, p=[0.7, 0.08, 0.06, 0.16])
        right = [np.isin(kind, (0, 1)), np.isin(kind, (0, 2))]
        losses = rng.exponential(1.0, size=200)
        changes = rng.exponential(0.3, size=200) - 0.25
        first, other = (
            ModelAccuracy("m", {"top1": r.mean()}, ranks=np.where(r, 0, 1), losses=values)
            for r, values in zip(right, (losses, losses + changes), strict=True)
        )
        found = paired_differences(first, other)
        held["top1"] += found["top1"].low <= -0.02 <= found["top1"].high
        held["loss"] += found["loss"].low <= 0.05 <= found["loss"].high
    assert 275 <= held["top1"] <= 298
    assert 270 <= held["loss"] <= 297
