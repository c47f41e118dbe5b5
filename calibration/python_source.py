"""Samples from a user's own Python function: `python:package.module:function`.

The function runs with the user's rights, so this reader is used only where that was allowed.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from onnxprune.calibration.arrays import ArrayRows
from onnxprune.calibration.fit import (
    Targets,
    check_label,
    check_targets,
    fit_sample,
    label_count,
    resolve_targets,
)
from onnxprune.calibration.samples import Sample, Samples, array_fingerprint
from onnxprune.draws import seeded
from onnxprune.errors import DataError, OnnxpruneError
from onnxprune.model import ValueSpec
from onnxprune.stacking import Padding
from onnxprune.user_code import import_function

MAX_HELD_BYTES = 8 * 2**30
"""What an iterator yields is held in memory, up to this size."""

_TRIED = 8
"""So many samples are read twice, to see whether they vary."""


def open_python(
    target: str,
    inputs: Sequence[ValueSpec],
    classes: list[str] | None,
    num_classes: int | None,
    limit: int | None,
    targets: Targets = "class",
    padding: Padding | None = None,
) -> Samples:
    """Call `target` (`package.module:function`) and read what it returns.

    The current folder is importable while the module is loaded. The function takes no arguments
    and returns one of

    - an object with `__len__` and `__getitem__` giving `(inputs, label)` or `inputs` a sample,
      read when needed; `inputs` is an array, or a dictionary of arrays by input name;
    - an iterable of those, which is read at once, up to `limit` samples;
    - `(inputs, labels)` or `inputs` for all samples together, one row a sample.

    Raises:
        DataError: The function is missing or fails, or what it returns does not fit the model.
    """
    spec = f"python:{target}"
    with _user_code(spec):
        result = import_function(target)()
    if isinstance(result, tuple) and len(result) == 2 and _is_arrays(result[0]):
        labels = None if result[1] is None else _array(result[1], spec)
        return _rows(spec, result[0], labels, inputs, classes, num_classes, targets, padding)
    if _is_arrays(result):
        return _rows(spec, result, None, inputs, classes, num_classes, targets, padding)
    if hasattr(result, "__len__") and hasattr(result, "__getitem__"):
        return ItemSamples(spec, result, inputs, classes, num_classes, targets, padding)
    if isinstance(result, Iterable):
        items = _materialise(spec, result, limit)
        return ItemSamples(spec, items, inputs, classes, num_classes, targets, padding)
    raise DataError(
        "the function returns nothing that holds samples",
        where=spec,
        got=type(result).__name__,
        expected="a sequence or an iterable of (inputs, label), or arrays",
    )


@contextlib.contextmanager
def _user_code(where: str) -> Iterator[None]:
    """Turn whatever user code raises into a `DataError` that says where and what."""
    try:
        yield
    except OnnxpruneError:
        raise
    except Exception as error:
        raise DataError(
            "the Python data source failed", where=where, got=f"{type(error).__name__}: {error}"
        ) from error


def _is_arrays(value: object) -> bool:
    """Whether this is an array, or a dictionary of arrays, and not a sequence of samples."""
    return isinstance(value, Mapping) or hasattr(value, "__array__")


def _rows(
    spec: str,
    values: object,
    labels: np.ndarray | None,
    inputs: Sequence[ValueSpec],
    classes: list[str] | None,
    num_classes: int | None,
    targets: Targets,
    padding: Padding | None,
) -> Samples:
    arrays = _named(values, inputs, spec)
    return ArrayRows(spec, arrays, labels, inputs, classes, num_classes, targets, padding)


def _named(values: object, inputs: Sequence[ValueSpec], where: str) -> dict[str, np.ndarray]:
    """Arrays by input name; a single array belongs to the model's only input."""
    if isinstance(values, Mapping):
        return {str(name): _array(value, where) for name, value in values.items()}
    if len(inputs) != 1:
        raise DataError(
            "the model has several inputs, but the data are one array",
            where=where,
            expected=f"a dictionary with {', '.join(repr(spec.name) for spec in inputs)}",
        )
    return {inputs[0].name: _array(values, where)}


def _array(value: Any, where: str) -> np.ndarray:
    """A NumPy array of what a user hands over: arrays, torch tensors, nested lists of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    with _user_code(where):
        array = None if isinstance(value, Image.Image) else np.asarray(value)
    if array is None or array.dtype.kind not in "biuf":
        dtype = "" if array is None else f" ({array.dtype})"
        raise DataError(
            "the data are no array of numbers",
            where=where,
            got=type(value).__name__ + dtype,
            expected="an array in the model's input layout, without the batch axis",
            remedy="preprocess images in the function",
        )
    return array


def _materialise(spec: str, items: Iterable[Any], limit: int | None) -> list[Any]:
    held = 0
    kept: list[Any] = []
    with _user_code(spec):
        for item in itertools.islice(items, limit):
            inputs = _split(item)[0]
            values = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
            held += sum(int(getattr(value, "nbytes", 0)) for value in values)
            if held > MAX_HELD_BYTES:
                raise DataError(
                    "the iterator yields more than is held in memory",
                    where=spec,
                    got=f"{len(kept) + 1} samples, {held} bytes",
                    expected=f"at most {MAX_HELD_BYTES} bytes",
                    remedy="set [data] limit, or return an object with __len__ and __getitem__",
                )
            kept.append(item)
    return kept


def _split(item: Any) -> tuple[Any, Any]:
    """`(inputs, label)` of an item that may have no label."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    return item, None


class ItemSamples(Samples):
    """Samples that a user's object gives one by one; the first says whether there are labels."""

    def __init__(
        self,
        name: str,
        items: Any,
        inputs: Sequence[ValueSpec],
        classes: list[str] | None,
        num_classes: int | None,
        targets: Targets = "class",
        padding: Padding | None = None,
    ) -> None:
        self.name = name
        self.padding = padding
        self.inputs = list(inputs)
        self.classes = classes
        self._items = items
        self._label_count = label_count(num_classes)
        with _user_code(name):
            self._length = len(items)
        if not self._length:
            raise DataError("the data hold no samples", where=name)
        self._labelled = True
        label = _split(self._item(0))[1]
        self._labelled = label is not None
        self._targets = resolve_targets(targets, () if label is None else np.shape(label))
        self._sample(0)
        tried = min(_TRIED, self._length)
        self.varies = any(self._varies(self._length * part // tried) for part in range(tried))

    @property
    def labelled(self) -> bool:
        """Whether the first sample has a label; then all must."""
        return self._labelled

    def _count(self) -> int:
        return self._length

    def _item(self, index: int) -> Any:
        with _user_code(f"{self.name}, sample {index}"):
            return self._items[index]

    def _read(self, index: int) -> tuple[dict[str, np.ndarray], int | np.ndarray | None]:
        """Arrays as the user gave them, and the checked label or targets."""
        where = f"{self.name}, sample {index}"
        values, label = _split(self._item(index))
        if (label is not None) != self._labelled:
            raise DataError(
                "some samples have labels and some have not",
                where=where,
                got="no label" if self._labelled else f"label {label!r}",
                expected="a label for every sample, or for none",
            )
        checked: int | np.ndarray | None = None
        if label is not None and self._targets == "array":
            checked = check_targets(_array(label, where)[None], 1, f"{where}, label")[0]
        elif label is not None:
            checked = check_label(label, self._label_count, where)
        return _named(values, self.inputs, where), checked

    def _varies(self, index: int) -> bool:
        """Whether a sample is another one where other random numbers are drawn."""
        read = []
        for seed in range(2):
            with seeded(seed, index), contextlib.suppress(DataError):
                read.append(array_fingerprint(self._read(index)[0]))
        return len(set(read)) > 1

    def _label(self, index: int) -> int | np.ndarray | None:
        with seeded(0, index):
            return self._read(index)[1]

    def _sample(self, index: int) -> Sample:
        arrays, label = self._read(index)
        padding = self.padding
        wanted = self.inputs if padding is None else padding.required(self.inputs, list(arrays))
        return Sample(fit_sample(arrays, wanted, f"{self.name}, sample {index}"), label)

    def _fingerprint(self, index: int) -> bytes:
        with seeded(0, index):
            return array_fingerprint(self._read(index)[0])
