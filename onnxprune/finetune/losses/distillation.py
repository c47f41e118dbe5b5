"""How far outputs and inner values are from the dense model's.

Sources: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531
(`kl`); Ba and Caruana, "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184 (`mse` on logits);
Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550 (inner values).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import UnsupportedModelError
from onnxprune.finetune.losses.ending import PLAIN, Ending
from onnxprune.recipe import DistillTable

_SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Distillation:
    """The distance of a model from the dense one on the same inputs.

    It is the mean over the compared outputs, plus each named inner tensor's distance times its
    weight. Where an input marks padded positions, those are left out of the tensors in `masked`.

    Attributes:
        settings: The recipe's `[distill]`.
        outputs: Names of the graph outputs that are compared.
        endings: How outputs end.
        class_output: The output that holds class scores; its two-axis values are compared as
            probabilities.
        scores: Further outputs that hold, or look like, class scores; their two-axis values are
            compared as probabilities and as values.
        masked: Names of the tensors whose first axes are those of the mask.
    """

    settings: DistillTable
    outputs: tuple[str, ...]
    endings: Mapping[str, Ending] = field(default_factory=dict)
    class_output: str | None = None
    scores: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors that are compared: outputs and inner ones."""
        return tuple(dict.fromkeys([*self.outputs, *self.settings.features]))

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
    ) -> Tensor:
        """The distance of a batch, a scalar.

        Args:
            outputs: Outputs and inner tensors by name.
            teacher: The dense model's.
            inputs: Graph inputs by name, for the mask.
        """
        mask = None
        if self.masked and self.settings.mask_input is not None:
            mask = inputs[self.settings.mask_input] != 0
        distances = {
            name: (
                outputs[name].float(),
                teacher[name].float(),
                mask if name in self.masked else None,
            )
            for name in self.names
        }
        parts = [self._output_distance(name, *distances[name]) for name in self.outputs]
        total = [torch.stack(parts).mean()] if parts else []
        for name, weight in self.settings.features.items():
            total.append(weight * distance(self.settings.feature_loss, *distances[name]))
        return torch.stack(total).sum()

    def kind(self, name: str, shape: torch.Size) -> str:
        """The distance that is used for an output: `kl`, `mse`, `kl+mse` or `cosine`.

        Raises:
            UnsupportedModelError: `kl` along an axis that is not known.
        """
        ending = self.endings.get(name, PLAIN)
        unknown = ending.is_softmax and ending.axis is None and len(shape) > 2
        if self.settings.loss == "auto":
            several = len(shape) == 2 and shape[1] > 1
            if ending.is_softmax and not unknown and shape[self._class_axis(name)] > 1:
                return "kl"
            if several and name == self.class_output:
                return "kl"
            return "kl+mse" if several and name in self.scores else "mse"
        if self.settings.loss in ("kl", "kl+mse") and unknown:
            raise UnsupportedModelError(
                "the axis of the softmax at the end of the graph is not known",
                where=f"output {name!r}, [distill] loss = {self.settings.loss!r}",
                got=f"shape {tuple(shape)}, of which no axis adds up to 1",
                expected="a softmax along one axis",
                remedy="set [distill] loss = 'mse', or leave the output out of [distill] outputs",
            )
        return self.settings.loss

    def _class_axis(self, name: str) -> int:
        """Axis of the classes: that of the softmax, else the last."""
        axis = self.endings.get(name, PLAIN).axis
        return -1 if axis is None else axis

    def _output_distance(
        self, name: str, student: Tensor, teacher: Tensor, mask: Tensor | None
    ) -> Tensor:
        kind = self.kind(name, teacher.shape)
        if kind == "kl":
            return self._divergence(name, student, teacher, mask)
        if kind == "kl+mse":
            divergence = self._divergence(name, student, teacher, mask)
            return divergence + distance("mse", student, teacher, mask)
        return distance(kind, student, teacher, mask)

    def _divergence(
        self, name: str, student: Tensor, teacher: Tensor, mask: Tensor | None
    ) -> Tensor:
        ending, axis = self.endings.get(name, PLAIN), self._class_axis(name)
        temperature = self.settings.temperature
        log_p = (ending.log_scores(student) / temperature).log_softmax(dim=axis)
        log_q = (ending.log_scores(teacher) / temperature).log_softmax(dim=axis)
        divergence = functional.kl_div(log_p, log_q, reduction="none", log_target=True)
        return _mean(divergence.sum(dim=axis), mask) * temperature**2


def distance(kind: str, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """A distance between values `(batch, ...)`, a scalar without unit.

    Args:
        kind: `mse`, the mean squared difference over the variance of the dense model's values in
            the batch; `mae`, the mean absolute difference over their standard deviation; `cosine`,
            1 - cosine of vectors, which are the last axis of `(batch, size)` and
            `(batch, positions, size)`, and all values of a sample with more axes.
        student: The pruned model's values.
        teacher: The dense model's.
        mask: True at the positions that count, of the shape of the first axes; None for all.
    """
    if kind == "cosine":
        if student.ndim != 3 and mask is None:
            student, teacher = (t.reshape(len(t), -1) for t in (student, teacher))
        return _mean(1 - functional.cosine_similarity(student, teacher, dim=-1), mask)
    variance = _variance(teacher, mask).clamp_min(_SMALLEST_VARIANCE)
    difference = student - teacher
    if kind == "mae":
        return _mean(difference.abs(), mask) / variance.sqrt()
    return _mean(difference.square(), mask) / variance


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over all values, or over the positions that count."""
    if mask is None:
        return values.mean()
    rows = values.reshape(*mask.shape, -1).mean(dim=-1)
    return (rows * mask).sum() / mask.sum().clamp_min(1)


def _variance(values: Tensor, mask: Tensor | None) -> Tensor:
    """The unbiased variance of the values that count; of a single one, its square."""
    if values.numel() == 1:
        return values.square().sum()
    if mask is None:
        return values.var()
    rows = values.reshape(*mask.shape, -1)
    count = (mask.sum() * rows.shape[-1]).clamp_min(2)
    mean = (rows * mask.unsqueeze(-1)).sum() / count
    return ((rows - mean).square() * mask.unsqueeze(-1)).sum() / (count - 1)
