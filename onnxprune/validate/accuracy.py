"""Accuracy under ONNX Runtime, and how close models stay to the first of them.

All models see the same batches in one pass over the data. Of each only sums and one entry a sample
are kept, so the size of the data set does not matter.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from onnxprune.errors import DataError, UnsupportedModelError, UsageError
from onnxprune.model import ValueSpec
from onnxprune.stacking import Padding, SampleLike, stack
from onnxprune.validate.difference import PairedDifference, paired_differences
from onnxprune.validate.metrics import ClassMeter, FidelityMeter, class_scores
from onnxprune.validate.session import ModelSource, Session, open_session
from onnxprune.validate.task_metrics import TaskMetric


class SamplesLike(Protocol):
    """A set of samples, such as `onnxprune.calibration.Samples`.

    If it has an attribute `padding`, that says which inputs are made from others.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> SampleLike: ...


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
    - `max_abs_error`: largest difference of a single value.

    `non_finite`, the share of samples whose output holds NaN or infinity, appears where it is above
    0; such a sample counts as wrong, and as agreeing with nothing.

    None of these is measured beside metrics that take whole calls, as those of detectors, whose
    outputs differ in the number and order of boxes.

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
    whole_calls = any(metric.whole_calls for metric in metrics)
    done = 0
    for feeds, targets in _batches(samples, batch_size):
        count = len(next(iter(feeds.values())))
        reference: np.ndarray | None = None
        for session, meter in zip(sessions, meters, strict=True):
            if whole_calls:
                for rows, outputs in calls(session, feeds, count):
                    meter.add_rows(outputs, None if targets is None else targets[rows])
                continue
            outputs = batch_outputs(session, feeds, count, all_of_them=bool(metrics))
            output = next(iter(outputs.values()))
            meter.add(output, targets if targets is not None and targets.ndim == 1 else None)
            meter.add_rows(outputs, targets)
            if reference is None:
                reference = output
            else:
                meter.compare(output, reference, meters[0].label)
        done += count
        if on_progress is not None:
            on_progress(done, len(samples))
    return EvaluationResult(done, [meter.result(meters[0]) for meter in meters])


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


def _batches(
    samples: SamplesLike, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None]]:
    """Batches of stacked inputs and targets; a new shape begins a new batch."""
    held: list[SampleLike] = []
    padding: Padding | None = getattr(samples, "padding", None)

    def stacked() -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        batch = stack(held, padding)
        return batch.inputs, batch.labels

    for index in range(len(samples)):
        sample = samples[index]
        if held and (len(held) == batch_size or _shapes(sample) != _shapes(held[0])):
            yield stacked()
            held = []
        held.append(sample)
    yield stacked()


def _shapes(sample: SampleLike) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.inputs.items()}


def batch_outputs(
    session: Session, feeds: Mapping[str, np.ndarray], count: int, *, all_of_them: bool
) -> dict[str, np.ndarray]:
    """Outputs of a batch of any size, also from a model with a fixed batch size.

    Args:
        session: The model.
        feeds: Input name -> `(count, ...)`; floats are converted to the model's own precision.
        count: Number of samples.
        all_of_them: All outputs with a batch axis, or the first one only.

    Returns:
        Output name -> `(count, ...)`, the first output first.

    Raises:
        UnsupportedModelError: The first output has no batch axis.
    """
    size = _fixed_batch(session) or count
    parts: dict[str, list[np.ndarray]] = {}
    for rows, outputs in calls(session, feeds, count):
        found = list(outputs.items())
        for index, (name, output) in enumerate(found if all_of_them else found[:1]):
            try:
                cut = _rows(output, rows.stop - rows.start, size, session)
                parts.setdefault(name, []).append(cut)
            except UnsupportedModelError:
                if index == 0:
                    raise
    return {
        name: own[0] if len(own) == 1 else np.concatenate(own)
        for name, own in parts.items()
        if sum(map(len, own)) == count
    }


def calls(
    session: Session, feeds: Mapping[str, np.ndarray], count: int
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """The rows and outputs of each call that a batch takes.

    A model with a fixed batch size runs at that one, and its last outputs have rows of padding.

    Args:
        session: The model.
        feeds: Input name -> `(count, ...)`; floats are converted to the model's own precision.
        count: Number of samples.
    """
    size = _fixed_batch(session) or count
    for start in range(0, count, size):
        rows = slice(start, min(start + size, count))
        piece = {spec.name: _feed(feeds[spec.name][rows], spec, size) for spec in session.inputs}
        yield rows, session.run(piece)


def _fixed_batch(session: Session) -> int | None:
    sizes = {spec.shape[0] for spec in session.inputs if spec.shape}
    fixed = {size for size in sizes if isinstance(size, int)}
    if len(fixed) > 1:
        raise UnsupportedModelError(
            "the inputs differ in their fixed batch size",
            where=session.label,
            got=", ".join(f"{spec.name} {spec.describe()}" for spec in session.inputs),
            expected="one size of the first axis of all inputs",
        )
    return fixed.pop() if fixed else None


def _feed(rows: np.ndarray, spec: ValueSpec, size: int) -> np.ndarray:
    """Rows for one call: padded with the last row to `size`; one value for a scalar input."""
    if spec.shape == ():
        if (rows != rows[0]).any():
            raise DataError(
                "a scalar input cannot differ within a batch",
                where=f"input {spec.name!r}",
                got=np.unique(rows),
                remedy="use a batch size of 1",
            )
        rows = rows[0]
    elif len(rows) < size:
        rows = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
    if spec.dtype is not None and rows.dtype != spec.dtype and rows.dtype.kind == "f":
        rows = rows.astype(spec.dtype)
    return rows


def _rows(output: Any, rows: int, size: int, session: Session) -> np.ndarray:
    name = session.outputs[0].name
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "biuf":
        raise UnsupportedModelError(
            "the first output is no tensor of numbers",
            where=f"{session.label}, output {name!r}",
            got=type(output).__name__,
        )
    if output.ndim and output.shape[0] == size:
        return output[:rows]
    if size == 1:
        return output[None]
    raise UnsupportedModelError(
        "the first output has no batch axis",
        where=f"{session.label}, output {name!r}",
        got=f"shape {output.shape} for {size} samples",
        expected=f"({size}, ...)",
        remedy="use a batch size of 1",
    )


class _Meter:
    """All that is kept of one model."""

    def __init__(self, label: str, keep_outputs: bool, metrics: Sequence[TaskMetric]) -> None:
        self.label = label
        self.metrics = metrics
        self._rows: list[list[np.ndarray]] = [[] for _ in metrics]
        self.classes = ClassMeter()
        self.fidelity: FidelityMeter | None = None
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

    def result(self, reference: "_Meter") -> ModelAccuracy:
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
