"""The loss that a run minimises, and what is measured beside it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxprune.finetune.batch import Batch
from onnxprune.finetune.losses.classes import CrossEntropy
from onnxprune.finetune.losses.distillation import Distillation
from onnxprune.finetune.losses.ending import PLAIN
from onnxprune.finetune.losses.python import PythonLoss
from onnxprune.finetune.losses.task import TaskLoss


@dataclass(frozen=True)
class Objective:
    """A task loss and distillation, weighted.

    Attributes:
        output: Name of the graph output that the task is about.
        task: The loss on targets; None where there are none.
        distillation: The distance from the dense model.
        learns_task: Whether the task is learnt; False where only evaluation data have targets.
    """

    output: str
    task: TaskLoss | None
    distillation: Distillation
    learns_task: bool = True

    @property
    def distill_weight(self) -> float:
        """Share of the distillation loss, in [0, 1]."""
        if self.task is None or not self.learns_task:
            return 1.0
        weight = self.distillation.settings.weight
        return 0.5 if weight is None else weight

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        teacher: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            outputs: Graph outputs, and inner tensors that are distilled, by name.
            batch: The samples behind them, on the same device.
            teacher: The dense model's values by name, with distillation.
        """
        loss = torch.zeros((), device=outputs[self.output].device)
        weight, task = self.distill_weight, self.task_for(batch)
        if task is not None and weight < 1:
            loss = loss + (1 - weight) * task(outputs, batch)
        if teacher is not None and weight > 0:
            loss = loss + weight * self.distillation(outputs, teacher, batch.inputs)
        return loss

    def task_for(self, batch: Batch) -> TaskLoss | None:
        """The task's loss if a batch has what it needs; a user's loss may do without targets."""
        has_targets = batch.labels is not None or isinstance(self.task, PythonLoss)
        return self.task if has_targets else None


def accuracy_metrics(
    outputs: Mapping[str, Tensor],
    batch: Batch,
    teacher: Mapping[str, Tensor] | None,
    objective: Objective,
) -> dict[str, float]:
    """Sums over the samples of a batch, by the name of the metric.

    `loss` is the objective where classes are learnt and without targets, and the task's loss for
    other tasks. `top1` or `accuracy` are the task's. `agreement` counts the samples for which the
    dense model finds the same class.
    """
    task, output = objective.task_for(batch), outputs[objective.output]
    sums = {} if task is None else task.metrics(outputs, batch)
    one_class = "top1" in sums or objective.task is None
    if task is None or one_class:
        sums["loss"] = float(objective(outputs, batch, teacher)) * len(batch)
    else:
        sums["loss"] = float(task(outputs, batch)) * len(batch)
    if one_class and teacher is not None and objective.output in teacher and output.ndim == 2:
        classes = CrossEntropy(
            objective.output, objective.distillation.endings.get(objective.output, PLAIN)
        )
        expected = classes.predicted(teacher[objective.output])
        sums["agreement"] = float((classes.predicted(output) == expected).sum())
    return sums
