"""Accuracy under ONNX Runtime, and how close models stay to the first of them.

All models see the same batches in one pass over the data. Of each only sums and one entry a sample
are kept, so the size of the data set does not matter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from onnxprune.errors import DataError, UsageError
from onnxprune.validate.batches import SamplesLike, batch_outputs, batches, calls
from onnxprune.validate.detection_agreement import DetectionAgreement
from onnxprune.validate.detections import Detections
from onnxprune.validate.difference import PairedDifference, paired_differences
from onnxprune.validate.metrics import ClassMeter, FidelityMeter, class_scores
from onnxprune.validate.session import ModelSource, Session, open_session
from onnxprune.validate.task_metrics import TaskMetric


@dataclass(frozen=True, eq=False)
class ModelAccuracy:
    """What was measured of one model.

    Attributes:
        path: The model.
        metrics: Metric name -> value; see `evaluate`.
        predictions: Predicted class of each sample, `(samples,)`, -1 where an output is not finite;
            None where the first output is no class scores.
        correct: Whether that is the label, `(samples,)`; None without labels.
        ranks: Number of classes ranked before the label, `(samples,)`; None without labels.
        losses: Cross-entropy of each sample, `(samples,)`; None without labels.
        outputs: First output of every sample, `(samples, ...)`, if they were to be kept.
        rows: Task metric -> what each sample adds to it; see `TaskMetric`.
    """

    path: str
    metrics: dict[str, float]
    predictions: np.ndarray | None = field(default=None, repr=False)
    correct: np.ndarray | None = field(default=None, repr=False)
    ranks: np.ndarray | None = field(default=None, repr=False)
    losses: np.ndarray | None = field(default=None, repr=False)
    outputs: np.ndarray | None = field(default=None, repr=False)
    rows: list[tuple[TaskMetric, np.ndarray]] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` measured; the first model is the reference of the others."""

    samples: int
    models: list[ModelAccuracy]

    def differences(self, index: int) -> dict[str, PairedDifference]:
        """Metrics of a model against the first model's on the same samples; none of the first."""
        return paired_differences(self.models[0], self.models[index]) if index else {}

    def to_json(self) -> dict[str, Any]:
        """The object that `evaluate --json` prints; a value that is not finite becomes null."""
        return {
            "samples": self.samples,
            "models": [
                {
                    "path": model.path,
                    "metrics": {
                        name: value if math.isfinite(value) else None
                        for name, value in model.metrics.items()
                    },
                    "against_first": {
                        name: asdict(found) for name, found in self.differences(index).items()
                    },
                }
                for index, model in enumerate(self.models)
            ],
        }


def evaluate(
    models: Sequence[ModelSource],
    samples: SamplesLike,
    *,
    batch_size: int = 32,
    provider: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    keep_outputs: bool = False,
    metrics: Sequence[TaskMetric] = (),
    agreement: DetectionAgreement | None = None,
) -> EvaluationResult:
    """Measure models on the same samples, by their first output.

    Metrics of class scores, an output `(N, C)` or `(N, C, 1, ...)`, as probabilities or logits
    (`(N, 1)` and `(N,)` are one score for the second of two classes):

    - `top1`, and `top5` above 5 classes: share of samples in [0, 1], with labels;
    - `loss`: mean cross-entropy in nats, with labels;
    - `agreement`: share of samples whose class is the first model's.

    Of every model but the first, against the first model's output:

    - `cosine`: mean over samples of the cosine of the flattened outputs, in [-1, 1];
    - `sqnr_db`: 10 log10(sum of squares of the reference / sum of squared differences), at most
      `metrics.SQNR_CAP_DB`;
    - `mean_abs_error`: mean difference of a value, without its sign;
    - `max_abs_error`: largest difference of a single value.

    `non_finite`, the share of samples whose output holds NaN or infinity, appears where it is above
    0; such a sample counts as wrong, and as agreeing with nothing.

    None of these is measured of detectors, whose outputs differ in the number and order of boxes.
    Their `agreement` is the average precision where boxes of the first model are the targets, see
    `DetectionAgreement`.

    Args:
        models: One or more; the first is the reference.
        samples: At least one.
        batch_size: Samples a call. A model with a fixed batch size runs at that one; the last batch
            is padded and the padding's outputs are dropped.
        provider: Execution provider; None is the CPU.
        threads: Threads within an operator; None leaves it to ONNX Runtime.
        on_progress: Called with (samples done, samples in all) after each batch.
        keep_outputs: Keep every model's first output.
        metrics: What is measured beside these, each under its own name. With any, labels of outputs
            that are no class scores are left to them.
        agreement: How detectors are compared; None takes what the first of `metrics` for detectors
            asks for. With one, models are taken for detectors even without such a metric.

    Raises:
        UsageError: The models differ in inputs or in the shape of their output.
        DataError: No samples, or labels that do not fit the output.
        ModelError: A model cannot be loaded or run.
    """
    if not models:
        raise UsageError("there is no model to evaluate")
    if batch_size < 1:
        raise UsageError("the batch size must be at least 1", got=batch_size)
    if not len(samples):
        raise DataError("there are no samples to evaluate on")
    sessions = [open_session(model, provider, threads) for model in models]
    check_same_inputs(sessions)
    meters = [_Meter(session.label, keep_outputs, metrics) for session in sessions]
    agreement = agreement or DetectionAgreement.beside(metrics)
    whole_calls = agreement is not None or any(metric.whole_calls for metric in metrics)
    done = 0
    for feeds, targets in batches(samples, batch_size):
        if whole_calls:
            _add_calls(sessions, meters, feeds, targets, agreement)
        else:
            _add_outputs(sessions, meters, feeds, targets)
        done += _count(feeds)
        if on_progress is not None:
            on_progress(done, len(samples))
    return EvaluationResult(done, [meter.result(meters[0], agreement) for meter in meters])


def _count(feeds: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(feeds.values())))


def _add_outputs(
    sessions: Sequence[Session],
    meters: Sequence["_Meter"],
    feeds: Mapping[str, np.ndarray],
    targets: np.ndarray | None,
) -> None:
    """Run all models on a batch, and compare their outputs with the first one's."""
    reference: np.ndarray | None = None
    for session, meter in zip(sessions, meters, strict=True):
        outputs = batch_outputs(session, feeds, _count(feeds), all_of_them=bool(meter.metrics))
        output = next(iter(outputs.values()))
        meter.add(output, targets if targets is not None and targets.ndim == 1 else None)
        meter.add_rows(outputs, targets)
        if reference is None:
            reference = output
        else:
            meter.compare(output, reference, meters[0].label)


def _add_calls(
    sessions: Sequence[Session],
    meters: Sequence["_Meter"],
    feeds: Mapping[str, np.ndarray],
    targets: np.ndarray | None,
    agreement: DetectionAgreement | None,
) -> None:
    """Run all models on a batch, and compare the boxes of detectors with the first one's."""
    reference: list[Detections] | None = None
    for session, meter in zip(sessions, meters, strict=True):
        found: list[Detections] = []
        for rows, outputs in calls(session, feeds, _count(feeds)):
            meter.add_rows(outputs, None if targets is None else targets[rows])
            if agreement is not None and len(sessions) > 1:
                found += agreement.precision.outputs.read(outputs, rows.stop - rows.start)
        if reference is None:
            reference = found
        elif agreement is not None:
            meter.agreeing.append(agreement.rows(found, reference))


def check_same_inputs(sessions: Sequence[Session]) -> None:
    """Require that all models take the same inputs.

    Raises:
        UsageError: One has other input names than the first.
    """
    wanted = {spec.name for spec in sessions[0].inputs}
    for session in sessions[1:]:
        names = {spec.name for spec in session.inputs}
        if names != wanted:
            raise UsageError(
                "the models differ in their inputs and cannot be compared",
                where=session.label,
                got=", ".join(sorted(names)),
                expected=f"{', '.join(sorted(wanted))}, as in {sessions[0].label}",
            )


class _Meter:
    """All that is kept of one model."""

    def __init__(self, label: str, keep_outputs: bool, metrics: Sequence[TaskMetric]) -> None:
        self.label = label
        self.metrics = metrics
        self._rows: list[list[np.ndarray]] = [[] for _ in metrics]
        self.classes = ClassMeter()
        self.fidelity: FidelityMeter | None = None
        self.agreeing: list[np.ndarray] = []
        self._kept: list[np.ndarray] | None = [] if keep_outputs else None
        self._non_finite = 0
        self._count = 0

    def add(self, output: np.ndarray, labels: np.ndarray | None) -> None:
        """Add one batch of the first output."""
        self._count += len(output)
        if output.dtype.kind == "f":
            finite = np.isfinite(output).reshape(len(output), -1).all(axis=1)
            self._non_finite += int((~finite).sum())
        if self._kept is not None:
            self._kept.append(output)
        scores = class_scores(output)
        if labels is not None and scores is None and self.metrics:
            labels = None
        if labels is not None:
            self._check_labels(output, scores, labels)
        if scores is not None:
            self.classes.add(scores, labels)

    def add_rows(self, outputs: Mapping[str, np.ndarray], targets: np.ndarray | None) -> None:
        """Add what each sample of a batch adds to the task metrics."""
        for metric, rows in zip(self.metrics, self._rows, strict=True):
            rows.append(metric.rows(outputs, targets))

    def _check_labels(
        self, output: np.ndarray, scores: np.ndarray | None, labels: np.ndarray
    ) -> None:
        if scores is None:
            raise DataError(
                "the data have labels, but the model's first output is no class scores",
                where=self.label,
                got=f"{output.dtype.name}{list(output.shape)}",
                expected="float [samples, classes]",
                remedy="give data without labels to compare outputs with the first model's",
            )
        classes = max(scores.shape[1], 2)
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                "a label is out of range",
                where=self.label,
                got=f"labels from {labels.min()} to {labels.max()}",
                expected=f"0 to {classes - 1}",
            )

    def compare(self, output: np.ndarray, reference: np.ndarray, reference_label: str) -> None:
        """Add one batch of the first output and of the reference's."""
        if output.shape != reference.shape:
            raise UsageError(
                "the models differ in the shape of their first output and cannot be compared",
                where=self.label,
                got=output.shape,
                expected=f"{reference.shape}, as in {reference_label}",
            )
        self.fidelity = self.fidelity or FidelityMeter()
        self.fidelity.add(output, reference)

    def result(self, reference: "_Meter", agreement: DetectionAgreement | None) -> ModelAccuracy:
        """Everything measured, after the last batch."""
        self.classes.finish()
        metrics = self.classes.metrics()
        predictions = self.classes.predictions
        theirs = reference.classes.predictions
        if self.fidelity is not None:
            if predictions is not None and theirs is not None:
                agreeing = (predictions == theirs) & (predictions >= 0)
                metrics["agreement"] = float(agreeing.mean())
            metrics |= self.fidelity.metrics()
        rows = [np.concatenate(parts) for parts in self._rows]
        measured = list(zip(self.metrics, rows, strict=True))
        for metric, own in measured:
            metrics[metric.name] = metric.weighing(own).once(len(own))
        if agreement is not None and self.agreeing:
            metrics["agreement"] = agreement.value(np.concatenate(self.agreeing))
        if self._non_finite:
            metrics["non_finite"] = self._non_finite / self._count
        return ModelAccuracy(
            self.label,
            metrics,
            predictions=predictions,
            correct=self.classes.correct,
            ranks=self.classes.ranks,
            losses=self.classes.losses,
            outputs=self._all_outputs(),
            rows=measured,
        )

    def _all_outputs(self) -> np.ndarray | None:
        if not self._kept:
            return None
        shapes = {part.shape[1:] for part in self._kept}
        if len(shapes) > 1:
            raise UsageError(
                "outputs of different shapes cannot be kept together",
                where=self.label,
                got=", ".join(map(str, sorted(shapes))),
            )
        return np.concatenate(self._kept)
