"""Task metrics by the names that the command line and policies use."""

from collections.abc import Sequence
from urllib.parse import parse_qsl

from onnxprune.errors import UsageError
from onnxprune.user_code import load_function
from onnxprune.validate import average_precision
from onnxprune.validate.average_precision import MeanAveragePrecision
from onnxprune.validate.detections import DetectorOutputs
from onnxprune.validate.task_metrics import CharacterErrorRate, MeanIou, TaskMetric, UserMetric

NAMES = ("cer", "miou", *average_precision.NAMES)
LESS_IS_BETTER = ("cer",)
"""Metrics whose lower values are better."""

_PYTHON = "python:"


def is_built_in(spec: str) -> bool:
    """Whether a metric is one of this package, which needs targets."""
    return spec.partition("?")[0] in NAMES


def is_of_detectors(spec: str) -> bool:
    """Whether a metric is average precision, with or without parameters."""
    return spec.partition("?")[0] in average_precision.NAMES


def make_metrics(
    specs: Sequence[str], *, blank: int = 0, allow_python: bool = False
) -> list[TaskMetric]:
    """Metrics by name.

    Args:
        specs: `cer`, `miou`, `map`, `map50` or `python:package.module:function`, see their classes.
            What follows a `?` behind `map` and `map50` says how outputs become boxes, as in
            `map?format=cxcywh&conf=0.05`: the attributes of `DetectorOutputs`.
        blank: Index of the blank, for `cer`.
        allow_python: Whether code of the user may run.

    Raises:
        UsageError: A name or parameter is unknown, metrics do not go together, or a function cannot
            be loaded or may not run.
    """
    metrics = [_metric(spec, blank, allow_python) for spec in dict.fromkeys(specs)]
    if len({metric.whole_calls for metric in metrics}) > 1:
        raise UsageError(
            "these metrics cannot be measured together",
            got=", ".join(specs),
            remedy=f"measure {' and '.join(average_precision.NAMES)} in a call of their own",
        )
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise UsageError("two metrics have the same name", got=", ".join(specs))
    return metrics


def average_precision_of(spec: str) -> MeanAveragePrecision:
    """The metric `map` or `map50`, with parameters as `make_metrics` has them.

    Raises:
        UsageError: It is another one, or has a parameter that is not allowed.
    """
    if not is_of_detectors(spec):
        raise UsageError(
            "this is no metric of detectors",
            got=repr(spec),
            expected=" or ".join(average_precision.NAMES),
        )
    name, mark, query = spec.partition("?")
    return MeanAveragePrecision(name, DetectorOutputs.from_text(_pairs(spec, mark, query), spec))


def _metric(spec: str, blank: int, allow_python: bool) -> TaskMetric:
    if spec == "cer":
        return CharacterErrorRate(blank)
    if spec == "miou":
        return MeanIou()
    if is_of_detectors(spec):
        return average_precision_of(spec)
    if not spec.startswith(_PYTHON):
        raise UsageError(
            "there is no such metric",
            got=repr(spec),
            expected=f"{', '.join(NAMES)} or python:package.module:function",
        )
    if not allow_python:
        raise UsageError(
            "a metric would run code of its own",
            got=spec,
            remedy="pass --allow-python if you trust it",
        )
    target = spec.removeprefix(_PYTHON)
    return UserMetric(target.rpartition(":")[2], load_function(target, "--metric"))


def _pairs(spec: str, mark: str, query: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark)))
    except ValueError:
        raise UsageError(
            "the parameters of the metric are malformed",
            got=repr(spec),
            expected="as in map?format=cxcywh&conf=0.05",
        ) from None
