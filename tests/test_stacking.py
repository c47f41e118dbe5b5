"""From samples to batches: padding, masks, lengths, targets."""

from dataclasses import dataclass

import numpy as np
import pytest

from onnxprune.errors import DataError, UsageError
from onnxprune.model import ValueSpec
from onnxprune.recipe import DataTable
from onnxprune.stacking import make_padding, stack

TOKENS = [
    ValueSpec("ids", np.dtype(np.int64), ("N", "L")),
    ValueSpec("mask", np.dtype(np.float32), ("N", "L")),
    ValueSpec("length", np.dtype(np.int32), ("N",)),
]


@dataclass
class Item:
    inputs: dict[str, np.ndarray]
    label: object = None


def tokens(*lengths: int) -> list[Item]:
    return [Item({"ids": np.arange(1, length + 1)}) for length in lengths]


def table(**values: object) -> DataTable:
    return DataTable.model_validate(values)


def test_samples_of_one_shape() -> None:
    batch = stack([Item({"x": np.array([1.0, 2.0])}, 3), Item({"x": np.array([4.0, 5.0])}, 0)])
    np.testing.assert_array_equal(batch.inputs["x"], [[1, 2], [4, 5]])
    assert batch.labels is not None
    assert (batch.labels.tolist(), batch.labels.dtype) == ([3, 0], np.int64)
    assert not batch.lengths
    assert stack([Item({"x": np.zeros(1)}, 1), Item({"x": np.zeros(1)})]).labels is None


def test_different_shapes_are_refused_with_the_keys_that_help() -> None:
    with pytest.raises(DataError, match=r"\[data\] padding") as caught:
        stack(tokens(2, 3))
    assert caught.value.got == "(2,), (3,)"


def test_samples_are_filled_up_and_marked() -> None:
    data = table(padding={"ids": -7}, masks={"mask": "ids"}, lengths={"length": "ids"})
    padding = make_padding(data, TOKENS)
    batch = stack(tokens(2, 4, 1), padding)
    np.testing.assert_array_equal(
        batch.inputs["ids"], [[1, 2, -7, -7], [1, 2, 3, 4], [1, -7, -7, -7]]
    )
    np.testing.assert_array_equal(batch.inputs["mask"], [[1, 1, 0, 0], [1] * 4, [1, 0, 0, 0]])
    assert batch.inputs["mask"].dtype == np.float32
    assert batch.inputs["length"].tolist() == [2, 4, 1]
    assert batch.inputs["length"].dtype == np.int32
    assert batch.lengths["ids"].tolist() == [2, 4, 1]


def test_a_mask_of_the_data_is_kept() -> None:
    padding = make_padding(table(padding={"ids": 0}, masks={"mask": "ids"}), TOKENS)
    items = [
        Item({"ids": np.ones(n, np.int64), "mask": np.full(n, 0.5, np.float32)}) for n in (1, 2)
    ]
    np.testing.assert_array_equal(stack(items, padding).inputs["mask"], [[0.5, 0], [0.5, 0.5]])


def test_only_open_axes_are_filled_up() -> None:
    specs = [ValueSpec("x", np.dtype(np.float32), ("N", 2, "T"))]
    padding = make_padding(table(padding={"x": 0.0}), specs)
    items = [Item({"x": np.ones((2, n), np.float32)}) for n in (1, 3)]
    assert stack(items, padding).inputs["x"].shape == (2, 2, 3)
    with pytest.raises(DataError, match="different shapes"):
        stack([*items, Item({"x": np.ones((3, 1), np.float32)})], padding)


def test_targets_are_stacked_and_sequences_filled_up_with_minus_one() -> None:
    x = {"x": np.zeros(1)}
    floats = stack([Item(x, np.array([0.5, 1])), Item(x, np.array([1.0, 0]))])
    np.testing.assert_array_equal(floats.labels, [[0.5, 1], [1, 0]])
    whole = stack([Item(x, np.array([5, 6, 7])), Item(x, np.array([8]))])
    np.testing.assert_array_equal(whole.labels, [[5, 6, 7], [8, -1, -1]])
    with pytest.raises(DataError, match="label"):
        stack([Item(x, np.zeros(2)), Item(x, np.zeros(3))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"padding": {"idss": 0}}, "names no input"),
        ({"masks": {"mask": "ids"}}, "is not padded"),
        ({"padding": {"ids": 0}, "masks": {"length": "ids"}}, "wrong number of axes"),
        ({"padding": {"ids": 0}, "lengths": {"mask": "ids"}}, "wrong number of axes"),
        ({"padding": {"fixed": 0}}, "fixed size"),
    ],
)
def test_names_and_shapes_are_checked(values: dict[str, object], message: str) -> None:
    specs = [*TOKENS, ValueSpec("fixed", np.dtype(np.float32), ("N", 3))]
    with pytest.raises(UsageError, match=message):
        make_padding(table(**values), specs)


@pytest.mark.parametrize("fill", [0.5, -(2.0**64), 2.0**63])
def test_a_fill_that_an_integer_input_cannot_hold_is_refused(fill: float) -> None:
    with pytest.raises(UsageError, match="padding") as caught:
        make_padding(DataTable(padding={"ids": fill}), TOKENS)
    assert "int64" in str(caught.value)


def test_a_fill_is_held_exactly() -> None:
    padding = make_padding(DataTable(padding={"ids": -100.0}), TOKENS)
    assert stack(tokens(1, 3), padding).inputs["ids"].tolist() == [[1, -100, -100], [1, 2, 3]]
