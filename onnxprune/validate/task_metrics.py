"""Metrics of tasks other than telling classes apart.

A metric gives a row for every sample and a value for any number of times that each of them counts,
so that models can be compared by resampling samples, whatever the metric is. Most are a ratio of
sums over samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError, OnnxpruneError, UsageError

_IGNORED = (-1, 255)
"""Pixels with these labels do not count: what fills up targets, and the usual "void" label."""


@dataclass(frozen=True)
class Weighing:
    """A metric of some samples, each of which may count any number of times.

    Attributes:
        value: From how often each sample counts, `(samples,)`, to the metric; NaN for none.
        entries: Samples, or boxes or other parts of them, that it goes through each time.
    """

    value: Callable[[np.ndarray], float]
    entries: int

    def once(self, samples: int) -> float:
        """The metric where each counts once."""
        return self.value(np.ones(samples))


class TaskMetric(Protocol):
    """A metric over samples."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    @property
    def whole_calls(self) -> bool:
        """Whether `rows` takes outputs as they are: not cut to the samples, of any shape."""
        ...

    def rows(self, outputs: Mapping[str, np.ndarray], targets: np.ndarray | None) -> np.ndarray:
        """What each sample adds, `(samples, ...)`.

        Args:
            outputs: Output name -> `(samples, ...)`, the first output first.
            targets: `(samples, ...)`; integer targets of different lengths are filled up with -1.

        Raises:
            DataError: Outputs or targets do not fit the metric.
        """
        ...

    def weighing(self, rows: np.ndarray) -> Weighing:
        """The metric of these rows."""
        ...


class SumMetric(ABC):
    """A metric that follows from sums of rows of numbers."""

    whole_calls = False

    @abstractmethod
    def value(self, sums: np.ndarray) -> np.ndarray:
        """The metric from sums of rows, `(..., parts)` to `(...)`."""

    def weighing(self, rows: np.ndarray) -> Weighing:
        """See `TaskMetric`."""
        return Weighing(lambda counts: float(self.value(counts @ rows)), len(rows))


@dataclass(frozen=True)
class CharacterErrorRate(SumMetric):
    """Edits between the best path of a CTC output and the target, by the target's length.

    The best path takes the likeliest class at each time step, joins repetitions and drops blanks
    (Graves et al., ICML 2006). Edits are insertions, deletions and substitutions.

    Attributes:
        blank: Index of the blank.
    """

    blank: int = 0
    name: str = "cer"

    def rows(self, outputs: Mapping[str, np.ndarray], targets: np.ndarray | None) -> np.ndarray:
        """See `TaskMetric`; the first output is `(samples, time, classes)`."""
        scores = next(iter(outputs.values()))
        targets = _needed(targets, self.name, 2, "class indices, -1 behind the end of each")
        if scores.ndim != 3 or scores.shape[2] <= self.blank:
            raise _misfit(self.name, scores, "(samples, time, classes)")
        rows = []
        for path, target in zip(scores.argmax(axis=2), targets, strict=True):
            wanted = target[target >= 0]
            rows.append((_edits(self._read(path), wanted.tolist()), len(wanted)))
        return np.array(rows, dtype=np.float64)

    def _read(self, path: np.ndarray) -> list[int]:
        first = np.ones(len(path), dtype=bool)
        first[1:] = path[1:] != path[:-1]
        result: list[int] = path[first & (path != self.blank)].tolist()
        return result

    def value(self, sums: np.ndarray) -> np.ndarray:
        """See `SumMetric`."""
        return _ratio(sums[..., 0], sums[..., 1])


def _edits(found: Sequence[int], wanted: Sequence[int]) -> int:
    """Levenshtein distance."""
    row = list(range(len(wanted) + 1))
    for number, one in enumerate(found, start=1):
        before, row[0] = row[0], number
        for index, other in enumerate(wanted, start=1):
            cost = min(row[index] + 1, row[index - 1] + 1, before + (one != other))
            before, row[index] = row[index], cost
    return row[-1]


@dataclass(frozen=True)
class MeanIou(SumMetric):
    """Intersection over union of each class over all pixels, averaged over the classes that occur.

    The first output is class scores `(samples, classes, height, width)`.
    """

    name: str = "miou"

    def rows(self, outputs: Mapping[str, np.ndarray], targets: np.ndarray | None) -> np.ndarray:
        """See `TaskMetric`; targets are the classes of pixels, of which -1 and 255 do not count."""
        scores = next(iter(outputs.values()))
        targets = _needed(targets, self.name, 3, "the class index of each pixel")
        if scores.ndim != 4:
            raise _misfit(self.name, scores, "(samples, classes, height, width)")
        if scores.shape[2:] != targets.shape[1:]:
            raise _misfit(
                self.name, scores, f"scores of {targets.shape[1:]} pixels, as targets have"
            )
        classes, predicted = scores.shape[1], scores.argmax(axis=1)
        counts = ~np.isin(targets, _IGNORED)
        if counts.any() and not 0 <= targets[counts].min() <= targets[counts].max() < classes:
            raise DataError(
                "a target is out of range",
                got=f"classes up to {targets[counts].max()}",
                expected=f"0 to {classes - 1}, or {_IGNORED[0]} or {_IGNORED[1]} for none",
            )
        rows = np.zeros((len(scores), 2, classes))
        for row, theirs, own, valid in zip(rows, targets, predicted, counts, strict=True):
            truth, guess = theirs[valid].astype(np.int64), own[valid]
            row[0] = np.bincount(truth[truth == guess], minlength=classes)
            row[1] = (
                np.bincount(truth, minlength=classes)
                + np.bincount(guess, minlength=classes)
                - row[0]
            )
        return rows.reshape(len(scores), -1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """See `SumMetric`."""
        both, either = np.split(sums, 2, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where(either > 0, both / either, np.nan)
            present = (either > 0).sum(axis=-1)
            return np.where(present > 0, np.nansum(shares, axis=-1) / present, np.nan)


@dataclass(frozen=True)
class UserMetric(SumMetric):
    """Mean over samples of what a user's function gives for each.

    Attributes:
        name: How results call it.
        function: Called as `function(outputs, targets)`: outputs by name, `(samples, ...)` each,
            and targets or None; returns a number for each sample.
    """

    name: str
    function: Callable[[dict[str, np.ndarray], np.ndarray | None], Any]

    def rows(self, outputs: Mapping[str, np.ndarray], targets: np.ndarray | None) -> np.ndarray:
        """See `TaskMetric`.

        Raises:
            UsageError: The function fails, or gives anything but a number for each sample.
        """
        count = len(next(iter(outputs.values())))
        try:
            values = np.asarray(self.function(dict(outputs), targets), dtype=np.float64)
        except OnnxpruneError:
            raise
        except Exception as error:
            raise UsageError(
                "the metric function failed",
                where=self.name,
                got=f"{type(error).__name__}: {error}",
                remedy="it is called with outputs by name, and targets or None",
            ) from error
        if values.shape != (count,):
            raise UsageError(
                "the metric function gives something else than a number for each sample",
                where=self.name,
                got=f"shape {values.shape}",
                expected=f"({count},)",
            )
        return np.stack([values, np.ones(count)], axis=1)

    def value(self, sums: np.ndarray) -> np.ndarray:
        """See `SumMetric`."""
        return _ratio(sums[..., 0], sums[..., 1])


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(under > 0, over / under, np.nan)


def _needed(targets: np.ndarray | None, name: str, axes: int, what: str) -> np.ndarray:
    if targets is None or targets.ndim != axes or targets.dtype.kind not in "iu":
        raise DataError(
            f"the metric {name} does not fit the data",
            got="no targets" if targets is None else f"{targets.dtype.name}{list(targets.shape)}",
            expected=f"integer targets of {axes - 1} axes for each sample: {what}",
        )
    return targets


def _misfit(name: str, output: np.ndarray, expected: str) -> DataError:
    return DataError(
        f"the metric {name} does not fit the model's first output",
        got=f"{output.dtype.name}{list(output.shape)}",
        expected=expected,
    )
