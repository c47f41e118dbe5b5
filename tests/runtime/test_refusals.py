"""Operators that make no sense are refused when a session is created, with what was expected."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from .helpers import (
    INPUTS,
    LARGEST_ERROR,
    compressed,
    error,
    normal,
    opened,
    operator,
    runtime_outputs,
)
from .reference import run

ROWS, CHANNELS = 8, 6
_WINDOW = {
    "kernel_shape": [3, 2],
    "strides": [1, 1],
    "dilations": [1, 1],
    "pads": [1, 0, 1, 1],
}
_LAST = {"activation": "Clip", "alpha": -1.0, "beta": 1.0}
_EXPANDED = {"expand_activation": "Clip", "expand_alpha": -1.0, "expand_beta": 1.0}
SENSE: dict[str, dict[str, Any]] = {
    "SparseConv": {
        **{"in_channels": CHANNELS, **_WINDOW, "x_layout": "plain", "y_layout": "plain"},
        **{**_LAST, "block": 4},
    },
    "SparseMatMul": {"in_features": CHANNELS, **_LAST, "block": 4},
    "DepthwiseConv": {**_WINDOW, **_LAST},
    "SparseExpandDepthwise": {
        **{"in_channels": CHANNELS, **_WINDOW, **_EXPANDED, **_LAST, "block": 4}
    },
}
"""Every attribute of each operator."""

SPARSE = [kind for kind in SENSE if "values" in INPUTS[kind]]
COLUMNS = {"SparseConv": CHANNELS * 6, "SparseMatMul": CHANNELS, "SparseExpandDepthwise": CHANNELS}


def tensors(kind: str) -> dict[str, np.ndarray]:
    """What the operator of `SENSE` reads, with two weights in each row."""
    channels = CHANNELS if kind == "DepthwiseConv" else ROWS
    stored = {name: normal(channels) for name in INPUTS[kind] if name.endswith("bias")}
    if "taps" in INPUTS[kind]:
        stored["taps"] = normal(channels, 6)
    if kind in SPARSE:
        matrix = np.zeros((ROWS, COLUMNS[kind]), np.float32)
        matrix[:, [1, 4]] = normal(ROWS, 2)
        stored |= compressed(matrix)
    return stored


def inputs(kind: str) -> np.ndarray:
    return normal(2, CHANNELS) if kind == "SparseMatMul" else normal(2, CHANNELS, 5, 5)


def check_refused(kind: str, message: str, stored: dict[str, np.ndarray], **given: Any) -> None:
    """Refused, with the name of the node and a message."""
    rank = inputs(kind).ndim
    with pytest.raises(Exception, match=rf"onnxprune {kind} 'one': {message}"):
        opened(operator(kind, stored, rank, **given))


@pytest.mark.parametrize("kind", SENSE)
def test_what_makes_sense_is_run(kind: str, need_kernels: None):
    """Else the tests below could be refused for another reason."""
    proto, feeds = operator(kind, tensors(kind), inputs(kind).ndim, **SENSE[kind]), inputs(kind)
    (found,) = runtime_outputs(proto, {"x": feeds})
    assert error(run(proto, {"x": feeds})[0], found) <= LARGEST_ERROR


NEEDED = {
    "in_channels": "in_channels is 0; expected 1 to 65536",
    "in_features": "in_features is 0; expected 1 to 65536",
    "kernel_shape": r"kernel_shape is \[\]; expected one or two sizes",
    "strides": r"strides is \[\]; expected two values",
    "dilations": r"dilations is \[\]; expected two values",
    "pads": r"pads is \[\]; expected four values",
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in SENSE for name in NEEDED if name in SENSE[kind]]
)
def test_attributes_that_are_missing(kind: str, name: str, need_kernels: None):
    given = {key: value for key, value in SENSE[kind].items() if key != name}
    check_refused(kind, NEEDED[name], tensors(kind), **given)


def other_types(value: object) -> list[Any]:
    if isinstance(value, list):
        return [3, 1.5, "3", [1.5], ["3"]]
    if isinstance(value, str):
        return [3, 1.5, [3], [1.5], ["Clip"]]
    return [0.5 if isinstance(value, int) else 1, "1", [1], [0.5], ["1"]]


MISTYPED = [
    (kind, name, other)
    for kind, given in SENSE.items()
    for name, value in given.items()
    for other in other_types(value)
]


@pytest.mark.parametrize(("kind", "name", "value"), MISTYPED)
def test_attributes_of_another_type(kind: str, name: str, value: object, need_kernels: None):
    message = rf"{name} (has another type; expected an? |has no integers; expected a list)"
    check_refused(kind, message, tensors(kind), **SENSE[kind] | {name: value})


NONSENSE: dict[str, dict[str, tuple[Any, str]]] = {
    "in_channels": {
        "none": (0, "is 0; expected 1 to 65536"),
        "fewer than none": (-6, "is -6; expected 1 to 65536"),
        "too many": (65537, "is 65537; expected 1 to 65536"),
    },
    "kernel_shape": {
        "three axes": ([3, 2, 1], "expected one or two sizes"),
        "nothing": ([0, 2], "expected 1 to 65536"),
        "below nothing": ([-3, 2], "expected 1 to 65536"),
        "too large": ([2**40, 2], "expected 1 to 65536"),
        "too many taps": ([300, 300], "at most 65536 taps"),
    },
    "strides": {
        "one axis": ([1], "expected two values"),
        "none": ([0, 1], "expected 1 to 65536"),
        "back": ([1, -1], "expected 1 to 65536"),
    },
    "dilations": {
        "three axes": ([1, 1, 1], "expected two values"),
        "none": ([1, 0], "expected 1 to 65536"),
        "too large": ([2**62, 1], "expected 1 to 65536"),
    },
    "pads": {
        "two": ([1, 1], "expected four values"),
        "negative": ([0, -1, 0, 0], "expected 0 to 65536"),
        "too large": ([0, 0, 2**62, 0], "expected 0 to 65536"),
    },
    "activation": {
        "unknown": ("Tanh", "is 'Tanh'; expected one of '', 'Relu'"),
        "lower case": ("clip", "is 'clip'; expected one of '', 'Relu'"),
    },
    "alpha": {
        "no number": (math.nan, "is not a number"),
        "above beta": (2.0, "is above (expand_)?beta; expected the lower end of Clip first"),
    },
    "beta": {"no number": (math.nan, "is not a number")},
    "x_layout": {"unknown": ("nhwc", "is 'nhwc'; expected 'plain' or 'tiled'")},
    "block": {
        "two": (2, "is 2; expected 1 or 4"),
        "none": (0, "is 0; expected 1 or 4"),
        "negative": (-4, "is -4; expected 1 or 4"),
    },
}
NONSENSE["in_features"] = NONSENSE["in_channels"]
NONSENSE["y_layout"] = NONSENSE["x_layout"]
NONSENSE |= {f"expand_{name}": NONSENSE[name] for name in ("activation", "alpha", "beta")}


@pytest.mark.parametrize(
    ("kind", "name", "case"),
    [(kind, name, case) for kind in SENSE for name in SENSE[kind] for case in NONSENSE[name]],
)
def test_attributes_that_make_no_sense(kind: str, name: str, case: str, need_kernels: None):
    value, message = NONSENSE[name][case]
    found = rf"{name} is \[" if isinstance(value, list) else name
    check_refused(kind, rf"{found}.*{message}", tensors(kind), **SENSE[kind] | {name: value})


def at(index: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    """Put another number at one place."""

    def changed(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return changed


_RISE = r"columns of row \d+ do not rise within 0 to \d+: got \d+"
_ENDS = r"row_starts goes from -?\d+ to -?\d+; expected 0 to 16, the number of values"
_FALLS = r"row_starts falls or leaves the values at row \d+"
DAMAGE: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "a column too far": ("columns", at(-1, 36), _RISE),
    "the farthest column": ("columns", at(0, 65535), _RISE),
    "columns that fall": ("columns", at(1, 0), _RISE),
    "a column twice": ("columns", at(1, 1), _RISE),
    "fewer columns": ("columns", lambda a: a[:-1], "values has 16 entries and columns 15"),
    "more columns": ("columns", lambda a: np.append(a, a[:1]), "values has 16 entries"),
    "no columns": ("columns", lambda a: a[:0], "values has 16 entries and columns 0"),
    "signed columns": ("columns", lambda a: a.astype(np.int16), ".*expected one axis of uint16"),
    "wide columns": ("columns", lambda a: a.astype(np.int64), ".*expected one axis of uint16"),
    "columns with two axes": (
        "columns",
        lambda a: a.reshape(2, -1),
        r"columns has the shape \[2, 8\] and the element type 4; expected one axis of uint16",
    ),
    "starts that fall": ("row_starts", at(3, 1), _FALLS),
    "negative starts": ("row_starts", at(3, -1), _FALLS),
    "starts behind the values": ("row_starts", at(3, 17), _FALLS),
    "starts far behind the values": ("row_starts", at(3, 2**31 - 1), _FALLS),
    "a first start": ("row_starts", at(0, 1), _ENDS),
    "a negative first start": ("row_starts", at(0, -(2**31)), _ENDS),
    "a last start too low": ("row_starts", at(-1, 15), _ENDS),
    "a last start too high": ("row_starts", at(-1, 18), _ENDS),
    "fewer starts": ("row_starts", lambda a: a[:-1], _ENDS),
    "one start": ("row_starts", lambda a: a[:1], "row_starts is too short for one row"),
    "no starts": ("row_starts", lambda a: a[:0], "row_starts is too short for one row"),
    "wide starts": ("row_starts", lambda a: a.astype(np.int64), ".*expected one axis of int32"),
    "unsigned starts": ("row_starts", lambda a: a.astype(np.uint16), ".*one axis of int32"),
    "starts as a scalar": ("row_starts", lambda a: a[0].reshape(()), r"row_starts .* shape \[\]"),
    "fewer values": ("values", lambda a: a[:-1], r"values has 15 entries and columns 16"),
    "wide values": ("values", lambda a: a.astype(np.float64), ".*one axis of float32 or float16"),
    "integer values": ("values", lambda a: a.astype(np.int8), ".*one axis of float32 or float16"),
    "values with two axes": ("values", lambda a: a[None], r"values has the shape \[1, 16\]"),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("kind", SPARSE)
def test_damaged_weights(kind: str, case: str, need_kernels: None):
    name, edit, message = DAMAGE[case]
    stored = tensors(kind)
    stored[name] = edit(stored[name].copy())
    check_refused(kind, message, stored, **SENSE[kind])


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in SENSE for name in INPUTS[kind] if re.search("bias|taps", name)],
)
def test_dense_tensors_of_other_shapes(kind: str, name: str, need_kernels: None):
    """They are seen when a session is created, as long as they are stored."""
    stored = tensors(kind)
    message = f"{'taps' if name == 'taps' else 'bias'} has the shape"
    for wrong in (stored[name][..., :-1], stored[name][None], stored[name].reshape(-1, 1)):
        check_refused(kind, message, stored | {name: wrong}, **SENSE[kind])


@pytest.mark.parametrize("name", ["values", "columns", "row_starts"])
@pytest.mark.parametrize("kind", SPARSE)
def test_weights_that_are_no_initializers(kind: str, name: str, need_kernels: None):
    proto = operator(kind, tensors(kind), inputs(kind).ndim, **SENSE[kind])
    (tensor,) = [t for t in proto.graph.initializer if t.name == name]
    value = helper.make_tensor_value_info(name, tensor.data_type, [None])
    proto.graph.initializer.remove(tensor)
    proto.graph.input.append(value)
    message = rf"onnxprune {kind} 'one': {name} is not an initializer; weights must be constant"
    with pytest.raises(Exception, match=message):
        opened(proto)


@pytest.mark.parametrize("kind", SENSE)
def test_inputs_that_are_left_out(kind: str, need_kernels: None):
    """ONNX Runtime refuses those, before an operator would read them."""
    needed = {"x", "values", "columns", "row_starts", "taps"}
    for place in (i for i, name in enumerate(INPUTS[kind]) if name in needed):
        proto = operator(kind, tensors(kind), inputs(kind).ndim, **SENSE[kind])
        proto.graph.node[0].input[place] = ""
        with pytest.raises(Exception, match=r"(?s)INVALID_GRAPH.*one"):
            opened(proto)


@given(data=st.data())
def test_any_indices_are_refused_or_computed(kernels: bool, data: st.DataObject):
    """Whatever stands in a file, an operator reads nothing beyond its weights and its input."""
    if not kernels:
        return
    kind = data.draw(st.sampled_from(SPARSE))
    rows_of = st.lists(st.sets(st.integers(0, CHANNELS - 1), max_size=4).map(sorted), max_size=5)
    found = data.draw(rows_of)
    columns = [column for row in found for column in row]
    starts = [0, *np.cumsum([len(row) for row in found]).tolist()]
    for indices in (starts, columns):
        if indices and data.draw(st.integers(0, 3)) == 0:
            place = data.draw(st.integers(0, len(indices) - 1))
            indices[place] = max(0, indices[place] + data.draw(st.sampled_from([-3, -1, 1, 3])))
    if data.draw(st.integers(0, 3)) == 0:
        starts[-1] -= data.draw(st.integers(1, 9))
    stored = {
        "values": normal(len(columns)),
        "columns": np.array(columns, np.uint16),
        "row_starts": np.array(starts, np.int32),
    }
    rows = len(starts) - 1
    window = {"kernel_shape": [1, 1], "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4}
    given_attributes = {"in_features": CHANNELS}
    if kind != "SparseMatMul":
        given_attributes = {"in_channels": CHANNELS, **window}
    if kind == "SparseExpandDepthwise":
        stored["taps"] = normal(rows, 1)
    sound = (
        rows >= 1
        and (starts[0], starts[-1]) == (0, len(columns))
        and all(a <= b for a, b in pairwise(starts))
        and all(
            a < b < CHANNELS
            for start, end in pairwise(starts)
            for a, b in pairwise([-1, *columns[start:end]])
        )
    )
    if not sound:
        check_refused(kind, "", stored, **given_attributes)
        return
    proto, x = operator(kind, stored, inputs(kind).ndim, **given_attributes), inputs(kind)
    (expected,), (found,) = run(proto, {"x": x}), runtime_outputs(proto, {"x": x})
    assert error(expected, found, 1.0) <= LARGEST_ERROR
