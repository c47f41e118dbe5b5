"""Check an artifact against a policy: policy, model, baseline and data put together."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from onnxprune.calibration import Samples, open_data
from onnxprune.errors import OnnxpruneError
from onnxprune.model import OnnxModel, read
from onnxprune.recipe import Recipe
from onnxprune.stacking import make_padding
from onnxprune.validate.detection_agreement import TARGET_CONF, DetectionAgreement
from onnxprune.validate.gate import CheckResult, GateResult, failed_with, run_checks, skip_all
from onnxprune.validate.named_metrics import average_precision_of, is_built_in, make_metrics
from onnxprune.validate.policy import Policy
from onnxprune.validate.subject import Subject
from onnxprune.validate.task_metrics import TaskMetric

T = TypeVar("T")
Source = str | os.PathLike[str]

_OF_CLASSES = ("top1", "top5")
_NEED_DATA = ("accuracy", "agreement")


def check(
    model: Source,
    policy: Source | Policy,
    *,
    baseline: Source | None = None,
    data: str | None = None,
    recipe: Source | Recipe | None = None,
    provider: str | None = None,
    threads: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    allow_python: bool = False,
    on_check: Callable[[str], None] = lambda name: None,
) -> GateResult:
    """Check an artifact against a policy; torch is not needed.

    Nothing that is wrong with the files raises an error: a policy, model, baseline or recipe that
    cannot be read and data that cannot be opened become results of status `error`, and what could
    not be checked for it is `skipped`.

    Args:
        model: The `.onnx` file.
        policy: The policy, or its file.
        baseline: The dense model's file.
        data: Data SPEC; else `[data] eval` or `train` of the recipe, if the policy needs data.
        recipe: Says how data become inputs: preprocessing, class order, padding; and gives
            `[validate]` provider, threads, batch size and shapes.
        provider: Execution provider where the policy names none; else the recipe's.
        threads: Threads where the policy says nothing; else the recipe's.
        shapes: Input name -> whole shape for axes that the model leaves open, where the policy
            says nothing; else the recipe's, or those of the data.
        allow_python: Whether `python:` data specs may run code.
        on_check: Called with the name of each check before it begins.
    """
    label = "the policy" if isinstance(policy, Policy) else str(policy)
    inputs = _Inputs()
    rules = inputs.get("policy", lambda: _policy(policy))
    if rules is None:
        return GateResult(str(model), label, inputs.errors)
    settings = inputs.get("recipe", lambda: _recipe(recipe))
    artifact = inputs.get("model", lambda: read(model))
    if artifact is None or settings is None:
        skipped = skip_all(rules, f"the {inputs.errors[0].name} cannot be read")
        return GateResult(str(model), label, [*inputs.errors, *skipped])
    lacking = {}
    dense = None
    if baseline is not None:
        dense = inputs.get("baseline", lambda: read(baseline))
        if dense is None:
            lacking["baseline"] = "the baseline cannot be read"
    samples = None
    metrics: list[TaskMetric] | None = []
    agreement = None
    spec = data or settings.data.eval or settings.data.train
    if spec is not None and any(getattr(rules, name) is not None for name in _NEED_DATA):
        target, name = dense or artifact, rules.accuracy.metric if rules.accuracy else None
        samples = inputs.get("data", lambda: _samples(spec, settings, target, rules, allow_python))
        metrics = inputs.get("metric", lambda: _metrics(name, settings, allow_python))
        agreement = _agreement(rules)
        if samples is None:
            lacking["data"] = "the data cannot be read"
        if metrics is None:
            lacking["data"] = "the metric cannot be used"
            samples = None
    subject = Subject(
        artifact,
        rules,
        dense,
        samples,
        metrics or [],
        agreement,
        lacking,
        provider=provider or settings.validation.provider,
        threads=threads or settings.validation.threads,
        batch_size=settings.validation.batch_size,
        shapes={**settings.validation.shapes, **(shapes or {})},
    )
    checks = [*inputs.errors, *run_checks(subject, on_check)]
    return GateResult(str(model), label, checks, artifact.sha256)


class _Inputs:
    """Reads what checks need, and keeps what is wrong with it."""

    def __init__(self) -> None:
        self.errors: list[CheckResult] = []

    def get(self, name: str, read_it: Callable[[], T]) -> T | None:
        """What was read; None if that ended in an error."""
        try:
            return read_it()
        except OnnxpruneError as error:
            self.errors.append(failed_with(name, error))
            return None


def _policy(source: Source | Policy) -> Policy:
    return source if isinstance(source, Policy) else Policy.from_toml(source)


def _recipe(source: Source | Recipe | None) -> Recipe:
    if source is None or isinstance(source, Recipe):
        return source or Recipe()
    return Recipe.from_toml(source)


def _metrics(name: str | None, recipe: Recipe, allow_python: bool) -> list[TaskMetric]:
    """The metric of `[accuracy]`, if it is none of class scores."""
    specs = [] if name is None or name in _OF_CLASSES else [name]
    return make_metrics(specs, blank=recipe.finetune.ctc_blank, allow_python=allow_python)


def _agreement(rules: Policy) -> DetectionAgreement | None:
    """How `[agreement]` compares detectors."""
    if rules.detector_metric is None or rules.agreement is None:
        return None
    conf = TARGET_CONF if rules.agreement.conf is None else rules.agreement.conf
    return DetectionAgreement(average_precision_of(rules.detector_metric), conf)


def _samples(
    spec: str, recipe: Recipe, model: OnnxModel, rules: Policy, allow_python: bool
) -> Samples:
    metric = rules.accuracy.metric if rules.accuracy is not None else rules.detector_metric
    of_classes = metric is None or metric in _OF_CLASSES
    needs_targets = rules.accuracy is not None and is_built_in(rules.accuracy.metric)
    return open_data(
        spec,
        inputs=model.inputs,
        preprocess=recipe.preprocess,
        classes=recipe.data.classes,
        num_classes=model.class_count if of_classes else None,
        allow_python=allow_python,
        targets="class" if of_classes else "array" if needs_targets else "either",
        padding=make_padding(recipe.data, model.inputs),
    )
