"""From single samples to a batch: the one place where samples are stacked and padded.

Training, calibration and evaluation all go through `stack`, so they see the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.model import ValueSpec
from onnxprune.recipe import DataTable

TARGET_FILL = -1
"""What fills up integer targets of different lengths; losses leave it out."""


class SampleLike(Protocol):
    """One sample: inputs by name without a batch axis, and a label or target if there is one."""

    @property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """Arrays by input name."""
        ...

    @property
    def label(self) -> int | np.ndarray | None:
        """Class index, or an array of targets."""
        ...


@dataclass(frozen=True)
class Padding:
    """How samples of different lengths become one batch.

    Only axes that the model leaves open are filled up; the first of them is an input's length.

    Attributes:
        fill: Input name -> value behind a sample's end.
        masks: Mask input -> the input whose data it marks with 1, and whose filling with 0.
        lengths: Input that holds a length -> the input whose length it is.
        inputs: Input name -> what the model takes, for every name above.
    """

    fill: Mapping[str, float] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, ValueSpec] = field(default_factory=dict)

    @property
    def generated(self) -> set[str]:
        """Inputs that are made here where the data do not bring them."""
        return {*self.masks, *self.lengths}

    def required(self, inputs: Sequence[ValueSpec], brought: Sequence[str]) -> list[ValueSpec]:
        """The inputs that the data have to give: those that are not made here, or are brought."""
        return [spec for spec in inputs if spec.name not in self.generated or spec.name in brought]

    def axis(self, name: str) -> int:
        """The axis of a sample along which an input has its length: the first open one."""
        return open_axes(self.inputs[name])[0]


def open_axes(spec: ValueSpec) -> list[int]:
    """Axes of one sample whose size the model leaves open; the first where it says nothing."""
    if spec.shape is None:
        return [0]
    return [axis for axis, size in enumerate(spec.shape[1:]) if not isinstance(size, int)]


def make_padding(data: DataTable, inputs: Sequence[ValueSpec]) -> Padding:
    """The padding that `[data]` asks for, checked against the model.

    Raises:
        UsageError: A name is no input, or an input cannot be padded, be a mask or hold a length.
    """
    specs = {spec.name: spec for spec in inputs}
    keys: dict[str, Sequence[str]] = {
        "padding": list(data.padding),
        "masks": [*data.masks, *data.masks.values()],
        "lengths": [*data.lengths, *data.lengths.values()],
    }
    for key, names in keys.items():
        for name in names:
            if name not in specs:
                raise UsageError(
                    f"[data] {key} names no input of the model",
                    got=repr(name),
                    expected=", ".join(f"{spec.name!r} {spec.describe()}" for spec in inputs),
                )
    for key, described in (("masks", data.masks), ("lengths", data.lengths)):
        for name, target in described.items():
            if target not in data.padding:
                raise UsageError(
                    f"[data] {key} describes an input that is not padded",
                    got=f"{name!r} = {target!r}",
                    expected=f"one of {', '.join(map(repr, data.padding)) or 'none'}",
                    remedy=f"add {target!r} to [data] padding",
                )
            _check_rank(key, specs[name], 2 if key == "masks" else 1)
    for name, fill in data.padding.items():
        _check_padded(specs[name], fill)
    used = {name for names in keys.values() for name in names}
    return Padding(data.padding, data.masks, data.lengths, {name: specs[name] for name in used})


def _check_padded(spec: ValueSpec, fill: float) -> None:
    """Refuse an input that has no length, or that cannot hold what would fill it up."""
    if not open_axes(spec):
        raise UsageError(
            "[data] padding names an input of fixed size",
            got=f"{spec.name!r} {spec.describe()}",
            expected="an input with an open axis behind the batch",
            remedy="give all samples this size",
        )
    if spec.dtype is None or spec.dtype.kind not in "iu":
        return
    limits = np.iinfo(spec.dtype)
    if not fill.is_integer() or not limits.min <= int(fill) <= limits.max:
        raise UsageError(
            "a value of [data] padding does not fit its input",
            got=f"{spec.name!r} = {fill:g}",
            expected=f"a whole number from {limits.min} to {limits.max}, for {spec.describe()}",
        )


def _check_rank(key: str, spec: ValueSpec, rank: int) -> None:
    if spec.shape is not None and len(spec.shape) != rank:
        raise UsageError(
            f"an input of [data] {key} has the wrong number of axes",
            got=f"{spec.name!r} {spec.describe()}",
            expected="(batch, length)" if rank == 2 else "(batch,)",
            remedy="let the data bring this input",
        )


@dataclass(frozen=True)
class Stacked:
    """A batch of arrays.

    Attributes:
        inputs: Input name -> `(batch, ...)`.
        labels: `(batch,)` int64 class indices, or `(batch, ...)` targets; None if any is missing.
        lengths: Padded input -> `(batch,)` int64 lengths before padding.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None
    lengths: dict[str, np.ndarray]


def stack(samples: Sequence[SampleLike], padding: Padding | None = None) -> Stacked:
    """Stack samples into a batch.

    Args:
        samples: At least one.
        padding: What to do where they differ in length; None: they must not.

    Raises:
        DataError: The samples' shapes differ where nothing says how to pad.
    """
    padding = padding or Padding()
    inputs: dict[str, np.ndarray] = {}
    lengths: dict[str, np.ndarray] = {}
    for name in samples[0].inputs:
        arrays = [sample.inputs[name] for sample in samples]
        if name in padding.fill:
            axis = padding.axis(name)
            lengths[name] = np.array([array.shape[axis] for array in arrays], np.int64)
            spec = padding.inputs[name]
            axes = None if spec.shape is None else open_axes(spec)
            inputs[name] = _filled(arrays, padding.fill[name], f"input {name!r}", axes)
        else:
            fill = 0 if name in padding.masks else None
            inputs[name] = _filled(arrays, fill, f"input {name!r}", None)
    for name, target in padding.masks.items():
        if name not in inputs:
            longest = inputs[target].shape[1 + padding.axis(target)]
            marks = np.arange(longest) < lengths[target][:, None]
            inputs[name] = marks.astype(_dtype(padding.inputs[name]))
    for name, target in padding.lengths.items():
        if name not in inputs:
            inputs[name] = lengths[target].astype(_dtype(padding.inputs[name]))
    return Stacked(inputs, _labels(samples), lengths)


def _dtype(spec: ValueSpec) -> np.dtype:
    return np.dtype(np.int64) if spec.dtype is None else spec.dtype


def _filled(
    arrays: Sequence[np.ndarray], fill: float | None, where: str, axes: Sequence[int] | None
) -> np.ndarray:
    """Arrays stacked; with `fill`, filled up along `axes` (None: all) to the longest."""
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1:
        return np.stack(arrays)
    ranks = {len(shape) for shape in shapes}
    differing = [] if len(ranks) > 1 else _differing(shapes)
    if fill is None or len(ranks) > 1 or (axes is not None and not set(differing) <= set(axes)):
        raise DataError(
            "samples of different shapes cannot form one batch",
            where=where,
            got=", ".join(str(shape) for shape in sorted(shapes)),
            expected=f"all {arrays[0].shape}",
            remedy="name the input and a value in [data] padding to fill samples up to the "
            "longest of a batch (with masks or lengths where the model takes them), preprocess "
            "all samples to one shape, or use a batch size of 1",
        )
    longest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    result = np.full((len(arrays), *longest), fill, arrays[0].dtype)
    for row, array in zip(result, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return result


def _differing(shapes: set[tuple[int, ...]]) -> list[int]:
    return [axis for axis, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]


def _labels(samples: Sequence[SampleLike]) -> np.ndarray | None:
    labels = [sample.label for sample in samples if sample.label is not None]
    if len(labels) < len(samples):
        return None
    arrays = [label for label in labels if isinstance(label, np.ndarray)]
    if not arrays:
        return np.array(labels, np.int64)
    integers = all(array.dtype.kind in "iu" for array in arrays)
    return _filled(arrays, TARGET_FILL if integers else None, "label", None)
