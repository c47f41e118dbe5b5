"""Metrics of tasks other than telling classes apart, each a ratio of sums over samples.

A metric gives a row of numbers for every sample and turns their sums into its value, so that models
can be compared by resampling samples, whatever the metric is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError, OnnxpruneError, UsageError
from onnxprune.user_code import load_function

_IGNORED = (-1, 255)
"""Pixels with these labels do not count: what fills up targets, and the usual "void" label."""

NAMES = ("cer", "miou")


class TaskMetric(Protocol):
    """A metric as a ratio of sums over samples."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    def rows(self, outputs: Mapping[str, np.ndarray], targets: np.ndarray | None) -> np.ndarray:
        """What each sample adds, `(samples, parts)`.

        Args:
            outputs: Output name -> `(samples, ...)`, the first output first.
            targets: `(samples, ...)`; integer targets of different lengths are filled up with -1.

        Raises:
            DataError: Outputs or targets do not fit the metric.
        """
        ...

    def value(self, sums: np.ndarray) -> np.ndarray:
        """The metric from sums of rows, `(..., parts)` to `(...)`."""
        ...


@dataclass(frozen=True)
class CharacterErrorRate:
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
        """See `TaskMetric`."""
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
class MeanIou:
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
        """See `TaskMetric`."""
        both, either = np.split(sums, 2, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = np.where(either > 0, both / either, np.nan)
            present = (either > 0).sum(axis=-1)
            return np.where(present > 0, np.nansum(shares, axis=-1) / present, np.nan)


@dataclass(frozen=True)
class UserMetric:
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
        """See `TaskMetric`."""
        return _ratio(sums[..., 0], sums[..., 1])


def make_metrics(
    specs: Sequence[str], *, blank: int = 0, allow_python: bool = False
) -> list[TaskMetric]:
    """Metrics by name.

    Args:
        specs: `cer`, `miou` or `python:package.module:function`, see the classes here.
        blank: Index of the blank, for `cer`.
        allow_python: Whether code of the user may run.

    Raises:
        UsageError: A name is unknown, or its function cannot be loaded or may not run.
    """
    metrics: list[TaskMetric] = []
    for spec in dict.fromkeys(specs):
        if spec == "cer":
            metrics.append(CharacterErrorRate(blank))
        elif spec == "miou":
            metrics.append(MeanIou())
        elif spec.startswith("python:"):
            if not allow_python:
                raise UsageError(
                    "a metric would run code of its own",
                    got=spec,
                    remedy="pass --allow-python if you trust it",
                )
            target = spec.removeprefix("python:")
            metrics.append(UserMetric(target.rpartition(":")[2], load_function(target, "--metric")))
        else:
            raise UsageError(
                "there is no such metric",
                got=repr(spec),
                expected=f"{', '.join(NAMES)} or python:package.module:function",
            )
    return metrics


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
