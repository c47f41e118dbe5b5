"""Cross-entropy with class labels, one a sample or one a position."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.errors import DataError
from onnxprune.finetune.batch import Batch
from onnxprune.finetune.losses.ending import PLAIN, Ending
from onnxprune.finetune.losses.task import described, misfit, targets

_NAME = "cross-entropy"
_IGNORED = -100
_REMEDY = (
    "set [finetune] loss to what the targets are, or loss_output to the output that holds class "
    "scores; data without labels distil the dense model"
)


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy, with label smoothing as in Szegedy et al. (arXiv 1512.00567, section 7).

    With one label a sample, the output is `(batch, classes)`, or `(batch, 1)` for two classes, and
    further axes have length 1. With a label for each position, `(batch, positions...)`, the output
    has one axis more, that of the classes; negative labels are ignored, and the mean is over the
    others. Targets may be shorter than the positions: what they leave out is ignored.

    Attributes:
        output: Name of the output that is read.
        ending: How it ends.
        smoothing: Share of the target that is spread over all classes, in [0, 1).
        axis: Axis of the classes where there is a label for each position.
    """

    output: str
    ending: Ending = PLAIN
    smoothing: float = 0.0
    axis: int = -1

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The mean over samples, or over the positions that count."""
        labels = targets(batch, _NAME)
        if labels.ndim > 1:
            scores, labels = self._positions(outputs[self.output], labels)
            total = functional.cross_entropy(
                scores, labels, reduction="sum", label_smoothing=self.smoothing
            )
            return total / (labels != _IGNORED).sum().clamp_min(1)
        scores = self.ending.log_scores(class_scores(outputs[self.output]))
        if scores.shape[1] == 1:
            wanted = labels.to(scores.dtype) * (1 - self.smoothing) + self.smoothing / 2
            return functional.binary_cross_entropy_with_logits(scores.squeeze(1), wanted)
        return functional.cross_entropy(scores, labels, label_smoothing=self.smoothing)

    def check(self, outputs: Mapping[str, Tensor], batch: Batch) -> None:
        """See `TaskLoss.check`."""
        labels, output = targets(batch, _NAME), outputs[self.output]
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        if not output.is_floating_point() or not whole or labels.ndim not in (1, output.ndim - 1):
            raise misfit(
                _NAME,
                self.output,
                described(output, labels),
                "float scores and whole numbers: (batch, classes) with (batch,), or an axis of "
                "classes more than the targets have",
                _REMEDY,
            )
        classes = output.shape[self.axis]
        if labels.ndim == 1:
            classes = max(class_scores(output).shape[1], 2)
        elif not self._fits(output, labels):
            raise misfit(
                _NAME,
                self.output,
                f"{described(output, labels)}, with the classes on axis {self.axis}",
                "targets of the output's shape without the axis of the classes",
                "pad inputs and targets to the same lengths",
            )
        if labels.numel() and int(labels.max()) >= classes:
            raise misfit(
                _NAME,
                self.output,
                f"a label of {int(labels.max())}",
                f"labels of 0 to {classes - 1}",
                "check the order of the classes, and that the model is the one for these data",
            )

    def metrics(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
        """`top1`, or `accuracy`: the share of a sample's positions."""
        labels = targets(batch, _NAME)
        if labels.ndim == 1:
            return {"top1": float((self.predicted(outputs[self.output]) == labels).sum())}
        scores, labels = self._positions(outputs[self.output], labels)
        counted = (labels != _IGNORED).flatten(1)
        right = (scores.argmax(dim=1) == labels).flatten(1) & counted
        return {"accuracy": float((right.sum(1) / counted.sum(1).clamp_min(1)).sum())}

    def predicted(self, output: Tensor) -> Tensor:
        """The class of each sample, `(batch,)`, of an output with one score a class."""
        scores = class_scores(output)
        if scores.shape[1] > 1:
            return scores.argmax(dim=1)
        return (self.ending.log_scores(scores).squeeze(1) > 0).long()

    def _positions(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """`(batch, classes, positions...)` logits, and labels of the same positions."""
        scores = self.ending.log_scores(output).movedim(self.axis, 1)
        labels = labels.masked_fill(labels < 0, _IGNORED)
        room = [
            side
            for size, wanted in zip(
                reversed(labels.shape), reversed(_without(scores, 1)), strict=True
            )
            for side in (0, wanted - size)
        ]
        return scores, functional.pad(labels, room, value=_IGNORED) if any(room) else labels

    def _fits(self, output: Tensor, labels: Tensor) -> bool:
        shape = _without(output, self.axis)
        return labels.shape[0] == shape[0] and all(
            size <= room for size, room in zip(labels.shape, shape, strict=True)
        )


def class_axis(output: Tensor, labels: Tensor, ending: Ending) -> int:
    """The axis of the classes of an output with a label for each position, from 0.

    It is that of the softmax at the end; else the one without which the output has the shape of
    the targets. Where the shapes leave that open, it is the last of three axes, as in sequence
    models, and the second of more, as in PyTorch's maps of class scores.
    """
    if ending.is_softmax and ending.axis is not None:
        return ending.axis
    last = output.ndim - 1
    fitting = [axis for axis in {1, last} if _without(output, axis) == tuple(labels.shape)]
    if len(fitting) == 1:
        return fitting[0]
    return last if output.ndim <= 3 else 1


def class_scores(output: Tensor) -> Tensor:
    """`(batch, classes)` scores from an output with further axes of length 1.

    Raises:
        DataError: The output holds something else.
    """
    if output.ndim == 1:
        return output.unsqueeze(1)
    if output.ndim and output.numel() == output.shape[0] * output.shape[1]:
        return output.reshape(output.shape[0], output.shape[1])
    raise DataError(
        "labels need an output with one score a class",
        got=f"shape {tuple(output.shape)}",
        expected="(batch, classes)",
        remedy=_REMEDY,
    )


def _without(tensor: Tensor, axis: int) -> tuple[int, ...]:
    """A shape without one of its axes."""
    sizes = list(tensor.shape)
    del sizes[axis]
    return tuple(sizes)
