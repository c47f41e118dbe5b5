import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.calibration import shuffled_order, split_holdout, subset
from onnxprune.calibration.arrays import ArrayRows
from onnxprune.errors import DataError
from onnxprune.model import ValueSpec

SPEC = [ValueSpec("x", np.dtype(np.float32), ("N", 2))]


def rows(count: int, labels: np.ndarray | None = None) -> ArrayRows:
    values = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    return ArrayRows("rows", {"x": values}, labels, SPEC, None, None)


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=200),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_holdout_partitions_and_is_stratified(labels, fraction, seed):
    samples = rows(len(labels), np.array(labels))
    train, held = split_holdout(samples, fraction, seed)
    indices = np.concatenate([train.indices, held.indices])
    assert sorted(indices) == list(range(len(labels)))
    assert len(held) == min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    assert np.all(np.diff(held.indices) > 0)
    for value in set(labels):
        share = labels.count(value) * len(held) / len(labels)
        got = sum(held.label(i) == value for i in range(len(held)))
        assert abs(got - share) < 1
    again = split_holdout(samples, fraction, seed)[1]
    np.testing.assert_array_equal(again.indices, held.indices)


def test_holdout_depends_on_the_seed():
    picks = {tuple(split_holdout(rows(50), 0.2, seed)[1].indices) for seed in range(5)}
    assert len(picks) == 5


def test_holdout_needs_two_samples():
    with pytest.raises(DataError, match="too few"):
        split_holdout(rows(1), 0.5, 0)


def test_subset_keeps_order_and_maps_everything():
    base = rows(5, np.array([0, 1, 2, 3, 4]))
    picked = subset(base, [4, 0, -2])
    assert [sample.label for sample in picked] == [4, 0, 3]
    np.testing.assert_array_equal(picked[1].inputs["x"], base[0].inputs["x"])
    nested = subset(picked, [2])
    assert nested[0].label == 3
    with pytest.raises(IndexError):
        picked[3]
    with pytest.raises(IndexError):
        subset(base, [5])


def test_digest_follows_content_labels_and_order():
    labels = np.array([0, 1, 0])
    digest = rows(3, labels).digest()
    assert digest == rows(3, labels.astype(np.uint8)).digest()
    assert len(digest) == 64
    others = {
        rows(3).digest(),
        rows(3, np.array([0, 1, 1])).digest(),
        rows(2, labels[:2]).digest(),
        subset(rows(3, labels), [2, 1, 0]).digest(),
    }
    assert len(others | {digest}) == 5
    assert subset(rows(3, labels), [0, 1, 2]).digest() == digest


class _Sharded(ArrayRows):
    @property
    def locality(self):
        return np.repeat([0, 1, 2], 4)


def test_shuffled_order_respects_locality():
    rng = np.random.default_rng(3)
    assert sorted(shuffled_order(rows(12), rng)) == list(range(12))
    sharded = _Sharded("s", {"x": np.zeros((12, 2), np.float32)}, None, SPEC, None, None)
    order = shuffled_order(sharded, rng)
    assert sorted(order) == list(range(12))
    assert np.count_nonzero(np.diff(order // 4)) == 2
    picked = subset(sharded, [0, 4, 5, 8])
    np.testing.assert_array_equal(picked.locality, [0, 1, 1, 2])
