"""Whether a difference between two models on the same samples is more than chance."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.validate.paired import paired_drop

if TYPE_CHECKING:
    from onnxprune.validate.accuracy import ModelAccuracy
    from onnxprune.validate.task_metrics import TaskMetric

CONFIDENCE = 0.95
_RESAMPLES = 2000
_MOST_DRAWS = 4_000_000
_WITHIN = {"top1": 1, "top5": 5}


@dataclass(frozen=True)
class PairedDifference:
    """A metric of a model against that of the first, sample by sample.

    Attributes:
        difference: The model's value less the first model's.
        low: Lower end of the two-sided 95 % interval.
        high: Upper end.
        p_value: How likely a difference of this size is by chance between models that are equally
            good, two-sided; None where only the interval is known.
        lost: Samples that only the first model gets right; None where samples are not right or
            wrong.
        gained: Samples that only the other model does.
    """

    difference: float
    low: float
    high: float
    p_value: float | None = None
    lost: int | None = None
    gained: int | None = None


def paired_differences(
    first: "ModelAccuracy", other: "ModelAccuracy"
) -> dict[str, PairedDifference]:
    """Differences of the metrics that samples were judged by one by one.

    `top1` and `top5` by Tango's score interval and the exact test of McNemar, see `paired`; `loss`
    and task metrics by the percentiles of 2,000 seeded bootstrap values, fewer of many samples
    (Efron 1979): samples are drawn again with replacement, the same of both models.

    Args:
        first: The reference.
        other: Judged on the same samples.
    """
    found = {}
    if first.ranks is not None and other.ranks is not None:
        for metric, places in _WITHIN.items():
            if metric in first.metrics and metric in other.metrics:
                found[metric] = _of_hits(first.ranks < places, other.ranks < places)
    if first.losses is not None and other.losses is not None:
        change = other.losses - first.losses
        if np.isfinite(change).all():
            found["loss"] = _of_means(change)
    for (task_metric, ours), (_, theirs) in zip(first.rows, other.rows, strict=True):
        difference = _of_rows(task_metric, ours, theirs)
        if difference is not None:
            found[task_metric.name] = difference
    return found


def _of_hits(first: np.ndarray, other: np.ndarray) -> PairedDifference:
    found = paired_drop(first, other, (1 + CONFIDENCE) / 2)
    return PairedDifference(
        -found.drop, -found.upper, -found.lower, found.p_value, found.lost, found.gained
    )


def _of_means(change: np.ndarray) -> PairedDifference:
    rng = np.random.default_rng(0)
    count = len(change)
    resamples = max(200, min(_RESAMPLES, _MOST_DRAWS // count))
    means = [float(change[rng.integers(count, size=count)].mean()) for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return PairedDifference(float(change.mean()), float(low), float(high))


def _of_rows(metric: "TaskMetric", first: np.ndarray, other: np.ndarray) -> PairedDifference | None:
    """None where the metric has no value, as where no sample has a target."""
    values = resampled(metric, first, other)
    changes = values[:, 1] - values[:, 0]
    before, after = (metric.weighing(rows).once(len(rows)) for rows in (first, other))
    known = changes[np.isfinite(changes)]
    if not np.isfinite(after - before) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return PairedDifference(after - before, float(low), float(high))


def resampled(metric: "TaskMetric", *models: np.ndarray) -> np.ndarray:
    """Values of a metric on samples that are drawn again with replacement, the same of all models.

    Args:
        metric: The metric.
        models: What each sample adds to it, `(samples, ...)`, of each model.

    Returns:
        `(resamples, models)`; fewer resamples of a metric that goes through many entries.
    """
    rng = np.random.default_rng(0)
    count = len(models[0])
    weighings = [metric.weighing(rows) for rows in models]
    entries = max(1, *(weighing.entries for weighing in weighings))
    values = []
    for _ in range(max(200, min(_RESAMPLES, _MOST_DRAWS // entries))):
        drawn = rng.multinomial(count, np.full(count, 1 / count))
        values.append([weighing.value(drawn) for weighing in weighings])
    return np.array(values)
