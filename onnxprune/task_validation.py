"""Tasks other than telling classes apart, measured under ONNX Runtime at the end of a run."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from onnxprune.calibration import Samples
from onnxprune.dense_outputs import fixed_batch
from onnxprune.finetune import ArrayTeacher, Batch, BatchSource, Objective
from onnxprune.model import OnnxModel
from onnxprune.validate import Session, open_session
from onnxprune.validate.metrics import FidelityMeter


def evaluate_task(
    models: Sequence[OnnxModel],
    samples: Samples,
    objective: Objective,
    *,
    batch_size: int,
    provider: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, float | None]]:
    """Measure models by the loss that one of them was trained with.

    Args:
        models: The dense model first, with the outputs that the loss reads.
        samples: At least one.
        objective: What was minimised; its task's loss and metrics are taken, not its distillation.
        batch_size: Samples a call, unless the model's inputs fix it.
        provider: Execution provider; None is the CPU.
        threads: Threads within an operator; None leaves it to ONNX Runtime.
        on_progress: Called with (samples done, samples in all) after each batch.

    Returns:
        For each model metric name -> value, None where that is not finite: with targets, `loss` and
        what the task measures beside it (`top1` for one class a sample, `accuracy` for several
        labels a sample, each at 0.5, or a class for each position); for every model but the first,
        `cosine`, `sqnr_db`, `mean_abs_error` and `max_abs_error` of the output that the loss reads,
        against the first's.
    """
    meters = [
        _Meter(open_session(model, provider, threads), objective, is_reference=index == 0)
        for index, model in enumerate(models)
    ]
    done = 0
    for batch in BatchSource(samples, fixed_batch(models[0]) or batch_size).in_order():
        reference: Tensor | None = None
        for meter in meters:
            reference = meter.add(batch, reference)
        done += len(batch)
        on_progress(done, len(samples))
    return [meter.metrics() for meter in meters]


class _Meter:
    """Sums over the samples that one model has seen."""

    def __init__(self, session: Session, objective: Objective, *, is_reference: bool) -> None:
        names = [spec.name for spec in session.outputs]
        self.run = ArrayTeacher(session.run, names, fixed_batch(session))
        self.objective = objective
        self.sums: dict[str, float] = {}
        self.count = 0
        self.fidelity = None if is_reference else FidelityMeter()

    def add(self, batch: Batch, reference: Tensor | None) -> Tensor:
        """Run on a batch; returns what it, or for another model the reference, gives."""
        outputs = self.run(batch)
        self.count += len(batch)
        task = self.objective.task_for(batch)
        if task is not None:
            with torch.no_grad():
                found = task.metrics(outputs, batch)
                found["loss"] = float(task(outputs, batch)) * len(batch)
            for name, value in found.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        output = outputs[self.objective.output]
        if self.fidelity is None or reference is None:
            return output
        self.fidelity.add(output.numpy(), reference.numpy())
        return reference

    def metrics(self) -> dict[str, float | None]:
        """Means over the samples, None where they are not finite."""
        values = {name: total / self.count for name, total in self.sums.items()}
        if self.fidelity is not None:
            values |= self.fidelity.metrics()
        return {name: value if math.isfinite(value) else None for name, value in values.items()}
