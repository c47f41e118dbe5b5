"""Losses: on labels, and distillation from the dense model's outputs.

Sources: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531
(`kl`); Ba and Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184 (`mse` on logits).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import DataError
from onnxprune.recipe import DistillTable

_TINY = 1e-30


@dataclass(frozen=True)
class Objective:
    """The loss that a run minimises.

    Attributes:
        output: Name of the graph output that holds class scores.
        activations: Output name -> `softmax`, `log_softmax`, `sigmoid` or None, as the graph ends.
        labelled: Whether there are labels.
        distill: Temperature, kind of loss and weight of distillation.
        label_smoothing: In [0, 1).
    """

    output: str
    activations: Mapping[str, str | None]
    labelled: bool
    distill: DistillTable
    label_smoothing: float = 0.0

    @property
    def distill_weight(self) -> float:
        """Share of the distillation loss, in [0, 1]."""
        if not self.labelled:
            return 1.0
        return 0.5 if self.distill.weight is None else self.distill.weight

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        labels: Tensor | None,
        teacher: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            outputs: Graph outputs by name.
            labels: Class indices of shape `(batch,)`, with labels.
            teacher: The dense model's outputs by name, with distillation.
        """
        loss = torch.zeros((), device=outputs[self.output].device)
        weight = self.distill_weight
        if labels is not None and weight < 1:
            loss = loss + (1 - weight) * self.task_loss(outputs[self.output], labels)
        if teacher is not None and weight > 0:
            loss = loss + weight * self.distillation_loss(outputs, teacher)
        return loss

    def task_loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with labels.

        Args:
            output: `(batch, classes)` scores, or `(batch, 1)` for two classes; logits or, where
                the graph ends so, probabilities. Further axes must have length 1.
            labels: `(batch,)` class indices.
        """
        scores = self.log_scores(self.output, class_scores(output))
        if scores.shape[1] == 1:
            return functional.binary_cross_entropy_with_logits(
                scores.squeeze(1), labels.to(scores.dtype)
            )
        return functional.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)

    def distillation_loss(
        self, outputs: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> Tensor:
        """Mean over the compared outputs of how far they are from the dense model's."""
        losses = [
            self._distance(name, outputs[name].float(), teacher[name].float()) for name in teacher
        ]
        return torch.stack(losses).mean()

    def _distance(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        kind = self.distill.loss
        if kind == "auto":
            scores = name == self.output and self.labelled and teacher.ndim == 2
            soft = self.activations.get(name) in ("softmax", "log_softmax") or scores
            kind = "kl" if soft and teacher.shape[-1] > 1 else "mse"
        if kind == "cosine":
            flat = (student.flatten(1), teacher.flatten(1))
            return (1 - functional.cosine_similarity(*flat, dim=1)).mean()
        if kind == "mse":
            return functional.mse_loss(student, teacher) / teacher.var().clamp_min(1e-12)
        temperature = self.distill.temperature
        log_p = (self.log_scores(name, student) / temperature).log_softmax(dim=-1)
        log_q = (self.log_scores(name, teacher) / temperature).log_softmax(dim=-1)
        divergence = functional.kl_div(log_p, log_q, reduction="none", log_target=True)
        return divergence.sum(dim=-1).mean() * temperature**2

    def log_scores(self, name: str, output: Tensor) -> Tensor:
        """An output as logits, whatever the graph ends with; the shape stays."""
        output = output.float()
        activation = self.activations.get(name)
        if activation == "softmax":
            return output.clamp_min(_TINY).log()
        if activation == "sigmoid":
            return torch.logit(output, eps=1e-7)
        return output


def class_scores(output: Tensor) -> Tensor:
    """`(batch, classes)` scores from an output with further axes of length 1.

    Raises:
        DataError: The output holds something else.
    """
    if output.ndim == 1:
        return output.unsqueeze(1)
    if output.numel() == output.shape[0] * output.shape[1]:
        return output.reshape(output.shape[0], output.shape[1])
    raise DataError(
        "labels need an output with one score a class",
        got=f"shape {tuple(output.shape)}",
        expected="(batch, classes)",
        remedy="use data without labels, so that the dense model is distilled",
    )


def accuracy_metrics(
    outputs: Mapping[str, Tensor],
    labels: Tensor | None,
    teacher: Mapping[str, Tensor] | None,
    objective: Objective,
) -> dict[str, float]:
    """Sums over a batch: `correct` (labels), `agree` (with the dense model) and `loss`."""
    sums = {"loss": float(objective(outputs, labels, teacher)) * len(outputs[objective.output])}
    output = outputs[objective.output]
    if labels is not None:
        sums["correct"] = float((_predicted(objective, output) == labels).sum())
    if teacher is not None and objective.output in teacher and output.ndim == 2:
        expected = _predicted(objective, teacher[objective.output])
        sums["agree"] = float((_predicted(objective, output) == expected).sum())
    return sums


def _predicted(objective: Objective, output: Tensor) -> Tensor:
    scores = class_scores(output)
    if scores.shape[1] > 1:
        return scores.argmax(dim=1)
    return (objective.log_scores(objective.output, scores).squeeze(1) > 0).long()
