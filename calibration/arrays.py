"""Samples in arrays: `.npz` files and folders of shards."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.fit import (
    CONTINUE,
    Targets,
    cast,
    check_array,
    check_labels,
    check_names,
    check_targets,
    label_count,
    resolve_targets,
)
from onnxprune.calibration.npz import Member, inspect_npz, open_array
from onnxprune.calibration.samples import Sample, Samples, array_fingerprint
from onnxprune.errors import DataError
from onnxprune.model import ValueSpec
from onnxprune.stacking import Padding

LABEL = "label"
CACHE_BYTES = 2**30
"""Compressed shards are kept in memory up to this size; at least the last one always is."""

MAX_LABEL_BYTES = 2**30
LENGTHS = ".lengths"
"""Ending of the array that says how many entries of axis 0 count in each row of another."""


class ArrayShards(Samples):
    """Rows of the arrays of one or more `.npz` files, in the order of the files' names.

    Uncompressed files (`numpy.savez`) are memory-mapped; of compressed ones the last used are
    kept, up to `CACHE_BYTES`.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        inputs: Sequence[ValueSpec],
        classes: list[str] | None,
        num_classes: int | None,
        targets: Targets = "class",
        padding: Padding | None = None,
    ) -> None:
        self.name = name
        self.padding = padding
        self.paths = list(paths)
        self.classes = classes
        self._members = [inspect_npz(path) for path in self.paths]
        self.inputs = _brought(inputs, padding, self._members[0])
        self._label_name = None if LABEL in [spec.name for spec in inputs] else LABEL
        rows = [
            self._check_shard(path, members)
            for path, members in zip(self.paths, self._members, strict=True)
        ]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        if not self._starts[-1]:
            raise DataError("the data hold no samples", where=name, got="arrays without rows")
        label = self._members[0].get(LABEL)
        self._targets = resolve_targets(targets, label.shape[1:] if label is not None else ())
        self._lengths = {
            spec.name: self._read_lengths(spec.name)
            for spec in self.inputs
            if spec.name + LENGTHS in self._members[0]
        }
        self._labels = self._read_labels(label_count(num_classes))
        self._cache: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()

    @property
    def labelled(self) -> bool:
        """Whether there is an array `label`."""
        return self._labels is not None

    @property
    def locality(self) -> np.ndarray | None:
        """The shard of each sample, if compressed shards exceed the cache."""
        compressed = sum(
            member.size_bytes
            for members in self._members
            for member in members.values()
            if member.data_offset is None
        )
        if len(self.paths) == 1 or compressed <= CACHE_BYTES:
            return None
        return np.repeat(np.arange(len(self.paths)), np.diff(self._starts))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache out of what goes to a worker process."""
        return self.__dict__ | {"_cache": OrderedDict()}

    def _check_shard(self, path: Path, members: dict[str, Member]) -> int:
        """Number of rows of a shard that fits the model."""
        lengths = {spec.name + LENGTHS for spec in self.inputs}
        check_names(
            [name for name in members if name != self._label_name and name not in lengths],
            self.inputs,
            path,
        )
        counts = {}
        for spec in self.inputs:
            member = members[spec.name]
            if not member.shape:
                raise DataError(
                    "an array has no rows",
                    where=f"{path}, array {spec.name!r}",
                    got="a scalar",
                    expected="one row a sample",
                )
            check_array(member.shape[1:], member.dtype, spec, path)
            counts[spec.name] = member.shape[0]
        if len(set(counts.values())) > 1:
            raise DataError(
                "the arrays differ in their number of samples",
                where=path,
                got=", ".join(f"{name!r}: {count}" for name, count in counts.items()),
                expected="one row a sample in each",
            )
        return next(iter(counts.values()))

    def _read_labels(self, count: int | None) -> np.ndarray | None:
        if self._label_name is None:
            return None
        having = [LABEL in members for members in self._members]
        if not any(having):
            return None
        if not all(having):
            raise DataError(
                "some shards have labels and some have not",
                where=self.paths[having.index(False)],
                got=f"no array {LABEL!r}",
                expected="labels in every shard, or in none",
            )
        parts = []
        for index, (path, members) in enumerate(zip(self.paths, self._members, strict=True)):
            member = members[LABEL]
            if member.size_bytes > MAX_LABEL_BYTES:
                raise DataError(
                    "the labels are too large", where=path, got=f"{member.size_bytes} bytes"
                )
            rows = int(self._starts[index + 1] - self._starts[index])
            where = f"{path}, array {LABEL!r}"
            values = open_array(path, member)
            if self._targets == "array":
                parts.append(check_targets(values, rows, where))
            else:
                parts.append(check_labels(values, rows, count, where))
        if len({part.shape[1:] for part in parts}) > 1:
            raise DataError(
                "the shards' targets differ in shape",
                where=self.name,
                got=", ".join(str(part.shape) for part in parts[:5]),
            )
        return np.concatenate(parts)

    def _read_lengths(self, name: str) -> np.ndarray:
        """How many entries of axis 0 count, for each row of an array in all shards."""
        parts = []
        for index, (path, members) in enumerate(zip(self.paths, self._members, strict=True)):
            rows = int(self._starts[index + 1] - self._starts[index])
            where = f"{path}, array {name + LENGTHS!r}"
            member = members.get(name + LENGTHS)
            if member is None or len(members[name].shape) < 2:
                raise DataError("lengths need an array with rows to cut", where=where)
            longest = members[name].shape[1]
            values = np.asarray(open_array(path, member))
            sound = values.shape == (rows,) and values.dtype.kind in "iu"
            if not sound or (values < 1).any() or (values > longest).any():
                raise DataError(
                    "these are no lengths",
                    where=where,
                    got=f"{values.dtype}{list(values.shape)}",
                    expected=f"{rows} whole numbers from 1 to {longest}",
                )
            parts.append(values.astype(np.int64))
        return np.concatenate(parts)

    def _count(self) -> int:
        return int(self._starts[-1])

    def _label(self, index: int) -> int | np.ndarray | None:
        return _target(self._labels, index, self._targets)

    def _sample(self, index: int) -> Sample:
        shard, row = self._locate(index)
        where = f"{self.paths[shard]}, sample {row}"
        arrays = {
            spec.name: np.array(cast(self._row(index, spec.name), spec, where))
            for spec in self.inputs
        }
        return Sample(arrays, self._label(index))

    def _fingerprint(self, index: int) -> bytes:
        return array_fingerprint(
            {spec.name: np.asarray(self._row(index, spec.name)) for spec in self.inputs}
        )

    def _row(self, index: int, name: str) -> np.ndarray:
        """One sample's part of an array, without what only fills it up."""
        shard, row = self._locate(index)
        values: np.ndarray = self._array(shard, name)[row]
        return values[: self._lengths[name][index]] if name in self._lengths else values

    def check_present(self) -> None:
        """See `Samples.check_present`."""
        for path in self.paths:
            if not path.exists():
                raise DataError("the data are gone", where=path, remedy=CONTINUE)

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _array(self, shard: int, name: str) -> np.ndarray:
        key = (shard, name)
        array = self._cache.get(key)
        if array is None:
            member = self._members[shard][name]
            if member.data_offset is None:
                self._make_room(shard, member.size_bytes)
            array = open_array(self.paths[shard], member)
            self._cache[key] = array
        return array

    def _make_room(self, shard: int, size_bytes: int) -> None:
        """Drop the shards that were read longest ago until another array fits."""
        held = {
            key: array.nbytes
            for key, array in self._cache.items()
            if self._members[key[0]][key[1]].data_offset is None
        }
        total = sum(held.values()) + size_bytes
        for key, size in held.items():
            if total <= CACHE_BYTES:
                return
            if key[0] != shard:
                self._cache.pop(key, None)
                total -= size


class ArrayRows(Samples):
    """Rows of arrays in memory.

    Args:
        name: How messages name the data.
        arrays: Graph input name -> `(samples, *sample_shape)`.
        labels: `(samples,)` or None.
        inputs: The model's inputs.
        classes: Class names.
        num_classes: Number of the model's scores, or None if unknown.
        targets: Whether labels are class indices, or arrays of any shape.
        padding: Which inputs need not be brought.
    """

    def __init__(
        self,
        name: str,
        arrays: dict[str, np.ndarray],
        labels: np.ndarray | None,
        inputs: Sequence[ValueSpec],
        classes: list[str] | None,
        num_classes: int | None,
        targets: Targets = "class",
        padding: Padding | None = None,
    ) -> None:
        self.name = name
        self.padding = padding
        self.inputs = _brought(inputs, padding, arrays)
        self.classes = classes
        self._arrays = arrays
        self._targets = resolve_targets(targets, () if labels is None else labels.shape[1:])
        check_names(list(arrays), self.inputs, name)
        rows = {key: array.shape[0] if array.ndim else None for key, array in arrays.items()}
        count = next(iter(rows.values()))
        if count is None or set(rows.values()) != {count}:
            raise DataError(
                "the arrays differ in their number of samples",
                where=name,
                got=", ".join(f"{key!r}: {array.shape}" for key, array in arrays.items()),
                expected="one row a sample in each",
            )
        if not count:
            raise DataError("the data hold no samples", where=name, got="arrays without rows")
        for spec in self.inputs:
            array = arrays[spec.name]
            check_array(array.shape[1:], array.dtype, spec, name)
        self._rows = count
        where = f"{name}, labels"
        self._labels = labels
        if labels is not None:
            self._labels = (
                check_targets(labels, count, where)
                if self._targets == "array"
                else check_labels(labels, count, label_count(num_classes), where)
            )

    @property
    def labelled(self) -> bool:
        """Whether labels were given."""
        return self._labels is not None

    def _count(self) -> int:
        return self._rows

    def _label(self, index: int) -> int | np.ndarray | None:
        return _target(self._labels, index, self._targets)

    def _sample(self, index: int) -> Sample:
        where = f"{self.name}, sample {index}"
        arrays = {
            spec.name: np.array(cast(self._arrays[spec.name][index], spec, where))
            for spec in self.inputs
        }
        return Sample(arrays, self._label(index))

    def _fingerprint(self, index: int) -> bytes:
        return array_fingerprint(
            {name: np.asarray(array[index]) for name, array in self._arrays.items()}
        )


def _brought(
    inputs: Sequence[ValueSpec], padding: Padding | None, arrays: Collection[str]
) -> list[ValueSpec]:
    """The inputs that the data have to bring, beside those that padding makes."""
    return list(inputs) if padding is None else padding.required(inputs, list(arrays))


def _target(labels: np.ndarray | None, index: int, targets: Targets) -> int | np.ndarray | None:
    if labels is None:
        return None
    return np.asarray(labels[index]) if targets == "array" else int(labels[index])
