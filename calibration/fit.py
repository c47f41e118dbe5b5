"""Do these data fit this model? Names, shapes, element types and labels, checked in one place."""

import operator
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from onnxprune.errors import DataError
from onnxprune.model import ValueSpec

Shape = tuple[int | None, ...]
Targets = Literal["class", "array", "either"]
"""Whether a label is a class index, or an array of any shape; either: what the data look like."""

CONTINUE = "put them back, then continue with --resume"
"""What to do where data are gone in the middle of a run."""


def sample_spec(spec: ValueSpec) -> str:
    """What one sample of an input looks like, for messages: `float32[3, 224, 224]`."""
    shape = None if spec.shape is None else spec.shape[1:]
    return ValueSpec(spec.name, spec.dtype, shape).describe()


def check_names(names: Sequence[str], inputs: Sequence[ValueSpec], where: object) -> None:
    """Compare the arrays that the data bring with the inputs that the model wants.

    Raises:
        DataError: An input has no array, or an array no input.
    """
    wanted = [spec.name for spec in inputs]
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    if missing or unknown:
        lacks = f"; nothing for {', '.join(map(repr, missing))}" if missing else ""
        raise DataError(
            "the data do not name the model's inputs",
            where=where,
            got=f"arrays {', '.join(map(repr, names)) or 'none'}{lacks}",
            expected=f"arrays {', '.join(map(repr, wanted))}, and `label` where there are labels",
            remedy="name the arrays like the model's inputs and leave others out; masks and "
            "lengths of padded inputs can be made, see [data] masks",
        )


def check_array(shape: Shape, dtype: np.dtype, spec: ValueSpec, where: object) -> None:
    """Compare one sample's shape and element type with a graph input.

    Args:
        shape: Shape without the batch axis; None for a size that is not known yet.
        dtype: Element type of the data.
        spec: The graph input; its named and unknown axes take any size.
        where: File or sample, for the message.

    Raises:
        DataError: Rank, a size or the element type does not fit.
    """
    place = f"{where}, input {spec.name!r}"
    if spec.shape is not None:
        wanted = spec.shape[1:]
        if len(shape) != len(wanted) or any(
            isinstance(want, int) and size is not None and size != want
            for size, want in zip(shape, wanted, strict=True)
        ):
            sizes = ", ".join("?" if size is None else str(size) for size in shape)
            raise DataError(
                "the shape of the data does not fit the model",
                where=place,
                got=f"{dtype}[{sizes}] a sample",
                expected=f"{sample_spec(spec)} a sample",
            )
    if spec.dtype is not None and not _castable(dtype, spec.dtype):
        raise DataError(
            "the element type of the data does not fit the model",
            where=place,
            got=dtype.name,
            expected=f"{spec.dtype.name}, or a type that converts to it without loss of meaning",
            remedy=f"convert the data to {spec.dtype.name}",
        )


def _castable(source: np.dtype, target: np.dtype) -> bool:
    integers = source.kind in "iu" and target.kind in "iu"
    return not source.hasobject and (integers or np.can_cast(source, target, "same_kind"))


def cast(array: np.ndarray, spec: ValueSpec, where: object) -> np.ndarray:
    """Convert one sample's array to a graph input's element type.

    Raises:
        DataError: A value is out of the target type's range.
    """
    target = spec.dtype
    if target is None or array.dtype == target:
        return array
    with np.errstate(over="ignore"):
        result = array.astype(target)
    if target.kind in "iu":
        limits = np.iinfo(target)
        lost = array.size > 0 and (array.min() < limits.min or array.max() > limits.max)
    else:
        lost = array.dtype.itemsize > target.itemsize and not np.array_equal(
            np.isfinite(result), np.isfinite(array)
        )
    if lost:
        raise DataError(
            f"a value is out of the range of {target.name}",
            where=f"{where}, input {spec.name!r}",
            got=f"values from {array.min()} to {array.max()} ({array.dtype.name})",
            expected=sample_spec(spec),
        )
    return result


def fit_sample(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[ValueSpec], where: object
) -> dict[str, np.ndarray]:
    """Check one sample against every graph input and convert it.

    Raises:
        DataError: It does not fit.
    """
    check_names(list(arrays), inputs, where)
    fitted = {}
    for spec in inputs:
        array = arrays[spec.name]
        check_array(array.shape, array.dtype, spec, where)
        fitted[spec.name] = cast(array, spec, where)
    return fitted


def label_count(num_classes: int | None) -> int | None:
    """Number of label values for a model with `num_classes` scores; one score means two classes."""
    return 2 if num_classes == 1 else num_classes


def check_label(label: object, count: int | None, where: object) -> int:
    """A label as int.

    Args:
        label: Anything; integers of Python, NumPy or torch pass.
        count: Number of label values, or None if unknown.
        where: File or sample, for the message.

    Raises:
        DataError: It is no integer, negative, or not below `count`.
    """
    try:
        value = operator.index(label)  # type: ignore[arg-type]
    except TypeError:
        raise DataError(
            "a label is not an integer",
            where=where,
            got=f"{label!r} ({type(label).__name__})",
            expected="a class index",
        ) from None
    if value < 0 or (count is not None and value >= count):
        upper = "any class index from 0" if count is None else f"0 to {count - 1}"
        raise DataError("a label is out of range", where=where, got=value, expected=upper)
    return value


def check_labels(labels: np.ndarray, rows: int, count: int | None, where: object) -> np.ndarray:
    """Label array as int64, `(rows,)`; `(rows, 1)` is taken too.

    Raises:
        DataError: Wrong element type or shape, or a label out of range.
    """
    if labels.dtype.kind not in "iu":
        raise DataError(
            "labels are not integers",
            where=where,
            got=f"{labels.dtype.name}{list(labels.shape)}",
            expected=f"integer class indices [{rows}]",
        )
    if labels.shape not in ((rows,), (rows, 1)):
        raise DataError(
            "there must be one label a sample",
            where=where,
            got=f"labels of shape {labels.shape}",
            expected=f"({rows},)",
            remedy="turn one-hot rows into class indices with argmax; for other targets name "
            "[finetune] loss",
        )
    labels = labels.reshape(rows)
    wrong = labels < 0
    if count is not None:
        wrong = wrong | (labels >= count)
    if wrong.any():
        row = int(np.argmax(wrong))
        check_label(int(labels[row]), count, f"{where}, sample {row}")
    return labels.astype(np.int64)


def resolve_targets(targets: Targets, sample_shape: tuple[int, ...]) -> Targets:
    """What `either` comes to for labels of this shape a sample."""
    if targets != "either":
        return targets
    return "class" if sample_shape in ((), (1,)) else "array"


def check_targets(targets: np.ndarray, rows: int, where: object) -> np.ndarray:
    """Targets of any shape, one row a sample: integers as int64, others as float32.

    Raises:
        DataError: Another number of rows, no numbers, or values that are not finite.
    """
    targets = np.asarray(targets)
    if not targets.ndim or targets.shape[0] != rows or targets.dtype.kind not in "biuf":
        raise DataError(
            "there must be one row of targets a sample",
            where=where,
            got=f"{targets.dtype}{list(targets.shape)}",
            expected=f"numbers [{rows}, ...]",
        )
    if targets.dtype.kind == "f" and not np.isfinite(targets).all():
        raise DataError("targets are not finite", where=where, got="NaN or infinity")
    return targets.astype(np.float32 if targets.dtype.kind in "fb" else np.int64)
