"""Metrics on evaluation batches, on the way through a run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onnxprune.finetune.batch import Batch
from onnxprune.finetune.losses import Objective, accuracy_metrics
from onnxprune.finetune.step import Stepper
from onnxprune.finetune.teachers import Teacher


@dataclass(frozen=True)
class Measurement:
    """Measures a model as it is trained: the same outputs, precision and size of pieces.

    Attributes:
        stepper: Runs the model.
        objective: Says what its outputs mean.
        teacher: The dense model's outputs on evaluation batches; None without distillation.
    """

    stepper: Stepper
    objective: Objective
    teacher: Teacher | None

    def means(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Metric name -> mean over samples; the model is left in evaluation mode."""
        sums: dict[str, float] = {}
        count = 0
        model.eval()
        with torch.no_grad(), self.stepper.accelerator.autocast():
            for batch in batches:
                _add(sums, self._sums(model, batch))
                count += len(batch)
        return {name: total / count for name, total in sums.items()}

    def _sums(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Sums of metrics over a batch."""
        batch = batch.to(self.stepper.accelerator.device)
        teacher = self.teacher
        wanted = None if teacher is None else self.stepper.teacher_outputs(teacher, batch)
        sums: dict[str, float] = {}
        for part, expected in _parts(batch, wanted, self.stepper.micro_batch):
            outputs = self.stepper.forward(model, part)
            _add(sums, accuracy_metrics(outputs, part, expected, self.objective))
        return sums


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def _parts(
    batch: Batch, teacher: Mapping[str, Tensor] | None, size: int | None
) -> Iterator[tuple[Batch, dict[str, Tensor] | None]]:
    size = size or len(batch)
    for number, part in enumerate(batch.split(size)):
        rows = slice(number * size, (number + 1) * size)
        expected = None if teacher is None else {n: t[rows] for n, t in teacher.items()}
        yield part, expected
