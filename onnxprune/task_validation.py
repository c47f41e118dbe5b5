"""Tasks other than telling classes apart, measured under ONNX Runtime at the end of a run."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from onnxprune.calibration import Samples
from onnxprune.dense_outputs import fixed_batch
from onnxprune.finetune import ArrayTeacher, BatchSource, Objective
from onnxprune.model import OnnxModel
from onnxprune.validate import open_session
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
        `cosine`, `sqnr_db` and `max_abs_error` of the output that the loss reads, against the
        first's.
    """
    runs = []
    for model in models:
        session = open_session(model, provider, threads)
        names = [spec.name for spec in session.outputs]
        runs.append(ArrayTeacher(session.run, names, fixed_batch(session)))
    sums: list[dict[str, float]] = [{} for _ in runs]
    meters = [FidelityMeter() for _ in runs]
    done = 0
    for batch in BatchSource(samples, fixed_batch(models[0]) or batch_size).in_order():
        results = [run(batch) for run in runs]
        task = objective.task_for(batch)
        for outputs, total, meter in zip(results, sums, meters, strict=True):
            if task is not None:
                with torch.no_grad():
                    found = task.metrics(outputs, batch)
                    found["loss"] = float(task(outputs, batch)) * len(batch)
                for name, value in found.items():
                    total[name] = total.get(name, 0.0) + value
            meter.add(outputs[objective.output].numpy(), results[0][objective.output].numpy())
        done += len(batch)
        on_progress(done, len(samples))
    metrics: list[dict[str, Any]] = [
        {name: value / done for name, value in total.items()} for total in sums
    ]
    for values, meter in zip(metrics[1:], meters[1:], strict=True):
        values |= meter.metrics()
    return [
        {name: value if math.isfinite(value) else None for name, value in values.items()}
        for values in metrics
    ]
