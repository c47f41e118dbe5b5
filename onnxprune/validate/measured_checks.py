"""Checks of a policy that compare two models in operation: accuracy, agreement, latency."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.model import OnnxModel, ValueSpec
from onnxprune.validate.accuracy import ModelAccuracy
from onnxprune.validate.difference import resampled
from onnxprune.validate.latency import bench
from onnxprune.validate.named_metrics import LESS_IS_BETTER
from onnxprune.validate.paired import paired_drop, share_lower_bound
from onnxprune.validate.policy_tables import AccuracyPolicy, LatencyPolicy
from onnxprune.validate.subject import Subject, Verdict, counted, runtime_source

LEAST_SAMPLES = 50
"""Samples that a bound by resampling needs."""

_ERRORS = ("mean_abs_error", "max_abs_error")
_MORE_SAMPLES = "; more samples would make the bound narrower"


def accuracy_min(subject: Subject, least: float) -> Verdict:
    """The lower bound of the accuracy."""
    if subject.baseline is not None and (reason := _incomparable(subject.model, subject.baseline)):
        return Verdict(False, reason)
    settings = subject.policy.accuracy or AccuracyPolicy()
    value, bound, samples = _bound(subject, settings, 1 - settings.confidence)
    message = (
        f"{settings.metric} {value:.4%} on {counted(samples, 'sample')}, at least {bound:.4%} at "
        f"{settings.confidence:g} confidence where {least:.4%} is demanded"
    )
    if bound < least <= value:
        message += _MORE_SAMPLES
    return Verdict(bound >= least, message, bound)


def accuracy_max(subject: Subject, most: float) -> Verdict:
    """The upper bound of an error rate."""
    if subject.baseline is not None and (reason := _incomparable(subject.model, subject.baseline)):
        return Verdict(False, reason)
    settings = subject.policy.accuracy or AccuracyPolicy()
    value, bound, samples = _bound(subject, settings, settings.confidence)
    message = (
        f"{settings.metric} {value:.4%} on {counted(samples, 'sample')}, at most {bound:.4%} at "
        f"{settings.confidence:g} confidence where {most:.4%} is allowed"
    )
    if value <= most < bound:
        message += _MORE_SAMPLES
    return Verdict(bound <= most, message, bound)


def _bound(subject: Subject, settings: AccuracyPolicy, quantile: float) -> tuple[float, float, int]:
    """The metric, its one-sided bound, and the number of samples."""
    model = subject.evaluation.models[-1]
    if not subject.metrics:
        hits = _hits(subject, model, settings.metric)
        bound = share_lower_bound(int(hits.sum()), len(hits), settings.confidence)
        return float(hits.mean()), bound, len(hits)
    ((metric, rows),) = model.rows
    _check_count(len(rows))
    bound = float(np.quantile(resampled(metric, rows), quantile))
    return metric.weighing(rows).once(len(rows)), bound, len(rows)


def accuracy_max_drop(subject: Subject, most: float) -> Verdict:
    """The upper bound of what is lost against the dense model on the same samples."""
    if reason := _incomparable(subject.model, subject.need_baseline()):
        return Verdict(False, reason)
    settings = subject.policy.accuracy or AccuracyPolicy()
    compare = _task_drop if subject.metrics else _class_drop
    drop, upper, text = compare(subject, settings)
    message = (
        f"{text}: a drop of {drop:.4%}, at most {upper:.4%} at {settings.confidence:g} confidence "
        f"where {most:.4%} is allowed"
    )
    if drop <= most < upper:
        message += _MORE_SAMPLES
    return Verdict(upper <= most, message, upper)


def _class_drop(subject: Subject, settings: AccuracyPolicy) -> tuple[float, float, str]:
    """The drop, its upper bound, and what they come from."""
    dense, pruned = (_hits(subject, model, settings.metric) for model in subject.evaluation.models)
    result = paired_drop(dense, pruned, settings.confidence)
    text = (
        f"{settings.metric} {dense.mean():.4%} to {pruned.mean():.4%} on "
        f"{counted(result.samples, 'sample')} ({result.lost} lost, {result.gained} gained, "
        f"p = {result.p_value:.2g})"
    )
    return result.drop, result.upper, text


def _task_drop(subject: Subject, settings: AccuracyPolicy) -> tuple[float, float, str]:
    """The same for a metric of another task, by the bootstrap."""
    ((metric, dense),), ((_, pruned),) = (model.rows for model in subject.evaluation.models)
    _check_count(len(dense))
    sign = -1 if settings.metric in LESS_IS_BETTER else 1
    before, after = (metric.weighing(rows).once(len(rows)) for rows in (dense, pruned))
    values = resampled(metric, dense, pruned)
    upper = float(np.quantile(sign * (values[:, 0] - values[:, 1]), settings.confidence))
    samples = counted(len(dense), "sample")
    text = f"{settings.metric} {before:.4%} to {after:.4%} on {samples}"
    return sign * (before - after), upper, text


def _check_count(samples: int) -> None:
    """Few samples, all of them alike, would look certain to the bootstrap."""
    if samples < LEAST_SAMPLES:
        raise DataError(
            "there are too few samples for a bound by resampling",
            got=samples,
            expected=f"at least {LEAST_SAMPLES}",
        )


def _hits(subject: Subject, model: ModelAccuracy, metric: str) -> np.ndarray:
    """Whether each sample counts as right."""
    if model.ranks is None:
        raise DataError(
            "accuracy needs labelled data",
            got="samples without labels",
            expected="a class for each sample",
            remedy="give labelled data, or demand [agreement] instead",
        )
    if metric not in model.metrics:
        raise UsageError(
            f"{metric} says nothing of a model with so few classes",
            where=subject.model.label,
            got=", ".join(model.metrics),
            remedy='set metric = "top1"',
        )
    return model.ranks < {"top1": 1, "top5": 5}[metric]


def agreement_min(subject: Subject, least: float) -> Verdict:
    """Share of samples with the dense model's class; of detectors, precision on its boxes."""
    if subject.agreement is None or _incomparable(subject.model, subject.need_baseline()):
        return _fidelity(subject, "agreement", least)
    value, conf = subject.evaluation.models[1].metrics["agreement"], subject.agreement.conf
    samples = counted(subject.evaluation.samples, "sample")
    if math.isnan(value):
        raise DataError(
            "there is nothing to agree on",
            where="the dense model",
            got=f"no box with a score of at least {conf:g} in {samples}",
            remedy="give data that show objects, or a lower [agreement] conf",
        )
    text = (
        f"{subject.agreement.precision.name} {value:.4%} on the boxes that the dense model finds "
        f"with a score of at least {conf:g} in {samples}"
    )
    return Verdict(value >= least, f"{text}, where {least:.4%} is demanded", value)


def agreement_min_cosine(subject: Subject, least: float) -> Verdict:
    """Mean cosine of the outputs with the dense model's."""
    return _fidelity(subject, "cosine", least)


def agreement_min_sqnr_db(subject: Subject, least: float) -> Verdict:
    """Signal of the dense model's outputs to the difference."""
    return _fidelity(subject, "sqnr_db", least)


def agreement_max_mean_abs_error(subject: Subject, most: float) -> Verdict:
    """Mean difference of a value to the dense model's."""
    return _fidelity(subject, "mean_abs_error", most)


def agreement_max_abs_error(subject: Subject, most: float) -> Verdict:
    """Largest difference of a value to the dense model's."""
    return _fidelity(subject, "max_abs_error", most)


def _fidelity(subject: Subject, metric: str, bound: float) -> Verdict:
    """A metric of the outputs against what is demanded; errors have a most, others a least."""
    if reason := _incomparable(subject.model, subject.need_baseline()):
        return Verdict(False, reason)
    metrics = subject.evaluation.models[1].metrics
    if metric not in metrics:
        raise UsageError(
            f"the model has no {metric}",
            where=subject.model.label,
            got=", ".join(metrics),
            expected="class scores as the first output",
            remedy="demand `min_cosine` or `min_sqnr_db` instead",
        )
    value = metrics[metric]
    text = f"{metric} {value:.6g} on {subject.evaluation.samples:,} samples"
    if not math.isfinite(value):
        return Verdict(False, f"{text}: the outputs are not finite")
    if metric in _ERRORS:
        return Verdict(value <= bound, f"{text} where {bound:g} is allowed", value)
    return Verdict(value >= bound, f"{text} where {bound:g} is demanded", value)


def latency_min_speedup(subject: Subject, least: float) -> Verdict:
    """The lower end of the speedup's interval; what is not certain does not pass."""
    settings = subject.policy.latency or LatencyPolicy()
    baseline = subject.need_baseline()
    if reason := _incomparable(subject.model, baseline):
        return Verdict(False, reason)
    result = bench(
        [runtime_source(baseline), runtime_source(subject.model)],
        batch=settings.batch,
        shapes={name: [settings.batch, *shape[1:]] for name, shape in subject.input_shapes.items()},
        threads=settings.threads if settings.threads is not None else subject.threads,
        provider=settings.provider or subject.provider,
        max_seconds=settings.seconds,
    )
    speedup = result.models[1].speedup
    text = (
        f"{speedup.ratio:.3f}x, 95 % interval {speedup.low:.3f} to {speedup.high:.3f}, where its "
        f"lower end has to reach {least:g}"
    )
    if speedup.low < least <= speedup.high:
        text += "; inconclusive: measure longer, or on a quieter machine"
    return Verdict(speedup.low >= least, text, speedup.low)


def _incomparable(model: OnnxModel, baseline: OnnxModel) -> str | None:
    """Why a model cannot be fed like the dense one, or gives other outputs; None if it can."""
    for what, ours, theirs in (
        ("inputs", model.inputs, baseline.inputs),
        ("outputs", model.outputs, baseline.outputs),
    ):
        if not _alike(ours, theirs):
            return (
                f"it cannot be compared: {what} are {_described(ours)} where the baseline has "
                f"{_described(theirs)}"
            )
    return None


def _alike(ours: Sequence[ValueSpec], theirs: Sequence[ValueSpec]) -> bool:
    by_name = {spec.name: spec for spec in ours}
    return by_name.keys() == {spec.name for spec in theirs} and all(
        _same_kind(by_name[spec.name], spec) for spec in theirs
    )


def _same_kind(ours: ValueSpec, theirs: ValueSpec) -> bool:
    """Whether type and sizes go together, as far as both are known."""
    if ours.dtype != theirs.dtype:
        return False
    if ours.shape is None or theirs.shape is None:
        return True
    return len(ours.shape) == len(theirs.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(ours.shape, theirs.shape, strict=True)
    )


def _described(specs: Sequence[ValueSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.describe()}" for spec in specs)


MEASURED_CHECKS: dict[str, Any] = {
    "accuracy.min": accuracy_min,
    "accuracy.max": accuracy_max,
    "accuracy.max_drop": accuracy_max_drop,
    "agreement.min": agreement_min,
    "agreement.min_cosine": agreement_min_cosine,
    "agreement.min_sqnr_db": agreement_min_sqnr_db,
    "agreement.max_mean_abs_error": agreement_max_mean_abs_error,
    "agreement.max_abs_error": agreement_max_abs_error,
    "latency.min_speedup": latency_min_speedup,
}
